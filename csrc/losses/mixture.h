// A mixture of two softmaxes (adaptive smoothing, arXiv 2301.12554) in log space:
//   log m = log((1 - a) softmax(s1 z1) + a softmax(s2 z2)),  a = sigmoid(gate)
// Host and device, no torch.
#pragma once

#include "common/exp.h"
#include "common/macros.h"
#include "losses/log_probability.h"
#include "losses/row_problem.h"

namespace robustcore {

// log m of a class, and the shares (1 - a) p1 / m and a p2 / m that the two heads have in it. Each
// is formed without cancellation: they are the derivatives of log m in log p1 and log p2.
template <class Acc>
struct MixedClass {
  Acc log_probability;
  Acc first;
  Acc second;
};

template <class Acc>
struct Mixture {
  Acc gate;
  Acc scale[2];
  LogisticPair<Acc> opened;  // a, 1 - a
  Acc log_first;             // log(1 - a)
  Acc log_second;  // log a

  RC_INLINE Mixture(Acc gate_logit, Acc first_scale, Acc second_scale)
      : gate(gate_logit),
        scale{first_scale, second_scale},
        opened(logistic_pair(gate_logit)),
        log_first(-softplus(gate_logit)),
        log_second(-softplus(-gate_logit)) {}

  // From the class's log-probabilities in the two heads.
  RC_INLINE MixedClass<Acc> of(Acc log_p1, Acc log_p2) const {
    constexpr Acc kMasked = -static_cast<Acc>(__builtin_huge_val());
    const Acc first = log_first + log_p1, second = log_second + log_p2;
    // Both heads mask the class: there is no difference to take, and none is needed.
    const Acc apart = first == kMasked && second == kMasked ? gate : second - first;
    const bool less = apart < Acc(0);
    const Acc small = exponential(less ? apart : -apart);
    const Acc major = Acc(1) / (Acc(1) + small), minor = small * major;
    return {(less ? first : second) + log_one_plus(small), less ? major : minor,
            less ? minor : major};
  }

  // The same of one class. Where both heads are sure of it, log(1 - a) and log a cancel in log m:
  // there it comes from 1 - m = (1 - a) (1 - p1) + a (1 - p2).
  RC_INLINE MixedClass<Acc> of_single(Acc log_p1, Acc log_p2) const {
    MixedClass<Acc> of_class = of(log_p1, log_p2);
    const Acc missing = -(opened.complement * exponential_minus_one(log_p1) +
                          opened.value * exponential_minus_one(log_p2));
    if (missing < Acc(0.5)) {
      of_class.log_probability = -log_one_plus(missing / (Acc(1) - missing));
    }
    return of_class;
  }
};

// log softmax of the two heads.
template <class Acc>
struct HeadLogs {
  LogProbabilities<Acc> first;
  LogProbabilities<Acc> second;
};

// Where the gradients of a row go; null where not wanted.
template <class T>
struct MixtureGradients {
  using Acc = accumulate_t<T>;
  T* matrix[2];
  Acc* gate;
  Acc* scale[2];
};

// One row: both softmaxes, and everything that is computed from them. kFirst, kSecond: the streams
// of the logits.
template <class Row, class Acc, class First, class Second>
struct MixtureRow {
  const Row& row;
  const Mixture<Acc>& mixture;
  const First& z1;
  const Second& z2;

  // The logits of a head, times its scale.
  struct Scaled {
    Acc scale;
    RC_INLINE Acc operator()(Acc z) const { return scale * z; }
  };
  struct NoWeight {
    RC_INLINE Values<Acc, 0> operator()(Acc) const { return {}; }
  };
  RC_INLINE Scaled head(int k) const { return {mixture.scale[k]}; }
  RC_INLINE auto first_softmax() const { return row.template softmax<0, 0>(head(0), NoWeight{}, z1); }
  RC_INLINE auto second_softmax() const { return row.template softmax<0, 1>(head(1), NoWeight{}, z2); }
  template <class Softmax1, class Softmax2>
  RC_INLINE HeadLogs<Acc> logs(const Softmax1& p1, const Softmax2& p2) const {
    return {log_probabilities(row, p1, true, z1), log_probabilities(row, p2, true, z2)};
  }

  // sum t log m, sum t share1, sum t share2 over the classes. Classes with t = 0 count for nothing,
  // masked ones too.
  template <class Weights>
  RC_INLINE Values<Acc, 3> weighted(const HeadLogs<Acc>& logs, const Weights& weights) const {
    const Scaled head1 = head(0), head2 = head(1);
    const Mixture<Acc> m = mixture;
    return row.template sums<3>(
        [=](Acc t, Acc a, Acc b)
    RC_INLINE_LAMBDA {
          const MixedClass<Acc> of_class = m.of(logs.first.of(head1(a)), logs.second.of(head2(b)));
          const Acc value = t * of_class.log_probability;
          return Values<Acc, 3>{{t == Acc(0) ? Acc(0) : value, t * of_class.first,
                                 t * of_class.second}};
        },
        weights, z1, z2);
  }

  // The gradient of -factor * sum t log m for the gate; pulls: sum t share1, sum t share2.
  RC_INLINE Acc gate_gradient(Acc factor, Acc pull1, Acc pull2) const {
    return factor * (mixture.opened.value * pull1 - mixture.opened.complement * pull2);
  }

  // The same for all inputs, where the weights t are spread over the classes.
  template <class T, class Softmax1, class Softmax2, class Weights>
  RC_INLINE void write_spread(const MixtureGradients<T>& out, int64_t i, Acc factor,
                              const Softmax1& p1, const Softmax2& p2, const HeadLogs<Acc>& logs,
                              Acc pull1, Acc pull2, const Weights& weights) const {
    const Scaled head1 = head(0), head2 = head(1);
    const Mixture<Acc> m = mixture;
    const Acc push1 = factor * pull1 / p1.total, push2 = factor * pull2 / p2.total;
    // For the logits after their scale.
    const auto gradients = [&](Acc e1, Acc e2, Acc t, Acc a, Acc b) RC_INLINE_LAMBDA {
      const MixedClass<Acc> of_class = m.of(logs.first.of(head1(a)), logs.second.of(head2(b)));
      const Acc own = factor * t;
      return Values<Acc, 2>{{push1 * p1.exponential(e1, a) - own * of_class.first,
                             push2 * p2.exponential(e2, b) - own * of_class.second}};
    };
    if (out.scale[0] || out.scale[1]) {
      const auto along = row.template sums<2>(
          [&](Acc e1, Acc e2, Acc t, Acc a, Acc b) RC_INLINE_LAMBDA {
            Values<Acc, 2> terms = gradients(e1, e2, t, a, b);
            // A masked class has no gradient; its logit must not turn 0 into NaN.
            const Acc first = terms.value[0] * a, second = terms.value[1] * b;
            terms.value[0] = terms.value[0] == Acc(0) ? Acc(0) : first;
            terms.value[1] = terms.value[1] == Acc(0) ? Acc(0) : second;
            return terms;
          },
          p1.cached, p2.cached, weights, z1, z2);
      write_scales(out, i, along);
    }
    if (out.gate && row.is_leader()) out.gate[i] = gate_gradient(factor, pull1, pull2);
    T* const outputs[2] = {out.matrix[0], out.matrix[1]};
    row.write(outputs, -1, Values<Acc, 2>{},
              [&](Acc e1, Acc e2, Acc t, Acc a, Acc b) RC_INLINE_LAMBDA {
                const Values<Acc, 2> scaled = gradients(e1, e2, t, a, b);
                return Values<Acc, 2>{
                    {head1(scaled.value[0]), head2(scaled.value[1])}};
              },
              p1.cached, p2.cached, weights, z1, z2);
  }

  // The same where the weight `t` lies on one class; `own` is that class in the mixture.
  template <class T, class Softmax1, class Softmax2>
  RC_INLINE void write_class(const MixtureGradients<T>& out, int64_t i, Acc factor,
                             const Softmax1& p1, const Softmax2& p2, const HeadLogs<Acc>& logs,
                             int64_t target, Acc t, const MixedClass<Acc>& own) const {
    const Scaled head1 = head(0), head2 = head(1);
    const Acc a = z1.at(target), b = z2.at(target);
    const Acc pull1 = t * own.first, pull2 = t * own.second;
    const Acc push1 = factor * pull1 / p1.total, push2 = factor * pull2 / p2.total;
    if (out.scale[0] || out.scale[1]) {
      Values<Acc, 2> along = row.template sums<2>(
          [&](Acc e1, Acc e2, Acc a, Acc b) RC_INLINE_LAMBDA {
            const Acc of1 = p1.exponential(e1, a), of2 = p2.exponential(e2, b);
            const Acc first = push1 * of1 * a, second = push2 * of2 * b;
            return Values<Acc, 2>{
                {of1 == Acc(0) ? Acc(0) : first, of2 == Acc(0) ? Acc(0) : second}};
          },
          p1.cached, p2.cached, z1, z2);
      const Acc first = factor * pull1 * a, second = factor * pull2 * b;
      along.value[0] -= pull1 == Acc(0) ? Acc(0) : first;
      along.value[1] -= pull2 == Acc(0) ? Acc(0) : second;
      write_scales(out, i, along);
    }
    if (out.gate && row.is_leader()) out.gate[i] = gate_gradient(factor, pull1, pull2);
    // The true class is formed in the wide type, and without the difference p - 1.
    const Acc h1 = head1(a), h2 = head2(b);
    const Acc rest1 = logs.first.complement(h1, exponential(h1 - p1.maximum) / p1.total);
    const Acc rest2 = logs.second.complement(h2, exponential(h2 - p2.maximum) / p2.total);
    const Values<Acc, 2> patch{
        {head1(-factor * pull1 * rest1), head2(-factor * pull2 * rest2)}};
    const Acc slope1 = head1(push1), slope2 = head2(push2);
    T* const outputs[2] = {out.matrix[0], out.matrix[1]};
    row.write(outputs, target, patch,
              [&](Acc e1, Acc e2, Acc a, Acc b) RC_INLINE_LAMBDA {
                return Values<Acc, 2>{
                    {slope1 * p1.exponential(e1, a), slope2 * p2.exponential(e2, b)}};
              },
              p1.cached, p2.cached, z1, z2);
  }

 private:
  template <class T>
  RC_INLINE void write_scales(const MixtureGradients<T>& out, int64_t i,
                              const Values<Acc, 2>& along) const {
    if (!row.is_leader()) return;
    if (out.scale[0]) out.scale[0][i] = along.value[0];
    if (out.scale[1]) out.scale[1][i] = along.value[1];
  }
};

template <class Row, class Acc, class First, class Second>
MixtureRow(const Row&, const Mixture<Acc>&, const First&, const Second&)
    -> MixtureRow<Row, Acc, First, Second>;

}  // namespace robustcore
