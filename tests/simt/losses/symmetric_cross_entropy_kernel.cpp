#include "losses/symmetric_cross_entropy.h"

#include "row_loss_case.h"

namespace robustcore {

RC_SIMT_ROW_LOSS(symmetric_cross_entropy, SymmetricCrossEntropy)

}  // namespace robustcore
