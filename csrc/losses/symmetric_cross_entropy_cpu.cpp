#include "losses/row_loss_cpu.h"
#include "losses/symmetric_cross_entropy.h"

STABLE_TORCH_LIBRARY_IMPL(robustcore, CPU, m) {
  using namespace robustcore;
  register_row_loss<RowLossCpu, SymmetricCrossEntropy>(m);
}
