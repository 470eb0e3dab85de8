// The functions that each instruction set provides, and the types of their arguments.
#pragma once

#include <cstdint>

namespace sscn {

// A gather map: for each output row and tap, the input row that the tap reads. Output rows are
// divided into blocks; the pairs (input row, output row) of a block are listed tap after tap.
struct Pairs {
  const int32_t* in;    // input row of each pair; block b starts at b * block * taps
  const uint8_t* out;   // output row within the block; null for the identity with one tap
  const int32_t* span;  // (blocks, taps + 1): where the pairs of each tap start within the block
  int64_t rows;         // output rows
  int taps;
  int block;  // output rows per block, at most 256

  int64_t blocks() const { return (rows + block - 1) / block; }
};

// The type to which rows and weights are rounded before they are multiplied.
enum class Products : int { kFloat32, kBfloat16 };

// The input of a convolution: leaky(scale * [x, skip] + shift), where leaky multiplies negative
// values by `slope`. `skip` may be null, and so may `scale` together with `shift`.
struct Source {
  const float* x;
  const float* skip;
  int64_t rows;
  int x_channels;
  int skip_channels;
  const float* scale;
  const float* shift;
  float slope;
  // The rows of this input if an earlier convolution has computed and rounded them, else null.
  const void* activated = nullptr;
  // Rows of a later convolution's input that this one must not overwrite, or null.
  const void* reserved = nullptr;

  int channels() const { return x_channels + skip_channels; }
};

// The input that a later convolution computes from the rows that this one writes,
// leaky(scale * out + shift); `scale` is null if there is no such convolution.
struct NextInput {
  const float* scale = nullptr;
  const float* shift = nullptr;
  float slope = 0;
  bool sole_consumer = false;  // nothing else reads the rows, so they need not be stored
};

// The numbering of sites: `bits` per axis, interleaved below the batch index (Morton order).
struct Numbering {
  int dim;
  int bits;
};

struct Engine {
  const char* name;

  // Sort sites (rows, 1 + dim) by key. Returns -1 on success, the row of a site outside of the
  // volume, or `rows` plus the row of a duplicate site.
  int64_t (*sort_sites)(const int32_t* sites, int64_t rows, Numbering numbering, int64_t size,
                        int64_t* keys, int64_t* order, int threads);

  // List the pairs of an odd, centred kernel between two sorted sets of keys.
  void (*connect)(const int64_t* keys_in, int64_t rows_in, const int64_t* keys_out,
                  int64_t rows_out, Numbering numbering, int kernel_size, int block, int32_t* in,
                  uint8_t* out, int32_t* span, int threads);

  // Write the keys of the parents and the first child of each; returns the number of parents.
  int64_t (*coarsen)(const int64_t* keys, int64_t rows, int dim, int64_t* coarse, int32_t* first);

  // List the pairs from children to parents (down), and from parents to children (up).
  void (*connect_down)(const int64_t* keys, int64_t rows, const int32_t* first, int64_t parents,
                       int dim, int block, int32_t* in, uint8_t* out, int32_t* span, int threads);
  void (*connect_up)(const int64_t* keys, int64_t rows, const int32_t* first, int64_t parents,
                     int dim, int block, int32_t* in, uint8_t* out, int32_t* span, int threads);

  // `sums` is (2, C_out) or null. Returns the rows of the input described by `next`, or null if
  // there is none. They stay valid until the convolution that uses them has run, provided that
  // convolutions in between get them as `source.reserved`.
  const void* (*convolve)(Source source, const float* weight, int out_channels, Pairs pairs,
                          Products products, const float* residual, float* out, double* sums,
                          NextInput next, int threads);

  // `source` is the input of the convolution, `sums` (2, C_in) or null. `added_x` and `added_skip`
  // are added to `to_x` and `to_skip` unless they are null.
  void (*input_gradient)(const float* grad, int64_t grad_rows, int grad_channels,
                         const float* weight, Pairs back, bool mirrored, Products products,
                         Source source, const float* added_x, const float* added_skip, float* to_x,
                         float* to_skip, double* sums, int threads);

  void (*weight_gradient)(Source source, const float* grad, int64_t grad_rows, int grad_channels,
                          Pairs back, bool mirrored, float* out, int threads);

  void (*statistics_gradient)(const float* grad, const float* out, const double* grad_sums,
                              int64_t rows, int channels, float* result, int threads);

  // Run multiply-adds of floats or doubles in registers, and return the number of floating-point
  // operations. Convolutions are compared with this peak rate.
  double (*peak)(int64_t rounds, bool doubles, int threads);
};

extern const Engine engine_portable;
extern const Engine engine_avx2;
extern const Engine engine_avx512;
extern const Engine engine_avx512_bf16;

}  // namespace sscn
