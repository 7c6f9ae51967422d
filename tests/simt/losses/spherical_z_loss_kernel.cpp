#include "losses/spherical_z_loss.h"

#include "row_loss_case.h"

namespace robustcore {

RC_SIMT_ROW_LOSS(spherical_z_loss, SphericalZLoss)

}  // namespace robustcore
