// Cases of merging/packed_masks.cuh.
#include "merging/packed_masks.cuh"

#include <stdexcept>
#include <vector>

#include "simt_case.h"

namespace robustcore {
namespace {

MaskColumnParams column(simt::Arguments& arguments) {
  MaskColumnParams p{};
  p.masks = arguments.input<uint64_t>("masks");
  p.tasks = static_cast<int>(arguments.integer("tasks"));
  p.words = arguments.integer("words");
  p.parameters = arguments.integer("parameters");
  return p;
}

template <class Value>
void expand(simt::Arguments& arguments) {
  const MaskColumnParams column_params = column(arguments);
  MaskExpandParams<Value> p{};
  p.masks = column_params.masks;
  p.values = arguments.output<Value>("values");
  p.words = column_params.words;
  p.parameters = column_params.parameters;
  p.tasks = column_params.tasks;
  launch_mask_expand(p, simt::stream());
}

}  // namespace

RC_SIMT_CASE(mask_select) {
  MaskSelectParams p{};
  p.codes = arguments.input<uint64_t>("codes");
  p.masks = arguments.output<uint64_t>("masks");
  p.words = arguments.integer("words");
  p.tasks = static_cast<int>(arguments.integer("tasks"));
  p.planes = static_cast<int>(arguments.integer("planes"));
  const int64_t* ranks = arguments.input<int64_t>("ranks");
  for (int task = 0; task < p.tasks; ++task) p.ranks[task] = static_cast<uint8_t>(ranks[task]);
  launch_mask_select(p, simt::stream());
}

RC_SIMT_CASE(mask_unpack) {
  expand<uint8_t>(arguments);
}

RC_SIMT_CASE(mask_counts) {
  expand<int32_t>(arguments);
}

RC_SIMT_CASE(mask_consensus) {
  const MaskColumnParams p = column(arguments);
  launch_mask_column(
      p, packed_masks_cuda::AtLeast{arguments.output<uint64_t>("mask"), arguments.integer("least")},
      simt::stream());
}

RC_SIMT_CASE(mask_histogram) {
  const MaskColumnParams p = column(arguments);
  launch_mask_column(p,
                     packed_masks_cuda::Histogram{arguments.inout<unsigned long long>("histogram")},
                     simt::stream());
}

RC_SIMT_CASE(mask_overlap) {
  MaskOverlapParams p{};
  p.masks = arguments.input<uint64_t>("masks");
  p.overlap = arguments.inout<unsigned long long>("overlap");
  p.words = arguments.integer("words");
  p.tasks = static_cast<int>(arguments.integer("tasks"));
  launch_mask_overlap(p, simt::stream());
}

// Rows of pseudo-random words against counting bit by bit.
RC_SIMT_CHECK(packed_masks) {
  for (const int64_t tasks : {3, 17}) {
    const int64_t words = 5, parameters = 300;
    std::vector<int64_t> masks(tasks * words);
    uint64_t state = 1;
    for (int64_t& word : masks) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      word = static_cast<int64_t>(state ^ (state >> 29));
    }
    const auto bit = [&](int64_t task, int64_t p) {
      return (static_cast<uint64_t>(masks[task * words + p / 64]) >> (p % 64)) & 1;
    };
    for (int64_t task = 0; task < tasks; ++task) {
      masks[task * words + 4] &= static_cast<int64_t>((uint64_t{1} << (parameters % 64)) - 1);
    }
    std::vector<int32_t> numbers(parameters);
    std::vector<int64_t> histogram(tasks + 1), overlap(tasks * tasks), consensus(words);
    for (int64_t p = 0; p < parameters; ++p) {
      for (int64_t a = 0; a < tasks; ++a) {
        numbers[p] += static_cast<int32_t>(bit(a, p));
        for (int64_t b = 0; b < tasks; ++b) overlap[a * tasks + b] += bit(a, p) & bit(b, p);
      }
      ++histogram[numbers[p]];
      if (numbers[p] >= 2) consensus[p / 64] |= static_cast<int64_t>(uint64_t{1} << (p % 64));
    }
    const simt::NamedValues shape = {{"masks", simt::array(masks)},
                                     {"tasks", tasks},
                                     {"words", words},
                                     {"parameters", parameters}};
    const auto with = [&](simt::NamedValues more) {
      more.insert(more.end(), shape.begin(), shape.end());
      return more;
    };
    std::vector<int32_t> counted(parameters);
    simt::run_case("mask_counts", with({{"values", simt::array(counted)}}));
    simt::expect_equal("counts", counted, numbers);
    std::vector<int64_t> bins(tasks + 1), pairs(tasks * tasks), kept(words);
    simt::run_case("mask_histogram", with({{"histogram", simt::array(bins)}}));
    simt::expect_equal("histogram", bins, histogram);
    simt::run_case("mask_consensus", with({{"mask", simt::array(kept)}, {"least", int64_t{2}}}));
    if (kept != consensus) throw std::runtime_error("consensus differs");
    simt::run_case("mask_overlap", {{"masks", simt::array(masks)},
                                    {"overlap", simt::array(pairs)},
                                    {"words", words},
                                    {"tasks", tasks}});
    simt::expect_equal("overlap", pairs, overlap);
    // With one plane, rank 1 selects the plane itself.
    std::vector<int64_t> selected(tasks * words), ranks(tasks, 1);
    simt::run_case("mask_select", {{"codes", simt::array(masks)},
                                   {"masks", simt::array(selected)},
                                   {"ranks", simt::array(ranks)},
                                   {"words", words},
                                   {"tasks", tasks},
                                   {"planes", int64_t{1}}});
    if (selected != masks) throw std::runtime_error("selected masks differ");
  }
}

}  // namespace robustcore
