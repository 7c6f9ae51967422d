#include "losses/early_learning_loss.h"

#include "losses/row_state_cuda.h"

STABLE_TORCH_LIBRARY_IMPL(robustcore, CUDA, m) {
  using namespace robustcore;
  register_state_row_loss<RowStateCuda, EarlyLearningLoss>(m);
  m.impl("write_state_rows_", TORCH_BOX(&write_state_rows<RowStateCuda>));
}
