#include "losses/comp_sum_loss.h"

#include "row_loss_case.h"

namespace robustcore {

RC_SIMT_ROW_LOSS(comp_sum_loss, CompSumLoss)

}  // namespace robustcore
