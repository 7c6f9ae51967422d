// Kernels with one bug each. The executor must name it (broken_kernel.cpp says how).
#pragma once

#include <cstdint>

#include "common/reduce.cuh"

namespace robustcore::simt::selftest {

// --- barriers and shared memory ---

__global__ void barrier_after_exit_kernel(float* output) {
  if (threadIdx.x >= 40) return;
  __syncthreads();
  output[threadIdx.x] = 1.0f;
}

__global__ void barrier_in_branches_kernel(float* output) {
  if (threadIdx.x % 2 == 0) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  output[threadIdx.x] = 1.0f;
}

__global__ void barrier_in_loop_kernel(float* output) {
  for (unsigned step = 0; step < 1 + threadIdx.x / 32; ++step) __syncthreads();
  output[threadIdx.x] = 1.0f;
}

__global__ void missing_barrier_kernel(const float* input, float* output) {
  RC_SHARED(float, buffer, 64);
  buffer[threadIdx.x] = 0.0f;
  __syncthreads();
  buffer[threadIdx.x] = input[threadIdx.x];
  output[threadIdx.x] = buffer[63 - threadIdx.x];
}

__global__ void missing_first_barrier_kernel(const float* input, float* output) {
  RC_SHARED(float, buffer, 64);
  buffer[threadIdx.x] = input[threadIdx.x];
  output[threadIdx.x] = buffer[63 - threadIdx.x];
}

// The barrier after the reads is missing: the next round overwrites what others still read.
__global__ void missing_second_barrier_kernel(const float* input, float* output) {
  RC_SHARED(float, buffer, 64);
  float sum = 0.0f;
  for (int round = 0; round < 3; ++round) {
    buffer[threadIdx.x] = input[threadIdx.x] * static_cast<float>(round + 1);
    __syncthreads();
    sum += buffer[(threadIdx.x + 1) % 64];
  }
  output[threadIdx.x] = sum;
}

__global__ void missing_warp_sync_kernel(const float* input, float* output) {
  RC_SHARED(float, buffer, 64);
  buffer[threadIdx.x] = input[threadIdx.x];
  const unsigned neighbour = threadIdx.x ^ 1u;
  // A shuffle brings the lanes together but orders no memory.
  const float other = __shfl_xor_sync(kFullWarp, input[threadIdx.x], 1);
  output[threadIdx.x] = buffer[neighbour] - other;
}

__global__ void unwritten_shared_kernel(const float* input, float* output) {
  RC_SHARED(float, buffer, 64);
  if (threadIdx.x != 17) buffer[threadIdx.x] = input[threadIdx.x];
  __syncthreads();
  output[threadIdx.x] = buffer[threadIdx.x];
}

__global__ void shared_write_past_end_kernel(const float* input, float* output) {
  RC_SHARED(float, buffer, 63);
  buffer[threadIdx.x] = input[threadIdx.x];
  __syncthreads();
  output[threadIdx.x] = buffer[threadIdx.x % 63];
}

__global__ void shared_read_past_end_kernel(const float* input, float* output) {
  RC_SHARED(float, buffer, 64);
  buffer[threadIdx.x] = input[threadIdx.x];
  __syncthreads();
  output[threadIdx.x] = buffer[threadIdx.x + 1];
}

__global__ void too_much_shared_kernel(float* output) {
  RC_SHARED(double, first, 4096);
  RC_SHARED(double, second, 2049);
  first[threadIdx.x] = second[threadIdx.x] = 1.0;
  output[threadIdx.x] = static_cast<float>(first[threadIdx.x] + second[threadIdx.x]);
}

// --- warp primitives ---

__global__ void shuffle_out_of_range_kernel(const float* input, float* output) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  output[threadIdx.x] = __shfl_sync(kFullWarp, input[threadIdx.x], lane + 1);
}

__global__ void shuffle_beyond_width_kernel(const float* input, float* output) {
  output[threadIdx.x] = __shfl_xor_sync(kFullWarp, input[threadIdx.x], 16, 16);
}

__global__ void shuffle_odd_width_kernel(const float* input, float* output) {
  output[threadIdx.x] = __shfl_sync(kFullWarp, input[threadIdx.x], 0, 24);
}

__global__ void shuffle_from_absent_lane_kernel(const float* input, float* output) {
  float value = input[threadIdx.x];
  if (threadIdx.x % 32 < 16) value = __shfl_down_sync(0x0000ffffu, value, 8);
  output[threadIdx.x] = value;
}

__global__ void shuffle_after_exit_kernel(const float* input, float* output) {
  if (threadIdx.x % 32 >= 20) return;
  output[threadIdx.x] = __shfl_xor_sync(kFullWarp, input[threadIdx.x], 1);
}

__global__ void shuffle_outside_mask_kernel(const float* input, float* output) {
  output[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, input[threadIdx.x], 1);
}

__global__ void shuffle_in_branches_kernel(const float* input, float* output) {
  if (threadIdx.x % 32 < 16) {
    output[threadIdx.x] = __shfl_xor_sync(kFullWarp, input[threadIdx.x], 1);
  } else {
    output[threadIdx.x] = __shfl_xor_sync(kFullWarp, -input[threadIdx.x], 1);
  }
}

__global__ void shuffle_in_partial_warp_kernel(const float* input, float* output) {
  output[threadIdx.x] = warp_reduce(input[threadIdx.x], Sum{});
}

// --- waiting for ever ---

__global__ void warp_against_block_kernel(float* output) {
  if (threadIdx.x % 2 == 0) {
    __syncthreads();
  } else {
    __syncwarp();
  }
  output[threadIdx.x] = 1.0f;
}

__global__ void spin_kernel(float* output, unsigned* flag) {
  while (atomicAdd(flag, 0u) == 0) __nanosleep(100);
  output[threadIdx.x] = 1.0f;
}

__global__ void endless_kernel(float* output, volatile unsigned* flag) {
  while (*flag == 0) {
  }
  output[threadIdx.x] = 1.0f;
}

// --- device memory ---

__global__ void read_past_end_kernel(const float* input, float* output) {
  output[threadIdx.x] = input[threadIdx.x + 1];
}

__global__ void read_far_past_end_kernel(const float* input, float* output) {
  output[threadIdx.x] = input[threadIdx.x + 3'000'000];
}

__global__ void read_before_start_kernel(const float* input, float* output) {
  output[threadIdx.x] = *(input + threadIdx.x - 1);
}

__global__ void write_past_end_kernel(const float* input, float* output) {
  output[threadIdx.x] = input[threadIdx.x];
  if (threadIdx.x == 0) output[64] = 0.0f;
}

__global__ void write_before_start_kernel(const float* input, float* output) {
  output[threadIdx.x] = input[threadIdx.x];
  if (threadIdx.x == 0) *(output - 1) = 0.0f;
}

__global__ void write_to_input_kernel(const float* input, float* output) {
  const_cast<float*>(input)[threadIdx.x] = 0.0f;
  output[threadIdx.x] = 1.0f;
}

__global__ void null_pointer_kernel(const float* nothing, float* output) {
  output[threadIdx.x] = nothing[threadIdx.x];
}

__global__ void misaligned_kernel(const float* input, float* output) {
  output[threadIdx.x] = 0.0f;
  __syncthreads();
  if (threadIdx.x >= 15) return;
  const float4* quads = reinterpret_cast<const float4*>(input + 1);
  reinterpret_cast<float4*>(output)[threadIdx.x] = quads[threadIdx.x];
}

__global__ void unwritten_output_kernel(const float* input, float* output) {
  if (threadIdx.x != 33) output[threadIdx.x] = input[threadIdx.x];
}

__global__ void unwritten_scratch_kernel(float* scratch, float* output) {
  if (threadIdx.x != 5) scratch[threadIdx.x] = 1.0f;
  output[threadIdx.x] = scratch[threadIdx.x];
}

// --- races between threads and between blocks ---

__global__ void lost_update_kernel(unsigned* count, float* output) {
  *count += 1;
  output[threadIdx.x] = 1.0f;
}

__global__ void last_block_wins_kernel(const float* input, float* output) {
  output[threadIdx.x] = input[threadIdx.x] * static_cast<float>(blockIdx.x);
}

__global__ void neighbour_block_kernel(const float* input, float* values, float* output) {
  const unsigned index = blockIdx.x * blockDim.x + threadIdx.x;
  const unsigned count = gridDim.x * blockDim.x;
  values[index] = input[index];
  output[index] = values[(index + blockDim.x) % count];
}

__global__ void missing_fence_kernel(const float* input, float* partial, unsigned* finished,
                                     float* output) {
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = input[blockIdx.x];
    if (atomicAdd(finished, 1u) == gridDim.x - 1) {
      float sum = 0.0f;
      for (unsigned block = 0; block < gridDim.x; ++block) sum += partial[block];
      *output = sum;
    }
  }
}

// --- plain errors ---

__global__ void assertion_kernel(const float* input, float* output) {
  RC_DEVICE_ASSERT(threadIdx.x != 3);
  output[threadIdx.x] = input[threadIdx.x];
}

__global__ void trap_kernel(float* output) {
  if (threadIdx.x == 3) __trap();
  output[threadIdx.x] = 1.0f;
}

__global__ void division_by_zero_kernel(float* output, unsigned divisor) {
  output[threadIdx.x] = static_cast<float>(threadIdx.x / divisor);
}

__device__ int recurse(int depth, volatile char* above) {
  volatile char local[512];
  local[0] = static_cast<char>(above[0] + 1);
  return depth == 0 ? local[0] : recurse(depth - 1, local) + local[0];
}

__global__ void deep_recursion_kernel(float* output) {
  volatile char start = 0;
  output[threadIdx.x] = static_cast<float>(recurse(1 << 20, &start));
}

__global__ void nested_launch_kernel(float* output) {
  launch<trap_kernel>(1, 32, nullptr, output);
}

}  // namespace robustcore::simt::selftest
