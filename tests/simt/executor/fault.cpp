#include "fault.h"

#include <ucontext.h>

#include <cstdint>
#include <memory>
#include <string>

#include "executor.h"

namespace robustcore::simt::host {
namespace {

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE};

struct sigaction* previous_actions = nullptr;
int faulting_signal = 0;
std::uintptr_t faulting_address = 0;
bool address_known = false;

// Runs on the faulting fiber's stack, after the signal handler has returned.
[[noreturn]] void report_fault() {
  const std::uintptr_t address = faulting_address;
  if (faulting_signal == SIGFPE) fail("arithmetic fault", "division of an integer by zero");
  const GuardedBuffer* buffer = address_known ? find_buffer(address) : nullptr;
  if (buffer != nullptr) {
    const auto offset = address - reinterpret_cast<std::uintptr_t>(buffer->data());
    if (offset < buffer->bytes() && buffer->read_only()) {
      fail("write to an input", "wrote " + buffer->describe(address));
    }
    fail("out-of-bounds access", "read or wrote " + buffer->describe(address));
  }
  if (running_stack_near(address)) fail("stack overflow", "local variables take too much memory");
  if (shared_memory().near(address)) {
    fail("shared array overrun", "read or wrote " + shared_memory().describe(address));
  }
  if (!address_known) {
    fail("invalid access", "a misaligned vector access, or an address that no buffer can have");
  }
  char text[32];
  std::snprintf(text, sizeof(text), "0x%llx", static_cast<unsigned long long>(address));
  fail("invalid access", std::string("address ") + text + " lies outside every buffer");
}

void handle(int signal, siginfo_t* information, void* context) {
  if (running_thread() < 0) {
    // Not a kernel's: restore what was installed before and let the instruction fault again.
    for (int index = 0; index < 3; ++index)
      sigaction(kSignals[index], &previous_actions[index], nullptr);
    return;
  }
  faulting_signal = signal;
  faulting_address = reinterpret_cast<std::uintptr_t>(information->si_addr);
  // A misaligned vector load is a general protection fault, for which the kernel tells no address.
  address_known = !(signal == SIGSEGV && information->si_code == SI_KERNEL);
  // Continue in report_fault at the top of this fiber's stack: what the stack holds is lost anyway,
  // and it may be full.
  const auto top = reinterpret_cast<std::uintptr_t>(running_stack_top());
  auto* machine = &static_cast<ucontext_t*>(context)->uc_mcontext;
#if defined(__x86_64__)
  machine->gregs[REG_RIP] = reinterpret_cast<greg_t>(&report_fault);
  machine->gregs[REG_RSP] = static_cast<greg_t>(top - 1024 - 8);  // aligned as after a call
#elif defined(__aarch64__)
  machine->pc = reinterpret_cast<std::uintptr_t>(&report_fault);
  machine->sp = top - 1024;
#else
#error "tell here how to continue after a fault on this processor"
#endif
}

std::byte* signal_stack() {
  static const std::unique_ptr<std::byte[]> stack(new std::byte[64 * 1024]);
  return stack.get();
}

}  // namespace

FaultGuard::FaultGuard() {
  stack_t stack{};
  stack.ss_sp = signal_stack();
  stack.ss_size = 64 * 1024;
  sigaltstack(&stack, &previous_stack_);
  struct sigaction action{};
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  previous_actions = previous_;
  for (int index = 0; index < 3; ++index) sigaction(kSignals[index], &action, &previous_[index]);
}

FaultGuard::~FaultGuard() {
  for (int index = 0; index < 3; ++index) sigaction(kSignals[index], &previous_[index], nullptr);
  sigaltstack(&previous_stack_, nullptr);
}

}  // namespace robustcore::simt::host
