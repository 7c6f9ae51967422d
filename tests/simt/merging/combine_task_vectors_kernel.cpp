// Cases of merging/combine_task_vectors.cuh. Models come as base0, ... (or grad0, ...), task
// vectors as vector0_0, ... (task, tensor), the columns of the coefficients as column0, ...
#include "merging/combine_task_vectors.cuh"

#include <string>
#include <utility>
#include <vector>

#include "simt_case.h"

namespace robustcore {
namespace {

// Calls f<T, V> with the types of a model's tensor and of its task vectors.
template <class F>
void dispatch_stored(std::pair<simt::Dtype, simt::Dtype> types, F&& f) {
  simt::dispatch_floating(types.first, [&]<typename T>() {
    if (types.first == types.second) return f.template operator()<T, T>();
    return f.template operator()<T, accumulate_t<T>>();
  });
}

struct Model {
  std::vector<std::pair<simt::Dtype, simt::Dtype>> types;
  FlatOrder order{{}};
  TaskVectorModel pointers;
};

Model read_model(simt::Arguments& arguments, const std::string& name) {
  Model model;
  std::vector<int64_t> sizes;
  const int64_t tensors = arguments.integer("tensors"), tasks = arguments.integer("tasks");
  for (int64_t i = 0; i < tensors; ++i) {
    const std::string index = std::to_string(i);
    sizes.push_back(arguments.elements(name + index));
    model.types.emplace_back(arguments.dtype(name + index), arguments.dtype("vector0_" + index));
    model.pointers.columns.push_back(arguments.integer("column" + index));
    simt::dispatch_floating(model.types[i].first, [&]<typename T>() {
      model.pointers.model.push_back(arguments.input<T>(name + index));
    });
  }
  for (int64_t task = 0; task < tasks; ++task) {
    for (int64_t i = 0; i < tensors; ++i) {
      simt::dispatch_floating(model.types[i].second, [&]<typename V>() {
        model.pointers.vectors.push_back(
            arguments.input<V>("vector" + std::to_string(task) + "_" + std::to_string(i)));
      });
    }
  }
  model.order = FlatOrder(sizes);
  model.pointers.tasks = tasks;
  return model;
}

}  // namespace

RC_SIMT_CASE(combine_task_vectors) {
  Model model = read_model(arguments, "base");
  model.pointers.order = &model.order;
  const auto* coefficients = arguments.input<double>("coefficients");
  const int64_t columns = arguments.integer("columns");
  const bool add_base = arguments.flag("add_base");
  std::vector<void*> results;
  for (size_t i = 0; i < model.types.size(); ++i) {
    simt::dispatch_floating(model.types[i].first, [&]<typename T>() {
      results.push_back(arguments.output<T>("result" + std::to_string(i)));
    });
  }
  for (const std::vector<int64_t>& run :
       runs_of_one_type(model.order, model.types, combine_run_capacity(model.pointers.tasks))) {
    dispatch_stored(model.types[run[0]], [&]<typename T, typename V>() {
      launch_combine<T, V>(model.pointers, run, coefficients, columns, add_base, results,
                           simt::stream());
    });
  }
}

RC_SIMT_CASE(task_vector_products) {
  Model model = read_model(arguments, "grad");
  model.pointers.order = &model.order;
  const int64_t columns = arguments.integer("columns"), tasks = model.pointers.tasks;
  auto* products = arguments.output<double>("products");
  int64_t blocks = 0;
  for (int64_t i = 0; i < model.order.tensors(); ++i) blocks += merge_blocks(model.order.size(i));
  auto* rows = arguments.scratch<double>("rows", blocks * tasks);
  bool first = true;
  for (const std::vector<int64_t>& run :
       runs_of_one_type(model.order, model.types, combine_run_capacity(tasks))) {
    dispatch_stored(model.types[run[0]], [&]<typename T, typename V>() {
      launch_products<T, V>(model.pointers, run, rows, simt::stream());
    });
    rows += tasks * launch_product_sums(model.pointers, run, rows, products, columns, first,
                                        simt::stream());
    first = false;
  }
  if (first) {
    launch_product_sums(model.pointers, {}, rows, products, columns, true, simt::stream());
  }
}

RC_SIMT_CHECK(combine_task_vectors) {
  constexpr size_t kSize = 4200;
  std::vector<float> base(kSize), vectors[2], result(kSize), expected;
  for (size_t i = 0; i < kSize; ++i) {
    base[i] = static_cast<float>(i % 7);
    vectors[0].push_back(static_cast<float>(i % 3));
    vectors[1].push_back(static_cast<float>(i % 5));
    expected.push_back(base[i] + (0.5f * vectors[0][i] - 2.0f * vectors[1][i]));
  }
  std::vector<double> coefficients{0.5, -2.0}, products(2), sums(2);
  simt::run_case("combine_task_vectors", {{"tensors", int64_t{1}},
                                          {"tasks", int64_t{2}},
                                          {"columns", int64_t{1}},
                                          {"column0", int64_t{0}},
                                          {"add_base", int64_t{1}},
                                          {"base0", simt::array(base)},
                                          {"vector0_0", simt::array(vectors[0])},
                                          {"vector1_0", simt::array(vectors[1])},
                                          {"coefficients", simt::array(coefficients)},
                                          {"result0", simt::array(result)}});
  simt::expect_equal("result0", result, expected);
  for (size_t i = 0; i < kSize; ++i) {
    for (int task = 0; task < 2; ++task) sums[task] += double{base[i]} * vectors[task][i];
  }
  simt::run_case("task_vector_products", {{"tensors", int64_t{1}},
                                          {"tasks", int64_t{2}},
                                          {"columns", int64_t{1}},
                                          {"column0", int64_t{0}},
                                          {"grad0", simt::array(base)},
                                          {"vector0_0", simt::array(vectors[0])},
                                          {"vector1_0", simt::array(vectors[1])},
                                          {"products", simt::array(products)}});
  simt::expect_equal("products", products, sums);  // whole numbers: exact in any order
}

}  // namespace robustcore
