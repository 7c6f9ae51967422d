// Every operator's schema, in one place. Kernels register themselves in <family>/<op>_cpu.cpp and
// <family>/<op>_cuda.cu; shapes for tracing and derivatives in python/robustcore/<family>/.
#include <torch/csrc/stable/library.h>

#include <string>

namespace {

// The losses of rows of logits share one signature (csrc/losses/row_problem.h). logits, second: [N,
// C]; row_value*: [N], what they are the loss says (a gate, a parameter per row); target: int64 [N]
// or class probabilities [N, C]; weight: [C]; sample_weight: [N]; reduction: 0 none, 1 mean, 2 sum.
const std::string kRowLossArguments =
    "Tensor? second, Tensor? row_value, Tensor? row_value2, Tensor? row_value3, Tensor target, "
    "Tensor? weight, Tensor? sample_weight, float[] parameters, int ignore_index, "
    "float label_smoothing, float temperature, float softcap, float lse_square, int reduction";

using Library = torch::stable::detail::StableLibrary;

void define_row_loss(Library& m, const std::string& name) {
  const std::string arguments = "Tensor logits, " + kRowLossArguments;
  const std::string needs = ", bool needs_logits, bool needs_second";
  m.def((name + "(" + arguments + ") -> Tensor").c_str());
  // Gradients for logits, second, the row values and sample_weight; those not wanted are empty.
  const std::string gradients = "Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)";
  m.def((name + "_backward(Tensor grad_loss, " + arguments + needs + ") -> (" + gradients).c_str());
  // The loss, and the gradients.
  m.def((name + "_with_gradients(" + arguments + needs + ") -> (Tensor, " + gradients).c_str());
  // The same; the wanted gradients of the matrices are written over them and are empty in the
  // result.
  std::string written = "Tensor(a!) logits, " + kRowLossArguments;
  written.replace(written.find("Tensor? second"), 14, "Tensor(b!)? second");
  m.def((name + "_with_gradients_(" + written + needs + ") -> (Tensor, " + gradients).c_str());
}

// One value per row that is no loss: the same signature, reduction 0.
void define_row_values(Library& m, const std::string& name) {
  m.def((name + "(Tensor logits, " + kRowLossArguments + ") -> Tensor").c_str());
}

// The loss, then log softmax(logits)[target] [N] and argmax [N].
void define_row_loss_scores(Library& m, const std::string& name) {
  m.def((name + "_scores(Tensor logits, " + kRowLossArguments + ") -> (Tensor, Tensor, Tensor)")
            .c_str());
}

}  // namespace

STABLE_TORCH_LIBRARY(robustcore, m) {
  // --- losses
  define_row_loss(m, "gated_cross_entropy");
  define_row_loss_scores(m, "gated_cross_entropy");
  define_row_loss(m, "comp_sum_loss");
  define_row_loss(m, "symmetric_cross_entropy");
  define_row_loss(m, "normalized_cross_entropy");
  define_row_loss(m, "spherical_z_loss");
  define_row_loss(m, "ldr_kl_loss");
  define_row_loss(m, "aldr_kl_loss");
  define_row_values(m, "aldr_kl_temperature");
  // Multiplies tensors by a scalar tensor in place; reads nothing else when the scalar is one.
  m.def("scale_(Tensor(a!)[] tensors, Tensor factor) -> ()");

  // --- pcr
  // a, x: one shape, time at time_dim (negative: counted from the end); initial: that shape without
  // time, in the dtype of the carry. Results: the states, shaped like x.
  m.def(
      "linear_recurrence(Tensor a, Tensor x, Tensor? initial, int time_dim, bool reverse) -> "
      "Tensor");
  // The gradients for a, x and initial; those not needed are empty.
  m.def(
      "linear_recurrence_backward(Tensor grad, Tensor a, Tensor? states, Tensor? initial, "
      "int time_dim, bool reverse, bool needs_a, bool needs_x, bool needs_initial) -> "
      "(Tensor, Tensor, Tensor)");

  // --- merging
  // Lists are models: tensors in the order of their sorted names. base: [tensors]; finetuned:
  // [tasks * tensors], task by task; merged: [tensors] in the type of computation, or empty;
  // lambdas ascending. Results: codes int64 [tasks, planes, words], where bit i of word w of plane
  // b is bit b of the number of lambdas that parameter 64 w + i passes; counts int64 [tasks,
  // lambdas].
  m.def(
      "tall_masks(Tensor[] base, Tensor[] finetuned, Tensor[] merged, int tasks, "
      "float[] lambdas, bool strict) -> (Tensor, Tensor)");
  // One packed mask per task from the codes: bit set where the code is at least the task's rank.
  // Masks are int64 words, [tasks, words].
  m.def("mask_select(Tensor codes, int[] ranks) -> Tensor");
  // One mask [words] as bool [parameters].
  m.def("mask_unpack(Tensor mask, int parameters) -> Tensor");
  // How many of the masks keep each parameter, int32 [parameters]; how often each number occurs,
  // int64 [tasks + 1]; how many parameters each pair of masks keeps, int64 [tasks, tasks].
  m.def("mask_counts(Tensor masks, int parameters) -> Tensor");
  m.def("mask_histogram(Tensor masks, int parameters) -> Tensor");
  m.def("mask_overlap(Tensor masks) -> Tensor");
  // The mask [words] of what at least `least` of the masks keep.
  m.def("mask_consensus(Tensor masks, int least) -> Tensor");
  // base + mask * merged for a model; tensors * mask, which is its derivative for merged.
  m.def("mask_apply(Tensor[] base, Tensor[] merged, Tensor mask) -> Tensor[]");
  m.def("mask_apply_(Tensor(a!)[] base, Tensor[] merged, Tensor mask) -> ()");
  m.def("mask_multiply(Tensor[] tensors, Tensor mask) -> Tensor[]");
}
