// What kernels of this project may use besides plain CUDA: the launch, static shared arrays, device
// assertions.
//
// A kernel header (<op>.cuh) is ordinary CUDA and includes this file. nvcc takes the first branch
// below. Any other compiler takes "cuda_on_host.h" from its include path, which tests/simt
// provides: the same kernel source then runs on the CPU, one fiber per thread, so that its
// indexing, barriers and warp primitives are tested without a GPU.
//
//   RC_SHARED(type, name, count);   a static shared array `type name[count]`
//   RC_DEVICE_ASSERT(condition);    stops the kernel where the condition is false
//   simt::launch<kernel<T, 4>>(grid, block, stream, params...);
#pragma once

#include <cstdint>

#if defined(__CUDACC__)

#include <cuda_runtime.h>

#include <cassert>
#include <stdexcept>
#include <string>
#include <string_view>

// A type whose name holds a comma needs an alias.
#define RC_SHARED(type, name, count) __shared__ type name[count]

// Not assert(): release builds define NDEBUG. The file is left out because it would put the build
// machine's folders into every binary; the kernel's name and the line say where to look.
#if defined(__CUDA_ARCH__)
#define RC_DEVICE_ASSERT(condition) \
  ((condition) ? static_cast<void>(0) : __assert_fail(#condition, "robustcore", __LINE__, __func__))
#else
#define RC_DEVICE_ASSERT(condition) static_cast<void>(condition)
#endif

namespace robustcore::simt {

// The largest grid a launch accepts: CUDA's limit on gridDim.x.
inline constexpr std::int64_t kMaximumGrid = 2147483647;
inline constexpr int kMaximumBlock = 1024;

namespace detail {

// The kernel's name as the host compiler spells it, cut out of this function's own signature.
template <auto Kernel>
std::string kernel_name() {
  std::string_view signature = __PRETTY_FUNCTION__;
  const auto start = signature.find("Kernel = ");
  if (start == std::string_view::npos) return std::string(signature);
  signature.remove_prefix(start + 9);
  const auto end = signature.find_last_of(']');
  signature = signature.substr(0, signature.find(';') < end ? signature.find(';') : end);
  return std::string(signature);
}

template <auto Kernel>
[[noreturn]] void throw_launch_error(const std::string& what) {
  throw std::runtime_error("launch of " + kernel_name<Kernel>() + ": " + what);
}

}  // namespace detail

// Queues `grid` blocks of `block` threads of `Kernel` on `stream`. A grid of 0 is a launch of
// nothing: allowed, so that empty inputs need no branch in the callers. Throws std::runtime_error
// with the kernel's name where the shape is out of range or CUDA refuses the launch; errors inside
// the running kernel appear later, as always with CUDA.
template <auto Kernel, typename... Params>
void launch(std::int64_t grid, int block, cudaStream_t stream, const Params&... params) {
  if (grid < 0 || grid > kMaximumGrid) {
    detail::throw_launch_error<Kernel>("grid must be from 0 to " + std::to_string(kMaximumGrid) +
                                       ", got " + std::to_string(grid));
  }
  if (block < 1 || block > kMaximumBlock) {
    detail::throw_launch_error<Kernel>("block must be from 1 to " + std::to_string(kMaximumBlock) +
                                       ", got " + std::to_string(block));
  }
  if (grid == 0) return;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid));
  config.blockDim = dim3(static_cast<unsigned>(block));
  config.stream = stream;
  const cudaError_t error = cudaLaunchKernelEx(&config, Kernel, params...);
  if (error != cudaSuccess) {
    cudaGetLastError();  // reported here: do not leave it for the next library that asks
    detail::throw_launch_error<Kernel>(cudaGetErrorString(error));
  }
}

}  // namespace robustcore::simt

#else

#include "cuda_on_host.h"

#endif
