// Multiplies a buffer by a scalar that lies on the device, in place. Where the scalar is one
// nothing is read or written, and the host never waits to find out.
#pragma once

#include "common/vector.cuh"

namespace robustcore {

template <class T>
struct ScaleParams {
  T* data;  // on a 16-byte boundary
  std::int64_t count;
  const accumulate_t<T>* factor;  // [1]
};

constexpr int kScaleBlock = 256;

template <class T>
__global__ void __launch_bounds__(kScaleBlock) scale_kernel(const ScaleParams<T> p) {
  const accumulate_t<T> factor = *p.factor;
  if (factor == accumulate_t<T>(1)) return;
  constexpr std::int64_t kPart = std::int64_t{kScaleBlock} * kVectorWidth<T> * 4;
  for (std::int64_t first = blockIdx.x * kPart; first < p.count; first += gridDim.x * kPart) {
    const std::int64_t count = p.count - first < kPart ? p.count - first : kPart;
    for_each_vector<T>(0, count, threadIdx.x, kScaleBlock, [&](std::int64_t c, auto width) {
      Widened<T, decltype(width)::value> values(p.data + first + c);
#pragma unroll
      for (int l = 0; l < decltype(width)::value; ++l) values.lanes[l] *= factor;
      store_narrowed<T>(p.data + first + c, values.lanes);
    });
  }
}

template <class T>
void launch_scale(const ScaleParams<T>& params, cudaStream_t stream) {
  constexpr std::int64_t kPart = std::int64_t{kScaleBlock} * kVectorWidth<T> * 4;
  const std::int64_t blocks = (params.count + kPart - 1) / kPart;
  // Few enough blocks that a launch with factor one costs nothing to speak of.
  simt::launch<scale_kernel<T>>(blocks < 4096 ? blocks : 4096, kScaleBlock, stream, params);
}

}  // namespace robustcore
