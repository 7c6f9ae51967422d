#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <new>

#if RC_SIMT_ASAN
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// A switch by ucontext saves the signal mask with a system call each time: ten times slower than
// the dozen instructions that the x86-64 calling convention needs.
#if defined(__x86_64__) && !defined(RC_SIMT_UCONTEXT)
#define RC_SIMT_ASSEMBLY 1
#else
#define RC_SIMT_ASSEMBLY 0
#include <ucontext.h>
#endif

namespace robustcore::simt::host {
namespace {

constexpr std::size_t kStackBytes = 256 * 1024;

}  // namespace

#if RC_SIMT_ASSEMBLY

extern "C" void rc_simt_switch_stack(void** save, void* load);
__asm__(
    ".text\n"
    ".p2align 4\n"
    ".hidden rc_simt_switch_stack\n"
    ".globl rc_simt_switch_stack\n"
    ".type rc_simt_switch_stack, @function\n"
    "rc_simt_switch_stack:\n"
    "  pushq %rbp\n"
    "  pushq %rbx\n"
    "  pushq %r12\n"
    "  pushq %r13\n"
    "  pushq %r14\n"
    "  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n"
    "  popq %r14\n"
    "  popq %r13\n"
    "  popq %r12\n"
    "  popq %rbx\n"
    "  popq %rbp\n"
    "  ret\n"
    ".size rc_simt_switch_stack, . - rc_simt_switch_stack\n");

void FiberPool::reset(Fiber& fiber) {
#if RC_SIMT_ASAN
  __asan_unpoison_memory_region(fiber.stack, fiber.stack_bytes);
  fiber.sanitizer_stack = nullptr;
#endif
  // The frame that rc_simt_switch_stack will pop: six registers and the entry as return address.
  // Above it a null return address, which ends backtraces and leaves the stack aligned as after a
  // call.
  auto* top = reinterpret_cast<void**>(fiber.stack + fiber.stack_bytes);
  top[-1] = nullptr;
  top[-2] = reinterpret_cast<void*>(entry_);
  for (int register_index = 3; register_index <= 8; ++register_index) {
    top[-register_index] = nullptr;
  }
  fiber.context = top - 8;
}

static void switch_stack(Fiber& from, Fiber& to) {
  rc_simt_switch_stack(&from.context, to.context);
}

static void release_context(Fiber&) {}

#else

void FiberPool::reset(Fiber& fiber) {
#if RC_SIMT_ASAN
  __asan_unpoison_memory_region(fiber.stack, fiber.stack_bytes);
  fiber.sanitizer_stack = nullptr;
#endif
  if (fiber.context == nullptr) fiber.context = new ucontext_t;
  auto* context = static_cast<ucontext_t*>(fiber.context);
  getcontext(context);
  context->uc_stack.ss_sp = fiber.stack;
  context->uc_stack.ss_size = fiber.stack_bytes;
  context->uc_link = nullptr;
  makecontext(context, entry_, 0);
}

static void switch_stack(Fiber& from, Fiber& to) {
  if (from.context == nullptr) from.context = new ucontext_t;  // the caller's, kept for good
  swapcontext(static_cast<ucontext_t*>(from.context), static_cast<ucontext_t*>(to.context));
}

static void release_context(Fiber& fiber) { delete static_cast<ucontext_t*>(fiber.context); }

#endif

FiberPool::FiberPool(int count, Entry entry)
    : count_(count), entry_(entry), fibers_(new Fiber[count]) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t stride = kStackBytes + page;
  bytes_ = stride * static_cast<std::size_t>(count);
  void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  base_ = reinterpret_cast<std::uintptr_t>(memory);
  for (int index = 0; index < count; ++index) {
    auto* start = static_cast<std::byte*>(memory) + stride * static_cast<std::size_t>(index);
    mprotect(start, page, PROT_NONE);
    fibers_[index].stack = start + page;
    fibers_[index].stack_bytes = kStackBytes;
    reset(fibers_[index]);
  }
}

FiberPool::~FiberPool() {
  for (int index = 0; index < count_; ++index) release_context(fibers_[index]);
  delete[] fibers_;
#if RC_SIMT_ASAN
  __asan_unpoison_memory_region(reinterpret_cast<void*>(base_), bytes_);
#endif
  munmap(reinterpret_cast<void*>(base_), bytes_);
}

void switch_fiber(Fiber& from, Fiber& to, [[maybe_unused]] bool abandon) {
#if RC_SIMT_ASAN
  __sanitizer_start_switch_fiber(abandon ? nullptr : &from.sanitizer_stack, to.stack,
                                 to.stack_bytes);
#endif
  switch_stack(from, to);
#if RC_SIMT_ASAN
  __sanitizer_finish_switch_fiber(from.sanitizer_stack, nullptr, nullptr);
#endif
}

void finish_first_switch() {
#if RC_SIMT_ASAN
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

void describe_running_stack([[maybe_unused]] Fiber& caller) {
#if RC_SIMT_ASAN
  pthread_attr_t attributes;
  pthread_getattr_np(pthread_self(), &attributes);
  void* bottom = nullptr;
  pthread_attr_getstack(&attributes, &bottom, &caller.stack_bytes);
  caller.stack = static_cast<std::byte*>(bottom);
  pthread_attr_destroy(&attributes);
#endif
}

}  // namespace robustcore::simt::host
