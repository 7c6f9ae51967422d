#include "losses/gated_cross_entropy.h"

#include "row_loss_case.h"

namespace robustcore {

RC_SIMT_ROW_LOSS(gated_cross_entropy, GatedCrossEntropy)

RC_SIMT_CASE(gated_cross_entropy_scores) {
  simt::dispatch_floating(arguments.dtype("logits"), [&]<typename T>() {
    RowProblem<T> p = row_loss_case::problem_of<T>(arguments);
    row_loss_case::attach_loss(p, arguments);
    p.log_probability = arguments.output<accumulate_t<T>>("log_probability");
    p.predicted = arguments.output<std::int64_t>("predicted");
    row_cuda::launch_row_loss<GatedCrossEntropy, RowMode::kScores>(p, simt::stream());
  });
}

}  // namespace robustcore
