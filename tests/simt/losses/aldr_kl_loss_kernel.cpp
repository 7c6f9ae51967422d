#include "losses/ldr_kl_loss.h"
#include "row_loss_case.h"

namespace robustcore {

RC_SIMT_ROW_LOSS(aldr_kl_loss, AldrKlLoss)

RC_SIMT_CASE(aldr_kl_temperature) {
  row_loss_case::forward<AldrKlTemperature>(arguments);
}

}  // namespace robustcore
