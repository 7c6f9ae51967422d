// CUDA kernel that takes a model from one packed mask to another in place. Blocks are dealt out as
// in mask_apply.cuh. A thread reads weights only where its parameter's bit differs, so what two
// masks share costs their bits alone.
#pragma once

#include "merging/mask_apply.cuh"

namespace robustcore {
namespace mask_apply_cuda {

// p.values: the base; p.results: the weights; p.mask: the mask after the switch.
template <class T>
__global__ void __launch_bounds__(kBlock, 4)
    mask_switch_kernel(const MaskApplyParams<T> p, const std::uint64_t* before) {
  using Acc = accumulate_t<T>;
  const int tensor = tensor_of_block(p.blocks, p.tensors);
  const T* base = p.values[tensor];
  const Acc* merged = p.merged[tensor];
  T* weights = p.results[tensor];
  const std::int64_t start = p.starts[tensor], size = p.sizes[tensor];
  const std::int64_t first = (blockIdx.x - p.blocks[tensor]) * kPart + threadIdx.x;
  bool kept[kPerThread], differs[kPerThread];
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    const std::int64_t i = first + j * kBlock;
    kept[j] = i < size && kept_by(p.mask, start + i);
    differs[j] = i < size && kept_by(before, start + i) != kept[j];
  }
  // Loads of all parameters are under way before the first is used.
  T value[kPerThread];
  Acc addend[kPerThread];
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    const std::int64_t i = first + j * kBlock;
    if (differs[j]) {
      value[j] = base[i];
      addend[j] = kept[j] ? merged[i] : Acc(0);
    }
  }
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    const std::int64_t i = first + j * kBlock;
    if (differs[j]) weights[i] = AddWhereKept::apply<T>(value[j], addend[j], kept[j]);
  }
}

}  // namespace mask_apply_cuda

// The tensors `run` of the model, all of type T, none empty, at most kApplyTensors.
template <class T>
void launch_mask_switch(const MaskApplyModel& model, const std::uint64_t* before,
                        const std::vector<std::int64_t>& run, cudaStream_t stream) {
  using namespace mask_apply_cuda;
  const MaskApplyParams<T> p = mask_apply_params<AddWhereKept, T>(model, run);
  simt::launch<mask_switch_kernel<T>>(p.blocks[p.tensors], kBlock, stream, p, before);
}

}  // namespace robustcore
