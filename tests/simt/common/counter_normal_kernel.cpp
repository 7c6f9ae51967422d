#include "common/counter_normal.cuh"

#include "simt_case.h"

namespace robustcore {

RC_SIMT_CASE(counter_normal) {
  CounterNormalParams p{};
  p.first = arguments.input<std::int64_t>("first");
  p.second = arguments.input<std::int64_t>("second");
  p.rows = arguments.elements("first");
  p.count = arguments.integer("count");
  if (arguments.flag("seed_on_device")) {
    p.device_seed = arguments.input<std::int64_t>("device_seed");
  } else {
    p.seed = static_cast<std::uint64_t>(arguments.integer("seed"));
  }
  p.values = arguments.output<float>("values");
  launch_counter_normal(p, simt::stream());
}

RC_SIMT_CHECK(counter_normal) {
  for (const std::int64_t count : {0, 1, 4, 7, 300}) {
    const std::int64_t rows = 3;
    std::vector<std::int64_t> first{0, -1, std::int64_t{1} << 40}, second{0, 5, 9};
    std::vector<float> values(static_cast<std::size_t>(rows * count)), expected(values.size());
    for (std::int64_t row = 0; row < rows; ++row) {
      const auto place = static_cast<std::uint64_t>(first[row]);
      for (std::int64_t f = 0; f < count; ++f) {
        const NormalQuad quad = normal_quad(
            random_key(77),
            {static_cast<std::uint32_t>(f / 4), static_cast<std::uint32_t>(second[row]),
             static_cast<std::uint32_t>(place), static_cast<std::uint32_t>(place >> 32)});
        expected[static_cast<std::size_t>(row * count + f)] = quad.values[f % 4];
      }
    }
    simt::run_case("counter_normal", {{"first", simt::array(first)},
                                      {"second", simt::array(second)},
                                      {"count", count},
                                      {"seed_on_device", std::int64_t{0}},
                                      {"seed", std::int64_t{77}},
                                      {"values", simt::array(values)}});
    simt::expect_equal("values", values, expected);
  }
}

}  // namespace robustcore
