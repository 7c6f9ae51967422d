#include "simt_case.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace robustcore::simt {
namespace {

using host::SimtError;

struct DtypeEntry {
  Dtype dtype;
  const char* name;
  std::size_t bytes;
};
constexpr DtypeEntry kDtypes[] = {
    {Dtype::kFloat64, "float64", 8}, {Dtype::kFloat32, "float32", 4},
    {Dtype::kFloat16, "float16", 2}, {Dtype::kBFloat16, "bfloat16", 2},
    {Dtype::kInt64, "int64", 8},     {Dtype::kInt32, "int32", 4},
    {Dtype::kInt16, "int16", 2},     {Dtype::kInt8, "int8", 1},
    {Dtype::kUInt8, "uint8", 1},     {Dtype::kBool, "bool", 1},
};

const DtypeEntry& entry_of(Dtype dtype) {
  return *std::find_if(std::begin(kDtypes), std::end(kDtypes),
                       [dtype](const DtypeEntry& entry) { return entry.dtype == dtype; });
}

struct Registry {
  std::map<std::string, CaseFunction> cases;
  std::map<std::string, CheckFunction> checks;
  std::map<std::string, Broken> broken;
};

Registry& registry() {
  static Registry instance;
  return instance;
}

using Results = std::map<std::string, std::vector<std::byte>>;

Results run_once(CaseFunction function, const NamedValues& values, const Run& run) {
  host::configure({run.schedule, run.poison});
  Arguments arguments(values, run);
  function(arguments);
  arguments.finish();
  return arguments.results();
}

// The first element in which two results differ: "element 7 of 'output'"; empty if none does.
std::string difference(const Results& left, const Results& right, const NamedValues& values) {
  for (const auto& [name, bytes] : left) {
    const auto& other = right.at(name);
    const auto at = std::mismatch(bytes.begin(), bytes.end(), other.begin()).first;
    if (at == bytes.end()) continue;
    std::size_t element_bytes = 1;
    for (const auto& [value_name, value] : values) {
      if (value_name == name) element_bytes = bytes_of(std::get<Array>(value).dtype);
    }
    return "element " +
           std::to_string(static_cast<std::size_t>(at - bytes.begin()) / element_bytes) + " of '" +
           name + "'";
  }
  return {};
}

// Two runs disagree. Runs once more with one thing changed at a time to say what it depends on.
[[noreturn]] void report_difference(const std::string& name, CaseFunction function,
                                    const NamedValues& values, const Run& first,
                                    const Results& expected, const Run& second,
                                    const std::string& where) {
  const std::string runs = name + ": " + where + " differs between [" + name_of(first) + "] and [" +
                           name_of(second) + "]";
  Run changed = first;
  changed.poison = second.poison;
  if (!difference(expected, run_once(function, values, changed), values).empty()) {
    throw SimtError("unwritten memory",
                    runs +
                        ": it depends on shared memory, an output or a workspace that nobody "
                        "wrote");
  }
  changed = first;
  changed.schedule = second.schedule;
  if (!difference(expected, run_once(function, values, changed), values).empty()) {
    throw SimtError("schedule dependence",
                    runs +
                        ": it depends on the order of threads or blocks (a missing barrier, a "
                        "race)");
  }
  throw SimtError("placement dependence", runs + ": it depends on the alignment of the arrays");
}

}  // namespace

std::size_t bytes_of(Dtype dtype) { return entry_of(dtype).bytes; }
const char* name_of(Dtype dtype) { return entry_of(dtype).name; }

Dtype dtype_named(const std::string& name) {
  for (const DtypeEntry& entry : kDtypes) {
    if (name == entry.name) return entry.dtype;
  }
  throw std::invalid_argument("no case takes arrays of dtype " + name);
}

std::string name_of(const Run& run) {
  char poison[8];
  std::snprintf(poison, sizeof(poison), "%02x", run.poison);
  return host::name_of(run.schedule) + ", poison " + poison + ", " + host::name_of(run.placement);
}

std::vector<Run> standard_runs(int seeds) {
  // As floats: NaN, 1.3e36, -2.6e36. So a maximum, a minimum and a sum all show an unwritten value.
  constexpr unsigned char kPoisons[] = {0xff, 0x7b, 0xfb};
  std::vector<host::Schedule> schedules = {{host::Order::kForward, 0}, {host::Order::kReverse, 0}};
  for (int seed = 1; seed <= seeds; ++seed) {
    schedules.push_back({host::Order::kRandom, static_cast<std::uint64_t>(seed)});
  }
  std::vector<Run> runs;
  for (const host::Placement placement : host::kPlacements) {
    for (const host::Schedule& schedule : schedules) {
      runs.push_back({schedule, kPoisons[runs.size() % 3], placement});
    }
  }
  return runs;
}

Arguments::Arguments(const NamedValues& values, const Run& run) : values_(values), run_(run) {}

const Value& Arguments::value(const std::string& name) const {
  for (const auto& [value_name, value] : values_) {
    if (value_name == name) return value;
  }
  throw std::invalid_argument("the case asks for '" + name + "', which was not passed");
}

const Array& Arguments::array(const std::string& name) const {
  const Value& found = value(name);
  if (const auto* array = std::get_if<Array>(&found)) return *array;
  throw std::invalid_argument("'" + name + "' must be an array");
}

bool Arguments::has(const std::string& name) const {
  return !std::holds_alternative<std::monostate>(value(name));
}

Dtype Arguments::dtype(const std::string& name) const { return array(name).dtype; }

std::int64_t Arguments::elements(const std::string& name) const {
  return static_cast<std::int64_t>(array(name).bytes / bytes_of(array(name).dtype));
}

std::int64_t Arguments::integer(const std::string& name) {
  used_.insert(name);
  if (const auto* number = std::get_if<std::int64_t>(&value(name))) return *number;
  throw std::invalid_argument("'" + name + "' must be an integer");
}

double Arguments::number(const std::string& name) {
  used_.insert(name);
  if (const auto* number = std::get_if<double>(&value(name))) return *number;
  if (const auto* number = std::get_if<std::int64_t>(&value(name))) {
    return static_cast<double>(*number);
  }
  throw std::invalid_argument("'" + name + "' must be a number");
}

void* Arguments::fetch(const std::string& name, Role role, Dtype dtype, bool required) {
  used_.insert(name);
  if (!required && !has(name)) return nullptr;
  const Array& source = array(name);
  if (source.dtype != dtype) {
    throw std::invalid_argument("'" + name + "' must have dtype " + name_of(dtype) + ", got " +
                                name_of(source.dtype));
  }
  if (const auto found = fetched_.find(name); found != fetched_.end()) {
    if (found->second.role != role) {
      throw std::invalid_argument("the case takes '" + name + "' in two roles");
    }
    return found->second.buffer->data();
  }
  auto buffer = std::make_unique<host::GuardedBuffer>(name, source.bytes, bytes_of(dtype),
                                                      run_.placement, run_.poison);
  if (role != Role::kOutput && source.bytes > 0) {
    std::memcpy(buffer->data(), source.data, source.bytes);
  }
  buffer->set_written(role != Role::kOutput);
  if (role == Role::kInput) buffer->make_read_only();
  void* data = buffer->data();
  fetched_.emplace(name, Fetched{role, std::move(buffer)});
  return data;
}

void* Arguments::allocate(const std::string& name, std::size_t count, std::size_t element_bytes,
                          bool zero) {
  auto buffer =
      std::make_unique<host::GuardedBuffer>(name, count * element_bytes, element_bytes,
                                            run_.placement, zero ? std::uint8_t{0} : run_.poison);
  buffer->set_written(zero);
  void* data = buffer->data();
  fetched_.insert_or_assign(name, Fetched{Role::kScratch, std::move(buffer)});
  return data;
}

void Arguments::finish() const {
  for (const auto& [name, value] : values_) {
    if (!used_.contains(name)) {
      throw std::invalid_argument("the case never asks for '" + name + "', which was passed");
    }
  }
  for (const auto& [name, fetched] : fetched_) fetched.buffer->check_slack();
}

Results Arguments::results() const {
  Results results;
  for (const auto& [name, fetched] : fetched_) {
    if (fetched.role != Role::kOutput && fetched.role != Role::kInOut) continue;
    const host::GuardedBuffer& buffer = *fetched.buffer;
    results[name].assign(buffer.data(), buffer.data() + buffer.bytes());
  }
  return results;
}

void run_case(const std::string& name, const NamedValues& values, const RunOptions& options) {
  const auto found = cases().find(name);
  if (found == cases().end()) throw std::invalid_argument("there is no case '" + name + "'");
  run_function(name, found->second, values, options);
}

void run_function(const std::string& name, CaseFunction function, const NamedValues& values,
                  const RunOptions& options) {
  if (options.runs.empty()) throw std::invalid_argument("there must be a run");
  std::map<host::Placement, std::pair<Run, Results>> first_of;
  for (const Run& run : options.runs) {
    const Results results = run_once(function, values, run);
    const auto placement =
        options.same_bits_for_all_placements ? options.runs.front().placement : run.placement;
    const auto [first, is_new] = first_of.try_emplace(placement, run, results);
    if (is_new) continue;
    const auto& [first_run, expected] = first->second;
    const std::string where = difference(expected, results, values);
    if (!where.empty()) {
      report_difference(name, function, values, first_run, expected, run, where);
    }
  }
  const Results& results = first_of.at(options.runs.front().placement).second;
  for (const auto& [value_name, value] : values) {
    const auto result = results.find(value_name);
    if (result == results.end() || result->second.empty()) continue;
    std::memcpy(std::get<Array>(value).data, result->second.data(), result->second.size());
  }
}

void expect_close_numbers(const std::string& what, const std::vector<double>& actual,
                          const std::vector<double>& expected, double tolerance) {
  if (actual.size() != expected.size()) throw std::runtime_error(what + ": sizes differ");
  double worst = 0.0;
  std::size_t worst_index = 0;
  for (std::size_t index = 0; index < actual.size(); ++index) {
    const double left = actual[index], right = expected[index];
    double error = std::abs(left - right) / std::max(1.0, std::abs(right));
    if (!std::isfinite(left) || !std::isfinite(right)) {
      const bool same = left == right || (std::isnan(left) && std::isnan(right));
      error = same ? 0.0 : HUGE_VAL;
    }
    if (error > worst) {
      worst = error;
      worst_index = index;
    }
  }
  if (worst > tolerance) {
    throw std::runtime_error(what + ": worst at index " + std::to_string(worst_index) + ": got " +
                             std::to_string(actual[worst_index]) + ", expected " +
                             std::to_string(expected[worst_index]));
  }
}

Registration::Registration(const char* name, CaseFunction function) {
  if (!registry().cases.emplace(name, function).second) {
    throw std::logic_error(std::string("two cases are named ") + name);
  }
}

Registration::Registration(const char* name, CheckFunction function) {
  if (!registry().checks.emplace(name, function).second) {
    throw std::logic_error(std::string("two checks are named ") + name);
  }
}

Registration::Registration(const char* name, CheckFunction function, const char* kind,
                           const char* kind_alone) {
  if (!registry().broken.emplace(name, Broken{function, kind, kind_alone}).second) {
    throw std::logic_error(std::string("two broken kernels are named ") + name);
  }
}

const std::map<std::string, CaseFunction>& cases() { return registry().cases; }
const std::map<std::string, CheckFunction>& checks() { return registry().checks; }
const std::map<std::string, Broken>& broken_kernels() { return registry().broken; }

}  // namespace robustcore::simt
