// The Python module: chooses the instruction set and exposes its functions.
//
// Arrays are passed as addresses of contiguous memory, which the Python code has checked.
// Converting torch tensors would take longer than many of the layers.
#include "engine.hpp"
#include "program.hpp"

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <vector>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace nb = nanobind;
using namespace sscn;

namespace {

using Address = uintptr_t;

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
}
