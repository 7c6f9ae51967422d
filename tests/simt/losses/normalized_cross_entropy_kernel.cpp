#include "losses/normalized_cross_entropy.h"

#include "row_loss_case.h"

namespace robustcore {

RC_SIMT_ROW_LOSS(normalized_cross_entropy, NormalizedCrossEntropy)

}  // namespace robustcore
