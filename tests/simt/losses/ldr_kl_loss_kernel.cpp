#include "losses/ldr_kl_loss.h"

#include "row_loss_case.h"

namespace robustcore {

RC_SIMT_ROW_LOSS(ldr_kl_loss, LdrKlLoss)

}  // namespace robustcore
