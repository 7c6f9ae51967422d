#include "losses/energy_weights.h"

#include "losses/row_map.cuh"
#include "simt_case.h"

namespace robustcore {

RC_SIMT_CASE(energy_weights) {
  simt::dispatch_floating(arguments.dtype("logits"), [&]<typename T>() {
    EnergyWeightsProblem<T> p{};
    p.logits = arguments.input<T>("logits", 16);
    p.rows = arguments.elements("weights");
    p.classes = arguments.integer("classes");
    p.weights = arguments.output<accumulate_t<T>>("weights");
    row_cuda::launch_row_map<EnergyWeights>(p, simt::stream());
  });
}

// Logits that are all alike: logsumexp is the logit plus log(classes).
RC_SIMT_CHECK(energy_weights) {
  for (const std::int64_t classes : {1, 3, 130, 1030}) {
    std::vector<float> logits, weights(5);
    std::vector<double> expected;
    for (const float logit : {-100.0f, -1.0f, 0.0f, 3.0f, 1000.0f}) {
      logits.insert(logits.end(), static_cast<std::size_t>(classes), logit);
      const double energy = std::abs(logit + std::log(static_cast<double>(classes)));
      expected.push_back(1.0 / (energy + std::log1p(std::exp(-energy))));
    }
    simt::run_case(
        "energy_weights",
        {{"logits", simt::array(logits)}, {"classes", classes}, {"weights", simt::array(weights)}});
    simt::expect_close("weights", weights, expected, 1e-5);
  }
}

}  // namespace robustcore
