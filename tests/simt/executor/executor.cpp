#include "executor.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <numeric>
#include <vector>

#include "access.h"
#include "cuda_on_host.h"
#include "fault.h"
#include "warp.h"

uint3 threadIdx{};
uint3 blockIdx{};
dim3 blockDim{};
dim3 gridDim{};

namespace robustcore::simt::host {
namespace {

constexpr int kWarpLanes = 32;
constexpr int kMaximumSpins = 1'000'000;

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

Machine& machine() {
  static Machine instance;
  return instance;
}

std::uint64_t Machine::random() {  // splitmix64
  random_state_ += 0x9e3779b97f4a7c15u;
  std::uint64_t bits = random_state_;
  bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9u;
  bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebu;
  return bits ^ (bits >> 31);
}

void Machine::make_ready(int thread) {
  threads_[thread].state = State::kReady;
  ready_[thread / 64] |= std::uint64_t{1} << (thread % 64);
}

int Machine::first_ready_from(int start) const {
  const int words = (block_threads_ + 63) / 64;
  int word = start / 64;
  std::uint64_t bits = word < words ? ready_[word] & (~std::uint64_t{0} << (start % 64)) : 0;
  while (bits == 0) {
    if (++word >= words) return -1;
    bits = ready_[word];
  }
  return word * 64 + std::countr_zero(bits);
}

int Machine::last_ready_upto(int start) const {
  if (start < 0) return -1;
  int word = start / 64;
  std::uint64_t bits = ready_[word] & (~std::uint64_t{0} >> (63 - start % 64));
  while (bits == 0) {
    if (--word < 0) return -1;
    bits = ready_[word];
  }
  return word * 64 + 63 - std::countl_zero(bits);
}

// The thread to run next, no longer marked as ready; -1 if none is.
int Machine::choose() {
  int thread = -1;
  switch (configuration.schedule.order) {
    case Order::kForward:
      thread = first_ready_from(0);
      break;
    case Order::kReverse:
      thread = last_ready_upto(block_threads_ - 1);
      break;
    case Order::kRandom:
      thread = first_ready_from(static_cast<int>(random() % static_cast<unsigned>(block_threads_)));
      if (thread < 0) thread = first_ready_from(0);
      break;
  }
  if (thread >= 0) ready_[thread / 64] &= ~(std::uint64_t{1} << (thread % 64));
  return thread;
}

void Machine::resume(Fiber& self, int next) {
  Thread& thread = threads_[next];
  if (thread.fiber == nullptr) {
    thread.fiber = idle_.back();
    idle_.pop_back();
  }
  set_current(next);
  record_switch();
  if (thread.fiber != &self) switch_fiber(self, *thread.fiber);
}

// Called by a thread that has recorded what it waits for: returns when it may go on.
void Machine::resume_next() {
  const int next = choose();
  if (next < 0) report_stuck();
  resume(*threads_[current].fiber, next);
}

// A fiber runs one thread after another for as long as they do not wait: a block without barriers
// needs one fiber only.
void Machine::fiber_main() {
  finish_first_switch();
  Fiber& self = *threads_[current].fiber;
  for (;;) {
    thread_(context_);
    Thread& ended = threads_[current];
    ended.state = State::kDone;
    ended.fiber = nullptr;
    done_lanes_[current / kWarpLanes] |= 1u << (current % kWarpLanes);
    --live_;
    spins_ = 0;
    const int next = choose();
    if (next < 0 && live_ > 0) {
      ended.fiber = &self;  // the failure is reported from this stack
      report_stuck();
    }
    if (next >= 0 && threads_[next].fiber == nullptr) {
      threads_[next].fiber = &self;
      set_current(next);
      continue;
    }
    idle_.push_back(&self);
    if (next < 0) {
      switch_fiber(self, caller_);
    } else {
      set_current(next);
      switch_fiber(self, *threads_[next].fiber);
    }
  }
}

int Machine::barrier(BarrierKind kind, int predicate, Site site) {
  Thread& thread = threads_[current];
  if (at_barrier_ > 0) {
    // Any thread that waits at a barrier stands for all: they have been compared already.
    int other = 0;
    while (threads_[other].state != State::kBarrier) ++other;
    const Thread& first = threads_[other];
    if (!(first.site == site) || first.barrier_kind != kind) {
      thread.site = site;
      fail("divergent barrier",
           "this thread waits at the barrier in " + name_of(site) + " while " + describe(other));
    }
  } else {
    barrier_count_ = 0;
  }
  thread.state = State::kBarrier;
  thread.site = site;
  thread.barrier_kind = kind;
  barrier_count_ += predicate != 0;
  if (++at_barrier_ == block_threads_) {
    at_barrier_ = 0;
    spins_ = 0;
    barrier_result_ = kind == BarrierKind::kCount ? barrier_count_
                      : kind == BarrierKind::kOr  ? barrier_count_ > 0
                                                  : barrier_count_ == block_threads_;
    for (int index = 0; index < block_threads_; ++index) make_ready(index);
    record_barrier();
  }
  resume_next();
  return barrier_result_;
}

unsigned Machine::done_lanes(int warp) const {
  const int lanes = block_threads_ - warp * kWarpLanes;
  const unsigned absent = lanes >= kWarpLanes ? 0 : ~0u << lanes;
  return done_lanes_[warp] | absent;
}

std::uint64_t Machine::warp_primitive(const WarpRequest& request) {
  const int lane = current % kWarpLanes;
  const int warp = current / kWarpLanes;
  const int base = warp * kWarpLanes;
  const unsigned mask = request.mask;
  Problem problem = check_request(request, lane, done_lanes(warp));
  if (problem.kind != nullptr) fail(problem.kind, problem.what);
  requests_[current] = request;
  threads_[current].state = State::kWarp;
  threads_[current].site = request.site;
  waiting_lanes_[warp] |= 1u << lane;
  bool complete = (waiting_lanes_[warp] & mask) == mask;
  for (unsigned rest = mask; complete && rest != 0; rest &= rest - 1) {
    complete = requests_[base + std::countr_zero(rest)].mask == mask;
  }
  if (complete) {
    for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
      const int other = base + std::countr_zero(rest);
      if (!requests_[other].same_operation(request)) {
        fail("divergent warp primitive",
             "this thread calls " + name_of(request) + " while " + describe(other));
      }
    }
    problem = compute_results(&requests_[base], mask);
    if (problem.kind != nullptr) fail(problem.kind, problem.what);
    waiting_lanes_[warp] &= ~mask;
    for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
      make_ready(base + std::countr_zero(rest));
    }
    if (request.kind == WarpKind::kSync) record_warp_sync(warp, mask);
  }
  const int self = current;
  resume_next();
  return requests_[self].result;
}

void Machine::yield(bool spinning) {
  if (spinning && ++spins_ > kMaximumSpins) {
    fail("deadlock", "threads of the block spin without end");
  }
  const int self = current;
  Fiber& fiber = *threads_[self].fiber;
  int next;
  if (configuration.schedule.order == Order::kRandom) {
    make_ready(self);
    next = choose();
  } else {
    // Not choose(): that might prefer the spinning thread for ever.
    next = configuration.schedule.order == Order::kForward ? first_ready_from(self + 1)
                                                           : last_ready_upto(self - 1);
    if (next < 0) next = choose();
    if (next < 0) return;
    ready_[next / 64] &= ~(std::uint64_t{1} << (next % 64));
    make_ready(self);
  }
  resume(fiber, next);
}

std::string Machine::describe(int thread) const {
  const Thread& other = threads_[thread];
  const std::string who = "thread " + std::to_string(thread);
  switch (other.state) {
    case State::kBarrier:
      return who + " waits at the barrier in " + name_of(other.site);
    case State::kWarp:
      return who + " waits in " + name_of(requests_[thread]);
    case State::kDone:
      return who + " has exited";
    case State::kReady:
      break;
  }
  return who + " can run";
}

// Nobody can go on: finds out what the threads wait for.
void Machine::report_stuck() {
  for (int index = 0; index < block_threads_; ++index) {
    if (threads_[index].state != State::kWarp) continue;
    const int base = index / kWarpLanes * kWarpLanes;
    const unsigned mask = requests_[index].mask;
    const unsigned exited = mask & done_lanes(index / kWarpLanes);
    if (exited != 0) {
      fail("absent lane", describe(index) + " for " + describe(base + std::countr_zero(exited)));
    }
    for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
      const int other = base + std::countr_zero(rest);
      if (threads_[other].state == State::kWarp && requests_[other].mask == mask) continue;
      fail("deadlock", describe(index) + " for lane " + std::to_string(other - base) + ", but " +
                           describe(other));
    }
  }
  int waiting = 0;
  int exited = 0;
  while (threads_[waiting].state != State::kBarrier) ++waiting;
  while (exited < block_threads_ && threads_[exited].state != State::kDone) ++exited;
  fail("divergent barrier", describe(waiting) + " with " + std::to_string(at_barrier_) + " of " +
                                std::to_string(block_threads_) + " threads, but " +
                                describe(exited));
}

void Machine::fail(const std::string& kind, const std::string& what) {
  if (current < 0) throw SimtError(kind, kernel_.empty() ? what : kernel_ + ": " + what);
  failed_ = true;
  failure_kind_ = kind;
  failure_ = kernel_ + ", block " + std::to_string(blockIdx.x) + ", thread " +
             std::to_string(current) + ": " + what;
  switch_fiber(*threads_[current].fiber, caller_, /*abandon=*/true);
  __builtin_unreachable();
}

void Machine::recover() {
  idle_.clear();
  for (int index = pool_.size() - 1; index >= 0; --index) {
    pool_.reset(pool_[index]);
    idle_.push_back(&pool_[index]);
  }
  failed_ = false;
}

void Machine::run_block(std::int64_t block) {
  blockIdx.x = static_cast<unsigned>(block);
  shared.begin_block(configuration.poison);
  for (int index = 0; index < block_threads_; ++index) {
    threads_[index].fiber = nullptr;
    make_ready(index);
  }
  waiting_lanes_.fill(0);
  done_lanes_.fill(0);
  live_ = block_threads_;
  at_barrier_ = 0;
  spins_ = 0;
  record_block_start();
  resume(caller_, choose());
  record_block_end();
  current = -1;
  if (!failed_) {
    failure_ = shared.check_zones();
    if (failure_.empty()) return;
    failure_kind_ = "shared array overrun";
    failure_ = kernel_ + ", block " + std::to_string(block) + ": " + failure_;
  }
  recover();
  kernel_.clear();
  throw SimtError(failure_kind_, failure_);
}

void Machine::run_grid(const std::string& kernel, std::int64_t grid, int block,
                       void (*thread)(const void*), const void* context) {
  if (current >= 0) fail("launch", "a kernel launches " + kernel);
  if (grid < 0 || grid > kMaximumGrid) {
    throw SimtError("launch", "launch of " + kernel + ": grid must be from 0 to " +
                                  std::to_string(kMaximumGrid) + ", got " + std::to_string(grid));
  }
  if (block < 1 || block > kMaximumBlock) {
    throw SimtError("launch", "launch of " + kernel + ": block must be from 1 to " +
                                  std::to_string(kMaximumBlock) + ", got " + std::to_string(block));
  }
  if (grid == 0) return;
  executed.insert(kernel.substr(0, kernel.find('<')));
  kernel_ = kernel;
  thread_ = thread;
  context_ = context;
  block_threads_ = block;
  random_state_ = configuration.schedule.seed;
  ready_.fill(0);
  gridDim = dim3(static_cast<unsigned>(grid));
  blockDim = dim3(static_cast<unsigned>(block));
  describe_running_stack(caller_);
  if (idle_.empty()) recover();
  const FaultGuard guard;
  record_launch_start(pool_, grid);
  std::vector<std::int64_t> order;
  if (configuration.schedule.order == Order::kRandom) {
    order.resize(static_cast<std::size_t>(grid));
    std::iota(order.begin(), order.end(), 0);
    for (std::size_t left = order.size(); left > 1; --left) {
      std::swap(order[left - 1], order[random() % left]);
    }
  }
  for (std::int64_t step = 0; step < grid; ++step) {
    run_block(!order.empty() ? order[static_cast<std::size_t>(step)]
              : configuration.schedule.order == Order::kReverse ? grid - 1 - step
                                                                : step);
  }
  kernel_.clear();
}

}  // namespace

bool Site::operator==(const Site& other) const {
  return line == other.line && (file == other.file || std::strcmp(file, other.file) == 0);
}

std::string name_of(const Site& site) {
  const char* slash = std::strrchr(site.file, '/');
  return std::string(slash == nullptr ? site.file : slash + 1) + ":" + std::to_string(site.line);
}

std::string name_of(const Schedule& schedule) {
  switch (schedule.order) {
    case Order::kForward:
      return "forward";
    case Order::kReverse:
      return "reverse";
    case Order::kRandom:
      break;
  }
  return "random " + std::to_string(schedule.seed);
}

void configure(const Configuration& configuration) { machine().configuration = configuration; }

int barrier(BarrierKind kind, int predicate, Site site) {
  return machine().barrier(kind, predicate, site);
}

std::uint64_t warp_primitive(WarpKind kind, unsigned mask, std::uint64_t value, int parameter,
                             int width, Site site) {
  return machine().warp_primitive({kind, mask, value, parameter, width, site, 0});
}

unsigned active_mask() { return ~machine().done_lanes(static_cast<int>(threadIdx.x) / kWarpLanes); }

void yield() { machine().yield(/*spinning=*/true); }

void atomic_point() {
  if (machine().configuration.schedule.order == Order::kRandom) {
    machine().yield(/*spinning=*/false);
  }
}

void fence() { record_fence(); }

std::byte* shared_storage(SharedSite& site) { return machine().shared.allocate(site); }

SharedMemory& shared_memory() { return machine().shared; }

void fail(const std::string& kind, const std::string& what) { machine().fail(kind, what); }

int running_thread() { return machine().current; }

std::int64_t running_block() { return blockIdx.x; }

std::byte* running_stack_top() { return machine().stack_top(); }

bool running_stack_near(std::uintptr_t address) { return machine().stacks().contains(address); }

void run_grid(const std::string& kernel, std::int64_t grid, int block, void (*thread)(const void*),
              const void* context) {
  machine().run_grid(kernel, grid, block, thread, context);
}

const std::set<std::string>& executed_kernels() { return machine().executed; }

void forget_executed_kernels() { machine().executed.clear(); }

}  // namespace robustcore::simt::host
