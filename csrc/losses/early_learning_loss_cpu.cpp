#include "losses/early_learning_loss.h"

#include "losses/row_state_cpu.h"

STABLE_TORCH_LIBRARY_IMPL(robustcore, CPU, m) {
  using namespace robustcore;
  register_state_row_loss<RowStateCpu, EarlyLearningLoss>(m);
  m.impl("write_state_rows_", TORCH_BOX(&write_state_rows<RowStateCpu>));
}
