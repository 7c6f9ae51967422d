// log((1 - a) softmax(s1 z1) + a softmax(s2 z2)) of every class, and its gradients. See mixture.h;
// the drivers that call run() for every row are row_map_cpu.h and row_map.cuh.
#pragma once

#include "losses/mixture.h"

namespace robustcore {

// Null: not given, or not wanted. Everything is contiguous.
template <class T>
struct MixtureLogSoftmaxProblem {
  using Storage = T;
  using Acc = accumulate_t<T>;

  const T* matrix[2];          // [rows, classes]
  const Acc* gate;             // [rows]
  const Acc* scale_of_row[2];  // [rows] or null
  Acc scale[2];                // where there is none per row
  int64_t rows;
  int64_t classes;

  T* result;      // [rows, classes]
  const T* grad;  // [rows, classes], in a backward pass
  T* grad_matrix[2];
  Acc* grad_gate;
  Acc* grad_scale[2];

  RC_INLINE Mixture<Acc> mixture(int64_t i) const {
    return {gate[i], scale_of_row[0] ? scale_of_row[0][i] : scale[0],
            scale_of_row[1] ? scale_of_row[1][i] : scale[1]};
  }
  RC_INLINE MatrixRow<T> row_of(const T* rows_of_matrix, int64_t i) const {
    return {rows_of_matrix + i * classes};
  }
};

struct MixtureLogSoftmax {
  static constexpr int kCaches = 2;

  template <class Row, class T>
  static RC_INLINE void run(const Row& row, const MixtureLogSoftmaxProblem<T>& p, int64_t i) {
    using Acc = accumulate_t<T>;
    const Mixture<Acc> mixture = p.mixture(i);
    const auto z1 = p.row_of(p.matrix[0], i), z2 = p.row_of(p.matrix[1], i);
    const MixtureRow mixed{row, mixture, z1, z2};
    const HeadLogs<Acc> logs = mixed.logs(mixed.first_softmax(), mixed.second_softmax());
    T* const outputs[1] = {p.result + i * p.classes};
    row.write(outputs, -1, Values<Acc, 1>{},
              [=](Acc a, Acc b)
    RC_INLINE_LAMBDA {
                return Values<Acc, 1>{{mixture
                                           .of(logs.first.of(mixture.scale[0] * a),
                                               logs.second.of(mixture.scale[1] * b))
                                           .log_probability}};
              },
              z1, z2);
  }
};

struct MixtureLogSoftmaxBackward {
  static constexpr int kCaches = 2;

  template <class Row, class T>
  static RC_INLINE void run(const Row& row, const MixtureLogSoftmaxProblem<T>& p, int64_t i) {
    using Acc = accumulate_t<T>;
    const Mixture<Acc> mixture = p.mixture(i);
    const auto z1 = p.row_of(p.matrix[0], i), z2 = p.row_of(p.matrix[1], i);
    const auto incoming = p.row_of(p.grad, i);
    const MixtureRow mixed{row, mixture, z1, z2};
    const auto p1 = mixed.first_softmax();
    const auto p2 = mixed.second_softmax();
    const HeadLogs<Acc> logs = mixed.logs(p1, p2);
    const Values<Acc, 3> sums = mixed.weighted(logs, incoming);
    MixtureGradients<T> out{{p.grad_matrix[0] ? p.grad_matrix[0] + i * p.classes : nullptr,
                             p.grad_matrix[1] ? p.grad_matrix[1] + i * p.classes : nullptr},
                            p.grad_gate,
                            {p.grad_scale[0], p.grad_scale[1]}};
    mixed.write_spread(out, i, Acc(-1), p1, p2, logs, sums.value[1], sums.value[2], incoming);
  }
};

}  // namespace robustcore
