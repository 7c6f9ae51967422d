#include "losses/taylor_cross_entropy.h"

#include "row_loss_case.h"

namespace robustcore {

RC_SIMT_ROW_LOSS(taylor_cross_entropy, TaylorCrossEntropy)

}  // namespace robustcore
