// Vectors of an instruction set, and the formats in which rows and weights are multiplied.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace sscn {
namespace {

constexpr int kLanes = SSCN_LANES;
typedef float Vector __attribute__((vector_size(kLanes * sizeof(float))));

inline Vector load(const float* from) {
  Vector v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

// Load some columns, followed by zeros.
inline Vector load(const float* from, int columns) {
  if (columns == kLanes) return load(from);
  Vector v{};
  std::memcpy(&v, from, static_cast<size_t>(columns) * sizeof(float));
  return v;
}

inline void store(float* to, Vector v) { std::memcpy(to, &v, sizeof v); }

// Leaky ReLU: negative values are multiplied by the slope, which is 0 for ReLU and 1 for none.
inline Vector leaky(Vector v, float slope) { return v > 0 ? v : slope * v; }
inline float leaky(float v, float slope) { return v > 0 ? v : slope * v; }

inline int padded(int channels) { return (channels + kLanes - 1) / kLanes * kLanes; }

// A value is the unit of four bytes that a tile broadcasts: one channel, or two of two bytes each.
template <class Element>
constexpr int kChannels = sizeof(float) / sizeof(Element);

template <class Element>
inline const Element* row_of(const Element* x, int64_t row, int64_t values) {
  return x + row * values * kChannels<Element>;
}

inline float value_of(const float* row, int64_t c) { return row[c]; }

inline void multiply_add(Vector& sum, Vector weight, float value) { sum += weight * value; }

struct Float32 {
  using Element = float;
  static constexpr bool kRounds = false;

  static int values(int channels) { return channels; }
  static int elements(int channels) { return channels; }
  static void put(float* to, Vector v) { store(to, v); }
  static void put(float* to, float v) { *to = v; }
  static Vector pack(Vector weights, Vector) { return weights; }
};

// The upper half of a float, rounded to nearest, ties to even. Products of two such numbers are
// exact in a float, and are accumulated in floats.
#ifdef __AVX512BF16__

struct Pair {
  int32_t bits;
};

inline Pair value_of(const uint16_t* row, int64_t c) {
  Pair pair;
  std::memcpy(&pair, row + 2 * c, sizeof pair);
  return pair;
}

inline void multiply_add(Vector& sum, Vector weights, Pair pair) {
  sum = (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)weights,
                                 (__m512bh)_mm512_set1_epi32(pair.bits));
}

struct Bfloat16 {
  using Element = uint16_t;
  static constexpr bool kRounds = true;

  static int values(int channels) { return (channels + 1) / 2; }
  static int elements(int channels) { return 2 * values(channels); }
  static void put(uint16_t* to, Vector v) {
    const __m256bh rounded = _mm512_cvtneps_pbh((__m512)v);
    std::memcpy(to, &rounded, sizeof rounded);
  }
  static void put(uint16_t* to, float v) {
    const __m128bh rounded = _mm_cvtneps_pbh(_mm_set_ss(v));
    std::memcpy(to, &rounded, sizeof *to);
  }
  // Each lane holds the weights of two input channels.
  static Vector pack(Vector first, Vector second) {
    const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)first));
    const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)second));
    return (Vector)_mm512_or_si512(low, _mm512_slli_epi32(high, 16));
  }
};

#else  // without bf16 instructions: floats rounded to the precision of bf16

struct Bfloat16 {
  using Element = float;
  static constexpr bool kRounds = true;

  static int values(int channels) { return channels; }
  static int elements(int channels) { return channels; }
  static void put(float* to, Vector v) { store(to, rounded(v)); }
  static void put(float* to, float v) { *to = rounded(v - Vector{})[0]; }
  static Vector pack(Vector first, Vector) { return rounded(first); }

 private:
  static Vector rounded(Vector v) {
    typedef uint32_t Bits __attribute__((vector_size(sizeof(Vector))));
    const Bits bits = (Bits)v, even = bits >> 16 & 1;
    const Bits up = (bits + 0x7fff + even) & 0xffff0000u;
    return v == v ? (Vector)up : v;  // NaN stays NaN
  }
};

#endif

}  // namespace
}  // namespace sscn
