// What a loss keeps per example of the data set, outside the batch: one row of `width` numbers for
// each example, found by the example's index. Host and device, no torch.
//
// A pass in training reads the state of the examples in the batch, updates it, and uses the updated
// state in the loss. An example that comes more than once in a batch is updated once, by its last
// row that is not ignored (its keeper); all its rows use the result. So the rows are walked in two
// rounds: the keepers, then the rows whose state a keeper has made.
#pragma once

#include <cstdint>

#include "common/macros.h"

namespace robustcore {

template <class Acc>
struct IndexedState {
  const Acc* examples;    // [count, width] the state, or null
  Acc* updated;           // the same memory where the pass updates it, or null
  Acc* of_rows;           // [rows, width] the state that each row of the batch used, or null
  const int64_t* index;   // [rows]; null in a backward pass, which reads of_rows
  const int64_t* keeper;  // [rows] from keeper_of_rows; null where nothing is updated
  int64_t first;          // example number of examples[0]
  int64_t count;
  int64_t width;
  bool second_round;

  RC_INLINE bool is_in_range(int64_t row) const {
    return !index || (index[row] >= first && index[row] - first < count);
  }
  RC_INLINE bool is_of_this_round(int64_t row) const {
    // Ignored rows have keeper -1 and belong to the first round.
    return !keeper || (keeper[row] >= 0 && keeper[row] != row) == second_round;
  }
  // Whether a row of this round updates its example's state.
  RC_INLINE bool updates() const {
    return keeper && !second_round;
  }
  // The state before the row: with updates() the old one.
  RC_INLINE const Acc* source(int64_t row) const {
    if (!index) return of_rows + row * width;
    if (second_round && !updated) return of_rows + keeper[row] * width;
    return examples + (index[row] - first) * width;
  }
  // Where the state that the row used is to be written; null: nowhere.
  RC_INLINE Acc* destination(int64_t row) const {
    if (!index) return nullptr;
    if (updated) return updates() ? updated + (index[row] - first) * width : nullptr;
    return of_rows ? of_rows + row * width : nullptr;
  }
};

// The width of a program's state: that of the logits, where the program names no other.
template <class Program>
constexpr int64_t state_width(int64_t classes) {
  if constexpr (requires { Program::kStateWidth; }) return Program::kStateWidth;
  return classes;
}

// Whether the program of a loss has such a state; the drivers leave the rest out otherwise.
template <class Program>
inline constexpr bool kHasState = requires { requires Program::kUsesState; };

}  // namespace robustcore
