// Cases: how a kernel of the library is launched by tests.
//
// A file tests/simt/<family>/<op>_kernel.cpp includes this header and the op's .cuh, and registers
//   RC_SIMT_CASE(name) { ... }    fills the op's Params from `arguments` and calls its launch
//   RC_SIMT_CHECK(name) { ... }   runs cases on inputs of its own and compares, without Python
// Python runs the case on tensors (README.md), the executable simt_check runs the checks.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "cuda_on_host.h"

#if __has_include("common/float16.h")
#include "common/float16.h"
#define RC_SIMT_FLOAT16 1
#endif

namespace robustcore::simt {

// Named as in PyTorch.
enum class Dtype {
  kFloat64,
  kFloat32,
  kFloat16,
  kBFloat16,
  kInt64,
  kInt32,
  kInt16,
  kInt8,
  kUInt8,
  kBool
};
std::size_t bytes_of(Dtype dtype);
const char* name_of(Dtype dtype);
Dtype dtype_named(const std::string& name);

template <typename T>
constexpr Dtype dtype_of() {
  if constexpr (std::is_same_v<T, double>)
    return Dtype::kFloat64;
  else if constexpr (std::is_same_v<T, float>)
    return Dtype::kFloat32;
#ifdef RC_SIMT_FLOAT16
  else if constexpr (std::is_same_v<T, float16>)
    return Dtype::kFloat16;
  else if constexpr (std::is_same_v<T, bfloat16>)
    return Dtype::kBFloat16;
#endif
  else if constexpr (std::is_same_v<T, bool>)
    return Dtype::kBool;
  else if constexpr (std::is_same_v<T, std::uint8_t>)
    return Dtype::kUInt8;
  else if constexpr (std::is_same_v<T, std::int8_t>)
    return Dtype::kInt8;
  else if constexpr (std::is_integral_v<T> && sizeof(T) == 2)
    return Dtype::kInt16;
  else if constexpr (std::is_integral_v<T> && sizeof(T) == 4)
    return Dtype::kInt32;
  else {
    static_assert(std::is_integral_v<T> && sizeof(T) == 8, "no tensor has this element type");
    return Dtype::kInt64;
  }
}

// An array of the caller's: copied into guarded memory for each run, results copied back.
struct Array {
  Dtype dtype;
  void* data;
  std::size_t bytes;
};

// A value that a case asks for by name; null (monostate) is an absent optional array.
using Value = std::variant<std::monostate, Array, std::int64_t, double>;
using NamedValues = std::vector<std::pair<std::string, Value>>;

template <typename T>
Value array(std::vector<T>& values) {
  return Array{dtype_of<T>(), values.data(), values.size() * sizeof(T)};
}

// One way to run a case.
struct Run {
  host::Schedule schedule;
  unsigned char poison = 0xff;
  host::Placement placement = host::Placement::kEndsAtGuard;
};
std::string name_of(const Run& run);

// Every placement under forward, reverse and `seeds` random schedules, with three poisons in turn.
std::vector<Run> standard_runs(int seeds = 1);

// What a case sees of its caller's values. Arrays lie in guarded memory.
class Arguments {
 public:
  Arguments(const NamedValues& values, const Run& run);

  // Read only: a write is an error.
  template <typename T>
  const T* input(const std::string& name) {
    return static_cast<const T*>(fetch(name, Role::kInput, dtype_of<T>(), /*required=*/true));
  }
  // To be written completely: starts as poison.
  template <typename T>
  T* output(const std::string& name) {
    return static_cast<T*>(fetch(name, Role::kOutput, dtype_of<T>(), /*required=*/true));
  }
  // Starts with the caller's values and may be changed.
  template <typename T>
  T* inout(const std::string& name) {
    return static_cast<T*>(fetch(name, Role::kInOut, dtype_of<T>(), /*required=*/true));
  }
  // Null where the caller passed none.
  template <typename T>
  const T* optional_input(const std::string& name) {
    return static_cast<const T*>(fetch(name, Role::kInput, dtype_of<T>(), /*required=*/false));
  }
  template <typename T>
  T* optional_output(const std::string& name) {
    return static_cast<T*>(fetch(name, Role::kOutput, dtype_of<T>(), /*required=*/false));
  }
  // Memory that only the kernel uses (a workspace): starts as poison, compared with nothing.
  template <typename T>
  T* scratch(const std::string& name, std::int64_t count) {
    return static_cast<T*>(allocate(name, static_cast<std::size_t>(count), sizeof(T), false));
  }
  // The same, but filled with zeros before the launch.
  template <typename T>
  T* zeroed(const std::string& name, std::int64_t count) {
    return static_cast<T*>(allocate(name, static_cast<std::size_t>(count), sizeof(T), true));
  }

  std::int64_t integer(const std::string& name);
  double number(const std::string& name);
  bool flag(const std::string& name) { return integer(name) != 0; }
  bool has(const std::string& name) const;  // an array that is not absent
  Dtype dtype(const std::string& name) const;
  std::int64_t elements(const std::string& name) const;

  // For the runner: throws where a value was never asked for or memory around arrays has changed.
  void finish() const;
  std::map<std::string, std::vector<std::byte>> results() const;

 private:
  enum class Role { kInput, kOutput, kInOut, kScratch };
  struct Fetched {
    Role role;
    std::unique_ptr<host::GuardedBuffer> buffer;
  };

  const Value& value(const std::string& name) const;
  const Array& array(const std::string& name) const;
  void* fetch(const std::string& name, Role role, Dtype dtype, bool required);
  void* allocate(const std::string& name, std::size_t count, std::size_t element_bytes, bool zero);

  const NamedValues& values_;
  Run run_;
  std::map<std::string, Fetched> fetched_;
  std::set<std::string> used_;
};

// The stream to hand to a launch: there is only one.
inline stream_type stream() { return nullptr; }

struct RunOptions {
  std::vector<Run> runs = standard_runs();
  // Whether the results must have the same bits for every alignment of the arrays. Turn it off only
  // where a kernel documents that the order of its sums depends on alignment.
  bool same_bits_for_all_placements = true;
};

// Runs the case in every way, requires the same bits each time, and writes the results to the
// caller's arrays. Throws host::SimtError.
void run_case(const std::string& name, const NamedValues& values, const RunOptions& options = {});

using CaseFunction = void (*)(Arguments& arguments);
// The same for a function that is not registered; errors call it `name`.
void run_function(const std::string& name, CaseFunction function, const NamedValues& values,
                  const RunOptions& options = {});

using CheckFunction = void (*)();

struct Registration {
  Registration(const char* name, CaseFunction function);
  Registration(const char* name, CheckFunction function);
  // A kernel with a known bug: the errors that it must cause with and without the recorder of
  // accesses; null where only the recorder can see the bug.
  Registration(const char* name, CheckFunction function, const char* kind, const char* kind_alone);
};

struct Broken {
  CheckFunction function;
  const char* kind;
  const char* kind_alone;
};
const std::map<std::string, CaseFunction>& cases();
const std::map<std::string, CheckFunction>& checks();
const std::map<std::string, Broken>& broken_kernels();

// For checks: throw std::runtime_error with the worst index where the values differ.
template <typename T>
double as_number(T value) {
  if constexpr (std::is_arithmetic_v<T>)
    return static_cast<double>(value);
  else
    return static_cast<double>(to_accumulate(value));
}
void expect_close_numbers(const std::string& what, const std::vector<double>& actual,
                          const std::vector<double>& expected, double tolerance);

// |actual - expected| <= tolerance * max(1, |expected|), NaN and infinities in the same places.
template <typename T, typename U>
void expect_close(const std::string& what, const std::vector<T>& actual,
                  const std::vector<U>& expected, double tolerance) {
  std::vector<double> left, right;
  for (T value : actual) left.push_back(as_number(value));
  for (U value : expected) right.push_back(as_number(value));
  expect_close_numbers(what, left, right, tolerance);
}

template <typename T>
void expect_equal(const std::string& what, const std::vector<T>& actual,
                  const std::vector<T>& expected) {
  expect_close(what, actual, expected, 0.0);
}

// Calls function.template operator()<T>() for the type of a floating-point dtype.
template <typename Function>
void dispatch_floating(Dtype dtype, Function&& function) {
  switch (dtype) {
    case Dtype::kFloat32:
      return function.template operator()<float>();
    case Dtype::kFloat64:
      return function.template operator()<double>();
#ifdef RC_SIMT_FLOAT16
    case Dtype::kFloat16:
      return function.template operator()<float16>();
    case Dtype::kBFloat16:
      return function.template operator()<bfloat16>();
#endif
    default:
      throw std::invalid_argument(std::string("no floating-point case for ") + name_of(dtype));
  }
}

#define RC_SIMT_CASE(name)                                                                       \
  static void simt_case_##name(::robustcore::simt::Arguments& arguments);                        \
  static const ::robustcore::simt::Registration simt_case_registration_##name(#name,             \
                                                                              simt_case_##name); \
  static void simt_case_##name([[maybe_unused]] ::robustcore::simt::Arguments& arguments)

#define RC_SIMT_CHECK(name)                                                                        \
  static void simt_check_##name();                                                                 \
  static const ::robustcore::simt::Registration simt_check_registration_##name(#name,              \
                                                                               simt_check_##name); \
  static void simt_check_##name()

#define RC_SIMT_BROKEN(name, kind, kind_alone)                                   \
  static void simt_broken_##name();                                              \
  static const ::robustcore::simt::Registration simt_broken_registration_##name( \
      #name, simt_broken_##name, kind, kind_alone);                              \
  static void simt_broken_##name()

}  // namespace robustcore::simt
