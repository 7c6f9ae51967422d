// The Python module. Importing it registers the operators (ops.cpp and the *_cpu.cpp, *_cuda.cu
// files); what it exports itself is only what is not a tensor operator.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "common/exp.h"
#include "common/float16.h"

namespace py = pybind11;

namespace {

py::dict build_information() {
  py::dict facts;
  facts["version"] = ROBUSTCORE_VERSION;
  facts["compiled_with_torch"] = ROBUSTCORE_TORCH_VERSION;
#if defined(__clang__)
  facts["compiler"] = "clang " __clang_version__;
#elif defined(__GNUC__)
  facts["compiler"] = "gcc " __VERSION__;
#else
  facts["compiler"] = "unknown";
#endif
#if defined(ROBUSTCORE_WITH_CUDA)
  facts["cuda"] = true;
#else
  facts["cuda"] = false;
#endif
  facts["cuda_architectures"] = ROBUSTCORE_CUDA_ARCHITECTURES;
  return facts;
}

// The instruction set that the multiversioned CPU kernels resolve to on this processor.
const char* cpu_instruction_set() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
  if (__builtin_cpu_supports("x86-64-v4")) return "x86-64-v4 (AVX-512)";
  if (__builtin_cpu_supports("x86-64-v3")) return "x86-64-v3 (AVX2)";
#endif
  return "baseline";
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Compiled core of robustcore.";
  module.def("build_information", &build_information, "Versions and options of this build.");
  module.def("cpu_instruction_set", &cpu_instruction_set,
             "Name of the instruction set that the CPU kernels use on this machine.");

  py::module_ testing = module.def_submodule("testing", "Pieces of kernels, for tests only.");
  testing.def("exponential", py::vectorize([](float x) { return robustcore::exponential(x); }));
  testing.def("softplus", py::vectorize([](float x) { return robustcore::softplus(x); }));
  testing.def("logarithm_of_normal",
              py::vectorize([](float x) { return robustcore::logarithm_of_normal(x); }));
  testing.def("float16_to_float", py::vectorize([](uint16_t bits) {
                return robustcore::to_accumulate(robustcore::float16{bits});
              }));
  testing.def("bfloat16_to_float", py::vectorize([](uint16_t bits) {
                return robustcore::to_accumulate(robustcore::bfloat16{bits});
              }));
  testing.def("float_to_float16", py::vectorize([](float x) {
                return robustcore::from_accumulate<robustcore::float16>(x).bits;
              }));
  testing.def("float_to_bfloat16", py::vectorize([](float x) {
                return robustcore::from_accumulate<robustcore::bfloat16>(x).bits;
              }));
}
