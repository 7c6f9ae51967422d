// Cases of merging/mask_apply.cuh. Models come as base0, merged0, result0, ...; without results the
// base is overwritten.
#include "merging/mask_apply.cuh"

#include <stdexcept>
#include <string>
#include <vector>

#include "simt_case.h"

namespace robustcore {
namespace {

template <class Policy>
void apply(simt::Arguments& arguments) {
  std::vector<int64_t> sizes;
  std::vector<simt::Dtype> types;
  const int64_t tensors = arguments.integer("tensors");
  for (int64_t i = 0; i < tensors; ++i) {
    const std::string name = "base" + std::to_string(i);
    sizes.push_back(arguments.elements(name));
    types.push_back(arguments.dtype(name));
  }
  const FlatOrder order(sizes);
  const bool in_place = arguments.flag("in_place");
  MaskApplyModel model{&order, {}, {}, {}, arguments.input<uint64_t>("mask")};
  for (int64_t i = 0; i < tensors; ++i) {
    simt::dispatch_floating(types[i], [&]<typename T>() {
      const std::string index = std::to_string(i);
      if (in_place) {
        model.results.push_back(arguments.inout<T>("base" + index));
        model.values.push_back(model.results.back());
      } else {
        model.values.push_back(arguments.input<T>("base" + index));
        model.results.push_back(arguments.output<T>("result" + index));
      }
      if (Policy::kReadsBase) {
        model.merged.push_back(arguments.input<accumulate_t<T>>("merged" + index));
      }
    });
  }
  for (const std::vector<int64_t>& run : runs_of_one_type(order, types, kApplyTensors)) {
    simt::dispatch_floating(types[run[0]], [&]<typename T>() {
      launch_mask_apply<Policy, T>(model, run, simt::stream());
    });
  }
}

}  // namespace

RC_SIMT_CASE(mask_apply) {
  apply<AddWhereKept>(arguments);
}

RC_SIMT_CASE(mask_multiply) {
  apply<ZeroWhereDropped>(arguments);
}

RC_SIMT_CHECK(mask_apply) {
  std::vector<float> first(70), second(2100), add_first(70, 1.0f), add_second(2100, 1.0f);
  std::vector<float> kept_first(70), kept_second(2100), expected_first, expected_second;
  std::vector<int64_t> mask(34);
  for (size_t i = 0; i < 2170; ++i) {
    const bool kept = i % 3 == 0;
    if (kept) mask[i / 64] |= static_cast<int64_t>(uint64_t{1} << (i % 64));
    (i < 70 ? first[i] : second[i - 70]) = static_cast<float>(i);
    (i < 70 ? expected_first : expected_second).push_back(static_cast<float>(i + kept));
  }
  simt::run_case("mask_apply", {{"tensors", int64_t{2}},
                                {"in_place", int64_t{0}},
                                {"mask", simt::array(mask)},
                                {"base0", simt::array(first)},
                                {"base1", simt::array(second)},
                                {"merged0", simt::array(add_first)},
                                {"merged1", simt::array(add_second)},
                                {"result0", simt::array(kept_first)},
                                {"result1", simt::array(kept_second)}});
  simt::expect_equal("result0", kept_first, expected_first);
  simt::expect_equal("result1", kept_second, expected_second);
}

}  // namespace robustcore
