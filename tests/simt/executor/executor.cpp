#include "executor.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "access.h"
#include "cuda_on_host.h"
#include "fault.h"
#include "machine.h"

uint3 threadIdx{};
uint3 blockIdx{};
dim3 blockDim{};
dim3 gridDim{};

namespace robustcore::simt::host {

Machine& machine() {
  static Machine instance;
  return instance;
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

void configure(const Configuration& configuration) {
  machine().configuration = configuration;
}

int barrier(BarrierKind kind, int predicate, Site site) {
  return machine().barrier(kind, predicate, site);
}

std::uint64_t warp_primitive(WarpKind kind, unsigned mask, std::uint64_t value, int parameter,
                             int width, Site site) {
  return machine().warp_primitive({kind, mask, value, parameter, width, site, 0});
}

unsigned active_mask() {
  return ~machine().done_lanes(static_cast<int>(threadIdx.x) / kWarpLanes);
}

void yield() {
  machine().yield(/*spinning=*/true);
}

void atomic_point() {
  if (machine().configuration.schedule.order == Order::kRandom) {
    machine().yield(/*spinning=*/false);
  }
}

void fence() {
  record_fence();
}

std::byte* shared_storage(SharedSite& site) {
  return machine().shared.allocate(site);
}

SharedMemory& shared_memory() {
  return machine().shared;
}

void fail(const std::string& kind, const std::string& what) {
  machine().fail(kind, what);
}

int running_thread() {
  return machine().current;
}

std::int64_t running_block() {
  return blockIdx.x;
}

std::byte* running_stack_top() {
  return machine().stack_top();
}

bool running_stack_near(std::uintptr_t address) {
  return machine().stacks().contains(address);
}

void run_grid(const std::string& kernel, std::int64_t grid, int block, void (*thread)(const void*),
              const void* context) {
  machine().run_grid(kernel, grid, block, thread, context);
}

const std::set<std::string>& executed_kernels() {
  return machine().executed;
}

void forget_executed_kernels() {
  machine().executed.clear();
}

}  // namespace robustcore::simt::host
