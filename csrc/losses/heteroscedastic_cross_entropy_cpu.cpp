#include "common/parallel.h"
#include "losses/heteroscedastic_cross_entropy_op.h"
#include "losses/heteroscedastic_cross_entropy_rows.h"

namespace robustcore {
namespace {

struct HeteroscedasticCpu {
  struct Scope {
    explicit Scope(const Tensor&) {}
  };

  static void check_targets(const char* op, const HeteroscedasticArguments& a) {
    const int64_t* target = read_pointer<int64_t>(a.target);
    const int64_t rows = a.mean.size(0), classes = a.mean.size(1);
    for (int64_t i = 0; i < rows; ++i) {
      if (target[i] != a.ignore_index && (target[i] < 0 || target[i] >= classes)) {
        raise("IndexError", op, ": target must be in [0, ", classes, ") or ignore_index (",
              a.ignore_index, "), got ", target[i], " at row ", i);
      }
    }
  }

  template <class T>
  static void launch(const HeteroscedasticProblem<T>& p, const Scope&) {
    const int64_t work = p.classes * p.samples;
    if (p.log_probability) {
      return parallel_rows(p.rows, work, [&](int64_t begin, int64_t end) {
        heteroscedastic_cpu::log_probability_rows(p, begin, end);
      });
    }
    write_denominator(p);
    parallel_rows(p.rows, work, [&](int64_t begin, int64_t end) {
      if (p.grad_mean) {
        heteroscedastic_cpu::loss_rows<true>(p, begin, end);
      } else {
        heteroscedastic_cpu::loss_rows<false>(p, begin, end);
      }
    });
    reduce_rows(p);
  }

 private:
  // Both sums run in double and in row order: the same bits for any number of threads.
  template <class T>
  static void write_denominator(const HeteroscedasticProblem<T>& p) {
    double total = 0;
    for (int64_t i = 0; i < p.rows; ++i) {
      if (p.target[i] == p.ignore_index) continue;
      total += p.class_weight ? static_cast<double>(p.class_weight[p.target[i]]) : 1.0;
    }
    *p.denominator = p.reduction == Reduction::kMean ? static_cast<T>(total) : T(1);
  }

  template <class T>
  static void reduce_rows(const HeteroscedasticProblem<T>& p) {
    const auto weighted = [&](int64_t i) {
      if (p.target[i] == p.ignore_index) return T(0);
      return p.row_loss[i] * (p.sample_weight ? p.sample_weight[i] : T(1));
    };
    if (p.reduction == Reduction::kNone) {
      for (int64_t i = 0; i < p.rows; ++i) p.loss[i] = weighted(i);
      return;
    }
    double total = 0;
    for (int64_t i = 0; i < p.rows; ++i) total += static_cast<double>(weighted(i));
    *p.loss = static_cast<T>(total / static_cast<double>(*p.denominator));
  }
};

}  // namespace
}  // namespace robustcore

STABLE_TORCH_LIBRARY_IMPL(robustcore, CPU, m) {
  using namespace robustcore;
  register_heteroscedastic_operators<HeteroscedasticCpu>(m);
}
