// CPU kernels of linear_recurrence. Every lane is computed in the order of its steps, so how lanes
// are grouped and shared among threads never changes a bit.
//
// Two ways to walk. Where neighbouring channels lie side by side in memory, a tile of channels
// advances one step at a time, vectorised over the channels, all tensors being read and written as
// streams. Otherwise (time last, sliced channels, a transposed layout) a few lanes take a block of
// time into the L1 cache, each lane's steps vectorised where they are copied, and the lanes' chains
// of dependent steps run side by side.
#include <algorithm>
#include <cstring>

#include "common/parallel.h"
#include "pcr/linear_recurrence_op.h"

namespace robustcore {
namespace {

// --- channels side by side

constexpr int64_t kMaximumTile = 1024;
constexpr int64_t kMinimumTile = 32;

// Channels per tile: at most what keeps the carry in the L1 cache, fewer where that makes work for
// more threads.
int64_t channel_tile(int64_t outer, int64_t inner) {
  constexpr int64_t kWantedTiles = 8;
  const int64_t tiles_per_row = (kWantedTiles + outer - 1) / outer;
  const int64_t even = (inner + tiles_per_row - 1) / tiles_per_row;
  const int64_t rounded = (even + kMinimumTile - 1) / kMinimumTile * kMinimumTile;
  return std::min(rounded, kMaximumTile);
}

// carry[c] = a[c] carry[c] + x[c], for a stride of 1 or 0 in each of a and x.
template <class T, class Acc>
RC_INLINE void advance(Acc*
RC_RESTRICT carry, const T* RC_RESTRICT a, int64_t a_stride,
                       const T* RC_RESTRICT x, int64_t x_stride, int64_t width) {
  if (a_stride != 0 && x_stride != 0) {
    RC_SIMD for (int64_t c = 0; c < width; ++c) {
      carry[c] = recurrence_step(to_accumulate(a[c]), carry[c], to_accumulate(x[c]));
    }
  } else if (x_stride != 0) {
    const Acc shared = to_accumulate(*a);
    RC_SIMD for (int64_t c = 0; c < width; ++c) {
      carry[c] = recurrence_step(shared, carry[c], to_accumulate(x[c]));
    }
  } else if (a_stride != 0) {
    const Acc shared = to_accumulate(*x);
    RC_SIMD for (int64_t c = 0; c < width; ++c) {
      carry[c] = recurrence_step(to_accumulate(a[c]), carry[c], shared);
    }
  } else {
    const Acc shared_a = to_accumulate(*a), shared_x = to_accumulate(*x);
    RC_SIMD for (int64_t c = 0; c < width; ++c) {
      carry[c] = recurrence_step(shared_a, carry[c], shared_x);
    }
  }
}

template <class T, class Acc>
RC_INLINE void begin(Acc* RC_RESTRICT carry, const T* RC_RESTRICT x, int64_t x_stride,
                     int64_t width) {
  RC_SIMD for (int64_t c = 0; c < width; ++c) carry[c] = to_accumulate(x[c * x_stride]);
}

template <class T, class Acc>
RC_INLINE void store(T* RC_RESTRICT to, const Acc* RC_RESTRICT from, int64_t width) {
  RC_SIMD for (int64_t c = 0; c < width; ++c) to[c] = from_accumulate<T>(from[c]);
}

// to = from * with, for what both gradients of a product with the carry need.
template <class T, class U, class Acc>
RC_INLINE void store_product(T* RC_RESTRICT to, const Acc* RC_RESTRICT from,
                             const U* RC_RESTRICT with, int64_t width) {
  RC_SIMD for (int64_t c = 0; c < width; ++c) {
    to[c] = from_accumulate<T>(from[c] * to_accumulate(with[c]));
  }
}

template <class T>
RC_INLINE void store_zero(T* to, int64_t width) {
  std::memset(static_cast<void*>(to), 0, width * sizeof(T));
}

// Channels [channel, channel + width) of one outer index.
template <class T>
RC_TARGET_CLONES void forward_tile(const LinearRecurrenceProblem<T>& p, int64_t outer,
                                   int64_t channel, int64_t width) {
  using Acc = accumulate_t<T>;
  Acc carry[kMaximumTile];
  const T* a = p.a.data + outer * p.a.outer + channel * p.a.inner;
  const T* x = p.x.data + outer * p.x.outer + channel * p.x.inner;
  T* states = p.states.data + outer * p.states.outer + channel;
  for (int64_t step = 0; step < p.length; ++step) {
    if (step == 0 && p.initial) {
      std::memcpy(carry, p.initial + outer * p.inner + channel, width * sizeof(Acc));
    }
    if (step == 0 && !p.initial) {
      begin(carry, x, p.x.inner, width);
    } else {
      advance(carry, a, p.a.inner, x, p.x.inner, width);
    }
    store(states, carry, width);
    a += p.a.time;
    x += p.x.time;
    states += p.states.time;
  }
}

template <class T>
RC_TARGET_CLONES void backward_tile(const LinearRecurrenceGradientProblem<T>& p, int64_t outer,
                                    int64_t channel, int64_t width) {
  using Acc = accumulate_t<T>;
  Acc carry[kMaximumTile];
  const int64_t lane = outer * p.inner + channel;
  const T* grad = p.grad.data + outer * p.grad.outer + channel * p.grad.inner;
  const T* a = p.a.data + outer * p.a.outer + channel * p.a.inner;
  // The state before the one that a step belongs to.
  const T* before = p.grad_a.data ? p.states.data + outer * p.states.outer +
                                        channel * p.states.inner + p.states.time
                                  : nullptr;
  T* grad_a = p.grad_a.data ? p.grad_a.data + outer * p.grad_a.outer + channel : nullptr;
  T* grad_x = p.grad_x.data ? p.grad_x.data + outer * p.grad_x.outer + channel : nullptr;
  for (int64_t step = 0; step < p.length; ++step) {
    if (step == 0) {
      begin(carry, grad, p.grad.inner, width);
    } else {
      advance(carry, a, p.a.inner, grad, p.grad.inner, width);
      a += p.a.time;
    }
    grad += p.grad.time;
    if (grad_x) {
      store(grad_x, carry, width);
      grad_x += p.grad_x.time;
    }
    if (grad_a) {
      if (step + 1 < p.length) {
        store_product(grad_a, carry, before, width);
      } else if (p.initial) {
        store_product(grad_a, carry, p.initial + lane, width);
      } else {
        store_zero(grad_a, width);
      }
      before += p.states.time;
      grad_a += p.grad_a.time;
    }
  }
  if (p.grad_initial) {
    if (p.a.inner != 0) {
      store_product(p.grad_initial + lane, carry, a, width);
    } else {
      const Acc shared = to_accumulate(*a);
      for (int64_t c = 0; c < width; ++c) p.grad_initial[lane + c] = carry[c] * shared;
    }
  }
}

template <class Problem, class Tile>
void for_each_tile(const Problem& p, const Tile& tile) {
  const int64_t width = channel_tile(p.outer, p.inner);
  const int64_t tiles = (p.inner + width - 1) / width;
  parallel_rows(p.outer * tiles, p.length * width, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t channel = i % tiles * width;
      tile(p, i / tiles, channel, std::min(width, p.inner - channel));
    }
  });
}

// --- lanes anywhere

// Chains that run side by side, enough to hide most of a step's latency behind loads and stores, and
// the steps of a block: long runs, so that the processor's prefetching pays.
constexpr int kLanes = 4;
constexpr int kBlock = 512;

// One lane's run of steps between memory and a block.
template <class T, class Acc>
RC_INLINE void load_run(Acc* RC_RESTRICT to, const T* RC_RESTRICT from, int64_t stride,
                        int64_t count) {
  if (stride == 1) {
    RC_SIMD for (int64_t i = 0; i < count; ++i) to[i] = to_accumulate(from[i]);
  } else if (stride == -1) {
    const T* start = from - (count - 1);
    RC_SIMD for (int64_t i = 0; i < count; ++i) to[i] = to_accumulate(start[count - 1 - i]);
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = to_accumulate(from[i * stride]);
  }
}

template <class T, class Acc>
RC_INLINE void store_run(T* RC_RESTRICT to, const Acc* RC_RESTRICT from, int64_t stride,
                         int64_t count) {
  if (stride == 1) {
    RC_SIMD for (int64_t i = 0; i < count; ++i) to[i] = from_accumulate<T>(from[i]);
  } else if (stride == -1) {
    T* start = to - (count - 1);
    RC_SIMD for (int64_t i = 0; i < count; ++i) {
      start[i] = from_accumulate<T>(from[count - 1 - i]);
    }
  } else {
    for (int64_t i = 0; i < count; ++i) to[i * stride] = from_accumulate<T>(from[i]);
  }
}

// x becomes the states, lane by lane. Lanes that do not exist compute on what their block holds.
template <class Acc>
RC_INLINE void run_chains(const Acc (*a)[kBlock], Acc (*x)[kBlock], Acc* carry, int64_t count) {
  Acc h[kLanes];
  for (int l = 0; l < kLanes; ++l) h[l] = carry[l];
  for (int64_t i = 0; i < count; ++i) {
    for (int l = 0; l < kLanes; ++l) {
      h[l] = recurrence_step(a[l][i], h[l], x[l][i]);
      x[l][i] = h[l];
    }
  }
  for (int l = 0; l < kLanes; ++l) carry[l] = h[l];
}

// Where a lane's first step lies in a view.
template <class T>
RC_INLINE T* lane_start(const SequenceView<T>& view, int64_t lane, int64_t inner) {
  return view.data + lane / inner * view.outer + lane % inner * view.inner;
}

// Lanes [lane, lane + count), count <= kLanes.
template <class T>
RC_TARGET_CLONES void forward_lanes(const LinearRecurrenceProblem<T>& p, int64_t lane,
                                    int64_t count) {
  using Acc = accumulate_t<T>;
  Acc a[kLanes][kBlock] = {}, x[kLanes][kBlock] = {}, carry[kLanes] = {};
  for (int64_t l = 0; l < count && p.initial; ++l) carry[l] = p.initial[lane + l];
  for (int64_t start = 0; start < p.length; start += kBlock) {
    const int64_t steps = std::min<int64_t>(kBlock, p.length - start);
    for (int64_t l = 0; l < count; ++l) {
      load_run(a[l], lane_start(p.a, lane + l, p.inner) + start * p.a.time, p.a.time, steps);
      load_run(x[l], lane_start(p.x, lane + l, p.inner) + start * p.x.time, p.x.time, steps);
      // 0 * -0 + x is x, whatever x.
      if (start == 0 && !p.initial) {
        a[l][0] = Acc(0);
        carry[l] = -Acc(0);
      }
    }
    run_chains(a, x, carry, steps);
    for (int64_t l = 0; l < count; ++l) {
      store_run(lane_start(p.states, lane + l, p.inner) + start * p.states.time, x[l],
                p.states.time, steps);
    }
  }
}

template <class T>
RC_TARGET_CLONES void backward_lanes(const LinearRecurrenceGradientProblem<T>& p, int64_t lane,
                                     int64_t count) {
  using Acc = accumulate_t<T>;
  Acc a[kLanes][kBlock] = {}, grad[kLanes][kBlock] = {}, carry[kLanes] = {};
  Acc before[kBlock];
  for (int64_t start = 0; start < p.length; start += kBlock) {
    const int64_t steps = std::min<int64_t>(kBlock, p.length - start);
    // The first step of all has no gate; the others have the gate of the step taken before.
    const int64_t ungated = start == 0 ? 1 : 0;
    for (int64_t l = 0; l < count; ++l) {
      load_run(a[l] + ungated,
               lane_start(p.a, lane + l, p.inner) + (start + ungated - 1) * p.a.time, p.a.time,
               steps - ungated);
      load_run(grad[l], lane_start(p.grad, lane + l, p.inner) + start * p.grad.time, p.grad.time,
               steps);
      if (ungated) {
        a[l][0] = Acc(0);
        carry[l] = -Acc(0);
      }
    }
    run_chains(a, grad, carry, steps);
    for (int64_t l = 0; l < count; ++l) {
      if (p.grad_x.data) {
        store_run(lane_start(p.grad_x, lane + l, p.inner) + start * p.grad_x.time, grad[l],
                  p.grad_x.time, steps);
      }
      if (!p.grad_a.data) continue;
      const bool at_end = start + steps == p.length;
      load_run(before, lane_start(p.states, lane + l, p.inner) + (start + 1) * p.states.time,
               p.states.time, at_end ? steps - 1 : steps);
      if (at_end) before[steps - 1] = p.initial ? p.initial[lane + l] : Acc(0);
      RC_SIMD for (int64_t i = 0; i < steps; ++i) grad[l][i] *= before[i];
      // Without an initial state the first gate is not used: 0, even where G is not finite.
      if (at_end && !p.initial) grad[l][steps - 1] = Acc(0);
      store_run(lane_start(p.grad_a, lane + l, p.inner) + start * p.grad_a.time, grad[l],
                p.grad_a.time, steps);
    }
  }
  for (int64_t l = 0; l < count && p.grad_initial; ++l) {
    const T* last = lane_start(p.a, lane + l, p.inner) + (p.length - 1) * p.a.time;
    p.grad_initial[lane + l] = to_accumulate(*last) * carry[l];
  }
}

template <class Problem, class Lanes>
void for_each_lane_group(const Problem& p, const Lanes& run) {
  const int64_t lanes = p.outer * p.inner;
  // Few lanes are shared between threads even where that leaves places for chains empty.
  const int64_t group = std::clamp<int64_t>((lanes + 1) / 2, 1, kLanes);
  const int64_t groups = (lanes + group - 1) / group;
  parallel_rows(groups, p.length * group, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) run(p, i * group, std::min(group, lanes - i * group));
  });
}

// --- operators

template <class T>
bool side_by_side(const SequenceView<T>& view) {
  return view.inner == 0 || view.inner == 1;
}

// Below this many channels a step fills no vector.
constexpr int64_t kVectorChannels = 8;

Tensor linear_recurrence(const Tensor& a, const Tensor& x, const std::optional<Tensor>& initial,
                         int64_t time_dim, bool reverse) {
  return linear_recurrence_forward(a, x, initial, time_dim, reverse, [](const auto& p) {
    using T = std::remove_pointer_t<decltype(p.states.data)>;
    if (p.inner >= kVectorChannels && side_by_side(p.a) && side_by_side(p.x)) {
      for_each_tile(p, forward_tile<T>);
    } else {
      for_each_lane_group(p, forward_lanes<T>);
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> linear_recurrence_backward(
    const Tensor& grad, const Tensor& a, const std::optional<Tensor>& states,
    const std::optional<Tensor>& initial, int64_t time_dim, bool reverse, bool needs_a,
    bool needs_x, bool needs_initial) {
  return linear_recurrence_gradients(
      grad, a, states, initial, time_dim, reverse, needs_a, needs_x, needs_initial,
      [](const auto& p) {
        using T = std::remove_pointer_t<decltype(p.grad_a.data)>;
        const bool adjacent_states = p.states.data == nullptr || p.states.inner == 1;
        if (p.inner >= kVectorChannels && side_by_side(p.a) && side_by_side(p.grad) &&
            adjacent_states) {
          for_each_tile(p, backward_tile<T>);
        } else {
          for_each_lane_group(p, backward_lanes<T>);
        }
      });
}

}  // namespace
}  // namespace robustcore

STABLE_TORCH_LIBRARY_IMPL(robustcore, CPU, m) {
  m.impl("linear_recurrence", TORCH_BOX(&robustcore::linear_recurrence));
  m.impl("linear_recurrence_backward", TORCH_BOX(&robustcore::linear_recurrence_backward));
}
