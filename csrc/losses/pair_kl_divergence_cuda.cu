#include "losses/pair_kl_divergence.h"
#include "losses/row_loss_cuda.h"

STABLE_TORCH_LIBRARY_IMPL(robustcore, CUDA, m) {
  using namespace robustcore;
  register_row_loss<RowLossCuda, PairKlDivergence>(m);
}
