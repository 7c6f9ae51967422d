// Cases of merging/merge_weights.cuh: one piece. Tasks come as task0, task1, ...; with `in_place`
// the base is `out`. Tables are [tasks], windows [tasks, 4], ties_before [blocks, tasks, 2].
#include "merging/merge_weights.cuh"

#include <string>
#include <vector>

#include "merging/stored_weights.h"

#include "simt_case.h"

namespace robustcore {
namespace {

std::vector<TaskOptions> tasks_of(simt::Arguments& arguments, int64_t count, bool aligned) {
  const double* const rescale = arguments.input<double>("rescale");
  const double* const weights = arguments.input<double>("weights");
  const int64_t* const vectors = arguments.input<int64_t>("vectors");
  const int64_t* const windows = arguments.optional_input<int64_t>("windows");
  const double* const densities = arguments.optional_input<double>("densities");
  std::vector<TaskOptions> tasks(static_cast<size_t>(count));
  for (int64_t t = 0; t < count; ++t) {
    TaskOptions& task = tasks[static_cast<size_t>(t)];
    task.weights = simt::stored_input(arguments, "task" + std::to_string(t), aligned);
    task.rescale = rescale[t];
    task.weight = weights[t];
    task.is_vector = vectors[t] != 0;
    if (windows) {
      const int64_t* const row = windows + 4 * t;
      task.window = {static_cast<uint32_t>(row[0]), static_cast<uint32_t>(row[2]), row[1], row[3]};
      task.has_window = !task.window.keeps_all();
    }
    task.drops = densities && densities[t] < 1;
    if (task.drops) task.keep_below = static_cast<uint32_t>(densities[t] * 4294967296.0);
  }
  return tasks;
}

}  // namespace

RC_SIMT_CASE(merge_weights) {
  const int64_t count = arguments.integer("tasks");
  const bool aligned = arguments.flag("aligned"), in_place = arguments.flag("in_place");
  const std::vector<TaskOptions> tasks = tasks_of(arguments, count, aligned);
  MergeSlice slice{};
  slice.out = simt::stored_output(arguments, "out", aligned, in_place);
  slice.out_type = simt::storage_of(arguments.dtype("out"));
  slice.base = in_place ? StoredWeights{slice.out, slice.out_type}
                        : simt::stored_input(arguments, "base", aligned);
  slice.parameters = arguments.elements("out");
  slice.flat_start = arguments.integer("flat_start");
  slice.ties_before = arguments.optional_input<int64_t>("ties_before");
  slice.base_factor = arguments.number("base_factor");
  slice.scale = arguments.number("scale");
  const MergeMethod method{static_cast<Election>(arguments.integer("election")),
                           static_cast<Reduction>(arguments.integer("reduction")),
                           static_cast<int>(arguments.integer("zero_sign")),
                           static_cast<uint64_t>(arguments.integer("seed")),
                           arguments.optional_input<double>("lambdas"),
                           static_cast<int>(arguments.integer("least")),
                           arguments.flag("strict")};
  const MergeLaunch merge{method, slice, tasks.data(), static_cast<int>(count),
                          arguments.inout<unsigned long long>("counters")};
  if (arguments.flag("is_double")) {
    launch_merge_weights<double>(merge, simt::stream());
  } else {
    launch_merge_weights<float>(merge, simt::stream());
  }
}

// Two tasks that move half of the parameters by +1 and +2, elected and averaged; the smallest of
// the first task's magnitudes is dropped but for its first two ties.
RC_SIMT_CHECK(merge_weights) {
  const size_t size = 4100;
  std::vector<float> base(size, 1.0f), first(size), second(size), out(size), expected(size);
  for (size_t i = 0; i < size; ++i) {
    first[i] = i % 2 ? 2.0f : 1.0f;
    second[i] = i % 2 ? 3.0f : 1.0f;
    const bool kept = i == 1 || i == 3;
    expected[i] = i % 2 == 0 ? 1.0f : kept ? 2.5f : 3.0f;
  }
  std::vector<double> ones{1, 1};
  std::vector<int64_t> vectors{0, 0}, counters(kMergeCounters);
  const int64_t one = 0x3f800000, all = INT64_MAX, top = UINT32_MAX;
  std::vector<int64_t> windows{one, 2, top, 0, 0, all, top, 0};
  std::vector<int64_t> ties{0, 0, 0, 0, 2048, 0, 0, 0};
  simt::run_case("merge_weights", {{"tasks", int64_t{2}},
                                   {"aligned", int64_t{0}},
                                   {"in_place", int64_t{0}},
                                   {"is_double", int64_t{0}},
                                   {"base", simt::array(base)},
                                   {"out", simt::array(out)},
                                   {"task0", simt::array(first)},
                                   {"task1", simt::array(second)},
                                   {"rescale", simt::array(ones)},
                                   {"weights", simt::array(ones)},
                                   {"vectors", simt::array(vectors)},
                                   {"windows", simt::array(windows)},
                                   {"ties_before", simt::array(ties)},
                                   {"densities", {}},
                                   {"lambdas", {}},
                                   {"base_factor", 1.0},
                                   {"scale", 1.0},
                                   {"flat_start", int64_t{0}},
                                   {"election", int64_t{1}},
                                   {"reduction", int64_t{1}},
                                   {"zero_sign", int64_t{0}},
                                   {"seed", int64_t{0}},
                                   {"least", int64_t{0}},
                                   {"strict", int64_t{1}},
                                   {"counters", simt::array(counters)}});
  simt::expect_equal("out", out, expected);
  simt::expect_equal("counters", counters, {0, 0, 0, 0, 2050, 0});
}

}  // namespace robustcore
