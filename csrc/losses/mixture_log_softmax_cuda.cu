#include "losses/mixture_log_softmax_op.h"
#include "losses/row_map_cuda.h"

STABLE_TORCH_LIBRARY_IMPL(robustcore, CUDA, m) {
  using namespace robustcore;
  register_mixture_log_softmax<RowMapCuda>(m);
}
