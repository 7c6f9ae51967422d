// CPU backend of the row losses with an indexed state.
#pragma once

#include <cstring>
#include <vector>

#include "losses/row_loss_cpu.h"
#include "losses/row_state_op.h"

namespace robustcore {

struct RowStateCpu : RowLossCpu {
  // Before anything is written.
  static void check_index(const char* op, const RowLossArguments& a, const StateArguments& s) {
    const int64_t* index = read_pointer<int64_t>(s.index);
    const int64_t* target = a.is_soft() ? nullptr : read_pointer<int64_t>(a.target);
    const int64_t last = s.first_example + s.state.size(0);
    for (int64_t i = 0; i < a.logits.size(0); ++i) {
      if (target && target[i] == a.ignore_index) continue;
      if (index[i] < s.first_example || index[i] >= last) {
        raise("IndexError", op, ": index must be in [", s.first_example, ", ", last, "), got ",
              index[i], " at row ", i);
      }
    }
  }

  // By an open-addressing table of the indices in the batch.
  static void find_keepers(const KeeperProblem& p, const Tensor&, const Scope&) {
    size_t slots = 2;
    while (slots < 2 * static_cast<size_t>(p.rows)) slots *= 2;
    struct Slot {
      int64_t index;
      int64_t row;  // the last one, plus one; 0: free
    };
    std::vector<Slot> table(slots);
    const auto slot_of = [&](int64_t index) -> Slot& {
      size_t place = (static_cast<uint64_t>(index) * 0x9e3779b97f4a7c15u >> 20) & (slots - 1);
      while (table[place].row != 0 && table[place].index != index) {
        place = (place + 1) & (slots - 1);
      }
      return table[place];
    };
    const auto ignored = [&](int64_t i) { return p.target && p.target[i] == p.ignore_index; };
    for (int64_t i = 0; i < p.rows; ++i) {
      if (!ignored(i)) slot_of(p.index[i]) = {p.index[i], i + 1};
    }
    for (int64_t i = 0; i < p.rows; ++i) {
      p.keeper[i] = ignored(i) ? -1 : slot_of(p.index[i]).row - 1;
    }
  }

  static void write_state(const StateWrite& w, const Scope&) {
    const auto* rows = static_cast<const uint32_t*>(w.rows);
    auto* examples = static_cast<uint32_t*>(w.examples);
    parallel_rows(w.count_of_rows, w.width, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t example = w.index[i] - w.first;
        if (w.keeper[i] != i || example < 0 || example >= w.count) continue;
        std::memcpy(examples + example * w.width, rows + i * w.width,
                    static_cast<size_t>(w.width) * sizeof(uint32_t));
      }
    });
  }
};

}  // namespace robustcore
