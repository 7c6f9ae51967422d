// Runs a CUDA grid on the host: every thread of a block is a fiber, blocks run one after another.
//
// A thread runs until it waits (barrier, warp primitive) or ends. Which thread goes on then, and
// the order of the blocks, is the schedule's choice. Any misuse that the executor sees ends the
// launch with a SimtError; the executor is ready for the next launch afterwards.
//
// One launch at a time in a process: callers from several operating-system threads must take turns.
#pragma once

#include <cstddef>
#include <cstdint>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>

#include "fiber.h"
#include "memory.h"

namespace robustcore::simt {

inline constexpr std::int64_t kMaximumGrid = 2147483647;
inline constexpr int kMaximumBlock = 1024;

namespace host {

// What a kernel did wrong. `kind` is one of a few fixed names ("divergent barrier", "data race",
// ...; README.md lists them), the message starts with it and says where.
class SimtError : public std::runtime_error {
 public:
  SimtError(const std::string& kind, const std::string& what)
      : std::runtime_error(kind + ": " + what), kind_(kind) {}
  const std::string& kind() const { return kind_; }

 private:
  std::string kind_;
};

enum class Order { kForward, kReverse, kRandom };

struct Schedule {
  Order order = Order::kForward;
  std::uint64_t seed = 0;  // for kRandom
};
std::string name_of(const Schedule& schedule);

// How the following launches run.
struct Configuration {
  Schedule schedule;
  unsigned char poison = 0xff;  // what fresh shared memory holds
};
void configure(const Configuration& configuration);

// A place in the source of a kernel.
struct Site {
  const char* file = "";
  int line = 0;
  bool operator==(const Site& other) const;
};
std::string name_of(const Site& site);  // "reduce.cuh:82"

enum class BarrierKind { kPlain, kOr, kAnd, kCount };

enum class WarpKind {
  kSync,
  kShuffle,
  kShuffleUp,
  kShuffleDown,
  kShuffleXor,
  kBallot,
  kAny,
  kAll,
  kMatchAny,
  kReduceAdd,
  kReduceMin,
  kReduceMax,
  kReduceAnd,
  kReduceOr,
  kReduceXor,
};

// What the running thread of a kernel calls (through cuda_on_host.h).
int barrier(BarrierKind kind, int predicate, Site site);
std::uint64_t warp_primitive(WarpKind kind, unsigned mask, std::uint64_t value, int parameter,
                             int width, Site site);
unsigned active_mask();
void yield();         // in a spinning loop: lets other threads of the block go first
void atomic_point();  // at an atomic operation: random schedules may switch threads there
void fence();
std::byte* shared_storage(SharedSite& site);
SharedMemory& shared_memory();

// Ends the launch with a SimtError that names kernel, block and thread (or just throws it where no
// kernel runs).
[[noreturn]] void fail(const std::string& kind, const std::string& what);

// The kernel thread that runs now; -1 outside of kernels.
int running_thread();
std::int64_t running_block();
std::byte* running_stack_top();
bool running_stack_near(std::uintptr_t address);  // in a stack or in the page below it

// Calls `thread(context)` once for every thread of every block.
void run_grid(const std::string& kernel, std::int64_t grid, int block,
              void (*thread)(const void* context), const void* context);

// Names (with namespaces, without template arguments) of the kernels of which a thread has run.
const std::set<std::string>& executed_kernels();
void forget_executed_kernels();

template <auto Kernel>
std::string kernel_name() {
  // gcc: "... [with auto Kernel = space::kernel<float, 4>; ...]", clang: "[Kernel = &space::...]"
  std::string_view signature = __PRETTY_FUNCTION__;
  signature.remove_prefix(signature.find("Kernel = ") + 9);
  signature = signature.substr(0, signature.find_first_of(";]"));
  signature.remove_prefix(signature.find_first_not_of("(& "));
  return std::string(signature);
}

}  // namespace host

using stream_type = void*;

// The host's counterpart of simt::launch in common/simt.cuh; the stream is ignored.
template <auto Kernel, typename... Params>
void launch(std::int64_t grid, int block, stream_type, const Params&... params) {
  const auto thread = [&] { Kernel(params...); };
  host::run_grid(
      host::kernel_name<Kernel>(), grid, block,
      [](const void* context) { (*static_cast<const decltype(thread)*>(context))(); }, &thread);
}

}  // namespace robustcore::simt
