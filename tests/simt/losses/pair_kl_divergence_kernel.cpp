#include "losses/pair_kl_divergence.h"

#include "row_loss_case.h"

namespace robustcore {

RC_SIMT_ROW_LOSS(pair_kl_divergence, PairKlDivergence)

}  // namespace robustcore
