#include "losses/mixture_cross_entropy.h"

#include "row_loss_case.h"

namespace robustcore {

RC_SIMT_ROW_LOSS(mixture_cross_entropy, MixtureCrossEntropy)

}  // namespace robustcore
