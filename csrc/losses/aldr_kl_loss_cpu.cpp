#include "losses/ldr_kl_loss.h"
#include "losses/row_state_cpu.h"

STABLE_TORCH_LIBRARY_IMPL(robustcore, CPU, m) {
  using namespace robustcore;
  register_row_loss<RowLossCpu, AldrKlLoss>(m);
  register_row_values<RowLossCpu, AldrKlTemperature>(m);
  register_state_row_loss<RowStateCpu, AldrKlIndexedLoss>(m);
}
