// What a warp primitive computes from the values of its lanes, and which calls are wrong.
#pragma once

#include <cstdint>
#include <string>

#include "executor.h"

namespace robustcore::simt::host {

// One lane's call.
struct WarpRequest {
  WarpKind kind = WarpKind::kSync;
  unsigned mask = 0;
  std::uint64_t value = 0;  // to be shuffled or combined; or the predicate
  int parameter = 0;        // source lane, distance or xor mask
  int width = 32;
  Site site;
  std::uint64_t result = 0;

  bool same_operation(const WarpRequest& other) const {
    return kind == other.kind && width == other.width && site == other.site;
  }
};
std::string name_of(const WarpRequest& request);  // "__shfl_sync(mask 0xffffffff) in scan.cuh:7"

// A null kind means that nothing is wrong.
struct Problem {
  const char* kind = nullptr;
  std::string what;
};

// What can be said when one lane arrives; `done` has the lanes that have exited or never were.
Problem check_request(const WarpRequest& request, int lane, unsigned done);

// Fills in the results of all lanes in `mask`; `requests` are those of the warp's 32 lanes.
Problem compute_results(WarpRequest* requests, unsigned mask);

}  // namespace robustcore::simt::host
