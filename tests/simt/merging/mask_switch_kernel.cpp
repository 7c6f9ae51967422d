// Cases of merging/mask_switch.cuh. Models come as weights0, base0, merged0, ...
#include "merging/mask_switch.cuh"

#include <string>
#include <vector>

#include "simt_case.h"

namespace robustcore {

RC_SIMT_CASE(mask_switch) {
  std::vector<int64_t> sizes;
  std::vector<simt::Dtype> types;
  const int64_t tensors = arguments.integer("tensors");
  for (int64_t i = 0; i < tensors; ++i) {
    const std::string name = "base" + std::to_string(i);
    sizes.push_back(arguments.elements(name));
    types.push_back(arguments.dtype(name));
  }
  const FlatOrder order(sizes);
  const auto* before = arguments.input<uint64_t>("before");
  MaskApplyModel model{&order, {}, {}, {}, arguments.input<uint64_t>("after")};
  for (int64_t i = 0; i < tensors; ++i) {
    simt::dispatch_floating(types[i], [&]<typename T>() {
      const std::string index = std::to_string(i);
      model.values.push_back(arguments.input<T>("base" + index));
      model.merged.push_back(arguments.input<accumulate_t<T>>("merged" + index));
      model.results.push_back(arguments.inout<T>("weights" + index));
    });
  }
  for (const std::vector<int64_t>& run : runs_of_one_type(order, types, kApplyTensors)) {
    simt::dispatch_floating(types[run[0]], [&]<typename T>() {
      launch_mask_switch<T>(model, before, run, simt::stream());
    });
  }
}

RC_SIMT_CHECK(mask_switch) {
  constexpr size_t kFirst = 70, kSecond = 2100;
  std::vector<float> base[2], merged[2], weights[2], expected[2];
  std::vector<int64_t> before(34), after(34);
  for (size_t i = 0; i < kFirst + kSecond; ++i) {
    const bool was = i % 3 == 0, is = i % 5 == 0;
    const auto bit = static_cast<int64_t>(uint64_t{1} << (i % 64));
    if (was) before[i / 64] |= bit;
    if (is) after[i / 64] |= bit;
    const int which = i < kFirst ? 0 : 1;
    base[which].push_back(static_cast<float>(i));
    merged[which].push_back(0.5f);
    weights[which].push_back(-1.0f);  // stays where the masks agree
    expected[which].push_back(was == is ? -1.0f : static_cast<float>(i) + (is ? 0.5f : 0.0f));
  }
  simt::run_case("mask_switch", {{"tensors", int64_t{2}},
                                 {"before", simt::array(before)},
                                 {"after", simt::array(after)},
                                 {"base0", simt::array(base[0])},
                                 {"base1", simt::array(base[1])},
                                 {"merged0", simt::array(merged[0])},
                                 {"merged1", simt::array(merged[1])},
                                 {"weights0", simt::array(weights[0])},
                                 {"weights1", simt::array(weights[1])}});
  simt::expect_equal("weights0", weights[0], expected[0]);
  simt::expect_equal("weights1", weights[1], expected[1]);
}

}  // namespace robustcore
