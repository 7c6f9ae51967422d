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
std::string run_broken(const simt::Broken& broken, const char* kind) {
  const std::string expected = std::string("expected ") + kind;
  try {
    broken.function();
  } catch (const host::SimtError& caught) {
    return caught.kind() == kind ? "" : expected + ", got " + caught.what();
  } catch (const std::exception& caught) {
    return expected + ", got " + caught.what();
  }
  return expected + ", but nothing was reported";
}

// The sanitizers end the process at some of the errors, so there each gets a process of its own.
// Leaving it with their exit code is as good as our report.
std::string run_broken_apart(const simt::Broken& broken) {
  constexpr int kSanitizerExit = 1;
  constexpr int kProblemExit = 3;
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    if (std::freopen("/dev/null", "w", stderr) == nullptr) _exit(kProblemExit);
    const std::string problem = run_broken(broken, broken.kind_alone);
    if (!problem.empty()) std::printf("        %s\n", problem.c_str());
    std::fflush(nullptr);
    _exit(problem.empty() ? 0 : kProblemExit);
  }
  int status = 0;
  waitpid(child, &status, 0);
  const bool expected =
      WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == kSanitizerExit);
  return expected ? "" : "ended with wait status " + std::to_string(status);
}

void run_all_broken() {
  for (const auto& [name, broken] : simt::broken_kernels()) {
    if (host::records_accesses()) report("broken: " + name, run_broken(broken, broken.kind));
    if (broken.kind_alone == nullptr) continue;
    const bool recorded = host::records_accesses();
    host::record_accesses(false);
    const std::string label = "broken: " + name + " (not recorded)";
    if (RC_SIMT_ASAN) {
      report(label, run_broken_apart(broken));
    } else {
      report(label, run_broken(broken, broken.kind_alone));
    }
    host::record_accesses(recorded);
  }
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
  run_all_broken();
  std::printf("%zu checks, %zu broken kernels, %d failures%s%s\n", simt::checks().size(),
              simt::broken_kernels().size(), failures, RC_SIMT_ASAN ? ", under sanitizers" : "",
              host::records_accesses() ? ", accesses recorded" : "");
  return failures == 0 ? 0 : 1;
}
