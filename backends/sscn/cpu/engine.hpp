// What every instruction set provides, and the arguments that its functions share.
#pragma once

#include <cstdint>

namespace sscn {

// Rows of an output are cut into blocks; a block's pairs are listed tap after tap.
struct Pairs {
  const int32_t* in;    // input row of each pair; block b starts at b * block * taps
  const uint8_t* out;   // output row within the block; null for the identity with one tap
  const int32_t* span;  // (blocks, taps + 1) where each tap's pairs start within the block
  int64_t rows;
  int taps;
  int block;  // output rows a block, at most 256

  int64_t blocks() const { return (rows + block - 1) / block; }
};

// What rows and weights are rounded to before they are multiplied.
enum class Products : int { kFloat32, kBfloat16 };

// An input relu(scale * [x, skip] + shift); skip, and scale with shift, may be null. `active` is
// where its rows lie already, if they do, rounded as the convolution wants them; `waiting` where
// those of a later one do.
struct Source {
  const float* x;
  const float* skip;
  int64_t rows;
  int x_channels;
  int skip_channels;
  const float* scale;
  const float* shift;
  const void* active = nullptr;
  const void* waiting = nullptr;

  int channels() const { return x_channels + skip_channels; }
};

// What the next convolution makes of the rows that one writes, relu(scale * out + shift), where
// scale is not null; `alone` if nobody else reads them.
struct Next {
  const float* scale = nullptr;
  const float* shift = nullptr;
  bool alone = false;
};

// How sites are numbered: `bits` an axis interleaved below the batch index.
struct Numbering {
  int dim;
  int bits;
};

struct Engine {
  const char* name;

  // Sort sites (rows, 1 + dim) by key. Returns -1, or the row of a site outside the volume, or
  // rows + the row of a site given before.
  int64_t (*sort_sites)(const int32_t* sites, int64_t rows, Numbering numbering, int64_t size,
                        int64_t* keys, int64_t* order, int threads);

  // List the pairs of an odd, centred kernel between two sorted sets of keys.
  void (*connect)(const int64_t* keys_in, int64_t rows_in, const int64_t* keys_out,
                  int64_t rows_out, Numbering numbering, int kernel_size, int block, int32_t* in,
                  uint8_t* out, int32_t* span, int threads);

  // Write the parents' keys and the first child of each; returns their number.
  int64_t (*coarsen)(const int64_t* keys, int64_t rows, int dim, int64_t* coarse, int32_t* first);

  // List the pairs from children to parents (down), and from parents to children (up).
  void (*connect_down)(const int64_t* keys, int64_t rows, const int32_t* first, int64_t parents,
                       int dim, int block, int32_t* in, uint8_t* out, int32_t* span, int threads);
  void (*connect_up)(const int64_t* keys, int64_t rows, const int32_t* first, int64_t parents,
                     int dim, int block, int32_t* in, uint8_t* out, int32_t* span, int threads);

  // sums is (2, C_out) or null. Returns the rows of the next convolution's input, if that is
  // known; they stay there until that one has run, if those between are told of them.
  const void* (*convolve)(Source source, const float* weight, int out_channels, Pairs pairs,
                          Products products, const float* residual, float* out, double* sums,
                          Next next, int threads);

  // `source` is the convolution's input, whose gradient is wanted; sums is (2, C_in) or null.
  // `carried` and `carried_skip`, if there, are added to to_x and to_skip.
  void (*input_gradient)(const float* grad, int64_t grad_rows, int grad_channels,
                         const float* weight, Pairs back, bool mirrored, Products products,
                         Source source, const float* carried, const float* carried_skip,
                         float* to_x, float* to_skip, double* sums, int threads);

  void (*weight_gradient)(Source source, const float* grad, int64_t grad_rows, int grad_channels,
                          Pairs back, bool mirrored, float* out, int threads);

  void (*statistics_gradient)(const float* grad, const float* out, const double* grad_sums,
                              int64_t rows, int channels, float* result, int threads);

  // Multiply and add floats or doubles in registers alone; returns the number of floating-point
  // operations. Timed from outside, it is the peak that convolutions are compared with.
  double (*peak)(int64_t rounds, bool doubles, int threads);
};

extern const Engine engine_portable;
extern const Engine engine_avx2;
extern const Engine engine_avx512;
extern const Engine engine_avx512_bf16;

}  // namespace sscn
