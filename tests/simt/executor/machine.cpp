#include "machine.h"

#include <bit>

#include "access.h"

namespace robustcore::simt::host {

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

}  // namespace robustcore::simt::host
