// Reordering of rows: bound by memory bandwidth, the same code for all instruction sets.
#pragma once

#include "parallel.hpp"

#include <algorithm>
#include <cstdint>
#include <vector>

namespace sscn {

// Take rows of kWidth channels; 0 is for any number of channels.
template <int kWidth>
void take_rows(const float* rows, const int64_t* order, int64_t number, int channels,
               const float* bias, float* out, int threads) {
  constexpr int64_t kShare = 2048;
  const int width = kWidth ? kWidth : channels;
  std::vector<float> add(width, -0.0f);
  if (bias) std::copy(bias, bias + width, add.begin());
  parallel_for(threads, (number + kShare - 1) / kShare, [&](int64_t share, int) {
    const int64_t end = std::min(number, (share + 1) * kShare);
    const float* __restrict by = add.data();
    for (int64_t i = share * kShare; i < end; ++i) {
      const float* __restrict from = rows + order[i] * width;
      float* __restrict to = out + i * width;
      for (int c = 0; c < width; ++c) to[c] = from[c] + by[c];
    }
  });
}

// Put rows in another order, and add a bias to each if there is one. Features and logits have few
// channels, for which the width is a constant.
inline void take(const float* rows, const int64_t* order, int64_t number, int channels,
                 const float* bias, float* out, int threads) {
  constexpr decltype(&take_rows<0>) functions[] = {take_rows<0>, take_rows<1>, take_rows<2>,
                                                   take_rows<3>, take_rows<4>, take_rows<5>,
                                                   take_rows<6>, take_rows<7>, take_rows<8>};
  functions[channels <= 8 ? channels : 0](rows, order, number, channels, bias, out, threads);
}

// Write the position of each row in an order: the inverse permutation.
inline void invert(const int64_t* order, int64_t number, int64_t* place, int threads) {
  constexpr int64_t kShare = 8192;
  parallel_for(threads, (number + kShare - 1) / kShare, [&](int64_t share, int) {
    const int64_t end = std::min(number, (share + 1) * kShare);
    for (int64_t i = share * kShare; i < end; ++i) place[order[i]] = i;
  });
}

}  // namespace sscn
