#include "common/cuda.h"
#include "merging/combine_task_vectors.cuh"
#include "merging/combine_task_vectors_op.h"

namespace robustcore {
namespace {

TaskVectorModel pointers_of(const char* op, const TaskVectorArguments& a) {
  RC_CHECK(a.tasks <= kCombineTasks, op, ": there may be up to ", kCombineTasks,
           " tasks on CUDA, got ", a.tasks);
  return {&a.order, read_pointers(a.model), read_pointers(a.vectors), a.blocks, a.tasks};
}

std::vector<Tensor> combine_task_vectors(std::vector<Tensor> base, std::vector<Tensor> vectors,
                                         const Tensor& coefficients, std::vector<int64_t> blocks,
                                         bool add_base) {
  constexpr const char* kOp = "combine_task_vectors";
  RC_CHECK(!base.empty(), kOp, ": base must hold at least one tensor");
  const DeviceScope device(base[0]);
  const Tensor factors = checked_coefficients(kOp, coefficients, base[0]);
  const TaskVectorArguments a =
      task_vector_arguments(kOp, std::move(base), std::move(vectors), factors.size(0),
                            std::move(blocks), factors.size(1));
  const TaskVectorModel model = pointers_of(kOp, a);
  std::vector<Tensor> results = fresh_like(a.model);
  std::vector<void*> targets;
  for (const Tensor& result : results) targets.push_back(result.mutable_data_ptr());
  for (const std::vector<int64_t>& run :
       runs_of_one_type(a.order, a.types, combine_run_capacity(a.tasks))) {
    dispatch_stored(a.types[run[0]], [&](auto model_tag, auto vector_tag) {
      launch_combine<typename decltype(model_tag)::type, typename decltype(vector_tag)::type>(
          model, run, read_pointer<double>(factors), a.columns, add_base, targets, device.stream());
    });
  }
  return results;
}

Tensor task_vector_products(std::vector<Tensor> grads, std::vector<Tensor> vectors, int64_t tasks,
                            std::vector<int64_t> blocks, int64_t columns) {
  constexpr const char* kOp = "task_vector_products";
  RC_CHECK(!grads.empty(), kOp, ": grads must hold at least one tensor");
  const DeviceScope device(grads[0]);
  const TaskVectorArguments a = task_vector_arguments(kOp, std::move(grads), std::move(vectors),
                                                      tasks, std::move(blocks), columns);
  const TaskVectorModel model = pointers_of(kOp, a);
  Tensor products = fresh(a.model[0], {tasks, columns}, ScalarType::Double);
  int64_t parts = 0;
  for (int64_t tensor = 0; tensor < a.order.tensors(); ++tensor) {
    parts += merge_blocks(a.order.size(tensor));
  }
  const Tensor partial = fresh(a.model[0], {parts, tasks}, ScalarType::Double);
  double* rows = write_pointer<double>(partial);
  double* sums = write_pointer<double>(products);
  bool first = true;
  for (const std::vector<int64_t>& run :
       runs_of_one_type(a.order, a.types, combine_run_capacity(tasks))) {
    dispatch_stored(a.types[run[0]], [&](auto model_tag, auto vector_tag) {
      launch_products<typename decltype(model_tag)::type, typename decltype(vector_tag)::type>(
          model, run, rows, device.stream());
    });
    rows += tasks * launch_product_sums(model, run, rows, sums, columns, first, device.stream());
    first = false;
  }
  if (first) launch_product_sums(model, {}, rows, sums, columns, true, device.stream());
  return products;
}

}  // namespace
}  // namespace robustcore

STABLE_TORCH_LIBRARY_IMPL(robustcore, CUDA, m) {
  m.impl("combine_task_vectors", TORCH_BOX(&robustcore::combine_task_vectors));
  m.impl("task_vector_products", TORCH_BOX(&robustcore::task_vector_products));
}
