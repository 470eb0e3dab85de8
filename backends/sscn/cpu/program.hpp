// Instructions that Python writes down for many layers, and the loop that runs them: one call in
// place of hundreds.
#pragma once

#include "engine.hpp"
#include "norm.hpp"
#include "rows.hpp"

#include <chrono>
#include <cstring>

namespace sscn {

// An instruction is kWords integers: what to do, then the arguments of the function in their
// order. Addresses, numbers and, by their bits, doubles.
constexpr int64_t kWords = 25;

enum class Instruction : int64_t {
  kFold,
  kConvolve,
  kStatisticsGradient,
  kInputGradient,
  kWeightGradient,
  kFoldGradient,
  kAdd,
  kTake,
  kInvert,
};

// The arguments of a convolution; `alone` if only one other reads its output.
struct Convolution {
  Source source;
  const float* weight;
  int channels;
  Pairs pairs;
  Products products;
  const float* residual;
  float* out;
  double* sums;
  bool alone;
};

// Takes the words of an instruction one after the other as what a function wants.
class Reader {
 public:
  explicit Reader(const int64_t* words) : next_(words) {}

  template <class T>
  T* pointer() {
    return reinterpret_cast<T*>(static_cast<uintptr_t>(*next_++));
  }
  int64_t number() { return *next_++; }
  int integer() { return static_cast<int>(*next_++); }
  double real() {
    double value;
    std::memcpy(&value, next_++, sizeof value);
    return value;
  }
  Instruction instruction() { return static_cast<Instruction>(*next_++); }
  Products products() { return static_cast<Products>(integer()); }
  Source source() {
    Source source;
    source.x = pointer<float>();
    source.skip = pointer<float>();
    source.rows = number();
    source.x_channels = integer();
    source.skip_channels = integer();
    source.scale = pointer<float>();
    source.shift = pointer<float>();
    return source;
  }
  Pairs pairs() {
    Pairs pairs;
    pairs.in = pointer<int32_t>();
    pairs.out = pointer<uint8_t>();
    pairs.span = pointer<int32_t>();
    pairs.rows = number();
    pairs.taps = integer();
    pairs.block = integer();
    return pairs;
  }
  Convolution convolution() {
    Convolution found;
    found.source = source();
    found.weight = pointer<float>();
    found.channels = integer();
    found.pairs = pairs();
    found.products = products();
    found.residual = pointer<float>();
    found.out = pointer<float>();
    found.sums = pointer<double>();
    found.alone = integer() != 0;
    return found;
  }

 private:
  const int64_t* next_;
};

// Lets a convolution write what the next one makes of its output, while that is in registers.
class Ahead {
 public:
  // Convolve; `left` instructions follow.
  void convolve(const Engine& engine, Convolution now, const int64_t* following, int64_t left,
                int threads) {
    const bool between = active_ && !makes(now, out_);
    (between ? now.source.waiting : now.source.active) = active_;
    const Next next = between ? Next{} : next_of(now, following, left);
    const void* active =
        engine.convolve(now.source, now.weight, now.channels, now.pairs, now.products, now.residual,
                        now.out, now.sums, next, threads);
    if (between) return;
    active_ = active;
    out_ = now.out;
  }

 private:
  // Whether a convolution takes the output of another alone, with norm and ReLU.
  static bool makes(const Convolution& then, const float* out) {
    return then.source.x == out && !then.source.skip && then.source.scale;
  }

  // Find that one: the next or, where a shortcut comes between, the one after it.
  static Next next_of(const Convolution& now, const int64_t* following, int64_t left) {
    for (int64_t i = 0; i < left && i < 2; ++i) {
      Reader read(following + i * kWords);
      if (read.instruction() != Instruction::kConvolve) break;
      const Convolution then = read.convolution();
      if (then.products == now.products && makes(then, now.out))
        return {then.source.scale, then.source.shift, now.alone};
    }
    return {};
  }

  const void* active_ = nullptr;
  const float* out_ = nullptr;
};

inline void run_one(const Engine& engine, const int64_t* words, int64_t left, Ahead& ahead,
                    int threads) {
  Reader read(words);
  switch (read.instruction()) {
    case Instruction::kFold: {
      const auto* sums = read.pointer<double>();
      const auto* weight = read.pointer<float>();
      const auto* bias = read.pointer<float>();
      auto* mean = read.pointer<float>();
      auto* variance = read.pointer<float>();
      const int64_t rows = read.number();
      const int channels = read.integer();
      const double eps = read.real(), momentum = read.real();
      auto* scale = read.pointer<float>();
      auto* shift = read.pointer<float>();
      auto* moments = read.pointer<double>();
      fold(sums, weight, bias, mean, variance, rows, channels, eps, momentum, scale, shift, moments,
           read.integer());
      return;
    }
    case Instruction::kConvolve: {
      ahead.convolve(engine, read.convolution(), words + kWords, left, threads);
      return;
    }
    case Instruction::kStatisticsGradient: {
      const auto* grad = read.pointer<float>();
      const auto* out = read.pointer<float>();
      const auto* sums = read.pointer<double>();
      const int64_t rows = read.number();
      const int channels = read.integer();
      engine.statistics_gradient(grad, out, sums, rows, channels, read.pointer<float>(), threads);
      return;
    }
    case Instruction::kInputGradient: {
      const auto* grad = read.pointer<float>();
      const int64_t rows = read.number();
      const int channels = read.integer();
      const auto* weight = read.pointer<float>();
      const Pairs back = read.pairs();
      const bool mirrored = read.integer() != 0;
      const Products products = read.products();
      const Source source = read.source();
      const auto* carried = read.pointer<float>();
      const auto* carried_skip = read.pointer<float>();
      auto* to_x = read.pointer<float>();
      auto* to_skip = read.pointer<float>();
      engine.input_gradient(grad, rows, channels, weight, back, mirrored, products, source, carried,
                            carried_skip, to_x, to_skip, read.pointer<double>(), threads);
      return;
    }
    case Instruction::kWeightGradient: {
      const Source source = read.source();
      const auto* grad = read.pointer<float>();
      const int64_t rows = read.number();
      const int channels = read.integer();
      const Pairs back = read.pairs();
      const bool mirrored = read.integer() != 0;
      engine.weight_gradient(source, grad, rows, channels, back, mirrored, read.pointer<float>(),
                             threads);
      return;
    }
    case Instruction::kFoldGradient: {
      const auto* to_norm = read.pointer<double>();
      const auto* weight = read.pointer<float>();
      const auto* moments = read.pointer<double>();
      const int64_t rows = read.number();
      const int channels = read.integer(), stride = read.integer();
      auto* to_sums = read.pointer<double>();
      const bool more = read.integer() != 0;
      auto* to_weight = read.pointer<float>();
      fold_gradient(to_norm, weight, moments, rows, channels, stride, to_sums, more, to_weight,
                    read.pointer<float>());
      return;
    }
    case Instruction::kAdd: {
      auto* to = read.pointer<float>();
      const auto* a = read.pointer<float>();
      const auto* b = read.pointer<float>();
      const int64_t size = read.number();
      for (int64_t i = 0; i < size; ++i) to[i] = a[i] + b[i];
      return;
    }
    case Instruction::kTake: {
      const auto* rows = read.pointer<float>();
      const auto* order = read.pointer<int64_t>();
      const int64_t number = read.number();
      const int channels = read.integer();
      const auto* bias = read.pointer<float>();
      take(rows, order, number, channels, bias, read.pointer<float>(), threads);
      return;
    }
    case Instruction::kInvert: {
      const auto* order = read.pointer<int64_t>();
      const int64_t number = read.number();
      invert(order, number, read.pointer<int64_t>(), threads);
      return;
    }
  }
}

// Run instructions one after the other; `times`, if there, gets the second at which the first
// began and each ended, on the clock that only goes forward.
inline void run(const Engine& engine, const int64_t* words, int64_t number, double* times,
                int threads) {
  const auto now = [] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
  };
  if (times) times[0] = now();
  Ahead ahead;
  for (int64_t i = 0; i < number; ++i) {
    run_one(engine, words + i * kWords, number - i - 1, ahead, threads);
    if (times) times[i + 1] = now();
  }
}

}  // namespace sscn
