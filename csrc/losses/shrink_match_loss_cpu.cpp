#include "common/parallel.h"
#include "losses/shrink_match_loss_op.h"
#include "losses/shrink_match_loss_rows.h"

namespace robustcore {
namespace {

struct ShrinkMatchCpu {
  struct Scope {
    explicit Scope(const Tensor&) {}
  };

  static Tensor prepare(const Tensor& tensor) { return tensor; }

  template <bool kGradients, class T>
  static void forward(const ShrinkMatchProblem<T>& p, const Scope&) {
    parallel_rows(p.rows, p.classes, [&](int64_t begin, int64_t end) {
      shrink_match_cpu::forward_rows<kGradients>(p, begin, end);
    });
    if (!p.reduced) {
      for (int64_t i = 0; i < p.rows; ++i) p.loss[i] = p.row_loss[i];
      return;
    }
    // In double and in row order: the same bits for any number of threads.
    double total = 0;
    for (int64_t i = 0; i < p.rows; ++i) total += static_cast<double>(p.row_loss[i]);
    *p.loss = static_cast<accumulate_t<T>>(p.mean ? total / static_cast<double>(p.rows) : total);
  }

  template <class T>
  static void backward(const ShrinkMatchProblem<T>& p, const Scope&) {
    parallel_rows(p.rows, p.classes, [&](int64_t begin, int64_t end) {
      shrink_match_cpu::backward_rows(p, begin, end);
    });
  }
};

}  // namespace
}  // namespace robustcore

STABLE_TORCH_LIBRARY_IMPL(robustcore, CPU, m) {
  robustcore::register_shrink_match_operators<robustcore::ShrinkMatchCpu>(m);
}
