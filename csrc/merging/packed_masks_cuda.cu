#include "common/cuda.h"
#include "merging/packed_masks.cuh"
#include "merging/packed_masks_op.h"

namespace robustcore {
namespace {

const uint64_t* read_words(const Tensor& words) {
  return static_cast<const uint64_t*>(words.const_data_ptr());
}

uint64_t* write_words(const Tensor& words) {
  return static_cast<uint64_t*>(words.mutable_data_ptr());
}

// Rows of masks, checked.
Tensor mask_rows(const char* op, const Tensor& masks) {
  Tensor rows = packed_words(op, "masks", masks, 2);
  RC_CHECK(rows.size(0) <= kMaximumMaskRows, op, ": masks must have at most ", kMaximumMaskRows,
           " rows on CUDA, got ", rows.size(0));
  return rows;
}

MaskColumnParams column_params(const Tensor& rows, int64_t parameters) {
  return {read_words(rows), rows.size(1), parameters, static_cast<int>(rows.size(0))};
}

Tensor zeros(const Tensor& like, std::initializer_list<int64_t> sizes) {
  Tensor result = fresh(like, sizes, ScalarType::Long);
  return torch::stable::zero_(result);
}

unsigned long long* totals(const Tensor& tensor) {
  return static_cast<unsigned long long*>(tensor.mutable_data_ptr());
}

Tensor mask_select(const Tensor& codes, std::vector<int64_t> ranks) {
  const Tensor planes = packed_words("mask_select", "codes", codes, 3);
  check_ranks("mask_select", ranks, planes);
  RC_CHECK(planes.size(0) <= kMaximumMaskRows && planes.size(1) <= 8,
           "mask_select: codes must have at most ", kMaximumMaskRows,
           " tasks and 8 planes on CUDA");
  const DeviceScope device(planes);
  const Tensor masks = fresh(planes, {planes.size(0), planes.size(2)}, ScalarType::Long);
  MaskSelectParams p{};
  p.codes = read_words(planes);
  p.masks = write_words(masks);
  p.words = planes.size(2);
  p.tasks = static_cast<int>(planes.size(0));
  p.planes = static_cast<int>(planes.size(1));
  for (size_t task = 0; task < ranks.size(); ++task) {
    p.ranks[task] = static_cast<uint8_t>(ranks[task]);
  }
  launch_mask_select(p, device.stream());
  return masks;
}

template <class Value>
Tensor expand(const Tensor& rows, int64_t tasks, int64_t words, int64_t parameters,
              ScalarType type) {
  const DeviceScope device(rows);
  const Tensor values = fresh(rows, {parameters}, type);
  MaskExpandParams<Value> p{};
  p.masks = read_words(rows);
  p.values = static_cast<Value*>(values.mutable_data_ptr());
  p.words = words;
  p.parameters = parameters;
  p.tasks = static_cast<int>(tasks);
  launch_mask_expand(p, device.stream());
  return values;
}

Tensor mask_unpack(const Tensor& mask, int64_t parameters) {
  const Tensor words = packed_words("mask_unpack", "mask", mask, 1);
  check_parameters("mask_unpack", words, parameters);
  return expand<uint8_t>(words, 1, words.size(0), parameters, ScalarType::Bool);
}

Tensor mask_counts(const Tensor& masks, int64_t parameters) {
  const Tensor rows = mask_rows("mask_counts", masks);
  check_parameters("mask_counts", rows, parameters);
  return expand<int32_t>(rows, rows.size(0), rows.size(1), parameters, ScalarType::Int);
}

Tensor mask_histogram(const Tensor& masks, int64_t parameters) {
  const Tensor rows = mask_rows("mask_histogram", masks);
  check_parameters("mask_histogram", rows, parameters);
  const DeviceScope device(rows);
  const Tensor bins = zeros(rows, {rows.size(0) + 1});
  launch_mask_column(column_params(rows, parameters), packed_masks_cuda::Histogram{totals(bins)},
                     device.stream());
  return bins;
}

Tensor mask_overlap(const Tensor& masks) {
  const Tensor rows = mask_rows("mask_overlap", masks);
  const DeviceScope device(rows);
  const Tensor overlap = zeros(rows, {rows.size(0), rows.size(0)});
  launch_mask_overlap(
      {read_words(rows), totals(overlap), rows.size(1), static_cast<int>(rows.size(0))},
      device.stream());
  return overlap;
}

Tensor mask_consensus(const Tensor& masks, int64_t least) {
  const Tensor rows = mask_rows("mask_consensus", masks);
  RC_CHECK(least >= 1 && least <= rows.size(0), "mask_consensus: least must be from 1 to ",
           rows.size(0), ", got ", least);
  const DeviceScope device(rows);
  const Tensor mask = fresh(rows, {rows.size(1)}, ScalarType::Long);
  launch_mask_column(column_params(rows, rows.size(1) * kWordBits),
                     packed_masks_cuda::AtLeast{write_words(mask), least}, device.stream());
  return mask;
}

}  // namespace
}  // namespace robustcore

STABLE_TORCH_LIBRARY_IMPL(robustcore, CUDA, m) {
  m.impl("mask_select", TORCH_BOX(&robustcore::mask_select));
  m.impl("mask_unpack", TORCH_BOX(&robustcore::mask_unpack));
  m.impl("mask_counts", TORCH_BOX(&robustcore::mask_counts));
  m.impl("mask_histogram", TORCH_BOX(&robustcore::mask_histogram));
  m.impl("mask_overlap", TORCH_BOX(&robustcore::mask_overlap));
  m.impl("mask_consensus", TORCH_BOX(&robustcore::mask_consensus));
}
