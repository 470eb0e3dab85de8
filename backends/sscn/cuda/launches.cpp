// Plans of the cuda kernel set: the launches of a pass, whose grids, numbers and addresses are
// formulas of the numbers of sites. A pass places its arrays in one block of memory and launches
// everything in one call from Python, through the driver that the process has loaded.
#include "launches.hpp"

#include "../cpu/placement.hpp"

#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace nb = nanobind;

namespace sscn {
namespace {

using Address = uintptr_t;

// The functions of the driver that launches need; their types are those of cuda.h.
struct Driver {
  int (*launch)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*,
                void**, void**);
  int (*describe)(int, const char**);
};

const Driver& driver() {
  static const Driver found = [] {
    void* library = dlopen("libcuda.so.1", RTLD_NOW);
    if (!library) throw std::runtime_error("there is no CUDA driver: libcuda.so.1 is missing");
    const auto function = [library](const char* name) {
      void* address = dlsym(library, name);
      if (!address) throw std::runtime_error(std::string("the CUDA driver has no ") + name);
      return address;
    };
    return Driver{reinterpret_cast<decltype(Driver::launch)>(function("cuLaunchKernel")),
                  reinterpret_cast<decltype(Driver::describe)>(function("cuGetErrorString"))};
  }();
  return found;
}

void check(int error) {
  if (!error) return;
  const char* text = nullptr;
  driver().describe(error, &text);
  throw std::runtime_error(std::string("CUDA: ") + (text ? text : "unknown error") + " (" +
                           std::to_string(error) + ")");
}

// A whole number. Operands are numbers of earlier formulas; a constant and the rows of a level have
// their value in `a`.
enum class Operation : int64_t {
  kConstant,
  kRows,
  kAdd,
  kSubtract,
  kMultiply,
  kDivide,  // rounded down; operands are not negative
  kMinimum,
  kMaximum,
  kGreater,  // 1 or 0
};

struct Formula {
  Operation operation;
  int64_t a;
  int64_t b;
};

// An array: the formula of its bytes, and the first and the last launch that uses it.
struct Array {
  int64_t bytes;
  int64_t first;
  int64_t last;
};

enum class Meaning : int64_t {
  kNumber,   // the value of formula `index`
  kArray,    // the address of array `index`, plus `offset` bytes
  kBefore,   // that of array `index` of the pass before, plus `offset` bytes
  kGiven,    // address `index` of those given to the pass, plus `offset` bytes
  kAddress,  // `offset` itself
};

struct Argument {
  Meaning meaning;
  int64_t index;
  int64_t offset;
};

struct Launch {
  void* function;
  int64_t grid[3];  // formulas
  unsigned threads;
  unsigned shared;
  std::vector<Argument> arguments;
};

constexpr int64_t kAlignment = 256;
constexpr size_t kMostArguments = 48;
constexpr size_t kUnused = 4;  // Triton adds some addresses after the arguments, which are not used

struct LaunchPlan {
  std::vector<Formula> formulas;
  std::vector<std::pair<int64_t, int64_t>> guards;  // a formula and the value that it must have
  std::vector<Array> arrays;
  std::vector<Launch> launches;
};

std::vector<int64_t> evaluate(const LaunchPlan& plan, const std::vector<int64_t>& rows) {
  std::vector<int64_t> values;
  values.reserve(plan.formulas.size());
  for (const auto& [operation, first, second] : plan.formulas) {
    if (operation == Operation::kConstant) {
      values.push_back(first);
      continue;
    }
    if (operation == Operation::kRows) {
      values.push_back(rows.at(static_cast<size_t>(first)));
      continue;
    }
    const int64_t a = values[static_cast<size_t>(first)], b = values[static_cast<size_t>(second)];
    switch (operation) {
      case Operation::kAdd:
        values.push_back(a + b);
        break;
      case Operation::kSubtract:
        values.push_back(a - b);
        break;
      case Operation::kMultiply:
        values.push_back(a * b);
        break;
      case Operation::kDivide:
        if (b <= 0) throw std::invalid_argument("a size is divided by nothing");
        values.push_back(a / b);
        break;
      case Operation::kMinimum:
        values.push_back(std::min(a, b));
        break;
      case Operation::kMaximum:
        values.push_back(std::max(a, b));
        break;
      default:
        values.push_back(a > b);
    }
  }
  return values;
}

// A pass of a plan for some numbers of sites.
class LaunchedPass {
 public:
  LaunchedPass(std::shared_ptr<const LaunchPlan> plan, std::vector<int64_t> values)
      : plan_(std::move(plan)), values_(std::move(values)), placement_(placed()) {}

  int64_t bytes() const { return placement_.total; }
  int64_t offset(int64_t array) const { return placement_.offsets.at(static_cast<size_t>(array)); }

  void run(Address base, const LaunchedPass* before, Address base_before,
           const std::vector<Address>& given, Address stream) const {
    int64_t values[kMostArguments] = {};
    void* pointers[kMostArguments];
    for (size_t i = 0; i < kMostArguments; ++i) pointers[i] = values + i;
    for (const Launch& launch : plan_->launches) {
      size_t number = 0;
      for (const auto& [meaning, index, offset] : launch.arguments) {
        int64_t value = offset;
        const auto at = static_cast<size_t>(index);
        switch (meaning) {
          case Meaning::kNumber:
            value = values_[at];
            break;
          case Meaning::kArray:
            value += static_cast<int64_t>(base) + placement_.offsets[at];
            break;
          case Meaning::kBefore:
            value += static_cast<int64_t>(base_before) + before->placement_.offsets[at];
            break;
          case Meaning::kGiven:
            value += static_cast<int64_t>(given.at(at));
            break;
          case Meaning::kAddress:
            break;
        }
        values[number++] = value;
      }
      std::fill(values + number, values + number + kUnused, 0);
      auto* on = reinterpret_cast<void*>(stream);
      unsigned grid[3];
      for (int axis = 0; axis < 3; ++axis)
        grid[axis] = static_cast<unsigned>(values_[static_cast<size_t>(launch.grid[axis])]);
      check(driver().launch(launch.function, grid[0], grid[1], grid[2], launch.threads, 1, 1,
                            launch.shared, on, pointers, nullptr));
    }
  }

 private:
  // Launches of a stream run one after another.
  Placement placed() const {
    std::vector<Lifetime> lives;
    lives.reserve(plan_->arrays.size());
    for (const auto& [bytes, first, last] : plan_->arrays)
      lives.push_back({values_[static_cast<size_t>(bytes)], first, last});
    return place(lives, kAlignment);
  }

  std::shared_ptr<const LaunchPlan> plan_;
  std::vector<int64_t> values_;
  Placement placement_;
};

using Three = std::tuple<int64_t, int64_t, int64_t>;
using Listed = std::tuple<Address, std::vector<int64_t>, unsigned, unsigned, std::vector<Three>>;

Launch launch_of(const Listed& listed) {
  const auto& [function, grid, threads, shared, arguments] = listed;
  if (grid.size() != 3) throw std::invalid_argument("a grid has three axes");
  if (arguments.size() + kUnused > kMostArguments)
    throw std::invalid_argument("a kernel has too many arguments");
  Launch launch{
      reinterpret_cast<void*>(function), {grid[0], grid[1], grid[2]}, threads, shared, {}};
  for (const auto& [meaning, index, offset] : arguments)
    launch.arguments.push_back({static_cast<Meaning>(meaning), index, offset});
  return launch;
}

}  // namespace

void bind_launches(nb::module_& m) {
  nb::class_<LaunchedPass>(m, "LaunchedPass", "A pass of a plan for some numbers of sites.")
      .def_prop_ro("bytes", &LaunchedPass::bytes, "Bytes of the memory for its arrays.")
      .def("offset", &LaunchedPass::offset, "Return the place of an array in that memory.")
      .def(
          "run",
          [](const LaunchedPass& pass, Address base, const LaunchedPass* before,
             Address base_before, const std::vector<Address>& given, Address stream) {
            const nb::gil_scoped_release released;
            pass.run(base, before, base_before, given, stream);
          },
          nb::arg("base"), nb::arg("before").none(), nb::arg("base_before"), nb::arg("given"),
          nb::arg("stream"), "Launch everything.");

  using Plan = std::shared_ptr<LaunchPlan>;
  struct Holder {
    Plan plan;
  };
  nb::class_<Holder>(m, "LaunchPlan", "The launches of passes; see launches.cpp.")
      .def("__init__",
           [](Holder* holder, const std::vector<Three>& formulas,
              const std::vector<std::tuple<int64_t, int64_t>>& guards,
              const std::vector<Three>& arrays, const std::vector<Listed>& launches) {
             auto plan = std::make_shared<LaunchPlan>();
             for (const auto& [operation, a, b] : formulas)
               plan->formulas.push_back({static_cast<Operation>(operation), a, b});
             for (const auto& [formula, value] : guards) plan->guards.emplace_back(formula, value);
             for (const auto& [bytes, first, last] : arrays)
               plan->arrays.push_back({bytes, first, last});
             for (const auto& each : launches) plan->launches.push_back(launch_of(each));
             new (holder) Holder{std::move(plan)};
           })
      .def(
          "set_address",
          [](Holder& holder, size_t launch, size_t argument, Address address) {
            holder.plan->launches.at(launch).arguments.at(argument).offset =
                static_cast<int64_t>(address);
          },
          nb::arg("launch"), nb::arg("argument"), nb::arg("address"), "Change a constant address.")
      .def(
          "begin",
          [](const Holder& holder,
             const std::vector<int64_t>& rows) -> std::unique_ptr<LaunchedPass> {
            std::vector<int64_t> values = evaluate(*holder.plan, rows);
            for (const auto& [formula, value] : holder.plan->guards)
              if (values[static_cast<size_t>(formula)] != value) return nullptr;
            return std::make_unique<LaunchedPass>(holder.plan, std::move(values));
          },
          nb::arg("rows"),
          "Return a pass for the numbers of sites of the levels; None if the plan does not hold "
          "for them.");
}

}  // namespace sscn
