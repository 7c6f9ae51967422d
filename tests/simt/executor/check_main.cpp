// simt_check: every check and every deliberately broken kernel, without Python. Built plain and
// under AddressSanitizer and UBSan.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <exception>

#include "access.h"
#include "simt_case.h"

namespace simt = robustcore::simt;
namespace host = robustcore::simt::host;

namespace {

int failures = 0;

void report(const std::string& name, const std::string& problem) {
  std::printf("%s  %s%s%s\n", problem.empty() ? "ok    " : "FAILED", name.c_str(),
              problem.empty() ? "" : ": ", problem.c_str());
  failures += !problem.empty();
}

std::string run_check(simt::CheckFunction check) {
  try {
    check();
    return {};
  } catch (const std::exception& caught) {
    return caught.what();
  }
}

// What the broken kernel's run should have said, or nothing if it did.
std::string run_broken(const simt::Broken& broken) {
  try {
    broken.function();
  } catch (const host::SimtError& caught) {
    if (caught.kind() == broken.kind) return {};
    return std::string("expected ") + broken.kind + ", got " + caught.what();
  } catch (const std::exception& caught) {
    return caught.what();
  }
  return "expected " + broken.kind + ", but nothing was reported";
}

// The sanitizers end the process at some of the errors, so each broken kernel gets its own.
std::string run_broken_apart(const simt::Broken& broken) {
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    if (std::freopen("/dev/null", "w", stderr) == nullptr) _exit(3);
    const std::string problem = run_broken(broken);
    std::printf("%s", problem.c_str());
    std::fflush(nullptr);
    _exit(problem.empty() ? 0 : 3);
  }
  int status = 0;
  waitpid(child, &status, 0);
  // Anything but 0 and 3 is the sanitizer's own exit.
  if (WIFEXITED(status) && WEXITSTATUS(status) == 3) return " (in a process of its own)";
  return {};
}

}  // namespace

int main(int argument_count, char** arguments) {
  // --kernels: also list the kernels that the checks have run, for the coverage test.
  const bool list_kernels = argument_count > 1 && std::strcmp(arguments[1], "--kernels") == 0;
  for (const auto& [name, check] : simt::checks()) report(name, run_check(check));
  if (list_kernels) {
    for (const std::string& kernel : host::executed_kernels()) {
      std::printf("kernel  %s\n", kernel.c_str());
    }
  }
  for (const auto& [name, broken] : simt::broken_kernels()) {
    report("broken: " + name, RC_SIMT_ASAN ? run_broken_apart(broken) : run_broken(broken));
  }
  std::printf("%zu checks, %zu broken kernels, %d failures%s%s\n", simt::checks().size(),
              simt::broken_kernels().size(), failures, RC_SIMT_ASAN ? ", under sanitizers" : "",
              host::records_accesses() ? ", accesses recorded" : "");
  return failures == 0 ? 0 : 1;
}
