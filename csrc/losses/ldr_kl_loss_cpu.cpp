#include "losses/ldr_kl_loss.h"
#include "losses/row_loss_cpu.h"

STABLE_TORCH_LIBRARY_IMPL(robustcore, CPU, m) {
  using namespace robustcore;
  register_row_loss<RowLossCpu, LdrKlLoss>(m);
}
