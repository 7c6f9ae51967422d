#include "common/scale.cuh"

#include "simt_case.h"

namespace robustcore {

RC_SIMT_CASE(scale) {
  simt::dispatch_floating(arguments.dtype("data"), [&]<typename T>() {
    launch_scale(ScaleParams<T>{arguments.inout<T>("data", 16), arguments.elements("data"),
                                arguments.input<accumulate_t<T>>("factor")},
                 simt::stream());
  });
}

RC_SIMT_CHECK(scale) {
  for (const std::int64_t count : {0, 1, 5, 4095, 4096, 4099, 9000}) {
    for (const float by : {1.0f, -0.5f}) {
      std::vector<float> data(static_cast<std::size_t>(count)), expected(data.size()), factor{by};
      for (std::size_t index = 0; index < data.size(); ++index) {
        data[index] = static_cast<float>(index) - 7.0f;
        expected[index] = data[index] * by;
      }
      simt::run_case("scale", {{"data", simt::array(data)}, {"factor", simt::array(factor)}});
      simt::expect_equal("data", data, expected);
    }
  }
}

}  // namespace robustcore
