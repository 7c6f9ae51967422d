#include <algorithm>
#include <numeric>

#include "selftest/correct.cuh"
#include "simt_case.h"

namespace robustcore::simt::selftest {
namespace {

std::vector<float> some_floats(std::int64_t count) {
  std::vector<float> values(static_cast<std::size_t>(count));
  for (std::size_t index = 0; index < values.size(); ++index) {
    values[index] = static_cast<float>((index * 7919 + 13) % 1000) / 250.0f - 2.0f;
  }
  return values;
}

}  // namespace

RC_SIMT_CASE(row_sum) {
  launch<row_sum_kernel<256>>(arguments.elements("sums"), 256, stream(),
                              arguments.input<float>("values"), arguments.output<float>("sums"),
                              arguments.integer("columns"));
}

RC_SIMT_CHECK(row_sum) {
  for (const std::int64_t columns : {0, 1, 31, 257, 1025}) {
    std::vector<float> values = some_floats(5 * columns), sums(5);
    run_case("row_sum", {{"values", array(values)}, {"sums", array(sums)}, {"columns", columns}});
    std::vector<double> expected;
    for (std::int64_t row = 0; row < 5; ++row) {
      const auto begin = values.begin() + row * columns;
      expected.push_back(std::accumulate(begin, begin + columns, 0.0));
    }
    expect_close("sums", sums, expected, 1e-5);
  }
}

RC_SIMT_CASE(warp_scan) {
  const auto columns = static_cast<int>(arguments.integer("columns"));
  launch<warp_scan_kernel>(arguments.elements("values") / columns / 2, 64, stream(),
                           arguments.input<int>("values"), arguments.output<int>("sums"), columns);
}

RC_SIMT_CHECK(warp_scan) {
  for (const int columns : {1, 31, 32}) {
    std::vector<int> values(static_cast<std::size_t>(6 * columns)), sums(values.size());
    std::iota(values.begin(), values.end(), -40);
    run_case(
        "warp_scan",
        {{"values", array(values)}, {"sums", array(sums)}, {"columns", std::int64_t{columns}}});
    std::vector<int> expected;
    for (int row = 0; row < 6; ++row) {
      const auto begin = values.begin() + row * columns;
      std::partial_sum(begin, begin + columns, std::back_inserter(expected));
    }
    expect_equal("sums", sums, expected);
  }
}

RC_SIMT_CASE(vector_copy) {
  launch<vector_copy_kernel<128>>(3, 128, stream(), arguments.input<float>("source"),
                                  arguments.output<float>("destination"),
                                  arguments.elements("source"));
}

RC_SIMT_CHECK(vector_copy) {
  for (const std::int64_t count : {0, 1, 3, 4, 5, 127, 128, 2047, 4099}) {
    std::vector<float> source = some_floats(count), destination(source.size());
    run_case("vector_copy", {{"source", array(source)}, {"destination", array(destination)}});
    expect_equal("destination", destination, source);
  }
}

RC_SIMT_CASE(ballot_pack) {
  const std::int64_t count = arguments.elements("values");
  launch<ballot_pack_kernel>((count + 127) / 128, 128, stream(), arguments.input<float>("values"),
                             arguments.output<std::uint32_t>("words"), count);
}

RC_SIMT_CHECK(ballot_pack) {
  for (const std::int64_t count : {0, 1, 31, 32, 33, 127, 129, 1000}) {
    std::vector<float> values = some_floats(count);
    std::vector<std::uint32_t> words(static_cast<std::size_t>((count + 31) / 32));
    run_case("ballot_pack", {{"values", array(values)}, {"words", array(words)}});
    std::vector<std::uint32_t> expected(words.size());
    for (std::size_t index = 0; index < values.size(); ++index) {
      if (values[index] > 0.0f) expected[index / 32] |= 1u << (index % 32);
    }
    expect_equal("words", words, expected);
  }
}

RC_SIMT_CASE(shared_reverse) {
  launch<shared_reverse_kernel<64>>(arguments.elements("values") / 64, 64, stream(),
                                    arguments.input<float>("values"),
                                    arguments.output<float>("reversed"));
}

RC_SIMT_CHECK(shared_reverse) {
  std::vector<float> values = some_floats(3 * 64), reversed(values.size()), expected(values.size());
  run_case("shared_reverse", {{"values", array(values)}, {"reversed", array(reversed)}});
  for (std::size_t index = 0; index < values.size(); ++index) {
    expected[index] = values[index / 64 * 64 + 63 - index % 64];
  }
  expect_equal("reversed", reversed, expected);
}

RC_SIMT_CASE(histogram) {
  launch<histogram_kernel<96, 10>>(4, 96, stream(), arguments.input<int>("values"),
                                   arguments.inout<unsigned>("counts"),
                                   arguments.elements("values"));
}

RC_SIMT_CHECK(histogram) {
  std::vector<int> values(777);
  std::vector<unsigned> counts(10, 1u), expected(10, 1u);
  for (std::size_t index = 0; index < values.size(); ++index) {
    values[index] = static_cast<int>(index * index % 10);
    ++expected[static_cast<std::size_t>(values[index])];
  }
  run_case("histogram", {{"values", array(values)}, {"counts", array(counts)}});
  expect_equal("counts", counts, expected);
}

RC_SIMT_CASE(last_block_sum) {
  const std::int64_t rows = arguments.integer("rows");
  float* partial = arguments.scratch<float>("partial", rows);
  launch<last_block_sum_kernel<64>>(rows, 64, stream(), arguments.input<float>("values"), partial,
                                    arguments.inout<unsigned>("finished"),
                                    arguments.output<float>("total"),
                                    arguments.elements("values") / rows);
}

RC_SIMT_CHECK(last_block_sum) {
  std::vector<float> values = some_floats(9 * 100), total(1);
  std::vector<unsigned> finished(1);
  run_case("last_block_sum", {{"values", array(values)},
                              {"finished", array(finished)},
                              {"total", array(total)},
                              {"rows", std::int64_t{9}}});
  expect_close("total", total, std::vector{std::accumulate(values.begin(), values.end(), 0.0)},
               1e-5);
}

RC_SIMT_CASE(warp_votes) {
  launch<warp_votes_kernel>(1, 64, stream(), arguments.input<int>("values"),
                            arguments.output<int>("results"));
}

namespace {

// Calls function.template operator()<n>() for the power of two n between Least and Most.
template <int Least, int Most, typename Function>
void dispatch_power(std::int64_t value, Function&& function) {
  if (value == Least) {
    function.template operator()<Least>();
  } else if constexpr (Least < Most) {
    dispatch_power<2 * Least, Most>(value, function);
  } else {
    throw std::invalid_argument("no instance for " + std::to_string(value));
  }
}

template <typename Combine>
void run_block_reduce(Arguments& arguments) {
  dispatch_power<32, 1024>(arguments.integer("threads"), [&]<int Threads>() {
    launch<block_reduce_kernel<Threads, Combine>>(arguments.elements("values") / Threads, Threads,
                                                  stream(), arguments.input<float>("values"),
                                                  arguments.output<float>("results"));
  });
}

}  // namespace

RC_SIMT_CASE(block_sum) {
  run_block_reduce<Sum>(arguments);
}

RC_SIMT_CASE(block_maximum) {
  run_block_reduce<Maximum>(arguments);
}

RC_SIMT_CASE(block_affine) {
  dispatch_power<32, 1024>(arguments.integer("threads"), [&]<int Threads>() {
    launch<block_affine_kernel<Threads>>(
        1, Threads, stream(), arguments.input<float>("slopes"), arguments.input<float>("offsets"),
        reinterpret_cast<Affine*>(arguments.output<float>("results")));
  });
}

RC_SIMT_CASE(warp_sum) {
  dispatch_power<1, 32>(arguments.integer("width"), [&]<int Width>() {
    launch<warp_sum_kernel<Width>>(1, 64, stream(), arguments.input<float>("values"),
                                   arguments.output<float>("results"));
  });
}

RC_SIMT_CASE(repeated_reduce) {
  launch<repeated_reduce_kernel<128>>(1, 128, stream(), arguments.input<float>("values"),
                                      arguments.output<float>("results"));
}

RC_SIMT_CHECK(repeated_reduce) {
  std::vector<float> values = some_floats(128), results(256);
  run_case("repeated_reduce", {{"values", array(values)}, {"results", array(results)}});
  std::vector<double> expected(256, std::accumulate(values.begin(), values.end(), 0.0));
  std::fill(expected.begin() + 128, expected.end(),
            std::inner_product(values.begin(), values.end(), values.begin(), 0.0));
  expect_close("results", results, expected, 1e-5);
}

RC_SIMT_CHECK(block_reduce) {
  for (const int threads : {32, 64, 256, 1024}) {
    std::vector<float> values = some_floats(2 * threads), sums(values.size());
    std::vector<float> maxima(values.size()), slopes(values.size() / 2, -1.0f);
    const std::vector<float> offsets(values.begin(), values.begin() + threads);
    std::vector<float> copied = offsets, maps(2 * offsets.size());
    const Value block_threads = std::int64_t{threads};
    run_case("block_sum",
             {{"values", array(values)}, {"results", array(sums)}, {"threads", block_threads}});
    run_case("block_maximum",
             {{"values", array(values)}, {"results", array(maxima)}, {"threads", block_threads}});
    run_case("block_affine", {{"slopes", array(slopes)},
                              {"offsets", array(copied)},
                              {"results", array(maps)},
                              {"threads", block_threads}});
    std::vector<double> expected_sums, expected_maxima, expected_maps;
    for (int index = 0; index < 2 * threads; ++index) {
      const auto begin = values.begin() + index / threads * threads;
      expected_sums.push_back(std::accumulate(begin, begin + threads, 0.0));
      expected_maxima.push_back(*std::max_element(begin, begin + threads));
    }
    double slope = 1.0, offset = 0.0;
    for (const float value : offsets) {
      slope = -slope;
      offset = -offset + value;
    }
    for (int index = 0; index < threads; ++index) {
      expected_maps.push_back(slope);
      expected_maps.push_back(offset);
    }
    expect_close("sums", sums, expected_sums, 1e-5);
    expect_close("maxima", maxima, expected_maxima, 0.0);
    expect_close("maps", maps, expected_maps, 1e-4);
  }
}

RC_SIMT_CHECK(warp_primitives) {
  std::vector<float> values = some_floats(64), sums(64);
  run_case("warp_sum",
           {{"values", array(values)}, {"results", array(sums)}, {"width", std::int64_t{8}}});
  std::vector<double> expected;
  for (int index = 0; index < 64; ++index) {
    const auto begin = values.begin() + index / 8 * 8;
    expected.push_back(std::accumulate(begin, begin + 8, 0.0));
  }
  expect_close("sums", sums, expected, 1e-5);

  std::vector<int> numbers(64), results(12 * 64);
  for (int index = 0; index < 64; ++index) numbers[index] = index % 32 - 4;
  run_case("warp_votes", {{"values", array(numbers)}, {"results", array(results)}});
  const auto row = [&](int index) { return results[index * 64 + 40]; };
  const int positive = static_cast<int>(~0u << 5);
  expect_equal("votes", std::vector{row(0), row(1), row(2), row(3), row(4), row(5)},
               std::vector{positive, 1, 1, 16 * 31 - 4 * 32, -4, 27});
  // Lane 8 holds 4, nobody else does; four lanes below it is 0; it is the first of its eight.
  expect_equal("shuffles", std::vector{row(9), row(10), row(11)}, std::vector{1 << 8, 0, 4});
}

}  // namespace robustcore::simt::selftest
