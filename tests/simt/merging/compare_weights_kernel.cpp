// Cases of merging/compare_weights.cuh: one piece.
#include "merging/compare_weights.cuh"

#include <vector>

#include "merging/stored_weights.h"

#include "simt_case.h"

namespace robustcore {

RC_SIMT_CASE(compare_weights) {
  CompareParams p{};
  p.first = simt::stored_input(arguments, "first", false);
  p.has_second = arguments.flag("has_second");
  if (p.has_second) p.second = simt::stored_input(arguments, "second", false);
  p.parameters = arguments.elements("first");
  p.rows = arguments.output<double>("rows");
  launch_compare_weights(p, simt::stream());
}

RC_SIMT_CHECK(compare_weights) {
  std::vector<float> first(4097, 2.0f), second(4097, 2.0f);
  second[4096] = 5.0f;
  std::vector<double> rows(2 * kCompareSums);
  simt::run_case("compare_weights", {{"has_second", int64_t{1}},
                                     {"first", simt::array(first)},
                                     {"second", simt::array(second)},
                                     {"rows", simt::array(rows)}});
  const double squares = 4 * 4096, sum = 2 * 4096;
  simt::expect_equal("rows", rows, {0, 0, squares, squares, squares, 0, 0, 0, sum, sum,  //
                                    3, 9, 4,       25,      10,      1, 3, 0, 2,   5});
}

}  // namespace robustcore
