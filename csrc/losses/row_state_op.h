// The operators of a row loss with an indexed state (indexed_state.h): those of row_loss_op.h, with
// the state and the rows' indices behind their arguments. The forward operator changes nothing and
// returns the state that each row used, which the backward operator takes; the operators that write
// gradients in the forward pass update the state in the same pass.
#pragma once

#include <string>
#include <tuple>

#include "losses/row_loss_op.h"

namespace robustcore {

// Which row updates the state of each row's example; -1 for ignored rows, which update none.
struct KeeperProblem {
  const int64_t* index;   // [rows]
  const int64_t* target;  // [rows], or null: no row is ignored
  int64_t ignore_index;
  int64_t rows;
  int64_t* keeper;  // [rows]
};

struct StateArguments {
  Tensor state;  // [examples, width]
  Tensor index;  // int64 [rows]
  int64_t first_example;
};

inline StateArguments state_arguments(const std::string& op, const RowLossArguments& a,
                                      const Tensor& state, const Tensor& index,
                                      int64_t first_example, int64_t width) {
  check_type(op, "state", state, accumulate_type(a.logits));
  RC_CHECK(state.dim() == 2 && state.size(1) == width, op, ": state must have shape [examples, ",
           width, "]");
  RC_CHECK(state.is_contiguous(), op, ": state must be contiguous");
  check_same_device(op, "state", state, a.logits);
  check_type(op, "index", index, ScalarType::Long);
  check_numel(op, "index", index, a.logits.size(0));
  check_same_device(op, "index", index, a.logits);
  return {state, made_contiguous(index), first_example};
}

// The Backend brings, beside what row_loss_op.h asks for:
//   check_index(name, arguments, state arguments)
//   find_keepers(KeeperProblem, a tensor of the device, scope)
template <class Backend, class Program>
struct StateRowLossOperators : RowLossOperators<Backend, Program> {
  using Base = RowLossOperators<Backend, Program>;
  using Base::kName;

  // The loss, the state that each row used (empty unless keep_rows) and the rows' keepers (empty
  // unless update).
  static std::tuple<Tensor, Tensor, Tensor> forward(RC_ROW_LOSS_PARAMETERS, const Tensor& state,
                                                    const Tensor& index, int64_t first_example,
                                                    bool update, bool keep_rows) {
    RC_CHECK(keep_rows || !update, kName, ": update needs keep_rows");
    const RowLossArguments a = Base::arguments(RC_ROW_LOSS_VALUES);
    const StateArguments s = checked(a, state, index, first_example);
    const RowLossResult result(a, accumulate_type(a.logits));
    const Tensor used =
        fresh(a.logits, {keep_rows ? a.logits.size(0) : 0, state.size(1)}, state.scalar_type());
    const Tensor keeper = keepers(a, s, update);
    Base::template run<RowMode::kLoss>(a, [&](auto& p) {
      result.attach(p);
      attach(p, s, update ? &keeper : nullptr);
      using Acc = std::decay_t<decltype(*p.loss)>;
      p.state.of_rows = keep_rows ? write_pointer<Acc>(used) : nullptr;
    });
    return {result.loss, used, keeper};
  }

  static LossAndGradients with_gradients(RC_ROW_LOSS_PARAMETERS, const Tensor& state,
                                         const Tensor& index, int64_t first_example, bool update,
                                         bool needs_logits, bool needs_second) {
    const RowLossArguments a = Base::arguments(RC_ROW_LOSS_VALUES);
    const StateArguments s = checked(a, state, index, first_example);
    const Tensor keeper = keepers(a, s, update);
    return Base::loss_and_gradients(a, needs_logits, needs_second, false,
                                    [&](auto& p) { attach_updated(p, s, update, keeper); });
  }

  static LossAndGradients with_gradients_in_place(RC_ROW_LOSS_PARAMETERS, const Tensor& state,
                                                  const Tensor& index, int64_t first_example,
                                                  bool update, bool needs_logits,
                                                  bool needs_second) {
    const RowLossArguments a = Base::arguments_in_place(RC_ROW_LOSS_VALUES);
    const StateArguments s = checked(a, state, index, first_example);
    const Tensor keeper = keepers(a, s, update);
    return Base::loss_over_matrices(a, needs_logits, needs_second,
                                    [&](auto& p) { attach_updated(p, s, update, keeper); });
  }

  // used: what the forward operator returned.
  static GradientTuple backward(const Tensor& grad_loss, RC_ROW_LOSS_PARAMETERS, const Tensor& used,
                                bool needs_logits, bool needs_second) {
    const RowLossArguments a = Base::arguments(RC_ROW_LOSS_VALUES);
    check_type(kName, "used", used, accumulate_type(a.logits));
    const int64_t width = state_width<Program>(a.logits.size(1));
    check_numel(kName, "used", used, a.logits.size(0) * width);
    check_same_device(kName, "used", used, a.logits);
    const Tensor rows = made_contiguous(used);
    return Base::gradients_of(grad_loss, a, needs_logits, needs_second,
                              [&]<class T>(RowProblem<T>& p) {
                                p.state.of_rows = write_pointer<accumulate_t<T>>(rows);
                                p.state.width = width;
                              });
  }

 private:
  static StateArguments checked(const RowLossArguments& a, const Tensor& state, const Tensor& index,
                                int64_t first_example) {
    StateArguments s = state_arguments(kName, a, state, index, first_example,
                                       state_width<Program>(a.logits.size(1)));
    Backend::check_index(kName, a, s);
    return s;
  }

  static Tensor keepers(const RowLossArguments& a, const StateArguments& s, bool update) {
    const int64_t rows = update ? a.logits.size(0) : 0;
    const Tensor keeper = fresh(a.logits, {rows}, ScalarType::Long);
    if (rows > 0) {
      const typename Backend::Scope scope(a.logits);
      Backend::find_keepers(
          {read_pointer<int64_t>(s.index), a.is_soft() ? nullptr : read_pointer<int64_t>(a.target),
           a.ignore_index, rows, write_pointer<int64_t>(keeper)},
          a.logits, scope);
    }
    return keeper;
  }

  template <class T>
  static void attach(RowProblem<T>& p, const StateArguments& s, const Tensor* keeper) {
    p.state.examples = read_pointer<accumulate_t<T>>(s.state);
    p.state.index = read_pointer<int64_t>(s.index);
    p.state.keeper = keeper ? read_pointer<int64_t>(*keeper) : nullptr;
    p.state.first = s.first_example;
    p.state.count = s.state.size(0);
    p.state.width = s.state.size(1);
  }
  template <class T>
  static void attach_updated(RowProblem<T>& p, const StateArguments& s, bool update,
                             const Tensor& keeper) {
    attach(p, s, update ? &keeper : nullptr);
    if (update) p.state.updated = write_pointer<accumulate_t<T>>(s.state);
  }
};

template <class Backend, class Program>
void register_state_row_loss(torch::stable::detail::StableLibrary& library) {
  using Operators = StateRowLossOperators<Backend, Program>;
  const std::string name = Operators::kName;
  library.impl(name.c_str(), TORCH_BOX(&Operators::forward));
  library.impl((name + "_with_gradients").c_str(), TORCH_BOX(&Operators::with_gradients));
  library.impl((name + "_with_gradients_").c_str(), TORCH_BOX(&Operators::with_gradients_in_place));
  library.impl((name + "_backward").c_str(), TORCH_BOX(&Operators::backward));
}

// Rows of the batch that an update of the state consists of: those that are their own keeper.
struct StateWrite {
  const void* rows;  // [rows, width]
  void* examples;    // [count, width]
  const int64_t* index;
  const int64_t* keeper;
  int64_t count_of_rows, first, count, width;  // width in bytes / 4
};

// write_state_rows_(state, index, first_example, keeper, rows)
template <class Backend>
void write_state_rows(const Tensor& state, const Tensor& index, int64_t first_example,
                      const Tensor& keeper, const Tensor& rows) {
  const char* op = "write_state_rows_";
  check_floating(op, "state", state);
  RC_CHECK(state.dim() == 2 && state.is_contiguous(), op, ": state must be a contiguous matrix");
  const int64_t count = index.numel();
  check_type(op, "index", index, ScalarType::Long);
  check_type(op, "keeper", keeper, ScalarType::Long);
  check_numel(op, "keeper", keeper, count);
  check_type(op, "rows", rows, state.scalar_type());
  check_numel(op, "rows", rows, count * state.size(1));
  for (const Tensor* tensor : {&index, &keeper, &rows}) {
    check_same_device(op, "every argument", *tensor, state);
  }
  RC_CHECK(state.element_size() % 4 == 0, op, ": state must be float32 or float64");
  const Tensor indices = made_contiguous(index), keepers = made_contiguous(keeper);
  const Tensor values = made_contiguous(rows);
  const typename Backend::Scope scope(state);
  Backend::write_state(
      {values.const_data_ptr(), state.mutable_data_ptr(), read_pointer<int64_t>(indices),
       read_pointer<int64_t>(keepers), count, first_example, state.size(0),
       state.size(1) * static_cast<int64_t>(state.element_size() / 4)},
      scope);
}

}  // namespace robustcore
