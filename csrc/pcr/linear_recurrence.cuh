// CUDA kernels of linear_recurrence. A warp takes 32 neighbouring lanes (scalar recurrences, see
// linear_recurrence.h) and a few steps of each, which its threads keep in registers. Two kernels:
//
//   rows     many lanes: each warp walks its lanes from the first step to the last.
//   chained  few lanes, long sequences: the steps are cut into chunks that different blocks take.
//            All of a block's loads are on their way before it waits for the carry of the chunk
//            before; then its warps run one after another, and the carry goes on. Every word is
//            read and written once, and the steps are taken in their own order, so that the bits
//            are those of the rows kernel and of a plain loop: no products of gates, which could
//            overflow.
//
// Both serve the forward and the backward pass, which differ in the Steps they are given.
//
// How carries travel between blocks, and why that cannot go wrong:
//
// - What a block writes for the next one is one 64-bit word per lane: 32 bits of the carry and a
//   flag (two such words for a double). A naturally aligned 64-bit atomic operation is single: a
//   reader that sees the flag has the value that came with it in the same word. So nothing has to
//   be ordered between two addresses, and relaxed atomics at device scope, which is what CUDA's
//   are, suffice; no fence is needed, because no block reads anything else that another one wrote.
//   Atomics are performed in the L2 cache, so a stale line in an L1 cache cannot be seen forever.
// - A block's chunk is not its blockIdx but a ticket: the number of blocks that had begun before
//   it. Tickets go through the chunks in order, so the chunk that a block waits for belongs to a
//   smaller ticket, which a block holds that is running (or has ended): blocks, once begun, are not
//   put aside for others. By induction over tickets every wait ends, however few blocks fit on the
//   device and in whatever order they begin.
// - The ticket counter and the words must be zero at the launch; the workspace is used for one
//   launch.
#pragma once

#include <cstdint>

#include "common/simt.cuh"
#include "pcr/linear_recurrence.h"

namespace robustcore {
namespace linear_recurrence_cuda {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;
inline constexpr int kRowWarps = 4;     // warps per block of the rows kernel
inline constexpr int kChainWarps = 10;  // of the chained one: a chunk is kChainWarps * kSteps long

// Steps of a lane that a thread holds at a time.
template <class Acc>
inline constexpr int kSteps = sizeof(Acc) == 8 ? 8 : 16;

// Shared memory of a warp, through which lanes that lie along memory are transposed. One column
// more than there are steps, so that neither direction meets its own banks.
template <class Acc>
inline constexpr int kStaging = kWarp * (kSteps<Acc> + 1);

// A thread's place: its lane of the problem and, for a view, where that lane begins.
struct Place {
  int thread;  // in the warp
  int lanes;   // of this warp that exist, from its first; none where not positive
  int64_t lane;
  int64_t outer;
  int64_t inner;

  template <class Problem>
  __device__ __forceinline__ Place(const Problem& p, int64_t warp) {
    thread = static_cast<int>(threadIdx.x) % kWarp;
    lane = warp * kWarp + thread;
    const int64_t left = p.outer * p.inner - warp * kWarp;
    lanes = left < kWarp ? static_cast<int>(left) : kWarp;
    // A lane that does not exist gets a place that does, and is never read or written.
    outer = exists() ? lane / p.inner : 0;
    inner = exists() ? lane - outer * p.inner : 0;
  }

  __device__ __forceinline__ bool exists() const { return thread < lanes; }

  template <class T>
  __device__ __forceinline__ int64_t start(const SequenceView<T>& view) const {
    return outer * view.outer + inner * view.inner;
  }
};

// Of kSteps steps from `first` (at least -1) on, those in [begin, end) are in [0, length).
template <class Acc>
struct StepRange {
  int begin, end;

  __device__ __forceinline__ StepRange(int64_t first, int64_t length) {
    const int64_t left = length - first;
    begin = first < 0 ? 1 : 0;
    end = left < kSteps<Acc> ? static_cast<int>(left) : kSteps<Acc>;
  }
  __device__ __forceinline__ bool has(int step) const { return step >= begin && step < end; }
};

// values[j] = the lane's step `first + j` of the view; 0 outside of [0, length). All threads of a
// warp call it together. Where time is what lies side by side in memory, a warp reads runs of steps
// and transposes them in `staging`.
template <class T, class Acc>
__device__ __forceinline__ void load_steps(const SequenceView<const T>& view, const Place& place,
                                           int64_t first, int64_t length, Acc* staging,
                                           Acc (&values)[kSteps<Acc>]) {
  constexpr int S = kSteps<Acc>, kRows = kWarp / S;
  const StepRange<Acc> range(first, length);
  const int64_t start = place.start(view);
  if (view.time == 1 || view.time == -1) {
    const int column = place.thread % S;
    const bool inside = range.has(column);
    const int64_t offset = (first + column) * view.time;
#pragma unroll
    for (int e = 0; e < S; ++e) {
      const int row = e * kRows + place.thread / S;
      const int64_t row_start = __shfl_sync(kAllLanes, start, row);
      staging[row * (S + 1) + column] =
          inside && row < place.lanes ? to_accumulate(view.data[row_start + offset]) : Acc(0);
    }
    __syncwarp();
#pragma unroll
    for (int j = 0; j < S; ++j) values[j] = staging[place.thread * (S + 1) + j];
    __syncwarp();
  } else {
    const bool exists = place.exists();
    const T* data = view.data + (start + first * view.time);
#pragma unroll
    for (int j = 0; j < S; ++j) {
      values[j] = exists && range.has(j) ? to_accumulate(data[j * view.time]) : Acc(0);
    }
  }
}

// The reverse: steps past the length are not written.
template <class T, class Acc>
__device__ __forceinline__ void store_steps(const SequenceView<T>& view, const Place& place,
                                            int64_t first, int64_t length, Acc* staging,
                                            const Acc (&values)[kSteps<Acc>]) {
  constexpr int S = kSteps<Acc>, kRows = kWarp / S;
  const StepRange<Acc> range(first, length);
  const int64_t start = place.start(view);
  if (view.time == 1 || view.time == -1) {
#pragma unroll
    for (int j = 0; j < S; ++j) staging[place.thread * (S + 1) + j] = values[j];
    __syncwarp();
    const int column = place.thread % S;
    const bool inside = range.has(column);
    const int64_t offset = (first + column) * view.time;
#pragma unroll
    for (int e = 0; e < S; ++e) {
      const int row = e * kRows + place.thread / S;
      const int64_t row_start = __shfl_sync(kAllLanes, start, row);
      if (inside && row < place.lanes) {
        view.data[row_start + offset] = from_accumulate<T>(staging[row * (S + 1) + column]);
      }
    }
    __syncwarp();
  } else if (place.exists()) {
    T* data = view.data + (start + first * view.time);
#pragma unroll
    for (int j = 0; j < S; ++j) {
      if (j < range.end) data[j * view.time] = from_accumulate<T>(values[j]);
    }
  }
}

// The chain itself: x[j] = a[j] x[j-1] + x[j] for the steps that exist.
template <class Acc>
__device__ __forceinline__ Acc run_steps(const Acc (&a)[kSteps<Acc>], Acc (&x)[kSteps<Acc>],
                                         Acc carry, int64_t left) {
  const int count = left < kSteps<Acc> ? static_cast<int>(left) : kSteps<Acc>;
#pragma unroll
  for (int j = 0; j < kSteps<Acc>; ++j) {
    if (j < count) carry = recurrence_step(a[j], carry, x[j]);
    x[j] = carry;
  }
  return carry;
}

// Both kinds of Steps: load() what is needed to run, run() from a carry to a carry, store()
// results. start() is the carry before the first step, finish() gets the one after the last.

template <class T>
struct ForwardSteps {
  using Problem = LinearRecurrenceProblem<T>;
  using Acc = accumulate_t<T>;
  Acc a[kSteps<Acc>], x[kSteps<Acc>];

  // Without an initial state the first gate counts as 0 and the carry as -0, and 0 * -0 + x is x.
  static __device__ __forceinline__ Acc start(const Problem& p, const Place& place) {
    return p.initial && place.exists() ? p.initial[place.lane] : -Acc(0);
  }
  __device__ __forceinline__ void load(const Problem& p, const Place& place, int64_t first,
                                       Acc* staging) {
    load_steps(p.a, place, first, p.length, staging, a);
    load_steps(p.x, place, first, p.length, staging, x);
    if (first == 0 && !p.initial) a[0] = Acc(0);
  }
  __device__ __forceinline__ Acc run(Acc carry, int64_t left) {
    return run_steps(a, x, carry, left);
  }
  __device__ __forceinline__ void store(const Problem& p, const Place& place, int64_t first,
                                        Acc* staging) {
    store_steps(p.states, place, first, p.length, staging, x);
  }
  static __device__ __forceinline__ void finish(const Problem&, const Place&, Acc) {}
};

template <class T>
struct BackwardSteps {
  using Problem = LinearRecurrenceGradientProblem<T>;
  using Acc = accumulate_t<T>;
  Acc a[kSteps<Acc>], gradient[kSteps<Acc>];

  static __device__ __forceinline__ Acc start(const Problem&, const Place&) { return -Acc(0); }
  __device__ __forceinline__ void load(const Problem& p, const Place& place, int64_t first,
                                       Acc* staging) {
    load_steps(p.a, place, first - 1, p.length, staging, a);
    load_steps(p.grad, place, first, p.length, staging, gradient);
  }
  __device__ __forceinline__ Acc run(Acc carry, int64_t left) {
    return run_steps(a, gradient, carry, left);
  }
  // The states are read here, off the chain of dependent steps, into the registers of the gates.
  __device__ __forceinline__ void store(const Problem& p, const Place& place, int64_t first,
                                        Acc* staging) {
    if (p.grad_x.data) store_steps(p.grad_x, place, first, p.length, staging, gradient);
    if (!p.grad_a.data) return;
    load_steps(p.states, place, first + 1, p.length, staging, a);
    const int64_t left = p.length - 1 - first;
    const int last = left < kSteps<Acc> ? static_cast<int>(left) : kSteps<Acc>;
    const Acc initial = p.initial && place.exists() ? p.initial[place.lane] : Acc(0);
#pragma unroll
    for (int j = 0; j < kSteps<Acc>; ++j) {
      // Without an initial state the first gate is not used: 0, even where G is not finite.
      const Acc product = gradient[j] * (j == last ? initial : a[j]);
      a[j] = j == last && !p.initial ? Acc(0) : product;
    }
    store_steps(p.grad_a, place, first, p.length, staging, a);
  }
  static __device__ __forceinline__ void finish(const Problem& p, const Place& place, Acc carry) {
    if (!p.grad_initial || !place.exists()) return;
    const Acc last = to_accumulate(p.a.data[place.start(p.a) + (p.length - 1) * p.a.time]);
    p.grad_initial[place.lane] = last * carry;
  }
};

template <class Steps>
__global__ void __launch_bounds__(kRowWarps* kWarp, 5)
    linear_recurrence_rows_kernel(typename Steps::Problem p) {
  using Acc = typename Steps::Acc;
  constexpr int S = kSteps<Acc>;
  RC_SHARED(Acc, staging, kRowWarps * kStaging<Acc>);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const Place place(p, static_cast<int64_t>(blockIdx.x) * kRowWarps + warp);
  if (place.lanes <= 0) return;
  Acc* own_staging = staging + warp * kStaging<Acc>;
  Acc carry = Steps::start(p, place);
  for (int64_t first = 0; first < p.length; first += S) {
    Steps steps;
    steps.load(p, place, first, own_staging);
    carry = steps.run(carry, p.length - first);
    steps.store(p, place, first, own_staging);
  }
  Steps::finish(p, place, carry);
}

// The words through which carries go from chunk to chunk; the first one is the ticket counter.
using Word = unsigned long long;

template <class Acc>
inline constexpr int kWordsPerCarry = sizeof(Acc) / 4;

// The chunks of a sequence, one block each.
template <class Acc>
RC_HOST_DEVICE constexpr int64_t chunks(int64_t length) {
  constexpr int64_t kChunk = kChainWarps * kSteps<Acc>;
  return (length + kChunk - 1) / kChunk;
}

template <class Acc>
__device__ __forceinline__ void publish_carry(Word* words, Acc carry) {
  uint32_t halves[kWordsPerCarry<Acc>];
  memcpy(halves, &carry, sizeof(Acc));
#pragma unroll
  for (int k = 0; k < kWordsPerCarry<Acc>; ++k) {
    atomicExch(words + k, static_cast<Word>(halves[k]) << 32 | 1u);
  }
}

template <class Acc>
__device__ __forceinline__ Acc wait_for_carry(Word* words) {
  uint32_t halves[kWordsPerCarry<Acc>];
#pragma unroll
  for (int k = 0; k < kWordsPerCarry<Acc>; ++k) {
    Word word = atomicOr(words + k, 0u);
    while ((word & 1u) == 0) {
      __nanosleep(20);
      word = atomicOr(words + k, 0u);
    }
    halves[k] = static_cast<uint32_t>(word >> 32);
  }
  Acc carry;
  memcpy(&carry, halves, sizeof(Acc));
  return carry;
}

template <class Steps>
__global__ void __launch_bounds__(kChainWarps* kWarp, 2)
    linear_recurrence_chained_kernel(typename Steps::Problem p, Word* workspace) {
  using Acc = typename Steps::Acc;
  constexpr int S = kSteps<Acc>;
  RC_SHARED(Acc, staging, kChainWarps * kStaging<Acc>);
  RC_SHARED(Acc, handed_on, kWarp);  // the carry between the warps of this block
  RC_SHARED(Word, ticket, 1);
  if (threadIdx.x == 0) ticket[0] = atomicAdd(workspace, 1u);
  __syncthreads();
  const int64_t lanes = p.outer * p.inner;
  const int64_t tiles = (lanes + kWarp - 1) / kWarp;
  const int64_t chunk = static_cast<int64_t>(ticket[0]) / tiles;
  const int64_t tile = static_cast<int64_t>(ticket[0]) - chunk * tiles;
  const Place place(p, tile);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  Acc* own_staging = staging + warp * kStaging<Acc>;
  const int64_t first = (chunk * kChainWarps + warp) * S;
  const int64_t chunk_end = (chunk + 1) * kChainWarps * S;

  Steps steps;
  steps.load(p, place, first, own_staging);
  // The words of this chunk and lane; those of the chunk before lie one row of lanes earlier.
  const int64_t row = lanes * kWordsPerCarry<Acc>;
  Word* words = workspace + 1 + chunk * row + place.lane * kWordsPerCarry<Acc>;
  for (int turn = 0; turn < kChainWarps; ++turn) {
    if (warp == turn) {
      Acc carry = Acc(0);
      if (turn > 0) {
        carry = handed_on[place.thread];
      } else if (chunk == 0) {
        carry = Steps::start(p, place);
      } else if (place.exists()) {
        carry = wait_for_carry<Acc>(words - row);
      }
      // Threads whose wait ended later join the others.
      __syncwarp();
      carry = steps.run(carry, p.length - first);
      if (turn < kChainWarps - 1) {
        handed_on[place.thread] = carry;
      } else if (chunk_end >= p.length) {
        Steps::finish(p, place, carry);
      } else if (place.exists()) {
        publish_carry(words, carry);
      }
    }
    __syncthreads();
  }
  steps.store(p, place, first, own_staging);
}

}  // namespace linear_recurrence_cuda

// The number of 64-bit words, all zero, that the chained kernel wants as its workspace.
template <class Problem>
int64_t linear_recurrence_chain_words(const Problem& p) {
  using namespace linear_recurrence_cuda;
  using Acc = typename Problem::Acc;
  return 1 + chunks<Acc>(p.length) * p.outer * p.inner * kWordsPerCarry<Acc>;
}

// The same where that kernel should run; 0 where there are lanes enough to fill the device, or so
// few steps that chunks would only wait for one another.
template <class Problem>
int64_t linear_recurrence_workspace(const Problem& p) {
  using namespace linear_recurrence_cuda;
  constexpr int64_t kManyLanes = 65536, kFewChunks = 2;
  const bool rows =
      p.outer * p.inner >= kManyLanes || chunks<typename Problem::Acc>(p.length) <= kFewChunks;
  return rows ? 0 : linear_recurrence_chain_words(p);
}

namespace linear_recurrence_cuda {

template <class T>
ForwardSteps<T> steps_of(const LinearRecurrenceProblem<T>&);
template <class T>
BackwardSteps<T> steps_of(const LinearRecurrenceGradientProblem<T>&);

}  // namespace linear_recurrence_cuda

// Forward or backward pass of a problem that is not empty. `workspace`: null, or zeroed words.
template <class Problem>
void launch_linear_recurrence(const Problem& p, unsigned long long* workspace,
                              cudaStream_t stream) {
  using namespace linear_recurrence_cuda;
  using Steps = decltype(steps_of(p));
  const int64_t tiles = (p.outer * p.inner + kWarp - 1) / kWarp;
  if (workspace) {
    const int64_t grid = tiles * chunks<typename Problem::Acc>(p.length);
    simt::launch<linear_recurrence_chained_kernel<Steps>>(grid, kChainWarps * kWarp, stream, p,
                                                          workspace);
  } else {
    simt::launch<linear_recurrence_rows_kernel<Steps>>((tiles + kRowWarps - 1) / kRowWarps,
                                                       kRowWarps * kWarp, stream, p);
  }
}

}  // namespace robustcore
