#include "losses/normalized_cross_entropy.h"
#include "losses/row_loss_cuda.h"

STABLE_TORCH_LIBRARY_IMPL(robustcore, CUDA, m) {
  using namespace robustcore;
  register_row_loss<RowLossCuda, NormalizedCrossEntropy>(m);
}
