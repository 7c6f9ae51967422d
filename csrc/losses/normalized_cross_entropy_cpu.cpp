#include "losses/normalized_cross_entropy.h"
#include "losses/row_loss_cpu.h"

STABLE_TORCH_LIBRARY_IMPL(robustcore, CPU, m) {
  using namespace robustcore;
  register_row_loss<RowLossCpu, NormalizedCrossEntropy>(m);
}
