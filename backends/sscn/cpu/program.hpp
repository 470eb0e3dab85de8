// The loop that runs a stream of instructions. Python writes one stream for many layers, so that a
// single call from Python runs all of them.
#pragma once

#include <chrono>

#include "engine.hpp"
#include "instructions.hpp"
#include "norm.hpp"
#include "rows.hpp"

namespace sscn {

// Fuses the norm and activation before a convolution into the convolution that produces its input:
// the rows leaky(scale * out + shift) are computed while `out` is in registers.
class NextInputFusion {
 public:
  // Run a convolution; `left` instructions follow it, starting at `following`.
  void convolve(const Engine& engine, Convolve now, const int64_t* following, int64_t left,
                int threads) {
    // The convolution of a shortcut runs between a producer and its consumer. It must not overwrite
    // the rows that the producer has computed for the consumer.
    const bool between = rows_ && !consumes(now, out_);
    (between ? now.source.reserved : now.source.activated) = rows_;
    const NextInput next = between ? NextInput{} : find_consumer(now, following, left);
    const void* rows =
        engine.convolve(now.source, now.weight, now.channels, now.forward, now.products,
                        now.residual, now.out, now.sums, next, threads);
    if (between) return;
    rows_ = rows;
    out_ = now.out;
  }

 private:
  // Return whether `out` is the only source of a convolution that has a norm.
  static bool consumes(const Convolve& then, const float* out) {
    return then.source.x == out && !then.source.skip && then.source.scale;
  }

  // Find the consumer of the output: the next instruction or, if the convolution of a shortcut is
  // between them, the one after it.
  static NextInput find_consumer(const Convolve& now, const int64_t* following, int64_t left) {
    for (int64_t i = 0; i < left && i < 2; ++i) {
      const int64_t* words = following + i * kWords;
      if (as<Opcode>(words[0]) != Opcode::kConvolve) break;
      const Convolve then(words);
      if (then.products == now.products && consumes(then, now.out))
        return {then.source.scale, then.source.shift, then.source.slope, now.sole_consumer};
    }
    return {};
  }

  const void* rows_ = nullptr;  // input of the consumer, if a producer has computed it
  const float* out_ = nullptr;  // output of that producer
};

// Run one instruction; `left` others follow it.
inline void run_one(const Engine& engine, const int64_t* words, int64_t left,
                    NextInputFusion& fusion, int threads) {
  switch (as<Opcode>(words[0])) {
    case Opcode::kFold: {
      const Fold it(words);
      fold(it.sums, it.weight, it.bias, it.running_mean, it.running_var, it.rows, it.channels,
           it.eps, it.momentum, it.scale, it.shift, it.moments, it.stride);
      return;
    }
    case Opcode::kConvolve:
      fusion.convolve(engine, Convolve(words), words + kWords, left, threads);
      return;
    case Opcode::kStatisticsGradient: {
      const StatisticsGradient it(words);
      engine.statistics_gradient(it.grad, it.out, it.grad_sums, it.rows, it.channels, it.total,
                                 threads);
      return;
    }
    case Opcode::kInputGradient: {
      const InputGradient it(words);
      engine.input_gradient(it.grad, it.rows, it.channels, it.weight, it.backward, it.mirrored,
                            it.products, it.source, it.added_x, it.added_skip, it.to_x, it.to_skip,
                            it.to_norm, threads);
      return;
    }
    case Opcode::kWeightGradient: {
      const WeightGradient it(words);
      engine.weight_gradient(it.source, it.grad, it.rows, it.channels, it.backward, it.mirrored,
                             it.to_weight, threads);
      return;
    }
    case Opcode::kFoldGradient: {
      const FoldGradient it(words);
      fold_gradient(it.to_norm, it.weight, it.moments, it.rows, it.channels, it.stride, it.to_sums,
                    it.accumulate, it.to_weight, it.to_bias);
      return;
    }
    case Opcode::kAdd: {
      const Add it(words);
      for (int64_t i = 0; i < it.size; ++i) it.total[i] = it.a[i] + it.b[i];
      return;
    }
    case Opcode::kTake: {
      const Take it(words);
      take(it.rows, it.order, it.number, it.channels, it.bias, it.out, threads);
      return;
    }
    case Opcode::kInvert: {
      const Invert it(words);
      invert(it.order, it.number, it.inverse, threads);
      return;
    }
  }
}

// Run instructions in order. If `times` is not null, the begin of the first instruction and the end
// of each are written to it, in seconds of the monotonic clock.
inline void run(const Engine& engine, const int64_t* words, int64_t number, double* times,
                int threads) {
  const auto now = [] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
  };
  if (times) times[0] = now();
  NextInputFusion fusion;
  for (int64_t i = 0; i < number; ++i) {
    run_one(engine, words + i * kWords, number - i - 1, fusion, threads);
    if (times) times[i + 1] = now();
  }
}

}  // namespace sscn
