#include "losses/early_learning_loss.h"

#include "losses/row_state.cuh"
#include "row_loss_case.h"

namespace robustcore {
namespace {

// The rows' keepers, as the operator finds them before the pass.
const std::int64_t* keepers(simt::Arguments& arguments) {
  if (arguments.integer("update") == 0) return nullptr;
  row_cuda::KeeperTable t{};
  t.index = arguments.input<std::int64_t>("index");
  t.target = arguments.optional_input<std::int64_t>("target");
  t.ignore_index = arguments.integer("ignore_index");
  t.rows = arguments.integer("rows");
  t.keeper = arguments.output<std::int64_t>("keeper");
  t.slots = row_cuda::keeper_slots(t.rows);
  t.keys = reinterpret_cast<unsigned long long*>(arguments.scratch<std::int64_t>("keys", t.slots));
  t.last = reinterpret_cast<unsigned long long*>(arguments.scratch<std::int64_t>("last", t.slots));
  row_cuda::launch_keepers(t, simt::stream());
  return t.keeper;
}

template <class T>
void attach_state(RowProblem<T>& p, simt::Arguments& arguments) {
  p.state.index = arguments.input<std::int64_t>("index");
  p.state.keeper = keepers(arguments);
  p.state.first = arguments.integer("first_example");
  p.state.count = arguments.integer("examples");
  p.state.width = p.classes;
}

}  // namespace

// Leaves the state as it is and writes what each row used.
RC_SIMT_CASE(early_learning_loss) {
  simt::dispatch_floating(arguments.dtype("logits"), [&]<typename T>() {
    using Acc = accumulate_t<T>;
    RowProblem<T> p = row_loss_case::problem_of<T>(arguments);
    row_loss_case::attach_loss(p, arguments);
    attach_state(p, arguments);
    p.state.examples = arguments.input<Acc>("state");
    p.state.of_rows = arguments.output<Acc>("used");
    row_cuda::launch_row_loss<EarlyLearningLoss, RowMode::kLoss>(p, simt::stream());
  });
}

// Updates the state in the same pass.
RC_SIMT_CASE(early_learning_loss_with_gradients) {
  simt::dispatch_floating(arguments.dtype("logits"), [&]<typename T>() {
    using Acc = accumulate_t<T>;
    RowProblem<T> p = row_loss_case::problem_of<T>(arguments);
    row_loss_case::attach_loss(p, arguments);
    row_loss_case::attach_gradients(p, arguments);
    attach_state(p, arguments);
    Acc* const state = arguments.inout<Acc>("state");
    p.state.examples = state;
    p.state.updated = p.state.keeper ? state : nullptr;
    row_cuda::launch_row_loss<EarlyLearningLoss, RowMode::kGradients>(p, simt::stream());
  });
}

RC_SIMT_CASE(early_learning_loss_backward) {
  simt::dispatch_floating(arguments.dtype("logits"), [&]<typename T>() {
    using Acc = accumulate_t<T>;
    RowProblem<T> p = row_loss_case::problem_of<T>(arguments);
    p.grad_loss = arguments.input<Acc>("grad_loss");
    row_loss_case::attach_gradients(p, arguments);
    // The struct has them writable for the forward pass.
    p.state.of_rows = const_cast<Acc*>(arguments.input<Acc>("used"));
    p.state.width = p.classes;
    row_cuda::launch_row_loss<EarlyLearningLoss, RowMode::kGradients>(p, simt::stream());
  });
}

RC_SIMT_CASE(write_state_rows) {
  row_cuda::StateRows w{};
  w.rows = reinterpret_cast<const std::uint32_t*>(arguments.input<float>("used"));
  w.examples = reinterpret_cast<std::uint32_t*>(arguments.inout<float>("state"));
  w.index = arguments.input<std::int64_t>("index");
  w.keeper = arguments.input<std::int64_t>("keeper");
  w.count_of_rows = arguments.integer("rows");
  w.first = arguments.integer("first_example");
  w.count = arguments.integer("examples");
  w.width = arguments.integer("classes");
  row_cuda::launch_state_rows(w, simt::stream());
}

// Five rows of two examples and one ignored row: both ways to update the state agree, and the state
// is that of the last rows.
RC_SIMT_CHECK(early_learning_loss) {
  for (const std::int64_t classes : {3, 130, 1030}) {
    const std::int64_t rows = 6, examples = 3;
    std::vector<float> logits = row_loss_case::some_numbers(rows * classes, 1);
    std::vector<std::int64_t> target(rows, 1), index{11, 12, 11, 12, 11, 10}, keeper(rows);
    target[5] = -100;
    std::vector<float> state(static_cast<std::size_t>(examples * classes), 0.5f / classes);
    std::vector<float> apart = state, used(logits.size()), gradient(logits.size());
    std::vector<float> loss(1), row_loss(rows), denominator(1);
    simt::NamedValues given = {{"logits", simt::array(logits)},
                               {"second", {}},
                               {"row_value", {}},
                               {"row_value2", {}},
                               {"row_value3", {}},
                               {"target", simt::array(target)},
                               {"soft_target", {}},
                               {"weight", {}},
                               {"sample_weight", {}},
                               {"rows", rows},
                               {"classes", classes},
                               {"ignore_index", std::int64_t{-100}},
                               {"label_smoothing", 0.0},
                               {"temperature", 1.0},
                               {"softcap", 0.0},
                               {"lse_square", 0.0},
                               {"parameter0", 0.7},
                               {"parameter1", 3.0},
                               {"parameter2", 0.0},
                               {"parameter3", 0.0},
                               {"reduction", static_cast<std::int64_t>(Reduction::kSum)},
                               {"denominator", simt::array(denominator)},
                               {"loss", simt::array(loss)},
                               {"row_loss", simt::array(row_loss)},
                               {"index", simt::array(index)},
                               {"keeper", simt::array(keeper)},
                               {"first_example", std::int64_t{10}},
                               {"examples", examples},
                               {"update", std::int64_t{1}}};
    const auto with = [&](const simt::NamedValues& more) {
      simt::NamedValues all = given;
      all.insert(all.end(), more.begin(), more.end());
      return all;
    };
    simt::run_case("early_learning_loss",
                   with({{"state", simt::array(apart)}, {"used", simt::array(used)}}));
    const std::vector<double> right_keepers{4, 3, 4, 3, 4, -1};
    simt::expect_close("keeper", std::vector<float>(keeper.begin(), keeper.end()), right_keepers,
                       0.0);
    simt::run_case("write_state_rows", {{"used", simt::array(used)},
                                        {"state", simt::array(apart)},
                                        {"index", simt::array(index)},
                                        {"keeper", simt::array(keeper)},
                                        {"rows", rows},
                                        {"first_example", std::int64_t{10}},
                                        {"examples", examples},
                                        {"classes", classes}});
    const float separate_loss = loss[0];
    simt::run_case("early_learning_loss_with_gradients",
                   with({{"state", simt::array(state)},
                         {"grad_logits", simt::array(gradient)},
                         {"grad_second", {}},
                         {"grad_row_value", {}},
                         {"grad_row_value2", {}},
                         {"grad_row_value3", {}},
                         {"grad_sample_weight", {}}}));
    simt::expect_close("loss", loss, std::vector<double>{separate_loss}, 1e-5);

    std::vector<double> expected(static_cast<std::size_t>(examples * classes), 0.5 / classes);
    for (const std::int64_t row : {3, 4}) {
      std::vector<double> probability;
      double total = 0.0, mass = 0.0;
      for (std::int64_t c = 0; c < classes; ++c) {
        probability.push_back(std::exp(logits[row * classes + c]));
        total += probability.back();
      }
      for (double& p : probability) {
        p = std::min(std::max(p / total, 1e-4), 1.0 - 1e-4);
        mass += p;
      }
      for (std::int64_t c = 0; c < classes; ++c) {
        double& t = expected[(index[row] - 10) * classes + c];
        t = 0.7 * t + 0.3 * probability[c] / mass;
      }
    }
    simt::expect_close("state", state, expected, 1e-6);
    simt::expect_close("state written apart", apart, expected, 1e-6);
  }
}

}  // namespace robustcore
