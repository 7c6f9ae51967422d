// Pieces of models: slices of tensors, contiguous, each of whatever floating dtype it is stored in,
// and tables with a row per piece. Checks shared by the operators that merge.
#pragma once

#include <vector>

#include "common/tensor.h"
#include "merging/magnitudes.h"
#include "merging/storage.h"

namespace robustcore {

inline Storage storage_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Storage::kFloat32;
    case ScalarType::Double:
      return Storage::kFloat64;
    case ScalarType::BFloat16:
      return Storage::kBfloat16;
    default:
      return Storage::kFloat16;
  }
}

inline StoredWeights stored(const Tensor& tensor) {
  return {tensor.const_data_ptr(), storage_of(tensor)};
}

// Whether anything of a piece is float64: then all its tasks are computed in float64.
inline bool is_double_piece(const std::vector<Tensor>& base, const std::vector<Tensor>& finetuned,
                            size_t piece) {
  bool found = base[piece].scalar_type() == ScalarType::Double;
  for (size_t i = piece; i < finetuned.size(); i += base.size()) {
    found = found || finetuned[i].scalar_type() == ScalarType::Double;
  }
  return found;
}

// `tasks` models of pieces, whatever their floating dtypes, with the sizes and the device of
// `base`.
inline void check_pieces(const char* op, const char* name, const std::vector<Tensor>& list,
                         const std::vector<Tensor>& base, int64_t tasks) {
  const size_t held = list.size(), pieces = base.size();
  RC_CHECK(
      pieces == 0 ? held == 0 : held % pieces == 0 && held / pieces == static_cast<size_t>(tasks),
      op, ": ", name, " must hold ", tasks, " times ", pieces, " tensors, got ", held);
  for (size_t i = 0; i < held; ++i) {
    check_floating(op, name, list[i]);
    check_numel(op, name, list[i], base[i % pieces].numel());
    check_same_device(op, name, list[i], base[0]);
    RC_CHECK(list[i].is_contiguous(), op, ": ", name, " must be contiguous");
  }
}

// A table on the CPU, [pieces, ...columns] flattened.
template <class T>
const T* table(const char* op, const char* name, const Tensor& tensor, ScalarType type,
               int64_t elements) {
  check_type(op, name, tensor, type);
  check_numel(op, name, tensor, elements);
  RC_CHECK(tensor.is_cpu() && tensor.is_contiguous(), op, ": ", name,
           " must be contiguous and on the CPU");
  return read_pointer<T>(tensor);
}

constexpr int kWindowColumns = 4;  // low, low_ties, high, high_ties

inline MagnitudeWindow window_at(const int64_t* row) {
  return {static_cast<uint32_t>(row[0]), static_cast<uint32_t>(row[2]), row[1], row[3]};
}

}  // namespace robustcore
