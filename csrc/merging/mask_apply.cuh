// CUDA kernel that applies one packed mask to a model. One launch handles a run of tensors of one dtype;
// blocks are dealt out to tensors, and a tensor's bits start anywhere in a word.
#pragma once

#include <cstdint>

#include "common/float16.h"
#include "common/simt.cuh"
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
  std::int64_t blocks[kApplyTensors + 1];  // first block of each tensor; filled by the launch
  const std::uint64_t* mask;
  int tensors;
};
static_assert(sizeof(MaskApplyParams<double>) <= 4096);

namespace mask_apply_cuda {

constexpr int kBlock = 256;
constexpr int kPerThread = 8;
constexpr std::int64_t kPart = kBlock * kPerThread;

template <class Policy, class T>
__global__ void __launch_bounds__(kBlock)
    mask_apply_kernel(const MaskApplyParams<T> p) {
  using Acc = accumulate_t<T>;
  int tensor = 0, after = p.tensors;
  while (after - tensor > 1) {
    const int middle = (tensor + after) / 2;
    if (p.blocks[middle] <= blockIdx.x) {
      tensor = middle;
    } else {
      after = middle;
    }
  }
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
      kept[j] = (p.mask[(start + i) / kWordBits] >> ((start + i) % kWordBits)) & 1;
    }
  }
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    const std::int64_t i = first + j * kBlock;
    if (i < size) results[i] = Policy::template apply<T>(value[j], addend[j], kept[j]);
  }
}

}  // namespace mask_apply_cuda

template <class Policy, class T>
void launch_mask_apply(MaskApplyParams<T> params, cudaStream_t stream) {
  using namespace mask_apply_cuda;
  params.blocks[0] = 0;
  for (int k = 0; k < params.tensors; ++k) {
    params.blocks[k + 1] = params.blocks[k] + (params.sizes[k] + kPart - 1) / kPart;
  }
  simt::launch<mask_apply_kernel<Policy, T>>(params.blocks[params.tensors], kBlock, stream, params);
}

}  // namespace robustcore
