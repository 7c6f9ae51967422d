// The Python module _simt: the cases on memory that Python owns (harness.py wraps it).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "access.h"
#include "simt_case.h"

namespace py = pybind11;
namespace simt = robustcore::simt;
namespace host = robustcore::simt::host;

namespace {

// {name: None | int | float | (dtype, address, bytes)}
simt::NamedValues values_of(const py::dict& arguments) {
  simt::NamedValues values;
  for (const auto& [key, value] : arguments) {
    simt::Value converted;
    if (py::isinstance<py::tuple>(value)) {
      const auto array = value.cast<std::tuple<std::string, std::uintptr_t, std::size_t>>();
      converted = simt::Array{simt::dtype_named(std::get<0>(array)),
                              reinterpret_cast<void*>(std::get<1>(array)), std::get<2>(array)};
    } else if (py::isinstance<py::float_>(value)) {
      converted = value.cast<double>();
    } else if (!value.is_none()) {
      converted = value.cast<std::int64_t>();
    }
    values.emplace_back(key.cast<std::string>(), converted);
  }
  return values;
}

host::Schedule schedule_of(const std::string& name, std::uint64_t seed) {
  if (name == "forward") return {host::Order::kForward, 0};
  if (name == "reverse") return {host::Order::kReverse, 0};
  if (name == "random") return {host::Order::kRandom, seed};
  throw std::invalid_argument("there is no schedule '" + name + "'");
}

host::Placement placement_of(const std::string& name) {
  for (const host::Placement placement : host::kPlacements) {
    if (name == host::name_of(placement)) return placement;
  }
  throw std::invalid_argument("there is no placement '" + name + "'");
}

template <typename Map>
std::vector<std::string> names_of(const Map& map) {
  std::vector<std::string> names;
  for (const auto& [name, value] : map) names.push_back(name);
  return names;
}

}  // namespace

PYBIND11_MODULE(_simt, module) {
  module.doc() = "Runs the CUDA kernels of robustcore on the CPU.";
  // kind is the first part of the message, up to the colon.
  static py::exception<host::SimtError> error(module, "SimtError", PyExc_RuntimeError);
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const host::SimtError& caught) {
      py::set_error(error, caught.what());
    }
  });

  module.def("cases", [] { return names_of(simt::cases()); });
  module.def("checks", [] { return names_of(simt::checks()); });
  module.def("broken_kernels", [] { return names_of(simt::broken_kernels()); });
  module.def("records_accesses", &host::records_accesses);
  module.def("executed_kernels", [] { return host::executed_kernels(); });
  module.def("forget_executed_kernels", &host::forget_executed_kernels);
  module.def("run_check", [](const std::string& name) { simt::checks().at(name)(); });
  module.def("run_broken",
             [](const std::string& name) { simt::broken_kernels().at(name).function(); });
  // With the recorder, and without it: None where only the recorder sees the bug.
  module.def("expected_errors", [](const std::string& name) {
    const simt::Broken& broken = simt::broken_kernels().at(name);
    py::object alone = py::none();
    if (broken.kind_alone != nullptr) alone = py::str(broken.kind_alone);
    return py::make_tuple(broken.kind, alone);
  });
  module.def("record_accesses", &host::record_accesses);
  module.def("standard_runs", [](int seeds) {
    std::vector<std::tuple<std::string, std::uint64_t, int, std::string>> runs;
    for (const simt::Run& run : simt::standard_runs(seeds)) {
      const host::Order order = run.schedule.order;
      runs.emplace_back(order == host::Order::kForward   ? "forward"
                        : order == host::Order::kReverse ? "reverse"
                                                         : "random",
                        run.schedule.seed, run.poison, host::name_of(run.placement));
    }
    return runs;
  });
  module.def(
      "run_case",
      [](const std::string& name, const py::dict& arguments,
         const std::vector<std::tuple<std::string, std::uint64_t, int, std::string>>& runs,
         bool same_bits_for_all_placements) {
        simt::RunOptions options;
        options.runs.clear();
        for (const auto& [order, seed, poison, placement] : runs) {
          options.runs.push_back({schedule_of(order, seed), static_cast<unsigned char>(poison),
                                  placement_of(placement)});
        }
        options.same_bits_for_all_placements = same_bits_for_all_placements;
        simt::run_case(name, values_of(arguments), options);
      },
      py::arg("name"), py::arg("arguments"), py::arg("runs"),
      py::arg("same_bits_for_all_placements"));
}
