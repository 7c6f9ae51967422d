#include "warp.h"

#include <algorithm>
#include <bit>
#include <cstdio>

namespace robustcore::simt::host {
namespace {

std::string hexadecimal(unsigned mask) {
  char text[16];
  std::snprintf(text, sizeof(text), "0x%08x", mask);
  return text;
}

const char* name_of(WarpKind kind) {
  switch (kind) {
    case WarpKind::kSync:
      return "__syncwarp";
    case WarpKind::kShuffle:
      return "__shfl_sync";
    case WarpKind::kShuffleUp:
      return "__shfl_up_sync";
    case WarpKind::kShuffleDown:
      return "__shfl_down_sync";
    case WarpKind::kShuffleXor:
      return "__shfl_xor_sync";
    case WarpKind::kBallot:
      return "__ballot_sync";
    case WarpKind::kAny:
      return "__any_sync";
    case WarpKind::kAll:
      return "__all_sync";
    case WarpKind::kMatchAny:
      return "__match_any_sync";
    case WarpKind::kReduceAdd:
      return "__reduce_add_sync";
    case WarpKind::kReduceMin:
      return "__reduce_min_sync";
    case WarpKind::kReduceMax:
      return "__reduce_max_sync";
    case WarpKind::kReduceAnd:
      return "__reduce_and_sync";
    case WarpKind::kReduceOr:
      return "__reduce_or_sync";
    case WarpKind::kReduceXor:
      return "__reduce_xor_sync";
  }
  return "unknown";
}

bool is_shuffle(WarpKind kind) {
  return kind == WarpKind::kShuffle || kind == WarpKind::kShuffleUp ||
         kind == WarpKind::kShuffleDown || kind == WarpKind::kShuffleXor;
}

// The lane whose value a shuffle returns. CUDA gives a lane its own value where up and down leave
// the segment; scans rely on that.
int source_lane(const WarpRequest& request, int lane) {
  const int segment = lane & ~(request.width - 1);
  int source = lane;
  switch (request.kind) {
    case WarpKind::kShuffle:
      return segment + request.parameter;
    case WarpKind::kShuffleXor:
      return lane ^ request.parameter;
    case WarpKind::kShuffleUp:
      source = lane - request.parameter;
      return source < segment ? lane : source;
    case WarpKind::kShuffleDown:
      source = lane + request.parameter;
      return source >= segment + request.width ? lane : source;
    default:
      return lane;
  }
}

// Min and max are signed where `parameter` says so.
std::uint64_t reduce(const WarpRequest* requests, unsigned mask, const WarpRequest& request) {
  auto total = static_cast<std::uint32_t>(requests[std::countr_zero(mask)].value);
  for (unsigned rest = mask & (mask - 1); rest != 0; rest &= rest - 1) {
    const auto value = static_cast<std::uint32_t>(requests[std::countr_zero(rest)].value);
    const bool less = request.parameter != 0
                          ? static_cast<std::int32_t>(value) < static_cast<std::int32_t>(total)
                          : value < total;
    switch (request.kind) {
      case WarpKind::kReduceAdd:
        total += value;
        break;
      case WarpKind::kReduceMin:
        total = less ? value : total;
        break;
      case WarpKind::kReduceMax:
        total = less ? total : value;
        break;
      case WarpKind::kReduceAnd:
        total &= value;
        break;
      case WarpKind::kReduceOr:
        total |= value;
        break;
      default:
        total ^= value;
        break;
    }
  }
  return total;
}

}  // namespace

std::string name_of(const WarpRequest& request) {
  return std::string(name_of(request.kind)) + "(mask " + hexadecimal(request.mask) + ") in " +
         name_of(request.site);
}

Problem check_request(const WarpRequest& request, int lane, unsigned done) {
  if ((request.mask >> lane & 1u) == 0) {
    return {"lane outside its mask", "lane " + std::to_string(lane) + " calls " + name_of(request)};
  }
  const unsigned gone = request.mask & done;
  if (gone != 0) {
    return {"absent lane", name_of(request) + " names lane " +
                               std::to_string(std::countr_zero(gone)) +
                               ", which has exited or is not in the block"};
  }
  if (!is_shuffle(request.kind)) return {};
  const int width = request.width;
  if (width < 1 || width > 32 || (width & (width - 1)) != 0) {
    return {
        "out-of-range shuffle",
        name_of(request) + ": width must be a power of two up to 32, got " + std::to_string(width)};
  }
  // CUDA takes the lane modulo the width and returns the own value for a distant xor partner. No
  // kernel should mean that.
  if (request.parameter < 0 || request.parameter >= width) {
    const bool any_distance =
        request.kind == WarpKind::kShuffleUp || request.kind == WarpKind::kShuffleDown;
    if (request.parameter < 0 || !any_distance) {
      return {"out-of-range shuffle", name_of(request) + ": lane or distance " +
                                          std::to_string(request.parameter) + " of a width of " +
                                          std::to_string(width)};
    }
  }
  return {};
}

Problem compute_results(WarpRequest* requests, unsigned mask) {
  const WarpRequest& any = requests[std::countr_zero(mask)];
  unsigned votes = 0;
  for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
    const int lane = std::countr_zero(rest);
    if (requests[lane].value != 0) votes |= 1u << lane;
  }
  std::uint64_t common = 0;
  switch (any.kind) {
    case WarpKind::kSync:
      return {};
    case WarpKind::kBallot:
      common = votes;
      break;
    case WarpKind::kAny:
      common = votes != 0;
      break;
    case WarpKind::kAll:
      common = votes == mask;
      break;
    case WarpKind::kReduceAdd:
    case WarpKind::kReduceMin:
    case WarpKind::kReduceMax:
    case WarpKind::kReduceAnd:
    case WarpKind::kReduceOr:
    case WarpKind::kReduceXor:
      common = reduce(requests, mask, any);
      break;
    default:
      break;
  }
  for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
    const int lane = std::countr_zero(rest);
    WarpRequest& request = requests[lane];
    if (request.kind == WarpKind::kMatchAny) {
      request.result = 0;
      for (unsigned others = mask; others != 0; others &= others - 1) {
        const int other = std::countr_zero(others);
        if (requests[other].value == request.value) request.result |= 1u << other;
      }
    } else if (is_shuffle(request.kind)) {
      const int source = source_lane(request, lane);
      if ((mask >> source & 1u) == 0) {
        return {"absent lane", "lane " + std::to_string(lane) + " reads lane " +
                                   std::to_string(source) + ", which does not take part, in " +
                                   name_of(request)};
      }
      request.result = requests[source].value;
    } else {
      request.result = common;
    }
  }
  return {};
}

}  // namespace robustcore::simt::host
