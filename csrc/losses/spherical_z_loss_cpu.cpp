#include "losses/row_loss_cpu.h"
#include "losses/spherical_z_loss.h"

STABLE_TORCH_LIBRARY_IMPL(robustcore, CPU, m) {
  using namespace robustcore;
  register_row_loss<RowLossCpu, SphericalZLoss>(m);
}
