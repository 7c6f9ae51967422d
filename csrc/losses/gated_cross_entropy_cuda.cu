#include "losses/gated_cross_entropy.h"
#include "losses/two_logits_cuda.h"

STABLE_TORCH_LIBRARY_IMPL(robustcore, CUDA, m) {
  using namespace robustcore;
  register_two_logit_operators<TwoLogitCuda, GatedCrossEntropy>(m);
}
