#include "losses/ldr_kl_loss.h"
#include "losses/row_state_cuda.h"

STABLE_TORCH_LIBRARY_IMPL(robustcore, CUDA, m) {
  using namespace robustcore;
  register_row_loss<RowLossCuda, AldrKlLoss>(m);
  register_row_values<RowLossCuda, AldrKlTemperature>(m);
  register_state_row_loss<RowStateCuda, AldrKlIndexedLoss>(m);
}
