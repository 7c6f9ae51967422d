#include "losses/ldr_kl_loss.h"
#include "losses/row_state.cuh"
#include "row_loss_case.h"

namespace robustcore {

RC_SIMT_ROW_LOSS(aldr_kl_loss, AldrKlLoss)

RC_SIMT_CASE(aldr_kl_temperature) {
  row_loss_case::forward<AldrKlTemperature>(arguments);
}

// The rows' keepers are given: early_learning_loss_kernel.cpp finds them.
namespace {
template <class T>
RowProblem<T> indexed_problem(simt::Arguments& arguments) {
  RowProblem<T> p = row_loss_case::problem_of<T>(arguments);
  row_loss_case::attach_loss(p, arguments);
  p.state.index = arguments.input<std::int64_t>("index");
  p.state.keeper = arguments.optional_input<std::int64_t>("keeper");
  p.state.count = arguments.integer("examples");
  p.state.width = 1;
  return p;
}
}  // namespace

// Leaves the temperatures as they are and writes what each row used.
RC_SIMT_CASE(aldr_kl_indexed_loss) {
  simt::dispatch_floating(arguments.dtype("logits"), [&]<typename T>() {
    using Acc = accumulate_t<T>;
    RowProblem<T> p = indexed_problem<T>(arguments);
    p.state.examples = arguments.input<Acc>("lam");
    p.state.of_rows = arguments.output<Acc>("used");
    row_cuda::launch_row_loss<AldrKlIndexedLoss, RowMode::kLoss>(p, simt::stream());
  });
}

// Updates the temperatures in the same pass.
RC_SIMT_CASE(aldr_kl_indexed_loss_with_gradients) {
  simt::dispatch_floating(arguments.dtype("logits"), [&]<typename T>() {
    using Acc = accumulate_t<T>;
    RowProblem<T> p = indexed_problem<T>(arguments);
    row_loss_case::attach_gradients(p, arguments);
    Acc* const lam = arguments.inout<Acc>("lam");
    p.state.examples = lam;
    p.state.updated = p.state.keeper ? lam : nullptr;
    row_cuda::launch_row_loss<AldrKlIndexedLoss, RowMode::kGradients>(p, simt::stream());
  });
}

RC_SIMT_CASE(aldr_kl_indexed_loss_backward) {
  simt::dispatch_floating(arguments.dtype("logits"), [&]<typename T>() {
    using Acc = accumulate_t<T>;
    RowProblem<T> p = row_loss_case::problem_of<T>(arguments);
    p.grad_loss = arguments.input<Acc>("grad_loss");
    row_loss_case::attach_gradients(p, arguments);
    // The struct has them writable for the forward pass.
    p.state.of_rows = const_cast<Acc*>(arguments.input<Acc>("used"));
    p.state.width = 1;
    row_cuda::launch_row_loss<AldrKlIndexedLoss, RowMode::kGradients>(p, simt::stream());
  });
}

}  // namespace robustcore
