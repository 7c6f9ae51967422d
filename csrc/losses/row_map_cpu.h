// CPU driver of programs that compute something for every row and reduce nothing: threads over
// rows. A problem has Storage, rows and classes; a program has kCaches and run(row, problem, i).
#pragma once

#include <vector>

#include "common/parallel.h"
#include "common/tensor.h"
#include "losses/row_cpu.h"

namespace robustcore::row_cpu {

template <class Program, class Problem>
RC_TARGET_CLONES void map_some_rows(const Problem& p, int64_t begin, int64_t end) {
  using Acc = accumulate_t<typename Problem::Storage>;
  constexpr int kCaches = Program::kCaches;
  std::vector<Acc> memory(kCaches * p.classes);
  Acc* caches[kCaches > 0 ? kCaches : 1] = {};
  for (int k = 0; k < kCaches; ++k) caches[k] = memory.data() + k * p.classes;
  const Row<Acc> row(p.classes, kCaches > 0 ? caches : nullptr, nullptr);
  for (int64_t i = begin; i < end; ++i) Program::run(row, p, i);
}

template <class Program, class Problem>
void map_rows(const Problem& p) {
  parallel_rows(p.rows, p.classes,
                [&](int64_t begin, int64_t end) { map_some_rows<Program>(p, begin, end); });
}

}  // namespace robustcore::row_cpu

namespace robustcore {

// The backend of the operators.
struct RowMapCpu {
  struct Scope {
    explicit Scope(const Tensor&) {}
  };
  static Tensor prepare(Tensor matrix) { return matrix; }
  template <class Program, class Problem>
  static void run(const Problem& p, const Scope&) {
    row_cpu::map_rows<Program>(p);
  }
};

}  // namespace robustcore
