#include "common/counter_normal_op.h"
#include "common/parallel.h"

namespace robustcore {
namespace {

RC_TARGET_CLONES void fill_rows(const CounterNormalParams& p, int64_t begin, int64_t end) {
  const RandomKey key = random_key(p.seed);
  const int64_t whole = p.count / 4;
  for (int64_t row = begin; row < end; ++row) {
    float* RC_RESTRICT values = p.values + row * p.count;
    RC_SIMD for (int64_t quad = 0; quad < whole; ++quad) {
      const NormalQuad n = counter_normal_quad(p, key, row, quad);
      values[4 * quad] = n.values[0];
      values[4 * quad + 1] = n.values[1];
      values[4 * quad + 2] = n.values[2];
      values[4 * quad + 3] = n.values[3];
    }
    if (4 * whole < p.count) {
      const NormalQuad n = counter_normal_quad(p, key, row, whole);
      for (int64_t f = 4 * whole; f < p.count; ++f) values[f] = n.values[f - 4 * whole];
    }
  }
}

struct CounterNormalCpu {
  struct Scope {
    explicit Scope(const Tensor&) {}
  };
  static void launch(const CounterNormalParams& p, const Scope&) {
    parallel_rows(p.rows, p.count, [&](int64_t begin, int64_t end) { fill_rows(p, begin, end); });
  }
};

}  // namespace
}  // namespace robustcore

STABLE_TORCH_LIBRARY_IMPL(robustcore, CPU, m) {
  m.impl("counter_normal", TORCH_BOX(&robustcore::counter_normal<robustcore::CounterNormalCpu>));
}
