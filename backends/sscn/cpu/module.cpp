// The Python module: chooses the instruction set and exposes its functions.
//
// Arrays are passed as addresses of contiguous memory, which the Python code has checked.
// Converting torch tensors would take longer than many of the layers.
#include "../cuda/launches.hpp"
#include "engine.hpp"
#include "plan.hpp"
#include "program.hpp"

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace nb = nanobind;
using namespace sscn;

namespace {

using Address = uintptr_t;

// Words, references and arrays of a program.
using Four = std::tuple<int64_t, int64_t, int64_t, int64_t>;
using Listed = std::tuple<std::vector<int64_t>, std::vector<Four>, std::vector<Four>>;

Program program_of(const Listed& listed) {
  Program program{std::get<0>(listed), {}, {}};
  for (const auto& [word, meaning, index, offset] : std::get<1>(listed))
    program.references.push_back({word, static_cast<Meaning>(meaning), index, offset});
  for (const auto& [level, bytes, first, last] : std::get<2>(listed))
    program.arrays.push_back({level, bytes, first, last});
  return program;
}

std::vector<const Engine*> available() {
  std::vector<const Engine*> engines;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("bmi2")) {
    if (__builtin_cpu_supports("avx512bf16")) engines.push_back(&engine_avx512_bf16);
    engines.push_back(&engine_avx512);
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("bmi2"))
    engines.push_back(&engine_avx2);
#endif
  engines.push_back(&engine_portable);
  return engines;
}

const Engine* engine = available().front();

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace

NB_MODULE(_kernels, m) {
#if defined(__GLIBC__)
  // Keep freed memory in the process for the next layer or step. Returning the pages to the
  // operating system and faulting them in again takes a quarter of a training step.
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
#endif
  m.doc() = "Sparse convolutions in C++; see backends.sscn.cpu for the checked interface.";

  nb::set_leak_warnings(false);  // tensors may live until the end of the program
  m.attr("fingerprint") = kFingerprint;

  m.def(
      "instruction_sets",
      [] {
        std::vector<std::string> names;
        for (const Engine* e : available()) names.emplace_back(e->name);
        return names;
      },
      "Names of the instruction sets that run here, the fastest first.");

  m.def(
      "instruction_set", [] { return std::string(engine->name); },
      "Name of the instruction set in use.");

  m.def(
      "use",
      [](const std::string& name) {
        for (const Engine* e : available())
          if (name == e->name) {
            engine = e;
            return;
          }
        throw nb::value_error(("this processor has no instruction set " + name).c_str());
      },
      "Use an instruction set from now on.");

  m.def(
      "peak",
      [](int64_t rounds, bool doubles, int threads) {
        return engine->peak(rounds, doubles, threads);
      },
      "Multiply and add in registers; returns the number of floating-point operations.");

  m.def("sort_sites", [](Address sites, int64_t rows, int dim, int bits, int64_t size, Address keys,
                         Address order, int threads) {
    return engine->sort_sites(at<int32_t>(sites), rows, {dim, bits}, size, at<int64_t>(keys),
                              at<int64_t>(order), threads);
  });

  m.def("connect",
        [](Address keys_in, int64_t rows_in, Address keys_out, int64_t rows_out, int dim, int bits,
           int kernel_size, int block, Address in, Address out, Address span, int threads) {
          engine->connect(at<int64_t>(keys_in), rows_in, at<int64_t>(keys_out), rows_out,
                          {dim, bits}, kernel_size, block, at<int32_t>(in), at<uint8_t>(out),
                          at<int32_t>(span), threads);
        });

  m.def("coarsen", [](Address keys, int64_t rows, int dim, Address coarse, Address first) {
    return engine->coarsen(at<int64_t>(keys), rows, dim, at<int64_t>(coarse), at<int32_t>(first));
  });

  m.def("connect_down", [](Address keys, int64_t rows, Address first, int64_t parents, int dim,
                           int block, Address in, Address out, Address span, int threads) {
    engine->connect_down(at<int64_t>(keys), rows, at<int32_t>(first), parents, dim, block,
                         at<int32_t>(in), at<uint8_t>(out), at<int32_t>(span), threads);
  });

  m.def("connect_up", [](Address keys, int64_t rows, Address first, int64_t parents, int dim,
                         int block, Address in, Address out, Address span, int threads) {
    engine->connect_up(at<int64_t>(keys), rows, at<int32_t>(first), parents, dim, block,
                       at<int32_t>(in), at<uint8_t>(out), at<int32_t>(span), threads);
  });

  m.def(
      "run",
      [](Address words, int64_t number, Address times, int threads) {
        const nb::gil_scoped_release released;
        run(*engine, at<int64_t>(words), number, at<double>(times), threads);
      },
      "Run a stream of instructions; see program.hpp.");

  m.def("block_rows", block_rows, "Return the output rows per block of a gather map.");

  nb::class_<PlannedPass>(m, "PlannedPass", "A planned forward pass that has run.")
      .def(
          "without_arrays",
          [](const PlannedPass& pass) {
            return std::make_unique<PlannedPass>(PlannedPass{pass.maps, nullptr});
          },
          "Return its maps, for other passes on the same sites.");

  nb::class_<Plan>(m, "Plan", "The instructions of passes; see plan.hpp.")
      .def("__init__",
           [](Plan* plan, const Listed& forward, const Listed& backward,
              const std::vector<std::tuple<int64_t, int64_t>>& maps, int64_t levels, int dim) {
             new (plan) Plan{program_of(forward), program_of(backward), {}, levels, dim};
             for (const auto& [level, size] : maps) plan->maps.push_back({level, size});
           })
      .def(
          "set_word",
          [](Plan& plan, int64_t word, int64_t value) {
            plan.forward.words.at(static_cast<size_t>(word)) = value;
          },
          "Change a word of the forward pass, such as the address of weights.")
      .def(
          "forward",
          [](const Plan& plan, const PlannedPass* before, Address keys, int64_t rows,
             int64_t spatial_size, const std::vector<Address>& given, int threads) {
            const nb::gil_scoped_release released;
            const bool training = !plan.backward.words.empty();
            auto pass = std::make_unique<PlannedPass>();
            if (before)
              pass->maps = before->maps;
            else
              pass->maps = std::make_shared<PlannedMaps>(*engine, plan, at<int64_t>(keys), rows,
                                                         spatial_size, threads);
            if (training && pass->maps->fewest_rows() < 2)
              throw std::invalid_argument("batch normalisation in training needs at least 2 sites");
            auto arrays = std::make_unique<PlacedArrays>(plan.forward, *pass->maps);
            run_program(*engine, plan.forward, *pass->maps, *arrays, nullptr, given, threads);
            if (training) pass->arrays = std::move(arrays);
            return pass;
          },
          nb::arg("before").none(), nb::arg("keys"), nb::arg("rows"), nb::arg("spatial_size"),
          nb::arg("given"), nb::arg("threads"),
          "Run a forward pass on sorted sites, on the maps of an earlier pass if there is one.")
      .def(
          "backward",
          [](const Plan& plan, const PlannedPass& pass, const std::vector<Address>& given,
             int threads) {
            const nb::gil_scoped_release released;
            const PlacedArrays arrays(plan.backward, *pass.maps);
            run_program(*engine, plan.backward, *pass.maps, arrays, pass.arrays.get(), given,
                        threads);
          },
          "Run the backward pass of a forward pass.");

  bind_launches(m);
}
