// Every operator's schema, in one place. Kernels register themselves in <family>/<op>_cpu.cpp and
// <family>/<op>_cuda.cu; shapes for tracing and derivatives in python/robustcore/<family>/.
#include <torch/csrc/stable/library.h>

#include <string>

namespace {

// The losses of rows of logits share one signature (csrc/losses/row_problem.h). logits, second: [N,
// C]; row_value*: [N], what they are the loss says (a gate, a parameter per row); target: int64 [N]
// or class probabilities [N, C] (none for a loss without labels); weight: [C]; sample_weight: [N];
// reduction: 0 none, 1 mean, 2 sum.
const std::string kRowLossArguments =
    "Tensor? second, Tensor? row_value, Tensor? row_value2, Tensor? row_value3, Tensor? target, "
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

// A row loss with an indexed state [examples, width] (csrc/losses/row_state_op.h): index int64 [N]
// says which example a row is, first_example which one the state begins with.
void define_state_row_loss(Library& m, const std::string& name) {
  const std::string given = ", Tensor index, int first_example, bool update";
  const std::string needs = ", bool needs_logits, bool needs_second";
  const std::string gradients = "Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)";
  const std::string arguments = "Tensor logits, " + kRowLossArguments;
  // The loss, the state that each row used [N, width], and for each row the one that updates its
  // example [N] (see write_state_rows_). Changes nothing.
  m.def((name + "(" + arguments + ", Tensor state" + given +
         ", bool keep_rows) -> (Tensor, Tensor, Tensor)")
            .c_str());
  m.def((name + "_backward(Tensor grad_loss, " + arguments + ", Tensor used" + needs + ") -> (" +
         gradients)
            .c_str());
  m.def((name + "_with_gradients(" + arguments + ", Tensor(c!) state" + given + needs +
         ") -> (Tensor, " + gradients)
            .c_str());
  std::string written = "Tensor(a!) logits, " + kRowLossArguments;
  written.replace(written.find("Tensor? second"), 14, "Tensor(b!)? second");
  m.def((name + "_with_gradients_(" + written + ", Tensor(c!) state" + given + needs +
         ") -> (Tensor, " + gradients)
            .c_str());
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
  define_row_loss(m, "taylor_cross_entropy");
  // weak, strong: [N, C]. Results: loss; per row [5, N] its loss, logsumexp, weight, cut and
  // confidence; per row [3, N] the top class, the first tie that stays, the classes removed.
  m.def(
      "shrink_match_loss(Tensor weak, Tensor strong, float threshold, int reduction) -> "
      "(Tensor, Tensor, Tensor)");
  // The same, and the gradient for strong.
  m.def(
      "shrink_match_loss_with_gradients(Tensor weak, Tensor strong, float threshold, "
      "int reduction) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "shrink_match_loss_backward(Tensor grad_loss, Tensor weak, Tensor strong, "
      "Tensor row_values, Tensor row_places, int reduction) -> Tensor");
  // logits: [B, n, C]. Results: the k-th largest [B, C]; int16 [2, B, C] which member is the k-th
  // and which the largest; int64 [B, n] each member's largest class.
  m.def("crossmax(Tensor logits, int k) -> (Tensor, Tensor, Tensor)");
  m.def("crossmax_backward(Tensor grad, Tensor members, Tensor tops) -> Tensor");
  // Both heads and the loss in chunks of rows; implemented in Python from torch's matrix products
  // and the operators above. features: [N, D]; weight: [C, D]; the noise head with a D of its own;
  // target: int64 [N] or floating [N, C]; softcap 0: none; chunk_rows 0: chosen. Result: the loss.
  m.def(
      "linear_gated_cross_entropy(Tensor features, Tensor weight, Tensor? bias, "
      "Tensor noise_features, Tensor noise_weight, Tensor? noise_bias, Tensor gate, Tensor target, "
      "Tensor? class_weight, Tensor? sample_weight, int ignore_index, float label_smoothing, "
      "float temperature, float softcap, float lse_square, int reduction, int chunk_rows) -> "
      "Tensor");
  // The loss, and the gradients for the first seven arguments and for sample_weight, those not
  // wanted empty.
  m.def(
      "linear_gated_cross_entropy_with_gradients(Tensor features, Tensor weight, Tensor? bias, "
      "Tensor noise_features, Tensor noise_weight, Tensor? noise_bias, Tensor gate, Tensor target, "
      "Tensor? class_weight, Tensor? sample_weight, int ignore_index, float label_smoothing, "
      "float temperature, float softcap, float lse_square, int reduction, int chunk_rows, "
      "bool[] needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "linear_gated_cross_entropy_backward(Tensor grad_loss, Tensor features, Tensor weight, "
      "Tensor? bias, Tensor noise_features, Tensor noise_weight, Tensor? noise_bias, Tensor gate, "
      "Tensor target, Tensor? class_weight, Tensor? sample_weight, int ignore_index, "
      "float label_smoothing, float temperature, float softcap, float lse_square, int reduction, "
      "int chunk_rows, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, "
      "Tensor)");
  // mean, diagonal: [N, C]; low_rank: [N, C, R]; all float32 or float64; target, sample_weight:
  // [N]; weight: [C]; seed: int64 [1], on the CPU or the device. Results: loss, rows [2, N] (loss
  // before the sample weight, derivative for the sample weight), the gradients of mean, low_rank
  // and diagonal, empty where they are not needed.
  m.def(
      "heteroscedastic_cross_entropy(Tensor mean, Tensor low_rank, Tensor diagonal, "
      "Tensor target, Tensor? weight, Tensor? sample_weight, Tensor seed, float temperature, "
      "int samples, float minimum_probability, int ignore_index, int reduction, "
      "bool needs_gradients) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  // The gradients of mean, low_rank, diagonal and sample_weight from those of the forward pass.
  m.def(
      "heteroscedastic_cross_entropy_backward(Tensor grad_loss, Tensor mean, Tensor low_rank, "
      "Tensor diagonal, Tensor target, Tensor? weight, Tensor? sample_weight, Tensor seed, "
      "Tensor rows, Tensor grad_mean, Tensor grad_low_rank, Tensor grad_diagonal, "
      "float temperature, int samples, float minimum_probability, int ignore_index, "
      "int reduction) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "heteroscedastic_log_probabilities(Tensor mean, Tensor low_rank, Tensor diagonal, "
      "Tensor seed, float temperature, int samples) -> Tensor");
  // first, second: int64 [N]; result: float32 [N, count], standard normal, a function of the seed,
  // the two indices and the column.
  m.def("counter_normal(Tensor first, Tensor second, Tensor seed, int count) -> Tensor");
  define_row_loss(m, "mixture_cross_entropy");
  define_row_loss(m, "pair_kl_divergence");
  define_row_loss(m, "smooth_adversarial_loss");
  // log((1 - a) softmax(s1 z1) + a softmax(s2 z2)), a = sigmoid(gate). logits*: [N, C]; gate: [N];
  // scale*: [N], or none for the number in `scales` (two numbers).
  const std::string mixture =
      "Tensor logits1, Tensor logits2, Tensor gate, Tensor? scale1, Tensor? scale2, float[] scales";
  m.def(("mixture_log_softmax(" + mixture + ") -> Tensor").c_str());
  // Gradients for logits1, logits2, gate, scale1, scale2; those not needed are empty.
  m.def(("mixture_log_softmax_backward(Tensor grad, " + mixture +
         ", bool needs_logits1, bool needs_logits2) -> (Tensor, Tensor, Tensor, Tensor, Tensor)")
            .c_str());
  // 1 / log(1 + exp |logsumexp(logits)|) of each row; no derivative. [N, C] to [N].
  m.def("energy_weights(Tensor logits) -> Tensor");
  define_state_row_loss(m, "early_learning_loss");
  define_row_loss(m, "over_parameterized_loss");
  // state[index[i] - first_example] = rows[i] for the rows i with keeper[i] = i.
  m.def(
      "write_state_rows_(Tensor(a!) state, Tensor index, int first_example, Tensor keeper, "
      "Tensor rows) -> ()");
  define_row_loss(m, "symmetric_cross_entropy");
  define_row_loss(m, "normalized_cross_entropy");
  define_row_loss(m, "spherical_z_loss");
  define_row_loss(m, "ldr_kl_loss");
  define_row_loss(m, "aldr_kl_loss");
  define_row_values(m, "aldr_kl_temperature");
  define_state_row_loss(m, "aldr_kl_indexed_loss");
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
  // From base + before * merged to base + after * merged, touching only what the masks differ in.
  m.def(
      "mask_switch_(Tensor(a!)[] weights, Tensor[] base, Tensor[] merged, Tensor before, "
      "Tensor after) -> ()");
  // base + sum over tasks of coefficients[t, blocks[j]] * vectors[t, j], or the sum alone, for
  // tensors j: vectors [tasks * tensors], task by task, in the dtype of the base or in that of
  // computation; coefficients float64 [tasks, blocks].
  m.def(
      "combine_task_vectors(Tensor[] base, Tensor[] vectors, Tensor coefficients, int[] blocks, "
      "bool add_base) -> Tensor[]");
  // Its derivative for the coefficients: inner products of grads and vectors, float64 [tasks,
  // block_count].
  m.def(
      "task_vector_products(Tensor[] grads, Tensor[] vectors, int tasks, int[] blocks, "
      "int block_count) -> Tensor");
  // Pieces: slices of tensors, contiguous, each of any floating dtype; `tasks * pieces` of
  // finetuned, task by task; vectors[t] != 0: task t comes as task vectors. Tables are on the CPU:
  // rescale and weights float64 [pieces, tasks]; scales float64 [pieces, 2], of the base and of
  // what is added to it; windows int64 [pieces, tasks, 4] (merging/magnitudes.h: low, low_ties,
  // high, high_ties); ties_before int64 [blocks, tasks, 2] on the device: parameters of the tensor
  // before each block whose key is low, high. densities: chance to stay, [tasks] or empty; lambdas
  // of Consensus, [tasks] or empty; election and reduction: merging/merge_weights.h. Result: int64
  // [pieces, counters].
  m.def(
      "merge_weights_(Tensor(a!)[] out, Tensor[] base, Tensor[] finetuned, Tensor rescale, "
      "Tensor weights, Tensor scales, int[] vectors, Tensor? windows, Tensor? ties_before, "
      "float[] densities, int seed, int[] flat_starts, int election, int reduction, "
      "int zero_sign, float[] lambdas, int least, bool strict) -> Tensor");
  // Adds to counts, int64 [tasks, bins], how often magnitudes occur: by the upper 16 bits of their
  // keys where `upper` is empty; else those with the task's upper bits by the lower 15.
  m.def(
      "magnitude_histogram_(Tensor(a!) counts, Tensor[] base, Tensor[] finetuned, int[] vectors, "
      "int[] upper) -> ()");
  // How many parameters of each block have the keys low and high, int64 [blocks, tasks, 2].
  m.def(
      "magnitude_ties(Tensor[] base, Tensor[] finetuned, int[] vectors, Tensor windows) -> Tensor");
  // Sums over a, b and a - b by block, float64 [blocks, sums]: merging/compare_weights.h.
  m.def("compare_weights(Tensor[] first, Tensor[] second) -> Tensor");
}
