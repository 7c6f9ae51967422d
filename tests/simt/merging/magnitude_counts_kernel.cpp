// Cases of merging/magnitude_counts.cuh: one piece, with tasks task0, task1, ...
#include "merging/magnitude_counts.cuh"

#include <string>
#include <vector>

#include "merging/stored_weights.h"

#include "simt_case.h"

namespace robustcore {
namespace {

// `keys`: [tasks, 2], or null.
MagnitudeCountParams counted_piece(simt::Arguments& arguments, const int64_t* keys) {
  MagnitudeCountParams p{};
  const int64_t* const vectors = arguments.input<int64_t>("vectors");
  p.task_count = static_cast<int>(arguments.integer("tasks"));
  p.base = simt::stored_input(arguments, "base", false);
  p.parameters = arguments.elements("base");
  p.task_stride = p.task_count;
  for (int64_t t = 0; t < p.task_count; ++t) {
    p.tasks[t] = {simt::stored_input(arguments, "task" + std::to_string(t), false), vectors[t] != 0,
                  keys ? static_cast<uint32_t>(keys[2 * t]) : 0,
                  keys ? static_cast<uint32_t>(keys[2 * t + 1]) : 0};
  }
  return p;
}

std::vector<float> alternating(size_t size) {
  std::vector<float> values(size);
  for (size_t i = 0; i < size; ++i) values[i] = i % 3 ? 1.5f : 0.0f;
  return values;
}

}  // namespace

RC_SIMT_CASE(magnitude_histogram) {
  const int64_t* const keys = arguments.optional_input<int64_t>("keys");
  MagnitudeCountParams p = counted_piece(arguments, keys);
  p.counts = arguments.inout<unsigned long long>("counts");
  if (arguments.flag("is_double")) {
    launch_magnitude_histogram<double>(p, keys != nullptr, simt::stream());
  } else {
    launch_magnitude_histogram<float>(p, keys != nullptr, simt::stream());
  }
}

RC_SIMT_CASE(magnitude_ties) {
  MagnitudeCountParams p = counted_piece(arguments, arguments.input<int64_t>("keys"));
  p.counts = arguments.output<unsigned long long>("ties");
  if (arguments.flag("is_double")) {
    launch_magnitude_ties<double>(p, simt::stream());
  } else {
    launch_magnitude_ties<float>(p, simt::stream());
  }
}

RC_SIMT_CHECK(magnitude_histogram) {
  std::vector<float> base(5000), task = alternating(5000);
  const uint32_t key = magnitude_key(1.5f);
  std::vector<int64_t> vectors{0}, keys{key >> kLowerKeyBits, 0};
  std::vector<int64_t> upper(kUpperBins), upper_expected(kUpperBins);
  upper_expected[0] = 1667;
  upper_expected[key >> kLowerKeyBits] = 3333;
  simt::run_case("magnitude_histogram", {{"tasks", int64_t{1}},
                                         {"is_double", int64_t{0}},
                                         {"base", simt::array(base)},
                                         {"task0", simt::array(task)},
                                         {"vectors", simt::array(vectors)},
                                         {"keys", {}},
                                         {"counts", simt::array(upper)}});
  simt::expect_equal("upper", upper, upper_expected);
  std::vector<int64_t> lower(kLowerBins), lower_expected(kLowerBins);
  lower_expected[key % kLowerBins] = 3333;
  simt::run_case("magnitude_histogram", {{"tasks", int64_t{1}},
                                         {"is_double", int64_t{0}},
                                         {"base", simt::array(base)},
                                         {"task0", simt::array(task)},
                                         {"vectors", simt::array(vectors)},
                                         {"keys", simt::array(keys)},
                                         {"counts", simt::array(lower)}});
  simt::expect_equal("lower", lower, lower_expected);
}

RC_SIMT_CHECK(magnitude_ties) {
  std::vector<float> base(5000), task = alternating(5000);
  std::vector<int64_t> vectors{1}, keys{0, magnitude_key(1.5f)}, ties(4);
  simt::run_case("magnitude_ties", {{"tasks", int64_t{1}},
                                    {"is_double", int64_t{0}},
                                    {"base", simt::array(base)},
                                    {"task0", simt::array(task)},
                                    {"vectors", simt::array(vectors)},
                                    {"keys", simt::array(keys)},
                                    {"ties", simt::array(ties)}});
  simt::expect_equal("ties", ties, {1366, 2730, 301, 603});
}

}  // namespace robustcore
