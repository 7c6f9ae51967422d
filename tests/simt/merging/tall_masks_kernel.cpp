// Cases of merging/tall_masks.cuh and count_codes.cuh. Models come as base0, base1, ..., merged0,
// ... and finetuned0_0 (task, tensor), ...
#include "merging/tall_masks.cuh"

#include <cmath>
#include <string>
#include <vector>

#include "merging/count_codes.cuh"
#include "simt_case.h"

namespace robustcore {
namespace {

struct Model {
  FlatOrder order;
  std::vector<simt::Dtype> types;
};

Model read_model(simt::Arguments& arguments) {
  std::vector<int64_t> sizes;
  std::vector<simt::Dtype> types;
  for (int64_t i = 0; i < arguments.integer("tensors"); ++i) {
    const std::string name = "base" + std::to_string(i);
    sizes.push_back(arguments.elements(name));
    types.push_back(arguments.dtype(name));
  }
  return {FlatOrder(sizes), types};
}

std::vector<double> read_lambdas(simt::Arguments& arguments) {
  const double* values = arguments.input<double>("lambdas");
  return {values, values + arguments.elements("lambdas")};
}

}  // namespace

RC_SIMT_CASE(tall_masks) {
  const Model shape = read_model(arguments);
  const int64_t tensors = shape.order.tensors(), tasks = arguments.integer("tasks");
  TallMasksModel model{&shape.order,
                       {},
                       {},
                       {},
                       read_lambdas(arguments),
                       tasks,
                       arguments.flag("strict"),
                       arguments.output<uint32_t>("codes"),
                       2 * word_count(shape.order.parameters())};
  const bool has_merged = arguments.flag("has_merged");
  model.finetuned.resize(tasks * tensors);
  for (int64_t i = 0; i < tensors; ++i) {
    simt::dispatch_floating(shape.types[i], [&]<typename T>() {
      const std::string index = std::to_string(i);
      model.base.push_back(arguments.input<T>("base" + index));
      if (has_merged) model.merged.push_back(arguments.input<accumulate_t<T>>("merged" + index));
      for (int64_t task = 0; task < tasks; ++task) {
        model.finetuned[task * tensors + i] =
            arguments.input<T>("finetuned" + std::to_string(task) + "_" + index);
      }
    });
  }
  const auto runs = runs_of_one_type(shape.order, shape.types, tall_masks_capacity(tasks));
  for (const std::vector<int64_t>& run : runs) {
    simt::dispatch_floating(shape.types[run[0]], [&]<typename T>() {
      launch_tall_masks<T>(model, run, &run == &runs.back(), simt::stream());
    });
  }
}

RC_SIMT_CASE(count_codes) {
  CountCodesParams p{};
  p.codes = arguments.input<uint64_t>("codes");
  p.counts = arguments.inout<unsigned long long>("counts");
  p.words = arguments.integer("words");
  p.tasks = static_cast<int>(arguments.integer("tasks"));
  p.planes = static_cast<int>(arguments.integer("planes"));
  p.lambdas = static_cast<int>(arguments.integer("lambdas"));
  launch_count_codes(p, simt::stream());
}

// Two tensors that share words, against the definition, for each kernel.
RC_SIMT_CHECK(tall_masks) {
  for (const int64_t tasks : {3, 7, 12, 18}) {
    for (const int64_t lambda_count : {5, 9}) {
      const int64_t sizes[2] = {37, 300}, parameters = 337, words = word_count(parameters);
      const int planes = bits_for(lambda_count);
      std::vector<std::vector<float>> rows((tasks + 1) * 2);
      simt::NamedValues values;
      for (int64_t i = 0; i < (tasks + 1) * 2; ++i) {
        for (int64_t j = 0; j < sizes[i % 2]; ++j) rows[i].push_back(std::sin(1.7f * i + 0.3f * j));
      }
      for (int64_t i = 0; i < 2; ++i) {
        values.push_back({"base" + std::to_string(i), simt::array(rows[i])});
        for (int64_t task = 0; task < tasks; ++task) {
          values.push_back({"finetuned" + std::to_string(task) + "_" + std::to_string(i),
                            simt::array(rows[2 * task + 2 + i])});
        }
      }
      std::vector<double> lambdas;
      for (int64_t n = 0; n < lambda_count; ++n) lambdas.push_back(0.2 + 0.1 * n);
      std::vector<uint64_t> codes(tasks * planes * words), expected(codes.size());
      std::vector<int64_t> counts(tasks * lambda_count), expected_counts(counts.size());
      for (int64_t p = 0; p < parameters; ++p) {
        const int64_t tensor = p >= sizes[0], index = tensor ? p - sizes[0] : p;
        const float base = rows[tensor][index];
        float merged = rows[2 + tensor][index] - base;
        for (int64_t task = 1; task < tasks; ++task) {
          merged = merged + (rows[2 * task + 2 + tensor][index] - base);
        }
        for (int64_t task = 0; task < tasks; ++task) {
          const float value = rows[2 * task + 2 + tensor][index];
          uint64_t passed = 0;
          for (int64_t n = 0; n < lambda_count; ++n) {
            const bool kept = std::fabs(base - value) >
                              std::fabs((base + merged) - value) * static_cast<float>(lambdas[n]);
            passed += kept;
            expected_counts[task * lambda_count + n] += kept;
          }
          for (int b = 0; b < planes; ++b) {
            expected[(task * planes + b) * words + p / 64] |= ((passed >> b) & 1) << (p % 64);
          }
        }
      }
      // As int32, which is how the kernel writes them.
      std::vector<int32_t> halves(codes.size() * 2);
      for (const auto& [name, value] : simt::NamedValues{{"tensors", int64_t{2}},
                                                         {"tasks", tasks},
                                                         {"has_merged", int64_t{0}},
                                                         {"strict", int64_t{1}},
                                                         {"lambdas", simt::array(lambdas)},
                                                         {"codes", simt::array(halves)}}) {
        values.push_back({name, value});
      }
      simt::run_case("tall_masks", values);
      for (size_t i = 0; i < codes.size(); ++i) {
        codes[i] = static_cast<uint32_t>(halves[2 * i]) |
                   static_cast<uint64_t>(static_cast<uint32_t>(halves[2 * i + 1])) << 32;
        if (codes[i] != expected[i]) throw std::runtime_error("codes differ");
      }
      simt::run_case("count_codes", {{"codes", simt::array(codes)},
                                     {"counts", simt::array(counts)},
                                     {"words", words},
                                     {"tasks", tasks},
                                     {"planes", int64_t{planes}},
                                     {"lambdas", lambda_count}});
      simt::expect_equal("counts", counts, expected_counts);
    }
  }
}

}  // namespace robustcore
