// Checks shared by the CPU and the CUDA registration of combine_task_vectors and
// task_vector_products.
#pragma once

#include <utility>
#include <vector>

#include "merging/combine_task_vectors.h"
#include "merging/tensor_list.h"

namespace robustcore {

// Types of one tensor: of the model, and of its task vectors.
using StoredTypes = std::pair<ScalarType, ScalarType>;

struct TaskVectorArguments {
  std::vector<Tensor> model;    // [tensors]: the base, or gradients
  std::vector<Tensor> vectors;  // [tasks * tensors], task by task
  std::vector<int64_t> blocks;  // [tensors]: the column of each tensor's coefficients
  std::vector<StoredTypes> types;
  FlatOrder order;
  int64_t tasks;
  int64_t columns;
};

inline TaskVectorArguments task_vector_arguments(const char* op, std::vector<Tensor> model,
                                                 std::vector<Tensor> vectors, int64_t tasks,
                                                 std::vector<int64_t> blocks, int64_t columns) {
  const size_t tensors = model.size();
  RC_CHECK(tensors >= 1, op, ": the model must hold at least one tensor");
  RC_CHECK(tasks >= 0 && columns >= 0, op, ": tasks and blocks must not be negative");
  check_tensor_list(op, "model", model, model, 1, false);
  RC_CHECK(vectors.size() % tensors == 0 && vectors.size() / tensors == static_cast<size_t>(tasks),
           op, ": vectors must hold ", tasks, " times ", tensors, " tensors, got ", vectors.size());
  RC_CHECK(blocks.size() == tensors, op, ": blocks must hold ", tensors, " values, got ",
           blocks.size());
  std::vector<StoredTypes> types;
  for (size_t j = 0; j < tensors; ++j) {
    RC_CHECK(blocks[j] >= 0 && blocks[j] < columns, op, ": a block must be from 0 to ", columns - 1,
             ", got ", blocks[j]);
    const ScalarType stored = tasks ? vectors[j].scalar_type() : model[j].scalar_type();
    RC_CHECK(stored == model[j].scalar_type() || stored == accumulate_type(model[j]), op,
             ": vectors must have the dtype of the model or that of computation");
    types.emplace_back(model[j].scalar_type(), stored);
    for (int64_t task = 0; task < tasks; ++task) {
      const Tensor& vector = vectors[static_cast<size_t>(task) * tensors + j];
      check_type(op, "vectors", vector, stored);
      check_numel(op, "vectors", vector, model[j].numel());
      check_same_device(op, "vectors", vector, model[0]);
    }
  }
  FlatOrder order = flat_order(model);
  return {contiguous_list(std::move(model)),
          contiguous_list(std::move(vectors)),
          std::move(blocks),
          std::move(types),
          std::move(order),
          tasks,
          columns};
}

// [tasks, blocks], float64, on the device of the model.
inline Tensor checked_coefficients(const char* op, const Tensor& coefficients, const Tensor& like) {
  RC_CHECK(coefficients.dim() == 2, op, ": coefficients must have 2 dimensions, got ",
           coefficients.dim());
  check_type(op, "coefficients", coefficients, ScalarType::Double);
  check_same_device(op, "coefficients", coefficients, like);
  return made_contiguous(coefficients);
}

inline std::vector<Tensor> fresh_like(const std::vector<Tensor>& model) {
  std::vector<Tensor> results;
  results.reserve(model.size());
  for (const Tensor& tensor : model) {
    results.push_back(fresh(tensor, tensor.sizes(), tensor.scalar_type()));
  }
  return results;
}

// Calls f(type_tag<T>, type_tag<V>) with the types of a model's tensor and of its task vectors.
template <class F>
void dispatch_stored(StoredTypes types, F&& f) {
  dispatch_floating(types.first, [&](auto model) {
    using T = typename decltype(model)::type;
    if (types.first == types.second) return f(model, model);
    return f(model, type_tag<accumulate_t<T>>{});
  });
}

}  // namespace robustcore
