// CUDA's small vector types with CUDA's alignments, and dim3.
#pragma once

#include <cstdint>

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3() = default;
  constexpr explicit dim3(unsigned x_value, unsigned y_value = 1, unsigned z_value = 1)
      : x(x_value), y(y_value), z(z_value) {}
};

#define RC_SIMT_VECTORS(type, name, align2, align4)                \
  struct alignas(align2) name##2 { type x, y; };                   \
  struct alignas(align4) name##4 { type x, y, z, w; };             \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; } \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }

RC_SIMT_VECTORS(signed char, char, 2, 4)
RC_SIMT_VECTORS(unsigned char, uchar, 2, 4)
RC_SIMT_VECTORS(short, short, 4, 8)
RC_SIMT_VECTORS(unsigned short, ushort, 4, 8)
RC_SIMT_VECTORS(int, int, 8, 16)
RC_SIMT_VECTORS(unsigned, uint, 8, 16)
RC_SIMT_VECTORS(float, float, 8, 16)
RC_SIMT_VECTORS(double, double, 16, 16)
RC_SIMT_VECTORS(long long, longlong, 16, 16)
RC_SIMT_VECTORS(unsigned long long, ulonglong, 16, 16)

#undef RC_SIMT_VECTORS
