#include "losses/smooth_adversarial_loss.h"

#include "row_loss_case.h"

namespace robustcore {

RC_SIMT_ROW_LOSS(smooth_adversarial_loss, SmoothAdversarialLoss)

}  // namespace robustcore
