// The Python module: picks the instruction set and passes arrays on by address.
//
// Arrays come as addresses of contiguous memory, checked by the Python side: converting torch
// tensors one by one costs more than many of the layers here.
#include "engine.hpp"
#include "norm.hpp"
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
      __builtin_cpu_supports("bmi2"))
    engines.push_back(&engine_avx512);
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

Pairs pairs(Address in, Address out, Address span, int64_t rows, int taps, int block) {
  return {at<int32_t>(in), at<uint8_t>(out), at<int32_t>(span), rows, taps, block};
}

Source source(Address x, Address skip, int64_t rows, int x_channels, int skip_channels,
              Address scale, Address shift) {
  return {at<float>(x), at<float>(skip), rows, x_channels, skip_channels, at<float>(scale),
          at<float>(shift)};
}

}  // namespace

NB_MODULE(_kernels, m) {
#if defined(__GLIBC__)
  // Freed rows stay with the process for the next layer or step: to return their pages to the
  // kernel and fault them in again takes a quarter of a training step.
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
#endif
  m.doc() = "Sparse convolutions in C++; see backends.sscn.cpu for the checked interface.";

  m.def("instruction_sets", [] {
    std::vector<std::string> names;
    for (const Engine* e : available()) names.emplace_back(e->name);
    return names;
  }, "Names of the instruction sets that run here, the fastest first.");

  m.def("instruction_set", [] { return std::string(engine->name); },
        "Name of the instruction set in use.");

  m.def("use", [](const std::string& name) {
    for (const Engine* e : available())
      if (name == e->name) {
        engine = e;
        return;
      }
    throw nb::value_error(("this processor has no instruction set " + name).c_str());
  }, "Use an instruction set from now on.");

  m.def("peak", [](int64_t rounds, bool doubles, int threads) {
    return engine->peak(rounds, doubles, threads);
  }, "Multiply and add in registers; returns the number of floating-point operations.");

  m.def("sort_sites", [](Address sites, int64_t rows, int dim, int bits, int64_t size,
                         Address keys, Address order, int threads) {
    return engine->sort_sites(at<int32_t>(sites), rows, {dim, bits}, size, at<int64_t>(keys),
                              at<int64_t>(order), threads);
  });

  m.def("connect", [](Address keys_in, int64_t rows_in, Address keys_out, int64_t rows_out, int dim,
                      int bits, int kernel_size, int block, Address in, Address out, Address span,
                      int threads) {
    engine->connect(at<int64_t>(keys_in), rows_in, at<int64_t>(keys_out), rows_out, {dim, bits},
                    kernel_size, block, at<int32_t>(in), at<uint8_t>(out), at<int32_t>(span),
                    threads);
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

  m.def("convolve", [](Address x, Address skip, int64_t rows_in, int x_channels, int skip_channels,
                       Address scale, Address shift, Address weight, int out_channels, Address in,
                       Address out_rows, Address span, int64_t rows, int taps, int block,
                       Address residual, Address out, Address sums, int threads) {
    engine->convolve(source(x, skip, rows_in, x_channels, skip_channels, scale, shift),
                     at<float>(weight), out_channels, pairs(in, out_rows, span, rows, taps, block),
                     at<float>(residual), at<float>(out), at<double>(sums), threads);
  });

  m.def("input_gradient", [](Address grad, int64_t grad_rows, int grad_channels, Address weight,
                             Address in, Address out_rows, Address span, int64_t rows, int taps,
                             int block, bool mirrored, Address x, Address skip, int x_channels,
                             int skip_channels, Address scale, Address shift, Address carried,
                             Address carried_skip, Address to_x, Address to_skip, Address sums, int threads) {
    engine->input_gradient(at<float>(grad), grad_rows, grad_channels, at<float>(weight),
                           pairs(in, out_rows, span, rows, taps, block), mirrored,
                           source(x, skip, rows, x_channels, skip_channels, scale, shift),
                           at<float>(carried), at<float>(carried_skip), at<float>(to_x),
                           at<float>(to_skip), at<double>(sums), threads);
  });

  m.def("weight_gradient", [](Address x, Address skip, int64_t rows_in, int x_channels,
                              int skip_channels, Address scale, Address shift, Address grad,
                              int64_t grad_rows, int grad_channels, Address in, Address out_rows,
                              Address span, int64_t rows, int taps, int block, bool mirrored,
                              Address out, int threads) {
    engine->weight_gradient(source(x, skip, rows_in, x_channels, skip_channels, scale, shift),
                            at<float>(grad), grad_rows, grad_channels,
                            pairs(in, out_rows, span, rows, taps, block), mirrored, at<float>(out),
                            threads);
  });

  m.def("statistics_gradient", [](Address grad, Address out, Address grad_sums, int64_t rows,
                                  int channels, Address result, int threads) {
    engine->statistics_gradient(at<float>(grad), at<float>(out), at<double>(grad_sums), rows,
                                channels, at<float>(result), threads);
  });

  m.def("fold", [](Address sums, Address weight, Address bias, Address running_mean,
                   Address running_var, int64_t rows, int channels, double eps, double momentum,
                   Address scale, Address shift, Address moments) {
    fold(at<double>(sums), at<float>(weight), at<float>(bias), at<float>(running_mean),
         at<float>(running_var), rows, channels, eps, momentum, at<float>(scale), at<float>(shift),
         at<double>(moments), channels);
  });

  m.def("fold_gradient", [](Address to_norm, Address weight, Address moments, int64_t rows,
                            int channels, Address to_sums, Address to_weight, Address to_bias) {
    fold_gradient(at<double>(to_norm), at<float>(weight), at<double>(moments), rows, channels,
                  channels, at<double>(to_sums), false, at<float>(to_weight), at<float>(to_bias));
  });

  m.def("run", [](Address words, int64_t number, Address times, int threads) {
    const nb::gil_scoped_release released;
    run(*engine, at<int64_t>(words), number, at<double>(times), threads);
  }, "Run instructions one after the other; see program.hpp.");
}
