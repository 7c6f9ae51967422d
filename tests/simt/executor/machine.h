// The machine behind executor.h: the threads of the running block, who of them runs, and what the
// others wait for.
#pragma once

#include <array>
#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "cuda_vectors.h"
#include "executor.h"
#include "warp.h"

extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;

namespace robustcore::simt::host {

inline constexpr int kWarpLanes = 32;
inline constexpr int kMaximumSpins = 1'000'000;

enum class State : std::uint8_t { kReady, kBarrier, kWarp, kDone };

struct Thread {
  Fiber* fiber = nullptr;  // null: not started, or ended
  State state = State::kReady;
  Site site;
  BarrierKind barrier_kind = BarrierKind::kPlain;
};

class Machine;
Machine& machine();

class Machine {
 public:
  void run_grid(const std::string& kernel, std::int64_t grid, int block,
                void (*thread)(const void*), const void* context);
  int barrier(BarrierKind kind, int predicate, Site site);
  std::uint64_t warp_primitive(const WarpRequest& request);
  void yield(bool spinning);
  [[noreturn]] void fail(const std::string& kind, const std::string& what);
  [[noreturn]] void fiber_main();

  unsigned done_lanes(int warp) const;
  const FiberPool& stacks() const { return pool_; }
  std::byte* stack_top() const {
    const Fiber& fiber = *threads_[current].fiber;
    return fiber.stack + fiber.stack_bytes;
  }

  Configuration configuration;
  SharedMemory shared;
  std::set<std::string> executed;
  int current = -1;

 private:
  void run_block(std::int64_t block);
  void recover();
  int choose();
  int first_ready_from(int start) const;
  int last_ready_upto(int start) const;
  void make_ready(int thread);
  void set_current(int thread) {
    current = thread;
    threadIdx.x = static_cast<unsigned>(thread);
  }
  void resume_next();
  void resume(Fiber& self, int next);
  [[noreturn]] void report_stuck();
  std::string describe(int thread) const;
  std::uint64_t random();

  FiberPool pool_{kMaximumBlock, [] { machine().fiber_main(); }};
  std::vector<Fiber*> idle_;
  Fiber caller_;
  std::array<Thread, kMaximumBlock> threads_;
  std::array<WarpRequest, kMaximumBlock> requests_;
  std::array<std::uint64_t, kMaximumBlock / 64> ready_{};
  std::array<unsigned, kMaximumBlock / kWarpLanes> waiting_lanes_{};
  std::array<unsigned, kMaximumBlock / kWarpLanes> done_lanes_{};
  int block_threads_ = 0;
  int live_ = 0;
  int at_barrier_ = 0;
  int barrier_count_ = 0;
  int barrier_result_ = 0;
  int spins_ = 0;
  std::uint64_t random_state_ = 0;

  std::string kernel_;
  void (*thread_)(const void*) = nullptr;
  const void* context_ = nullptr;

  bool failed_ = false;
  std::string failure_kind_;
  std::string failure_;
};

}  // namespace robustcore::simt::host
