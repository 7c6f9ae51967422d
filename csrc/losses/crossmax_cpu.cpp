#include "common/parallel.h"
#include "losses/crossmax_op.h"
#include "losses/crossmax_rows.h"

namespace robustcore {
namespace {

struct CrossMaxCpu {
  struct Scope {
    explicit Scope(const Tensor&) {}
  };

  static Tensor prepare(const Tensor& tensor) { return tensor; }

  template <class T>
  static void forward(const CrossMaxProblem<T>& p, const Scope&) {
    parallel_rows(p.samples, p.members * p.classes, [&](int64_t begin, int64_t end) {
      crossmax_cpu::forward_samples(p, begin, end);
    });
  }

  template <class T>
  static void backward(const CrossMaxProblem<T>& p, const Scope&) {
    parallel_rows(p.samples, p.members * p.classes, [&](int64_t begin, int64_t end) {
      crossmax_cpu::backward_samples(p, begin, end);
    });
  }
};

}  // namespace
}  // namespace robustcore

STABLE_TORCH_LIBRARY_IMPL(robustcore, CPU, m) {
  robustcore::register_crossmax_operators<robustcore::CrossMaxCpu>(m);
}
