// Compiler differences, in one place. Free of torch; used on host and device.
#pragma once

#if defined(__CUDACC__)
#define RC_HOST_DEVICE __host__ __device__
#define RC_INLINE __host__ __device__ __forceinline__
#else
#define RC_HOST_DEVICE
#define RC_INLINE inline __attribute__((always_inline))
#endif

#define RC_RESTRICT __restrict__

// One body, compiled for several instruction sets; the loader picks the best that the processor
// has. What such a function calls must be RC_INLINE, or it stays compiled for the baseline.
// Sanitizers run before the loader's relocations are done and cannot bear the resolvers.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && \
    __GNUC__ >= 12 && !defined(__CUDACC__) && !defined(__SANITIZE_ADDRESS__)
#define RC_TARGET_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define RC_TARGET_CLONES
#endif

// Lambdas inside a multiversioned function have to be inlined for the same reason.
#if defined(__CUDACC__)
#define RC_INLINE_LAMBDA
#else
#define RC_INLINE_LAMBDA __attribute__((always_inline))
#endif

#if defined(__CUDACC__)
#define RC_SIMD
#else
#define RC_SIMD _Pragma("omp simd")
#endif
