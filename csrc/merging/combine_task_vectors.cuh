// CUDA kernels that combine task vectors, and those of the derivative for the coefficients. One
// launch handles a run of tensors of one type; the table of their pointers is passed by value, so
// that nothing is copied or allocated and the launch can be captured in a graph. Coefficients stay
// on the device.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/float16.h"
#include "common/reduce.cuh"
#include "common/simt.cuh"
#include "merging/combine_task_vectors.h"
#include "merging/flat_order.h"

namespace robustcore {

// The parameters of a kernel may take 4 KB.
constexpr int kCombineTasks = 256;
constexpr int kCombinePointers = 320;
constexpr int kCombineTensors = 32;

struct TaskVectorParams {
  const void* pointers[kCombinePointers];  // per tensor: the model's, then one per task
  std::int64_t sizes[kCombineTensors];
  std::int64_t blocks[kCombineTensors + 1];  // first block of threads of each tensor
  int columns[kCombineTensors];              // of the coefficients
  int tensors;
  int tasks;

  __host__ __device__ __forceinline__ int stride() const { return tasks + 1; }
};

template <class T>
struct CombineParams {
  TaskVectorParams table;
  T* results[kCombineTensors];
  const double* coefficients;  // [tasks, columns]
  std::int64_t columns;
  bool add_base;
};
static_assert(sizeof(CombineParams<double>) <= 4096);

struct ProductParams {
  TaskVectorParams table;
  double* rows;  // [blocks, tasks]
};

struct ProductSumParams {
  std::int64_t first_row[kCombineTensors + 1];
  int columns[kCombineTensors];
  int tensors;
  int tasks;
  std::int64_t column_count;
  const double* rows;
  double* products;  // [tasks, column_count]
  bool first;        // products hold nothing yet
};

// The tensors that one launch takes, so that all pointers have a place.
inline std::int64_t combine_run_capacity(std::int64_t tasks) {
  return std::min<std::int64_t>(kCombineTensors, kCombinePointers / (tasks + 1));
}
static_assert(kCombinePointers >= kCombineTasks + 1);

namespace combine_cuda {

constexpr int kBlock = 256;
constexpr int kPerThread = 8;
constexpr std::int64_t kPart = kBlock * kPerThread;
static_assert(kBlock == kProductLanes);
constexpr int kPerLane = static_cast<int>(kMergeBlock / kProductLanes);

__device__ __forceinline__ int tensor_of_block(const TaskVectorParams& table) {
  int tensor = 0, after = table.tensors;
  while (after - tensor > 1) {
    const int middle = (tensor + after) / 2;
    if (table.blocks[middle] <= blockIdx.x) {
      tensor = middle;
    } else {
      after = middle;
    }
  }
  return tensor;
}

template <class T, class V>
__global__ void __launch_bounds__(kBlock, 4) combine_kernel(const CombineParams<T> p) {
  using Acc = accumulate_t<T>;
  const int tensor = tensor_of_block(p.table);
  const void* const* row = p.table.pointers + tensor * p.table.stride();
  const std::int64_t size = p.table.sizes[tensor];
  const std::int64_t first = (blockIdx.x - p.table.blocks[tensor]) * kPart + threadIdx.x;
  const double* coefficients = p.coefficients + p.table.columns[tensor];
  Acc totals[kPerThread] = {};
  for (int task = 0; task < p.table.tasks; ++task) {
    const V* vector = static_cast<const V*>(row[1 + task]);
    const Acc coefficient = static_cast<Acc>(coefficients[task * p.columns]);
    Acc values[kPerThread];
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
      const std::int64_t i = first + j * kBlock;
      values[j] = i < size ? static_cast<Acc>(to_accumulate(vector[i])) : Acc(0);
    }
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) totals[j] = with_term(totals[j], coefficient, values[j]);
  }
  const T* base = static_cast<const T*>(row[0]);
  T* result = p.results[tensor];
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    const std::int64_t i = first + j * kBlock;
    if (i < size) {
      const Acc total = p.add_base ? to_accumulate(base[i]) + totals[j] : totals[j];
      result[i] = from_accumulate<T>(total);
    }
  }
}

// A block of threads multiplies one block of parameters: thread l is lane l.
template <class T, class V>
__global__ void __launch_bounds__(kBlock, 4) product_kernel(const ProductParams p) {
  const int tensor = tensor_of_block(p.table);
  const void* const* row = p.table.pointers + tensor * p.table.stride();
  const std::int64_t size = p.table.sizes[tensor];
  const std::int64_t first = (blockIdx.x - p.table.blocks[tensor]) * kMergeBlock + threadIdx.x;
  const T* grad = static_cast<const T*>(row[0]);
  accumulate_t<T> grads[kPerLane];
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const std::int64_t i = first + j * kBlock;
    grads[j] = i < size ? to_accumulate(grad[i]) : accumulate_t<T>(0);
  }
  for (int task = 0; task < p.table.tasks; ++task) {
    const V* vector = static_cast<const V*>(row[1 + task]);
    double total = 0;
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      const std::int64_t i = first + j * kBlock;
      if (i < size) total = with_product(total, grads[j], to_accumulate(vector[i]));
    }
    total = block_reduce<kBlock>(total, Sum());
    if (threadIdx.x == 0) p.rows[std::int64_t{blockIdx.x} * p.table.tasks + task] = total;
  }
}

// A block of threads adds up one product: the partial sums of the tensors that have its column.
__global__ void __launch_bounds__(kBlock) product_sum_kernel(const ProductSumParams p) {
  const int task = static_cast<int>(blockIdx.x / p.column_count);
  const std::int64_t column = blockIdx.x % p.column_count;
  double* product = p.products + blockIdx.x;
  double total = p.first ? 0 : *product;
  for (int tensor = 0; tensor < p.tensors; ++tensor) {
    if (p.columns[tensor] != column) continue;
    double lane = 0;
    for (std::int64_t row = p.first_row[tensor] + threadIdx.x; row < p.first_row[tensor + 1];
         row += kBlock) {
      lane += p.rows[row * p.tasks + task];
    }
    total += block_reduce<kBlock>(lane, Sum());
  }
  __syncthreads();  // all threads have read the product
  if (threadIdx.x == 0) *product = total;
}

}  // namespace combine_cuda

// Pointers of a model and its task vectors.
struct TaskVectorModel {
  const FlatOrder* order;
  std::vector<const void*> model;    // [tensors]
  std::vector<const void*> vectors;  // [tasks * tensors], task by task
  std::vector<std::int64_t> columns;
  std::int64_t tasks;
};

// The tensors `run`, none empty, `per_block` parameters to a block of threads.
inline TaskVectorParams task_vector_params(const TaskVectorModel& model,
                                           const std::vector<std::int64_t>& run,
                                           std::int64_t per_block) {
  TaskVectorParams p{};
  p.tensors = static_cast<int>(run.size());
  p.tasks = static_cast<int>(model.tasks);
  for (int i = 0; i < p.tensors; ++i) {
    const std::int64_t tensor = run[i];
    const void** row = p.pointers + i * p.stride();
    row[0] = model.model[tensor];
    for (int task = 0; task < p.tasks; ++task) {
      row[1 + task] = model.vectors[task * model.order->tensors() + tensor];
    }
    p.columns[i] = static_cast<int>(model.columns[tensor]);
    p.sizes[i] = model.order->size(tensor);
    p.blocks[i + 1] = p.blocks[i] + (p.sizes[i] + per_block - 1) / per_block;
  }
  return p;
}

// Combines the tensors `run`, all of types T and V, at most combine_run_capacity of them.
template <class T, class V>
void launch_combine(const TaskVectorModel& model, const std::vector<std::int64_t>& run,
                    const double* coefficients, std::int64_t columns, bool add_base,
                    const std::vector<void*>& results, cudaStream_t stream) {
  using namespace combine_cuda;
  CombineParams<T> p{};
  p.table = task_vector_params(model, run, kPart);
  for (int i = 0; i < p.table.tensors; ++i) p.results[i] = static_cast<T*>(results[run[i]]);
  p.coefficients = coefficients;
  p.columns = columns;
  p.add_base = add_base;
  simt::launch<combine_kernel<T, V>>(p.table.blocks[p.table.tensors], kBlock, stream, p);
}

// Writes the partial sums of the tensors `run`: [blocks, tasks], tensor after tensor.
template <class T, class V>
void launch_products(const TaskVectorModel& model, const std::vector<std::int64_t>& run,
                     double* rows, cudaStream_t stream) {
  using namespace combine_cuda;
  const ProductParams p{task_vector_params(model, run, kMergeBlock), rows};
  simt::launch<product_kernel<T, V>>(p.table.blocks[p.table.tensors], kBlock, stream, p);
}

// Adds the partial sums of the tensors `run` to the products; with `first`, to nothing. Returns
// how many rows it took.
inline std::int64_t launch_product_sums(const TaskVectorModel& model,
                                        const std::vector<std::int64_t>& run, const double* rows,
                                        double* products, std::int64_t columns, bool first,
                                        cudaStream_t stream) {
  using namespace combine_cuda;
  ProductSumParams p{};
  p.tensors = static_cast<int>(run.size());
  p.tasks = static_cast<int>(model.tasks);
  for (int i = 0; i < p.tensors; ++i) {
    p.columns[i] = static_cast<int>(model.columns[run[i]]);
    p.first_row[i + 1] = p.first_row[i] + merge_blocks(model.order->size(run[i]));
  }
  p.column_count = columns;
  p.rows = rows;
  p.products = products;
  p.first = first;
  simt::launch<product_sum_kernel>(model.tasks * columns, kBlock, stream, p);
  return p.first_row[p.tensors];
}

}  // namespace robustcore
