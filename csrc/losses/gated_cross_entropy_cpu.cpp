#include "losses/gated_cross_entropy.h"
#include "losses/two_logits_cpu.h"

STABLE_TORCH_LIBRARY_IMPL(robustcore, CPU, m) {
  using namespace robustcore;
  register_two_logit_operators<TwoLogitCpu, GatedCrossEntropy>(m);
}
