// The flat order of a model's parameters: the tensors one after the other, each row-major. Masks
// are packed in this order, so their words cross from one tensor into the next. Host only, no
// torch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace robustcore {

// What a range of the flat order holds of one tensor.
struct FlatPiece {
  int64_t tensor;
  int64_t first;   // first element, counted in the tensor
  int64_t offset;  // first element, counted from the start of the range
  int64_t count;
};

class FlatOrder {
 public:
  explicit FlatOrder(const std::vector<int64_t>& sizes) : starts_{0} {
    starts_.reserve(sizes.size() + 1);
    for (const int64_t size : sizes) starts_.push_back(starts_.back() + size);
  }

  int64_t tensors() const { return static_cast<int64_t>(starts_.size()) - 1; }
  int64_t parameters() const { return starts_.back(); }
  int64_t start(int64_t tensor) const { return starts_[tensor]; }
  int64_t size(int64_t tensor) const { return starts_[tensor + 1] - starts_[tensor]; }

  // Replaces `pieces` by those of [begin, end); empty tensors have none.
  void split(int64_t begin, int64_t end, std::vector<FlatPiece>& pieces) const {
    pieces.clear();
    const auto after = std::upper_bound(starts_.begin(), starts_.end(), begin);
    for (int64_t tensor = after - starts_.begin() - 1; begin < end; ++tensor) {
      const int64_t stop = std::min(end, starts_[tensor + 1]);
      if (stop <= begin) continue;
      const int64_t offset = pieces.empty() ? 0 : pieces.back().offset + pieces.back().count;
      pieces.push_back({tensor, begin - starts_[tensor], offset, stop - begin});
      begin = stop;
    }
  }

 private:
  std::vector<int64_t> starts_;
};

// Cuts the flat order into runs that one launch can take: consecutive tensors of one type, at most
// `capacity` of them. Empty tensors are in no run.
template <class Type>
std::vector<std::vector<int64_t>> runs_of_one_type(const FlatOrder& order,
                                                   const std::vector<Type>& types,
                                                   int64_t capacity) {
  std::vector<std::vector<int64_t>> runs;
  for (int64_t tensor = 0; tensor < order.tensors(); ++tensor) {
    if (order.size(tensor) == 0) continue;
    const bool fits = !runs.empty() && static_cast<int64_t>(runs.back().size()) < capacity &&
                      types[runs.back().front()] == types[tensor];
    if (!fits) runs.emplace_back();
    runs.back().push_back(tensor);
  }
  return runs;
}

}  // namespace robustcore
