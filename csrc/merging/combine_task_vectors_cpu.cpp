#include "common/parallel.h"
#include "merging/combine_task_vectors_op.h"

namespace robustcore {
namespace {

constexpr int64_t kChunk = 8192;  // parameters of one tensor
constexpr int64_t kStep = 1024;   // whose sums stay in the nearest cache

// Parameters [begin, end) of one tensor; `base` is null for a sum without it.
template <class T, class V>
RC_TARGET_CLONES void combine_range(const T* base, const V* const* vectors,
                                    const accumulate_t<T>* coefficients, int64_t tasks, T* result,
                                    int64_t begin, int64_t end) {
  using Acc = accumulate_t<T>;
  Acc totals[kStep];
  for (int64_t first = begin; first < end; first += kStep) {
    const int64_t count = end - first < kStep ? end - first : kStep;
    for (int64_t i = 0; i < count; ++i) totals[i] = Acc(0);
    for (int64_t task = 0; task < tasks; ++task) {
      const V* RC_RESTRICT vector = vectors[task] + first;
      const Acc coefficient = coefficients[task];
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
  for (int64_t tensor = 0; tensor < a.order.tensors(); ++tensor) {
    dispatch_stored(a.types[tensor], [&](auto model_tag, auto vector_tag) {
      using T = typename decltype(model_tag)::type;
      using V = typename decltype(vector_tag)::type;
      std::vector<const V*> rows;
      std::vector<accumulate_t<T>> own;
      for (int64_t task = 0; task < a.tasks; ++task) {
        rows.push_back(read_pointer<V>(a.vectors[task * a.order.tensors() + tensor]));
        own.push_back(
            static_cast<accumulate_t<T>>(factor[task * a.columns + a.blocks[tensor]]));
      }
      const T* start = add_base ? read_pointer<T>(a.model[tensor]) : nullptr;
      T* result = write_pointer<T>(results[tensor]);
      const int64_t size = a.order.size(tensor);
      parallel_rows((size + kChunk - 1) / kChunk, kChunk * (a.tasks + 1),
                    [&](int64_t begin, int64_t end) {
                      combine_range<T, V>(start, rows.data(), own.data(), a.tasks, result,
                                          begin * kChunk, std::min(size, end * kChunk));
                    });
    });
  }
  return results;
}

// Neighbours, then pairs of neighbours, and so on.
RC_INLINE double sum_of_lanes(double* lanes) {
  for (int width = kProductLanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) lanes[lane] = lanes[2 * lane] + lanes[2 * lane + 1];
  }
  return lanes[0];
}

// Partial sums of one block of parameters, [tasks].
template <class T, class V>
RC_TARGET_CLONES void multiply_block(const T* grad, const V* const* vectors, int64_t tasks,
                                     int64_t begin, int64_t end, double* row) {
  double wide[kMergeBlock];
  for (int64_t i = begin; i < end; ++i) wide[i - begin] = to_accumulate(grad[i]);
  for (int64_t task = 0; task < tasks; ++task) {
    const V* RC_RESTRICT vector = vectors[task];
    double lanes[kProductLanes] = {};
    for (int64_t first = begin; first < end; first += kProductLanes) {
      const int64_t count = end - first < kProductLanes ? end - first : kProductLanes;
      const double* from = wide + (first - begin);
      RC_SIMD for (int64_t lane = 0; lane < count; ++lane) {
        lanes[lane] = with_product(lanes[lane], from[lane], to_accumulate(vector[first + lane]));
      }
    }
    row[task] = sum_of_lanes(lanes);
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
  for (int64_t tensor = 0; tensor < a.order.tensors(); ++tensor) {
    const int64_t size = a.order.size(tensor), parts = merge_blocks(size);
    if (size == 0) continue;
    std::vector<double> rows(parts * tasks);
    dispatch_stored(a.types[tensor], [&](auto model_tag, auto vector_tag) {
      using T = typename decltype(model_tag)::type;
      using V = typename decltype(vector_tag)::type;
      std::vector<const V*> pointers;
      for (int64_t task = 0; task < tasks; ++task) {
        pointers.push_back(read_pointer<V>(a.vectors[task * a.order.tensors() + tensor]));
      }
      const T* grad = read_pointer<T>(a.model[tensor]);
      parallel_rows(parts, kMergeBlock * tasks, [&](int64_t begin, int64_t end) {
        for (int64_t part = begin; part < end; ++part) {
          multiply_block<T, V>(grad, pointers.data(), tasks, part * kMergeBlock,
                               std::min(size, (part + 1) * kMergeBlock),
                               rows.data() + part * tasks);
        }
      });
    });
    for (int64_t task = 0; task < tasks; ++task) {
      product[task * columns + a.blocks[tensor]] += sum_of_rows(rows.data() + task, parts, tasks);
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
