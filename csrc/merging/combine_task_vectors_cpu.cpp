#include "common/parallel.h"
#include "merging/combine_task_vectors_op.h"

namespace robustcore {
namespace {

constexpr int64_t kChunk = 8192;  // parameters in flat order
constexpr int64_t kGroup = 16;    // blocks of products
constexpr int64_t kStep = 64;     // few, so that the streams of all tasks advance together

// Pointers to the task vectors of each tensor, [tensors, tasks].
std::vector<const void*> vector_table(const TaskVectorArguments& a) {
  const int64_t tensors = a.order.tensors();
  std::vector<const void*> table(tensors * a.tasks);
  for (int64_t task = 0; task < a.tasks; ++task) {
    for (int64_t tensor = 0; tensor < tensors; ++tensor) {
      table[tensor * a.tasks + task] = a.vectors[task * tensors + tensor].const_data_ptr();
    }
  }
  return table;
}

// `count` parameters of one tensor, at most kStep; `base` is null for a sum without it. The
// coefficients of two tasks are `stride` apart.
template <class T, class V>
RC_INLINE void combine_step(const T* base, const void* const* vectors, const double* coefficients,
                         int64_t stride, int64_t tasks, T* result, int64_t first, int64_t count) {
  using Acc = accumulate_t<T>;
  Acc totals[kStep] = {};
  for (int64_t task = 0; task < tasks; ++task) {
    const V*
  RC_RESTRICT vector = static_cast<const V*>(vectors[task]) + first;
    const Acc coefficient = static_cast<Acc>(coefficients[task * stride]);
    RC_SIMD for (int64_t i = 0; i < count; ++i) {
      totals[i] = with_term(totals[i], coefficient, static_cast<Acc>(to_accumulate(vector[i])));
    }
  }
  T* RC_RESTRICT to = result + first;
  if (base) {
    const T* RC_RESTRICT from = base + first;
    RC_SIMD for (int64_t i = 0; i < count; ++i) {
      to[i] = from_accumulate<T>(to_accumulate(from[i]) + totals[i]);
    }
  } else {
    RC_SIMD for (int64_t i = 0; i < count; ++i) to[i] = from_accumulate<T>(totals[i]);
  }
}

// Parameters [begin, end) of one tensor.
template <class T, class V>
RC_TARGET_CLONES void combine_range(const T* base, const void* const* vectors,
                                    const double* coefficients, int64_t stride, int64_t tasks,
                                    T* result, int64_t begin, int64_t end) {
  int64_t first = begin;
  for (; first + kStep <= end; first += kStep) {  // loops of known length
    combine_step<T, V>(base, vectors, coefficients, stride, tasks, result, first, kStep);
  }
  if (first < end) {
    combine_step<T, V>(base, vectors, coefficients, stride, tasks, result, first, end - first);
  }
}

std::vector<Tensor> combine_task_vectors(std::vector<Tensor> base, std::vector<Tensor> vectors,
                                         const Tensor& coefficients, std::vector<int64_t> blocks,
                                         bool add_base) {
  constexpr const char* kOp = "combine_task_vectors";
  RC_CHECK(!base.empty(), kOp, ": base must hold at least one tensor");
  const Tensor factors = checked_coefficients(kOp, coefficients, base[0]);
  const TaskVectorArguments a =
      task_vector_arguments(kOp, std::move(base), std::move(vectors), factors.size(0),
                            std::move(blocks), factors.size(1));
  const double* factor = read_pointer<double>(factors);
  std::vector<Tensor> results = fresh_like(a.model);
  const std::vector<const void*> starts = read_pointers(a.model), table = vector_table(a);
  std::vector<void*> targets;
  for (const Tensor& result : results) targets.push_back(result.mutable_data_ptr());
  const int64_t parameters = a.order.parameters();
  // One loop over the whole model: most tensors are too small for threads of their own.
  parallel_rows((parameters + kChunk - 1) / kChunk, kChunk, [&](int64_t first, int64_t last) {
    std::vector<FlatPiece> pieces;
    a.order.split(first * kChunk, std::min(parameters, last * kChunk), pieces);
    for (const FlatPiece& piece : pieces) {
      const int64_t tensor = piece.tensor;
      dispatch_stored(a.types[tensor], [&](auto model_tag, auto vector_tag) {
        using T = typename decltype(model_tag)::type;
        using V = typename decltype(vector_tag)::type;
        combine_range<T, V>(add_base ? static_cast<const T*>(starts[tensor]) : nullptr,
                            table.data() + tensor * a.tasks, factor + a.blocks[tensor], a.columns,
                            a.tasks, static_cast<T*>(targets[tensor]), piece.first,
                            piece.first + piece.count);
      });
    }
  });
  return results;
}

// Neighbours, then pairs of neighbours, and so on.
RC_INLINE double sum_of_lanes(double* lanes) {
  for (int width = kProductLanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) lanes[lane] = lanes[2 * lane] + lanes[2 * lane + 1];
  }
  return lanes[0];
}

// `count` parameters, at most one for each lane, added to the lanes.
template <class T, class V>
RC_INLINE void multiply_step(const T* RC_RESTRICT grad, const V* RC_RESTRICT vector, int64_t count,
                             double* RC_RESTRICT lanes) {
  RC_SIMD for (int64_t lane = 0; lane < count; ++lane) {
    lanes[lane] = with_product(lanes[lane], to_accumulate(grad[lane]), to_accumulate(vector[lane]));
  }
}

// Partial sums of parameters [begin, end) of one tensor with one task's vector, to every stride-th
// place of `rows`.
template <class T, class V>
RC_TARGET_CLONES void multiply_range(const T* grad, const V* vector, int64_t begin, int64_t end,
                                     int64_t stride, double* rows) {
  for (int64_t first = begin; first < end; first += kMergeBlock, rows += stride) {
    const int64_t last = first + kMergeBlock < end ? first + kMergeBlock : end;
    double lanes[kProductLanes] = {};
    int64_t at = first;
    for (; at + kProductLanes <= last; at += kProductLanes) {  // loops of known length
      multiply_step(grad + at, vector + at, kProductLanes, lanes);
    }
    if (at < last) multiply_step(grad + at, vector + at, last - at, lanes);
    *rows = sum_of_lanes(lanes);
  }
}

// One column of the partial sums of a tensor.
double sum_of_rows(const double* rows, int64_t blocks, int64_t tasks) {
  double lanes[kProductLanes] = {};
  for (int64_t block = 0; block < blocks; ++block) {
    lanes[block % kProductLanes] += rows[block * tasks];
  }
  return sum_of_lanes(lanes);
}

Tensor task_vector_products(std::vector<Tensor> grads, std::vector<Tensor> vectors, int64_t tasks,
                            std::vector<int64_t> blocks, int64_t columns) {
  const TaskVectorArguments a =
      task_vector_arguments("task_vector_products", std::move(grads), std::move(vectors), tasks,
                            std::move(blocks), columns);
  Tensor products = fresh(a.model[0], {tasks, columns}, ScalarType::Double);
  double* product = write_pointer<double>(products);
  std::fill(product, product + tasks * columns, 0.0);
  const int64_t tensors = a.order.tensors();
  std::vector<int64_t> parts;  // of each tensor
  for (int64_t tensor = 0; tensor < tensors; ++tensor) {
    parts.push_back(merge_blocks(a.order.size(tensor)));
  }
  const FlatOrder order(parts);
  const std::vector<const void*> starts = read_pointers(a.model), table = vector_table(a);
  std::vector<double> rows(order.parameters() * tasks);
  parallel_rows(order.parameters(), kMergeBlock, [&](int64_t first, int64_t last) {
    std::vector<FlatPiece> pieces;
    order.split(first, last, pieces);
    for (const FlatPiece& piece : pieces) {
      const int64_t tensor = piece.tensor, size = a.order.size(tensor);
      dispatch_stored(a.types[tensor], [&](auto model_tag, auto vector_tag) {
        using T = typename decltype(model_tag)::type;
        using V = typename decltype(vector_tag)::type;
        const int64_t end = piece.first + piece.count;
        // Task after task over blocks whose gradient stays in the cache: long streams.
        for (int64_t part = piece.first; part < end; part += kGroup) {
          const int64_t stop = std::min(part + kGroup, end);
          for (int64_t task = 0; task < tasks; ++task) {
            multiply_range(static_cast<const T*>(starts[tensor]),
                           static_cast<const V*>(table[tensor * tasks + task]), part * kMergeBlock,
                           std::min(size, stop * kMergeBlock), tasks,
                           rows.data() + (order.start(tensor) + part) * tasks + task);
          }
        }
      });
    }
  });
  for (int64_t tensor = 0; tensor < tensors; ++tensor) {
    if (order.size(tensor) == 0) continue;
    for (int64_t task = 0; task < tasks; ++task) {
      product[task * columns + a.blocks[tensor]] +=
          sum_of_rows(rows.data() + order.start(tensor) * tasks + task, order.size(tensor), tasks);
    }
  }
  return products;
}

}  // namespace
}  // namespace robustcore

STABLE_TORCH_LIBRARY_IMPL(robustcore, CPU, m) {
  m.impl("combine_task_vectors", TORCH_BOX(&robustcore::combine_task_vectors));
  m.impl("task_vector_products", TORCH_BOX(&robustcore::task_vector_products));
}
