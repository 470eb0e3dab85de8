// Convolutions over pair lists and their gradients; compiled once for each instruction set.
//
// A block of output rows accumulates in the first-level cache. Tap by tap, its pairs are processed
// in tiles that stay in registers: input rows are read in place, and each value is broadcast and
// multiplied by a row of the tap's weights. The order in which the terms of an output element are
// added does not depend on tiles or threads, and neither does the result.
#include "maps.hpp"
#include "parallel.hpp"
#include "scratch.hpp"
#include "vectors.hpp"

#include <cstring>
#include <utility>

namespace sscn::SSCN_TARGET {
namespace {

// Largest width of a tile in vectors, and the rows of a tile for each width. The accumulators, one
// row of weights and one broadcast value fill the registers.
#if SSCN_LANES == 16
constexpr int kWidest = 5;
#ifdef __AVX512BF16__  // smaller tiles overlap better on Zen 4
constexpr int kTileRows[] = {6, 7, 5, 4, 4}, kGradientRows[] = {16, 12, 8, 6, 4};
#else
constexpr int kTileRows[] = {8, 10, 8, 6, 5}, kGradientRows[] = {16, 12, 8, 6, 5};
#endif
constexpr int tile_rows(int width) { return kTileRows[width - 1]; }
constexpr int gradient_rows(int width) { return kGradientRows[width - 1]; }
#else
constexpr int kWidest = 3;
constexpr int tile_rows(int width) { return width == 1 ? 8 : width == 2 ? 6 : 4; }
constexpr int gradient_rows(int width) { return width == 1 ? 8 : 4; }
#endif

// Scratch memory per calling thread. It is reused, so that its pages are faulted in only once.
struct Workspace {
  Scratch inputs[2], gradient, weights, packed, accumulators, sums, partial;

  // Memory for an input that does not overlap `read`, an input still in use.
  Scratch& input(const void* read) { return inputs[inputs[0].holds(read)]; }
};

Workspace& workspace() {
  static thread_local Workspace memory;
  return memory;
}

// ---- tiles ------------------------------------------------------------------------------------

// `values` is the number of values per row and of rows of weights: channels, or pairs of them.
template <int kRows, int kWidth, class Element>
inline void tile(const Element* x, int64_t values, const int32_t* in, const uint8_t* out,
                 const float* weight, int64_t weight_stride, float* sum, int64_t sum_stride) {
  const Element* row[kRows];
  Vector acc[kRows][kWidth];
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
    row[m] = row_of(x, in[m], values);
#pragma GCC unroll 8
    for (int j = 0; j < kWidth; ++j) acc[m][j] = load(sum + out[m] * sum_stride + j * kLanes);
  }
  int64_t c = 0;
  do {  // not a for loop: if zero passes are possible, the compiler copies the accumulators
    Vector w[kWidth];
#pragma GCC unroll 8
    for (int j = 0; j < kWidth; ++j) w[j] = load(weight + c * weight_stride + j * kLanes);
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
      const auto value = value_of(row[m], c);
#pragma GCC unroll 8
      for (int j = 0; j < kWidth; ++j) multiply_add(acc[m][j], w[j], value);
    }
  } while (++c < values);
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 8
    for (int j = 0; j < kWidth; ++j) store(sum + out[m] * sum_stride + j * kLanes, acc[m][j]);
}

template <class Element>
using TileFunction = void (*)(const Element*, int64_t, const int32_t*, const uint8_t*, const float*,
                              int64_t, float*, int64_t);

template <int kWidth, class Element, int... kRows>
void remainder(int rows, std::integer_sequence<int, kRows...>, const Element* x, int64_t values,
               const int32_t* in, const uint8_t* out, const float* weight, int64_t weight_stride,
               float* sum, int64_t sum_stride) {
  static constexpr TileFunction<Element> functions[] = {tile<kRows + 1, kWidth, Element>...};
  functions[rows - 1](x, values, in, out, weight, weight_stride, sum, sum_stride);
}

#if SSCN_LANES == 16
template <int kRows, int kValues, class Element>
inline void narrow_rows(const Element* x, int64_t values, const int32_t* in, const uint8_t* out,
                        const Vector* w, float* sum) {
  const Element* row[kRows];
  Vector acc[kRows];
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
    row[m] = row_of(x, in[m], values);
    asm("" : "+r"(row[m]));  // a plain pointer: indexed addressing takes two micro-operations
    acc[m] = load(sum + out[m] * kLanes);
  }
#pragma GCC unroll 16
  for (int c = 0; c < kValues; ++c)
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) multiply_add(acc[m], w[c], value_of(row[m], c));
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) store(sum + out[m] * kLanes, acc[m]);
}

template <int kValues, class Element>
inline void narrow_pairs(const Element* x, int64_t values, const int32_t* in, const uint8_t* out,
                         int number, const Vector* w, float* sum) {
  constexpr int kRows = tile_rows(1);
  int done = 0;
  for (; done + kRows <= number; done += kRows)
    narrow_rows<kRows, kValues>(x, values, in + done, out + done, w, sum);
  if (done + 4 <= number) {
    narrow_rows<4, kValues>(x, values, in + done, out + done, w, sum);
    done += 4;
  }
  for (; done < number; ++done) narrow_rows<1, kValues>(x, values, in + done, out + done, w, sum);
}

// Process a tile that is one vector wide: the weights of kValues values stay in registers for all
// pairs of the tap. Returns the number of values processed.
template <int kValues, class Element>
inline int64_t narrow_values(int64_t c, const Element* x, int64_t values, const int32_t* in,
                             const uint8_t* out, int number, const float* weight,
                             int64_t weight_stride, float* sum) {
  for (; c + kValues <= values; c += kValues) {
    Vector w[kValues];
#pragma GCC unroll 16
    for (int i = 0; i < kValues; ++i) w[i] = load(weight + (c + i) * weight_stride);
    if (values == kValues)  // a constant: addresses of rows need no multiplication
      narrow_pairs<kValues>(x, kValues, in, out, number, w, sum);
    else
      narrow_pairs<kValues>(x + c * kChannels<Element>, values, in, out, number, w, sum);
  }
  return c;
}

template <class Element>
void multiply_narrow(const Element* x, int64_t values, const int32_t* in, const uint8_t* out,
                     int number, const float* weight, int64_t weight_stride, float* sum) {
  int64_t c = narrow_values<16>(0, x, values, in, out, number, weight, weight_stride, sum);
  if constexpr (kChannels<Element> == 2)
    c = narrow_values<8>(c, x, values, in, out, number, weight, weight_stride, sum);
  for (; c < values; ++c) {
    const Vector w = load(weight + c * weight_stride);
    for (int i = 0; i < number; ++i) {
      float* to = sum + out[i] * kLanes;
      Vector acc = load(to);
      multiply_add(acc, w, value_of(row_of(x, in[i], values), c));
      store(to, acc);
    }
  }
}
#endif

template <int kWidth, class Element>
void multiply_pairs(const Element* x, int64_t values, const int32_t* in, const uint8_t* out,
                    int number, const float* weight, int64_t weight_stride, float* sum,
                    int64_t sum_stride) {
#if SSCN_LANES == 16
  if constexpr (kWidth == 1) {
    multiply_narrow(x, values, in, out, number, weight, weight_stride, sum);
  } else
#endif
  {
    constexpr int kRows = tile_rows(kWidth);
    int done = 0;
    for (; done + kRows <= number; done += kRows)
      tile<kRows, kWidth>(x, values, in + done, out + done, weight, weight_stride, sum, sum_stride);
    if (done < number)
      remainder<kWidth>(number - done, std::make_integer_sequence<int, kRows - 1>{}, x, values,
                        in + done, out + done, weight, weight_stride, sum, sum_stride);
  }
}

template <class Element>
using PairsFunction = void (*)(const Element*, int64_t, const int32_t*, const uint8_t*, int,
                               const float*, int64_t, float*, int64_t);

template <class Element, int... kWidth>
PairsFunction<Element> pairs_function(int width, std::integer_sequence<int, kWidth...>) {
  static constexpr PairsFunction<Element> functions[] = {multiply_pairs<kWidth + 1, Element>...};
  return functions[width - 1];
}

template <class Element>
PairsFunction<Element> pairs_function(int width) {
  return pairs_function<Element>(width, std::make_integer_sequence<int, kWidest>{});
}

// The pairs of the identity: each row of a block with itself.
struct SamePairs {
  int32_t in[256];
  uint8_t out[256];
  SamePairs(int64_t first, int rows) {
    for (int i = 0; i < rows; ++i) {
      in[i] = static_cast<int32_t>(first + i);
      out[i] = static_cast<uint8_t>(i);
    }
  }
};

// Call visit(tap, in, out, number) for the pairs of a block, taps in ascending order.
template <class Visit>
inline void for_each_tap(const Pairs& pairs, int64_t block, int first_tap, int last_tap,
                         Visit&& visit) {
  const int64_t first = block * pairs.block;
  if (!pairs.out) {
    const int64_t left = pairs.rows - first;
    const int rows = static_cast<int>(left < pairs.block ? left : pairs.block);
    const SamePairs same(first, rows);
    visit(0, same.in, same.out, rows);
    return;
  }
  const int32_t* span = pairs.span + block * (pairs.taps + 1);
  const int32_t* in = pairs.in + first * pairs.taps;
  const uint8_t* out = pairs.out + first * pairs.taps;
  for (int tap = first_tap; tap < last_tap; ++tap)
    if (const int number = span[tap + 1] - span[tap])
      visit(tap, in + span[tap], out + span[tap], number);
}

// Convolve rows of x, and of a second source if there is one, and call
// finish(block, first row, rows, first column, vectors, accumulators) for the columns of each
// block.
template <class Element, class Finish>
void convolve_blocks(const Element* x, int x_values, const Element* skip, int skip_values,
                     const float* weight, int weight_stride, const Pairs& pairs, int threads,
                     Finish&& finish) {
  const int values = x_values + skip_values;
  const int vectors = weight_stride / kLanes;
  const int groups = (vectors + kWidest - 1) / kWidest;
  const int64_t blocks = pairs.blocks();
  const auto room = static_cast<size_t>(256) * kWidest * kLanes;
  float* all =
      workspace().accumulators.get<float>(room * static_cast<size_t>(threads < 1 ? 1 : threads));
  parallel_for(threads, blocks * groups, [&](int64_t task, int worker) {
    const int64_t block = task / groups;
    const int group = static_cast<int>(task % groups);
    const int from = vectors * group / groups, width = vectors * (group + 1) / groups - from;
    const int64_t first = block * pairs.block, left = pairs.rows - first;
    const int rows = static_cast<int>(left < pairs.block ? left : pairs.block);
    float* sum = all + static_cast<size_t>(worker) * room;
    const int64_t stride = width * kLanes;
    std::memset(sum, 0, static_cast<size_t>(rows * stride) * sizeof(float));
    const PairsFunction<Element> multiply = pairs_function<Element>(width);
    for_each_tap(
        pairs, block, 0, pairs.taps,
        [&](int tap, const int32_t* in, const uint8_t* out, int number) {
          const float* w = weight + static_cast<int64_t>(tap) * values * weight_stride;
          multiply(x, x_values, in, out, number, w + from * kLanes, weight_stride, sum, stride);
          if (skip)
            multiply(skip, skip_values, in, out, number,
                     w + x_values * weight_stride + from * kLanes, weight_stride, sum, stride);
        });
    finish(block, first, rows, from * kLanes, width, sum);
  });
}

// ---- inputs and weights in the format of tiles ------------------------------------------------

// Write rows leaky(scale * [x, skip] + shift) from `begin` up to `end` in a format.
template <class Format>
void activate(const Source& source, int64_t begin, int64_t end, typename Format::Element* to) {
  const int channels = source.channels(), stride = Format::elements(channels);
  const auto copy = [&](const float* from, int width, int offset) {
    const float* scale = source.scale ? source.scale + offset : nullptr;
    const float* shift = source.scale ? source.shift + offset : nullptr;
    for (int64_t i = begin; i < end; ++i) {
      const float* row = from + i * width;
      auto* target = to + (i - begin) * stride + offset;
      int c = 0;
      for (; c + kLanes <= width; c += kLanes) {
        Vector v = load(row + c);
        if (scale) v = leaky(load(scale + c) * v + load(shift + c), source.slope);
        Format::put(target + c, v);
      }
      for (; c < width; ++c) {
        const float v = scale ? scale[c] * row[c] + shift[c] : row[c];
        Format::put(target + c, scale ? leaky(v, source.slope) : v);
      }
    }
  };
  copy(source.x, source.x_channels, 0);
  if (source.skip) copy(source.skip, source.skip_channels, source.x_channels);
  if (stride > channels)
    for (int64_t i = begin; i < end; ++i) to[(i - begin) * stride + channels] = 0;
}

// Return the rows leaky(scale * [x, skip] + shift) in a format. They are written to scratch only if
// they differ from x.
template <class Format>
const typename Format::Element* gathered(const Source& source, int threads) {
  using Element = typename Format::Element;
  if (source.activated) return static_cast<const Element*>(source.activated);
  if constexpr (!Format::kRounds)
    if (!source.skip && !source.scale) return source.x;
  const int stride = Format::elements(source.channels());
  Scratch& room = workspace().input(source.reserved);
  auto* to = room.get<Element>(static_cast<size_t>(source.rows) * stride);
  constexpr int64_t kChunk = 512;
  parallel_for(threads, (source.rows + kChunk - 1) / kChunk, [&](int64_t chunk, int) {
    const int64_t begin = chunk * kChunk;
    const int64_t end = begin + kChunk < source.rows ? begin + kChunk : source.rows;
    activate<Format>(source, begin, end, to + begin * stride);
  });
  return to;
}

// Return rows padded with zeros to whole vectors; rows that need padding are copied to scratch.
const float* widened(const float* from, int64_t rows, int channels, Scratch& scratch, int threads) {
  const int wide = padded(channels);
  if (wide == channels) return from;
  float* to = scratch.get<float>(static_cast<size_t>(rows) * wide);
  constexpr int64_t kChunk = 512;
  parallel_for(threads, (rows + kChunk - 1) / kChunk, [&](int64_t chunk, int) {
    const int64_t end = (chunk + 1) * kChunk < rows ? (chunk + 1) * kChunk : rows;
    for (int64_t i = chunk * kChunk; i < end; ++i) {
      std::memcpy(to + i * wide, from + i * channels,
                  static_cast<size_t>(channels) * sizeof(float));
      std::memset(to + i * wide + channels, 0,
                  static_cast<size_t>(wide - channels) * sizeof(float));
    }
  });
  return to;
}

// Return the weights (taps, in, out) in the format of tiles: (taps, values, out padded).
template <class Format>
const float* packed(const float* weight, int taps, int channels, int out_channels, int threads) {
  const int wide = padded(out_channels), values = Format::values(channels);
  if (!Format::kRounds && wide == out_channels) return weight;
  float* to = workspace().packed.get<float>(static_cast<size_t>(taps) * values * wide);
  parallel_for(threads, taps, [&](int64_t tap, int) {
    for (int v = 0; v < values; ++v) {
      const int c = v * kChannels<typename Format::Element>;
      const float* first = weight + (tap * channels + c) * out_channels;
      const float* second = c + 1 < channels ? first + out_channels : nullptr;
      float* target = to + (tap * values + v) * wide;
      for (int o = 0; o < wide; o += kLanes) {
        const int columns = out_channels - o < kLanes ? out_channels - o : kLanes;
        store(target + o, Format::pack(load(first + o, columns),
                                       second ? load(second + o, columns) : Vector{}));
      }
    }
  });
  return to;
}

// Transpose kLanes x kLanes values in registers, by log2(kLanes) passes that interleave rows half
// the tile apart.
inline void transpose_tile(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
  typedef int Index __attribute__((vector_size(kLanes * sizeof(int))));
  Index low, high;
  for (int i = 0; i < kLanes; ++i) {
    low[i] = i / 2 + i % 2 * kLanes;
    high[i] = low[i] + kLanes / 2;
  }
  Vector rows[kLanes], mixed[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) rows[i] = load(from + i * from_stride);
#pragma GCC unroll 4
  for (int step = 1; step < kLanes; step *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
      mixed[2 * i] = __builtin_shuffle(rows[i], rows[i + kLanes / 2], low);
      mixed[2 * i + 1] = __builtin_shuffle(rows[i], rows[i + kLanes / 2], high);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) rows[i] = mixed[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) store(to + i * to_stride, rows[i]);
}

// Return the weights (taps, in, out) as (taps, out, in padded), taps in reverse if mirrored.
const float* transposed(const float* weight, int taps, int in_channels, int out_channels,
                        bool mirrored, int threads) {
  const int wide = padded(in_channels);
  const auto size = static_cast<size_t>(out_channels) * wide;
  float* to = workspace().weights.get<float>(static_cast<size_t>(taps) * size);
  parallel_for(threads, taps, [&](int64_t tap, int) {
    const int64_t source = mirrored ? taps - 1 - tap : tap;
    const float* from = weight + source * in_channels * out_channels;
    float* target = to + static_cast<size_t>(tap) * size;
    if (wide != in_channels) std::memset(target, 0, size * sizeof(float));
    for (int o = 0; o < out_channels; o += kLanes)
      for (int i = 0; i < in_channels; i += kLanes) {
        const float* tile = from + static_cast<int64_t>(i) * out_channels + o;
        if (o + kLanes <= out_channels && i + kLanes <= in_channels) {
          transpose_tile(tile, out_channels, target + o * wide + i, wide);
          continue;
        }
        for (int a = 0; a < kLanes && o + a < out_channels; ++a)
          for (int b = 0; b < kLanes && i + b < in_channels; ++b)
            target[(o + a) * wide + i + b] = tile[b * out_channels + a];
      }
  });
  return to;
}

// Add the partial sums of all blocks, (blocks, 2, channels), in order.
void add_up(const double* partial, int64_t blocks, int channels, double* sums) {
  std::memset(sums, 0, static_cast<size_t>(2 * channels) * sizeof(double));
  for (int64_t b = 0; b < blocks; ++b)
    for (int c = 0; c < 2 * channels; ++c) sums[c] += partial[b * 2 * channels + c];
}

// Two sums over the rows of a block for some columns, in float, which are then stored as doubles.
struct ColumnSums {
  float first[kWidest * kLanes], second[kWidest * kLanes];
  ColumnSums() : first{}, second{} {}

  void add(int column, Vector a, Vector b) {
    store(first + column, load(first + column) + a);
    store(second + column, load(second + column) + b);
  }

  void write(double* partial, int channels, int from, int columns) const {
    for (int c = 0; c < columns && from + c < channels; ++c) {
      partial[from + c] = first[c];
      partial[channels + from + c] = second[c];
    }
  }
};

}  // namespace

// ---- the three convolutions -------------------------------------------------------------------

namespace {

template <class Format>
const void* convolve_in(const Source& source, const float* weight, int out_channels,
                        const Pairs& pairs, const float* residual, float* out, double* sums,
                        const NextInput& next, int threads) {
  using Element = typename Format::Element;
  const int channels = source.channels();
  const float* w = packed<Format>(weight, pairs.taps, channels, out_channels, threads);
  double* partial = nullptr;
  if (sums)
    partial = workspace().sums.get<double>(static_cast<size_t>(pairs.blocks()) * 2 * out_channels);
  Element* active = nullptr;
  const int stride = Format::elements(out_channels);
  const auto finish = [&](int64_t block, int64_t first, int rows, int from, int width,
                          const float* acc) {
    const bool raw = !active || !next.sole_consumer;
    ColumnSums block_sums;
    for (int i = 0; i < rows; ++i) {
      float* to = out + (first + i) * out_channels;
      const float* added = residual ? residual + (first + i) * out_channels : nullptr;
      Element* ahead = active ? active + (first + i) * stride : nullptr;
      for (int j = 0; j < width; ++j) {
        Vector v = load(acc + (i * width + j) * kLanes);
        const int column = from + j * kLanes, left = out_channels - column;
        if (left >= kLanes) {
          if (added) v += load(added + column);
          if (raw) store(to + column, v);
          if (ahead) {
            const Vector scaled = load(next.scale + column) * v + load(next.shift + column);
            Format::put(ahead + column, leaky(scaled, next.slope));
          }
        } else {
          float values[kLanes] = {};
          store(values, v);
          for (int k = 0; k < left; ++k) {
            const int c = column + k;
            if (added) values[k] += added[c];
            if (raw) to[c] = values[k];
            if (!ahead) continue;
            const float a = next.scale[c] * values[k] + next.shift[c];
            Format::put(ahead + c, leaky(a, next.slope));
          }
          if (ahead && stride > out_channels) ahead[out_channels] = 0;
          v = load(values);
        }
        if (partial) block_sums.add(j * kLanes, v, v * v);
      }
    }
    if (partial)
      block_sums.write(partial + block * 2 * out_channels, out_channels, from, width * kLanes);
  };
  const auto blocks = [&](const Element* x, int x_values, const Element* skip, int skip_values) {
    Scratch& room = workspace().input(x);
    if (next.scale) active = room.get<Element>(static_cast<size_t>(pairs.rows) * stride);
    convolve_blocks(x, x_values, skip, skip_values, w, padded(out_channels), pairs, threads,
                    finish);
  };
  bool in_place = false;  // two sources that are read without being joined
  if constexpr (!Format::kRounds) {
    in_place = source.skip && !source.scale;
    if (in_place) blocks(source.x, source.x_channels, source.skip, source.skip_channels);
  }
  if (!in_place) blocks(gathered<Format>(source, threads), Format::values(channels), nullptr, 0);
  if (sums) add_up(partial, pairs.blocks(), out_channels, sums);
  return active;
}

}  // namespace

const void* convolve(Source source, const float* weight, int out_channels, Pairs pairs,
                     Products products, const float* residual, float* out, double* sums,
                     NextInput next, int threads) {
  const auto function =
      products == Products::kFloat32 ? convolve_in<Float32> : convolve_in<Bfloat16>;
  return function(source, weight, out_channels, pairs, residual, out, sums, next, threads);
}

namespace {

template <class Format>
void input_gradient_in(const float* grad, int64_t grad_rows, int grad_channels, const float* weight,
                       const Pairs& back, bool mirrored, const Source& source, const float* carried,
                       const float* carried_skip, float* to_x, float* to_skip, double* sums,
                       int threads) {
  const int channels = source.channels(), split = source.x_channels, wide = padded(channels);
  const float* w =
      packed<Format>(transposed(weight, back.taps, channels, grad_channels, mirrored, threads),
                     back.taps, grad_channels, wide, threads);
  const Source flow{grad, nullptr, grad_rows, grad_channels, 0, nullptr, nullptr, 0};
  double* partial = nullptr;
  if (sums)
    partial = workspace().sums.get<double>(static_cast<size_t>(back.blocks()) * 2 * channels);
  convolve_blocks<typename Format::Element>(
      gathered<Format>(flow, threads), Format::values(grad_channels), nullptr, 0, w, wide, back,
      threads, [&](int64_t block, int64_t first, int rows, int from, int width, const float* acc) {
        ColumnSums block_sums;
        for (int j = 0; j < width; ++j) {
          const int column = from + j * kLanes;
          const bool within_x = column + kLanes <= split;
          const bool within_skip = column >= split && column + kLanes <= channels;
          for (int i = 0; i < rows; ++i) {
            const int64_t row = first + i;
            const Vector v = load(acc + (i * width + j) * kLanes);
            if (within_x || within_skip) {
              const int64_t at =
                  within_x ? row * split + column : row * source.skip_channels + column - split;
              float* to = (within_x ? to_x : to_skip) + at;
              const float* added = within_x ? carried : carried_skip;
              const Vector more = added ? load(added + at) : Vector{};
              if (!source.scale) {
                store(to, v + more);
                continue;
              }
              const Vector x = load((within_x ? source.x : source.skip) + at);
              const Vector scale = load(source.scale + column);
              const Vector normed = scale * x + load(source.shift + column);
              const Vector g = normed > 0 ? v : source.slope * v;
              store(to, scale * g + more);
              block_sums.add(j * kLanes, g * x, g);
              continue;
            }
            float values[kLanes], products[kLanes] = {}, passed[kLanes] = {};
            store(values, v);
            for (int k = 0; k < kLanes && column + k < channels; ++k) {
              const int c = column + k;
              const int64_t at =
                  c < split ? row * split + c : row * source.skip_channels + c - split;
              float& to = (c < split ? to_x : to_skip)[at];
              const float* added = c < split ? carried : carried_skip;
              const float more = added ? added[at] : 0;
              to = values[k] + more;
              if (!source.scale) continue;
              const float x = (c < split ? source.x : source.skip)[at];
              const bool positive = source.scale[c] * x + source.shift[c] > 0;
              const float g = positive ? values[k] : source.slope * values[k];
              to = source.scale[c] * g + more;
              products[k] = g * x;
              passed[k] = g;
            }
            if (source.scale) block_sums.add(j * kLanes, load(products), load(passed));
          }
        }
        if (partial)
          block_sums.write(partial + block * 2 * channels, channels, from, width * kLanes);
      });
  if (sums) add_up(partial, back.blocks(), channels, sums);
}

}  // namespace

void input_gradient(const float* grad, int64_t grad_rows, int grad_channels, const float* weight,
                    Pairs back, bool mirrored, Products products, Source source,
                    const float* carried, const float* carried_skip, float* to_x, float* to_skip,
                    double* sums, int threads) {
  const auto function =
      products == Products::kFloat32 ? input_gradient_in<Float32> : input_gradient_in<Bfloat16>;
  function(grad, grad_rows, grad_channels, weight, back, mirrored, source, carried, carried_skip,
           to_x, to_skip, sums, threads);
}

// ---- weight gradients -------------------------------------------------------------------------

namespace {

// Addresses of the two rows of each pair, computed once for all tiles that read them.
struct ListedRows {
  const float* x[256];
  const float* grad[256];
};

// The same addresses computed in the loop, which is faster if only one tile reads them.
struct NarrowRows {
  struct {
    const float* first;
    const uint8_t* rows;
    const float* operator[](int64_t p) const { return first + rows[p] * 16; }
  } x;
  struct {
    const float* first;
    const int32_t* rows;
    const float* operator[](int64_t p) const { return first + rows[p] * int64_t{16}; }
  } grad;
};

// Add the outer products of pairs to kRows x kWidth vectors of a tap's gradient. The vectors are
// contiguous, so that their offsets are constants.
template <int kRows, int kWidth, class Rows>
inline void outer(const Rows& rows, int64_t first, int number, float* to) {
  Vector acc[kRows][kWidth];
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 8
    for (int j = 0; j < kWidth; ++j) acc[m][j] = load(to + (m * kWidth + j) * kLanes);
  int64_t p = 0;
  do {
    const float* row = rows.x[p] + first;
    const float* g = rows.grad[p];
    asm("" : "+r"(row));  // a plain pointer, as in the convolution
    Vector v[kWidth];
#pragma GCC unroll 8
    for (int j = 0; j < kWidth; ++j) v[j] = load(g + j * kLanes);
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 8
      for (int j = 0; j < kWidth; ++j) acc[m][j] += v[j] * row[m];
  } while (++p < number);
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 8
    for (int j = 0; j < kWidth; ++j) store(to + (m * kWidth + j) * kLanes, acc[m][j]);
}

using OuterTile = void (*)(const ListedRows&, int64_t, int, float*);

template <int kWidth, int... kRows>
OuterTile outer_tile(int rows, std::integer_sequence<int, kRows...>) {
  static constexpr OuterTile functions[] = {outer<kRows + 1, kWidth, ListedRows>...};
  return functions[rows - 1];
}

template <int kWidth>
void outer_products(const ListedRows& rows, int64_t channels, int number, float* to) {
  constexpr int kRows = gradient_rows(kWidth);
  const int64_t parts = (channels + kRows - 1) / kRows;  // of about the same height
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t c = channels * part / parts;
    const int height = static_cast<int>(channels * (part + 1) / parts - c);
    outer_tile<kWidth>(height, std::make_integer_sequence<int, kRows>{})(rows, c, number,
                                                                         to + c * kWidth * kLanes);
  }
}

using OuterFunction = void (*)(const ListedRows&, int64_t, int, float*);

template <int... kWidth>
OuterFunction outer_function(int width, std::integer_sequence<int, kWidth...>) {
  static constexpr OuterFunction functions[] = {outer_products<kWidth + 1>...};
  return functions[width - 1];
}

// Return the number of groups into which rows are divided. Each group has its own sum; the number
// depends on the rows only, so that results do not depend on threads.
int64_t groups_of(int64_t rows) {
  constexpr int64_t kGroupRows = 2048, kMostGroups = 16;
  const int64_t wanted = (rows + kGroupRows - 1) / kGroupRows;
  return wanted < 1 ? 1 : wanted < kMostGroups ? wanted : kMostGroups;
}

}  // namespace

void weight_gradient(Source source, const float* grad, int64_t grad_rows, int grad_channels,
                     Pairs back, bool mirrored, float* out, int threads) {
  const int channels = source.channels(), stride = padded(grad_channels), taps = back.taps;
  const int vectors = stride / kLanes, parts = (vectors + kWidest - 1) / kWidest;
  const float* g = widened(grad, grad_rows, grad_channels, workspace().gradient, threads);
  const int64_t blocks = back.blocks(), groups = groups_of(back.rows);
  const auto tap_size = static_cast<size_t>(channels) * stride;
  const bool direct = groups == 1 && parts == 1 && stride == grad_channels;
  float* partial = direct ? out : workspace().partial.get<float>(groups * taps * tap_size);
  // A task is a group or, if there are few groups, one tap of a group. Few groups share one copy of
  // the input rows; many groups each copy one block at a time, which stays in the cache.
  const bool alone = groups >= 8;
  const int64_t sets = alone ? 1 : taps;
  constexpr int64_t kCache = 16 << 10;  // bytes that a run of pairs reads again for each tile
  const int64_t pair_bytes = 4 * (channels + stride);
  const int most = static_cast<int>(kCache / pair_bytes < 8 ? 8 : kCache / pair_bytes);
  const auto room = static_cast<size_t>(back.block) * channels;
  const bool shares = !alone || (!source.skip && !source.scale);
  const float* shared = shares ? gathered<Float32>(source, threads) : nullptr;
  float* copies = nullptr;
  if (!shares)
    copies =
        workspace().inputs[0].get<float>(room * static_cast<size_t>(threads < 1 ? 1 : threads));
  parallel_for(threads, groups * sets, [&](int64_t task, int worker) {
    const int64_t group = task / sets, set = task % sets;
    const int first_tap = static_cast<int>(taps * set / sets);
    const int last_tap = static_cast<int>(taps * (set + 1) / sets);
    float* mine = partial + group * taps * tap_size;
    const int first_sum = mirrored ? taps - last_tap : first_tap;
    std::memset(mine + first_sum * tap_size, 0, (last_tap - first_tap) * tap_size * sizeof(float));
    const int64_t begin = blocks * group / groups, end = blocks * (group + 1) / groups;
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = b * back.block, after = first + back.block;
      const float* x = shared + first * channels;
      if (!shares) {
        float* copy = copies + static_cast<size_t>(worker) * room;
        activate<Float32>(source, first, after < back.rows ? after : back.rows, copy);
        x = copy;
      }
      for_each_tap(back, b, first_tap, last_tap,
                   [&](int tap, const int32_t* in, const uint8_t* rows, int number) {
                     float* sums = mine + (mirrored ? taps - 1 - tap : tap) * tap_size;
                     if constexpr (kLanes == 16)
                       if (channels == 16 && stride == 16)
                         return outer<16, 1>(NarrowRows{{x, rows}, {g, in}}, 0, number, sums);
                     for (int done = 0; done < number; done += most) {
                       const int run = number - done < most ? number - done : most;
                       for (int part = 0; part < parts; ++part) {
                         const int column = vectors * part / parts;
                         const int width = vectors * (part + 1) / parts - column;
                         ListedRows where;
                         for (int p = 0; p < run; ++p) {
                           where.x[p] = x + rows[done + p] * static_cast<int64_t>(channels);
                           where.grad[p] =
                               g + in[done + p] * static_cast<int64_t>(stride) + column * kLanes;
                         }
                         outer_function(width, std::make_integer_sequence<int, kWidest>{})(
                             where, channels, run, sums + column * kLanes * channels);
                       }
                     }
                   });
    }
  });
  if (direct) return;
  parallel_for(threads, taps, [&](int64_t tap, int) {
    for (int part = 0; part < parts; ++part) {
      const int first = vectors * part / parts * kLanes;
      const int wide = vectors * (part + 1) / parts * kLanes - first;
      const int columns = grad_channels - first < wide ? grad_channels - first : wide;
      for (int c = 0; c < channels; ++c)
        for (int o = 0; o < columns; o += kLanes) {
          const float* from = partial + tap * tap_size + first * channels + c * wide + o;
          Vector sum = load(from);
          for (int64_t group = 1; group < groups; ++group)
            sum += load(from + group * taps * tap_size);
          float* to = out + (tap * channels + c) * grad_channels + first + o;
          if (o + kLanes <= columns)
            store(to, sum);
          else
            std::memcpy(to, &sum, static_cast<size_t>(columns - o) * sizeof(float));
        }
    }
  });
}

void statistics_gradient(const float* grad, const float* out, const double* grad_sums, int64_t rows,
                         int channels, float* result, int threads) {
  float* factor = workspace().sums.get<float>(static_cast<size_t>(2 * channels));
  for (int c = 0; c < channels; ++c) {
    factor[c] = static_cast<float>(grad_sums[c]);
    factor[channels + c] = static_cast<float>(2 * grad_sums[channels + c]);
  }
  constexpr int64_t kChunk = 512;
  parallel_for(threads, (rows + kChunk - 1) / kChunk, [&](int64_t chunk, int) {
    const int64_t end = (chunk + 1) * kChunk < rows ? (chunk + 1) * kChunk : rows;
    for (int64_t i = chunk * kChunk; i < end; ++i) {
      const int64_t row = i * channels;
      int c = 0;
      for (; c + kLanes <= channels; c += kLanes)
        store(result + row + c, load(grad + row + c) + load(factor + c) +
                                    load(factor + channels + c) * load(out + row + c));
      for (; c < channels; ++c)
        result[row + c] = grad[row + c] + factor[c] + factor[channels + c] * out[row + c];
    }
  });
}

namespace {

template <typename Number>
double multiply_and_add(int64_t rounds, int threads) {
  constexpr int kChains = 12, kNumbers = kLanes * sizeof(float) / sizeof(Number);
  typedef Number Numbers __attribute__((vector_size(kLanes * sizeof(float))));
  parallel_for(threads, threads, [&](int64_t, int) {
    const Numbers factor = Number(0.999) - Numbers{}, addend = Number(0.001) - Numbers{};
    Numbers sum[kChains];
    for (int i = 0; i < kChains; ++i) sum[i] = addend;
    for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
      for (int i = 0; i < kChains; ++i) sum[i] = sum[i] * factor + addend;
    }
    volatile Number kept = 0;
    for (int i = 0; i < kChains; ++i) kept = kept + sum[i][0];
  });
  return 2.0 * kNumbers * kChains * static_cast<double>(rounds) * threads;
}

}  // namespace

double peak(int64_t rounds, bool doubles, int threads) {
  return doubles ? multiply_and_add<double>(rounds, threads)
                 : multiply_and_add<float>(rounds, threads);
}

}  // namespace sscn::SSCN_TARGET

namespace sscn {

#define SSCN_JOIN_(a, b) a##b
#define SSCN_JOIN(a, b) SSCN_JOIN_(a, b)
#define SSCN_TEXT_(a) #a
#define SSCN_TEXT(a) SSCN_TEXT_(a)

const Engine SSCN_JOIN(engine_, SSCN_TARGET) = {
    SSCN_TEXT(SSCN_TARGET),
    SSCN_TARGET::sort_sites,
    SSCN_TARGET::connect,
    SSCN_TARGET::coarsen,
    SSCN_TARGET::connect_down,
    SSCN_TARGET::connect_up,
    SSCN_TARGET::convolve,
    SSCN_TARGET::input_gradient,
    SSCN_TARGET::weight_gradient,
    SSCN_TARGET::statistics_gradient,
    SSCN_TARGET::peak,
};

}  // namespace sscn
