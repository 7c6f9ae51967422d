#include "losses/over_parameterized_loss.h"

#include "row_loss_case.h"

namespace robustcore {

RC_SIMT_ROW_LOSS(over_parameterized_loss, OverParameterizedLoss)

}  // namespace robustcore
