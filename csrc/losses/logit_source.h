// Where the logits h of a row come from, before the loss looks at them: one matrix, or two that a
// gate mixes. Host and device, no torch.
//
// A source says which streams it reads, h of a class from their values, the derivatives of h along
// its per-row values, and what a gradient for h is for each matrix.
#pragma once

#include "common/exp.h"
#include "common/macros.h"
#include "losses/row_problem.h"

namespace robustcore {

// What temperature and soft-cap do to every logit:  h = softcap tanh(z / softcap) / temperature.
// A class masked with -inf stays masked.
template <class Acc, class Options>
struct LogitTransform {
  Acc inverse_temperature;
  Acc cap;
  Options options;

  template <class T>
  RC_INLINE LogitTransform(const RowProblem<T>& p, const Options& given)
      : inverse_temperature(p.inverse_temperature), cap(p.softcap), options(given) {}

  RC_INLINE Acc apply(Acc z) const {
    if (options.capped()) {
      const Acc bent = cap * hyperbolic_tangent(z / cap);
      z = z == -static_cast<Acc>(__builtin_huge_val()) ? z : bent;
    }
    return z * inverse_temperature;
  }
  // dh/dz
  RC_INLINE Acc slope(Acc z) const {
    if (!options.capped()) return inverse_temperature;
    const Acc bent = hyperbolic_tangent(z / cap);
    return inverse_temperature * (Acc(1) - bent * bent);
  }
};

// One matrix: h = z.
template <class Acc>
struct SingleSource {
  static constexpr int kMatrices = 1;
  static constexpr int kDirections = 0;

  template <class T>
  RC_INLINE SingleSource(const RowProblem<T>&, int64_t) {}

  // Calls f with the streams of a row.
  template <class T, class F>
  static RC_INLINE auto with_streams(const RowProblem<T>& p, int64_t row, F&& f) {
    return f(matrix_row(p, p.logits, row));
  }

  RC_INLINE Acc raw(Acc z) const { return z; }
  RC_INLINE Values<Acc, 0> direction(Acc) const { return {}; }
  RC_INLINE Values<Acc, 1> gradients(Acc gradient) const { return {{gradient}}; }
  RC_INLINE Acc slope_of_row_value(int) const { return Acc(0); }
};

// Two matrices and a gate (Pi-DUAL, arXiv 2310.06600):  h = (1 - g) f + g e,  g = sigmoid(gate).
//   df = (1 - g) dh,  de = g dh,  dgate = g (1 - g) <dh, e - f>
template <class Acc>
struct GatedSource {
  static constexpr int kMatrices = 2;
  static constexpr int kDirections = 1;

  Acc gate;        // g
  Acc complement;  // 1 - g
  Acc mix_first;   // the same, kept above zero: see the constructor
  Acc mix_second;

  template <class T>
  RC_INLINE GatedSource(const RowProblem<T>& p, int64_t row) {
    const LogisticPair<Acc> opened = logistic_pair(p.row_value[0][row]);
    gate = opened.value;
    complement = opened.complement;
    // A class masked with -inf in one head is masked in the mixture, because 0 < g < 1 in exact
    // arithmetic. A gate that underflows to 0 would make it 0 * -inf = NaN; the smallest positive
    // number keeps the mask, and moves even the largest finite logit by less than 1e-6 (NaN fails
    // the comparison and stays).
    const Acc tiny = sizeof(Acc) == 8 ? Acc(4.9406564584124654e-324) : Acc(1.40129846e-45);
    mix_first = complement < tiny ? tiny : complement;
    mix_second = gate < tiny ? tiny : gate;
  }

  template <class T, class F>
  static RC_INLINE auto with_streams(const RowProblem<T>& p, int64_t row, F&& f) {
    return f(matrix_row(p, p.logits, row), matrix_row(p, p.second, row));
  }

  RC_INLINE Acc raw(Acc first, Acc second) const { return mix_first * first + mix_second * second; }
  // dh/dg of one class.
  RC_INLINE Values<Acc, 1> direction(Acc first, Acc second) const {
    return {{second - first}};
  }
  RC_INLINE Values<Acc, 2> gradients(Acc gradient) const {
    return {{complement * gradient, gate * gradient}};
  }
  // dg/d(row value k)
  RC_INLINE Acc slope_of_row_value(int) const {
    return gate * complement;
  }
};

}  // namespace robustcore
