// Instructions as C++ structs. Generated from encoding.py, do not edit:
//   python -m backends.sscn.cpu.encoding > backends/sscn/cpu/instructions.hpp
#pragma once
// clang-format off

#include "engine.hpp"

#include <bit>
#include <cstdint>
#include <type_traits>

namespace sscn {

constexpr int64_t kFingerprint = 1570670861;  // of the table

constexpr int64_t kWords = 26;  // per instruction

enum class Opcode : int64_t {
  kFold = 0,
  kConvolve = 1,
  kStatisticsGradient = 2,
  kInputGradient = 3,
  kWeightGradient = 4,
  kFoldGradient = 5,
  kAdd = 6,
  kTake = 7,
  kInvert = 8,
};

static_assert(static_cast<int>(Products::kFloat32) == 0);
static_assert(static_cast<int>(Products::kBfloat16) == 1);

// Return a word as a pointer, a float, a double or an integer.
template <class T>
T as(int64_t word) {
  if constexpr (std::is_pointer_v<T>)
    return reinterpret_cast<T>(static_cast<uintptr_t>(word));
  else if constexpr (std::is_floating_point_v<T>)
    return static_cast<T>(std::bit_cast<double>(word));
  else
    return static_cast<T>(word);
}

inline Source read_source(const int64_t* word) {
  Source found;
  found.x = as<const float*>(word[0]);
  found.skip = as<const float*>(word[1]);
  found.rows = as<int64_t>(word[2]);
  found.x_channels = as<int>(word[3]);
  found.skip_channels = as<int>(word[4]);
  found.scale = as<const float*>(word[5]);
  found.shift = as<const float*>(word[6]);
  found.slope = as<float>(word[7]);
  return found;
}

inline Pairs read_pairs(const int64_t* word) {
  Pairs found;
  found.in = as<const int32_t*>(word[0]);
  found.out = as<const uint8_t*>(word[1]);
  found.span = as<const int32_t*>(word[2]);
  found.rows = as<int64_t>(word[3]);
  found.taps = as<int>(word[4]);
  found.block = as<int>(word[5]);
  return found;
}

struct Fold {
  const double* sums;  // (2, channels): sums of the features and of their squares
  const float* weight;  // (channels): of the norm
  const float* bias;  // (channels): of the norm
  float* running_mean;  // (channels): updated
  float* running_var;  // (channels): updated
  int64_t rows;  // number of sites
  int channels;  // channels that are folded
  double eps;  // added to the variance
  double momentum;  // of the running statistics
  float* scale;  // (channels): result
  float* shift;  // (channels): result
  double* moments;  // (2, stride): mean and inverse deviation, result
  int stride;  // channels of the whole norm

  explicit Fold(const int64_t* word)
      : sums(as<const double*>(word[1])),
        weight(as<const float*>(word[2])),
        bias(as<const float*>(word[3])),
        running_mean(as<float*>(word[4])),
        running_var(as<float*>(word[5])),
        rows(as<int64_t>(word[6])),
        channels(as<int>(word[7])),
        eps(as<double>(word[8])),
        momentum(as<double>(word[9])),
        scale(as<float*>(word[10])),
        shift(as<float*>(word[11])),
        moments(as<double*>(word[12])),
        stride(as<int>(word[13])) {}
};

struct Convolve {
  Source source;
  const float* weight;  // (taps, input channels, channels)
  int channels;  // output channels
  Pairs forward;
  Products products;  // rounding of factors
  const float* residual;  // (output rows, channels): added, or absent
  float* out;  // (output rows, channels): result
  double* sums;  // (2, channels): sums of the result, or absent
  bool sole_consumer;  // whether exactly one later instruction reads out

  explicit Convolve(const int64_t* word)
      : source(read_source(word + 1)),
        weight(as<const float*>(word[9])),
        channels(as<int>(word[10])),
        forward(read_pairs(word + 11)),
        products(as<Products>(word[17])),
        residual(as<const float*>(word[18])),
        out(as<float*>(word[19])),
        sums(as<double*>(word[20])),
        sole_consumer(as<bool>(word[21])) {}
};

struct StatisticsGradient {
  const float* grad;  // (rows, channels): gradient of the output
  const float* out;  // (rows, channels): the output
  const double* grad_sums;  // (2, channels): gradients of its sums
  int64_t rows;  // output rows
  int channels;  // output channels
  float* total;  // (rows, channels): result, may be grad

  explicit StatisticsGradient(const int64_t* word)
      : grad(as<const float*>(word[1])),
        out(as<const float*>(word[2])),
        grad_sums(as<const double*>(word[3])),
        rows(as<int64_t>(word[4])),
        channels(as<int>(word[5])),
        total(as<float*>(word[6])) {}
};

struct InputGradient {
  const float* grad;  // (rows, channels): gradient of the output
  int64_t rows;  // output rows
  int channels;  // output channels
  const float* weight;  // (taps, input channels, channels)
  Pairs backward;
  bool mirrored;  // whether tap k of the backward map is tap taps - 1 - k
  Products products;  // rounding of factors
  Source source;
  const float* added_x;  // like to_x: added to it, or absent; may be to_x
  const float* added_skip;  // like to_skip: added to it, or absent
  float* to_x;  // (input rows, x_channels): gradient of x
  float* to_skip;  // (input rows, skip_channels): gradient of skip
  double* to_norm;  // (2, input channels): of scale and shift, or absent

  explicit InputGradient(const int64_t* word)
      : grad(as<const float*>(word[1])),
        rows(as<int64_t>(word[2])),
        channels(as<int>(word[3])),
        weight(as<const float*>(word[4])),
        backward(read_pairs(word + 5)),
        mirrored(as<bool>(word[11])),
        products(as<Products>(word[12])),
        source(read_source(word + 13)),
        added_x(as<const float*>(word[21])),
        added_skip(as<const float*>(word[22])),
        to_x(as<float*>(word[23])),
        to_skip(as<float*>(word[24])),
        to_norm(as<double*>(word[25])) {}
};

struct WeightGradient {
  Source source;
  const float* grad;  // (rows, channels): gradient of the output
  int64_t rows;  // output rows
  int channels;  // output channels
  Pairs backward;
  bool mirrored;  // whether tap k of the backward map is tap taps - 1 - k
  float* to_weight;  // (taps, input channels, channels): result

  explicit WeightGradient(const int64_t* word)
      : source(read_source(word + 1)),
        grad(as<const float*>(word[9])),
        rows(as<int64_t>(word[10])),
        channels(as<int>(word[11])),
        backward(read_pairs(word + 12)),
        mirrored(as<bool>(word[18])),
        to_weight(as<float*>(word[19])) {}
};

struct FoldGradient {
  const double* to_norm;  // (2, stride): gradients of scale and shift
  const float* weight;  // (channels): of the norm
  const double* moments;  // (2, stride): as FOLD computed them
  int64_t rows;  // number of sites
  int channels;  // channels that are folded
  int stride;  // channels of the whole norm
  double* to_sums;  // (2, channels): gradients of the sums
  bool accumulate;  // whether to add to to_sums instead of setting it
  float* to_weight;  // (channels): result
  float* to_bias;  // (channels): result

  explicit FoldGradient(const int64_t* word)
      : to_norm(as<const double*>(word[1])),
        weight(as<const float*>(word[2])),
        moments(as<const double*>(word[3])),
        rows(as<int64_t>(word[4])),
        channels(as<int>(word[5])),
        stride(as<int>(word[6])),
        to_sums(as<double*>(word[7])),
        accumulate(as<bool>(word[8])),
        to_weight(as<float*>(word[9])),
        to_bias(as<float*>(word[10])) {}
};

struct Add {
  float* total;  // (size): result, may be a or b
  const float* a;  // (size)
  const float* b;  // (size)
  int64_t size;  // number of values

  explicit Add(const int64_t* word)
      : total(as<float*>(word[1])),
        a(as<const float*>(word[2])),
        b(as<const float*>(word[3])),
        size(as<int64_t>(word[4])) {}
};

struct Take {
  const float* rows;  // (number, channels)
  const int64_t* order;  // (number): row to take at each place
  int64_t number;  // rows
  int channels;  // channels
  const float* bias;  // (channels): added to each row, or absent
  float* out;  // (number, channels): result

  explicit Take(const int64_t* word)
      : rows(as<const float*>(word[1])),
        order(as<const int64_t*>(word[2])),
        number(as<int64_t>(word[3])),
        channels(as<int>(word[4])),
        bias(as<const float*>(word[5])),
        out(as<float*>(word[6])) {}
};

struct Invert {
  const int64_t* order;  // (number): a permutation
  int64_t number;  // its length
  int64_t* inverse;  // (number): result

  explicit Invert(const int64_t* word)
      : order(as<const int64_t*>(word[1])),
        number(as<int64_t>(word[2])),
        inverse(as<int64_t*>(word[3])) {}
};

}  // namespace sscn
