// CUDA kernel that applies one packed mask to a model. One launch handles a run of tensors of one
// dtype; blocks are dealt out to tensors, and a tensor's bits start anywhere in a word.
#pragma once

#include <cstdint>
#include <vector>

#include "common/float16.h"
#include "common/simt.cuh"
#include "merging/flat_order.h"
#include "merging/mask_apply.h"
#include "merging/mask_words.h"

namespace robustcore {

constexpr int kApplyTensors = 64;

template <class T>
struct MaskApplyParams {
  const T* values[kApplyTensors];
  const accumulate_t<T>* merged[kApplyTensors];  // read where the policy adds
  T* results[kApplyTensors];
  std::int64_t starts[kApplyTensors];  // flat index of the first parameter
  std::int64_t sizes[kApplyTensors];
  std::int64_t blocks[kApplyTensors + 1];  // first block of each tensor
  const std::uint64_t* mask;
  int tensors;
};
static_assert(sizeof(MaskApplyParams<double>) <= 4096);

namespace mask_apply_cuda {

constexpr int kBlock = 256;
constexpr int kPerThread = 8;
constexpr std::int64_t kPart = kBlock * kPerThread;

// The tensor that a block works on, by the first block of each.
__device__ __forceinline__ int tensor_of_block(const std::int64_t* blocks, int tensors) {
  int tensor = 0, after = tensors;
  while (after - tensor > 1) {
    const int middle = (tensor + after) / 2;
    if (blocks[middle] <= blockIdx.x) {
      tensor = middle;
    } else {
      after = middle;
    }
  }
  return tensor;
}

__device__ __forceinline__ bool kept_by(const std::uint64_t* mask, std::int64_t parameter) {
  return (mask[parameter / kWordBits] >> (parameter % kWordBits)) & 1;
}

template <class Policy, class T>
__global__ void __launch_bounds__(kBlock, 4) mask_apply_kernel(const MaskApplyParams<T> p) {
  using Acc = accumulate_t<T>;
  const int tensor = tensor_of_block(p.blocks, p.tensors);
  const T* values = p.values[tensor];
  const Acc* merged = p.merged[tensor];
  T* results = p.results[tensor];
  const std::int64_t start = p.starts[tensor], size = p.sizes[tensor];
  const std::int64_t first = (blockIdx.x - p.blocks[tensor]) * kPart + threadIdx.x;
  // All loads of a thread before its first store: results may be the values themselves.
  T value[kPerThread];
  Acc addend[kPerThread];
  bool kept[kPerThread];
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    const std::int64_t i = first + j * kBlock;
    if (i < size) {
      value[j] = values[i];
      addend[j] = Policy::kReadsBase ? merged[i] : Acc(0);
      kept[j] = kept_by(p.mask, start + i);
    }
  }
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    const std::int64_t i = first + j * kBlock;
    if (i < size) results[i] = Policy::template apply<T>(value[j], addend[j], kept[j]);
  }
}

}  // namespace mask_apply_cuda

// A model and what is done to it, by tensor.
struct MaskApplyModel {
  const FlatOrder* order;
  std::vector<const void*> values;
  std::vector<const void*> merged;  // empty where the policy does not read it
  std::vector<void*> results;
  const std::uint64_t* mask;
};

// The tensors `run` of the model, all of type T, none empty, at most kApplyTensors.
template <class Policy, class T>
MaskApplyParams<T> mask_apply_params(const MaskApplyModel& model,
                                     const std::vector<std::int64_t>& run) {
  using mask_apply_cuda::kPart;
  MaskApplyParams<T> p{};
  p.tensors = static_cast<int>(run.size());
  p.mask = model.mask;
  for (int i = 0; i < p.tensors; ++i) {
    const std::int64_t tensor = run[i];
    p.values[i] = static_cast<const T*>(model.values[tensor]);
    if (Policy::kReadsBase) p.merged[i] = static_cast<const accumulate_t<T>*>(model.merged[tensor]);
    p.results[i] = static_cast<T*>(model.results[tensor]);
    p.starts[i] = model.order->start(tensor);
    p.sizes[i] = model.order->size(tensor);
    p.blocks[i + 1] = p.blocks[i] + (p.sizes[i] + kPart - 1) / kPart;
  }
  return p;
}

template <class Policy, class T>
void launch_mask_apply(const MaskApplyModel& model, const std::vector<std::int64_t>& run,
                       cudaStream_t stream) {
  using namespace mask_apply_cuda;
  const MaskApplyParams<T> p = mask_apply_params<Policy, T>(model, run);
  simt::launch<mask_apply_kernel<Policy, T>>(p.blocks[p.tensors], kBlock, stream, p);
}

}  // namespace robustcore
