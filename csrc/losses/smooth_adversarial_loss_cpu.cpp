#include "losses/row_loss_cpu.h"
#include "losses/smooth_adversarial_loss.h"

STABLE_TORCH_LIBRARY_IMPL(robustcore, CPU, m) {
  using namespace robustcore;
  register_row_loss<RowLossCpu, SmoothAdversarialLoss>(m);
}
