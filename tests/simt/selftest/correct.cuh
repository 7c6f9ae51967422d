// Small correct kernels in the usual patterns: they must pass under every schedule.
#pragma once

#include <cstdint>

#include "common/reduce.cuh"

namespace robustcore::simt::selftest {

template <int Threads>
__global__ void __launch_bounds__(Threads)
    row_sum_kernel(const float* values, float* sums, std::int64_t columns) {
  const float* row = values + blockIdx.x * columns;
  float sum = 0.0f;
  for (std::int64_t column = threadIdx.x; column < columns; column += Threads) sum += row[column];
  sum = block_reduce<Threads>(sum, Sum{});
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// Inclusive scan of rows of up to 32 values, one warp each.
__global__ void warp_scan_kernel(const int* values, int* sums, int columns) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const std::int64_t row = blockIdx.x * (blockDim.x / kWarpSize) + threadIdx.x / kWarpSize;
  int value = lane < columns ? values[row * columns + lane] : 0;
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const int below = __shfl_up_sync(kFullWarp, value, offset);
    if (lane >= offset) value += below;
  }
  if (lane < columns) sums[row * columns + lane] = value;
}

// Copies with 16-byte accesses between an unaligned head and a tail.
template <int Threads>
__global__ void vector_copy_kernel(const float* source, float* destination, std::int64_t count) {
  const auto misaligned = reinterpret_cast<std::uintptr_t>(source) % 16;
  const bool vectors = misaligned == reinterpret_cast<std::uintptr_t>(destination) % 16;
  std::int64_t head = misaligned == 0 ? 0 : static_cast<std::int64_t>((16 - misaligned) / 4);
  if (!vectors || head > count) head = count;
  const std::int64_t quads = (count - head) / 4;
  const std::int64_t first = blockIdx.x * static_cast<std::int64_t>(Threads) + threadIdx.x;
  const std::int64_t stride = gridDim.x * static_cast<std::int64_t>(Threads);
  for (std::int64_t quad = first; quad < quads; quad += stride) {
    const float4* from = reinterpret_cast<const float4*>(source + head) + quad;
    reinterpret_cast<float4*>(destination + head)[quad] = *from;
  }
  for (std::int64_t index = first; index < head; index += stride) {
    destination[index] = source[index];
  }
  for (std::int64_t index = head + 4 * quads + first; index < count; index += stride) {
    destination[index] = source[index];
  }
}

// Bit i of the output tells whether value i is positive.
__global__ void ballot_pack_kernel(const float* values, std::uint32_t* words, std::int64_t count) {
  const std::int64_t index = blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x;
  const bool positive = index < count && values[index] > 0.0f;
  const unsigned word = __ballot_sync(kFullWarp, positive);
  if (threadIdx.x % kWarpSize == 0 && index < count) words[index / kWarpSize] = word;
}

// Reverses each block's values through shared memory.
template <int Threads>
__global__ void shared_reverse_kernel(const float* values, float* reversed) {
  RC_SHARED(float, buffer, Threads);
  const std::int64_t start = blockIdx.x * static_cast<std::int64_t>(Threads);
  buffer[threadIdx.x] = values[start + threadIdx.x];
  __syncthreads();
  reversed[start + threadIdx.x] = buffer[Threads - 1 - threadIdx.x];
}

// Counts by bins with integer atomics, in shared memory and then in global memory.
template <int Threads, int Bins>
__global__ void histogram_kernel(const int* values, unsigned* counts, std::int64_t count) {
  RC_SHARED(unsigned, bins, Bins);
  for (int bin = static_cast<int>(threadIdx.x); bin < Bins; bin += Threads) bins[bin] = 0;
  __syncthreads();
  const std::int64_t stride = gridDim.x * static_cast<std::int64_t>(Threads);
  std::int64_t index = blockIdx.x * static_cast<std::int64_t>(Threads) + threadIdx.x;
  for (; index < count; index += stride) atomicAdd(&bins[values[index]], 1u);
  __syncthreads();
  for (int bin = static_cast<int>(threadIdx.x); bin < Bins; bin += Threads) {
    if (bins[bin] != 0) atomicAdd(&counts[bin], bins[bin]);
  }
}

// One pass over the grid: the last block to finish adds the blocks' sums in their order.
template <int Threads>
__global__ void last_block_sum_kernel(const float* values, float* partial, unsigned* finished,
                                      float* total, std::int64_t columns) {
  RC_SHARED(bool, is_last, 1);
  const float* row = values + blockIdx.x * columns;
  float sum = 0.0f;
  for (std::int64_t column = threadIdx.x; column < columns; column += Threads) sum += row[column];
  sum = block_reduce<Threads>(sum, Sum{});
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = sum;
    __threadfence();
    is_last[0] = atomicAdd(finished, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (is_last[0] && threadIdx.x == 0) {
    float result = 0.0f;
    for (unsigned block = 0; block < gridDim.x; ++block) result += partial[block];
    *total = result;
  }
}

template <int Threads, typename Combine>
__global__ void block_reduce_kernel(const float* values, float* results) {
  const std::int64_t index = blockIdx.x * static_cast<std::int64_t>(Threads) + threadIdx.x;
  results[index] = block_reduce<Threads>(values[index], Combine{});
}

// Reduces again at once: the same shared memory serves both times.
template <int Threads>
__global__ void repeated_reduce_kernel(const float* values, float* results) {
  const float value = values[threadIdx.x];
  const float sum = block_reduce<Threads>(value, Sum{});
  const float squares = block_reduce<Threads>(value * value, Sum{});
  results[threadIdx.x] = sum;
  results[Threads + threadIdx.x] = squares;
}

// x -> slope * x + offset
struct Affine {
  float slope;
  float offset;
};

struct ComposeAffine {
  __host__ __device__ Affine operator()(const Affine& first, const Affine& second) const {
    return {second.slope * first.slope, second.slope * first.offset + second.offset};
  }
};

template <int Threads>
__global__ void block_affine_kernel(const float* slopes, const float* offsets, Affine* results) {
  const Affine map{slopes[threadIdx.x], offsets[threadIdx.x]};
  results[threadIdx.x] = block_reduce<Threads>(map, ComposeAffine{});
}

template <int Width>
__global__ void warp_sum_kernel(const float* values, float* results) {
  results[threadIdx.x] = warp_reduce<Width>(values[threadIdx.x], Sum{});
}

// One row of results for each warp primitive.
__global__ void warp_votes_kernel(const int* values, int* results) {
  const int value = values[threadIdx.x];
  int* result = results + threadIdx.x;
  const unsigned rows = blockDim.x;
  result[0 * rows] = static_cast<int>(__ballot_sync(kFullWarp, value > 0));
  result[1 * rows] = __any_sync(kFullWarp, value > 0);
  result[2 * rows] = __all_sync(kFullWarp, value > -9);
  result[3 * rows] = __reduce_add_sync(kFullWarp, value);
  result[4 * rows] = __reduce_min_sync(kFullWarp, value);
  result[5 * rows] = __reduce_max_sync(kFullWarp, value);
  result[6 * rows] = static_cast<int>(__reduce_and_sync(kFullWarp, static_cast<unsigned>(value)));
  result[7 * rows] = static_cast<int>(__reduce_or_sync(kFullWarp, static_cast<unsigned>(value)));
  result[8 * rows] = static_cast<int>(__reduce_xor_sync(kFullWarp, static_cast<unsigned>(value)));
  result[9 * rows] = static_cast<int>(__match_any_sync(kFullWarp, value));
  result[10 * rows] = __shfl_up_sync(kFullWarp, value, 4);
  result[11 * rows] = __shfl_sync(kFullWarp, value, 0, 8);
}

}  // namespace robustcore::simt::selftest
