#include "losses/row_loss_cuda.h"
#include "losses/spherical_z_loss.h"

STABLE_TORCH_LIBRARY_IMPL(robustcore, CUDA, m) {
  using namespace robustcore;
  register_row_loss<RowLossCuda, SphericalZLoss>(m);
}
