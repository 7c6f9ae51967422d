#include "losses/row_loss_cuda.h"
#include "losses/symmetric_cross_entropy.h"

STABLE_TORCH_LIBRARY_IMPL(robustcore, CUDA, m) {
  using namespace robustcore;
  register_row_loss<RowLossCuda, SymmetricCrossEntropy>(m);
}
