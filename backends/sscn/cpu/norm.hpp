// Folding of batch normalisation: a few channels in double, the same code for all instruction sets.
#pragma once

#include <cmath>
#include <cstdint>

namespace sscn {

// Compute scale and shift from sums (2, channels) over rows, write mean and inverse deviation to
// moments, whose two rows are `stride` apart, and update the running statistics.
inline void fold(const double* sums, const float* weight, const float* bias, float* running_mean,
                 float* running_var, int64_t rows, int channels, double eps, double momentum,
                 float* scale, float* shift, double* moments, int stride) {
  const auto number = static_cast<double>(rows);
  for (int c = 0; c < channels; ++c) {
    const double mean = sums[c] / number;
    const double spread = sums[channels + c] / number - mean * mean;
    const double variance = spread > 0 ? spread : 0;
    const double inverse = 1 / std::sqrt(variance + eps);
    scale[c] = static_cast<float>(weight[c] * inverse);
    shift[c] = static_cast<float>(bias[c] - mean * weight[c] * inverse);
    moments[c] = mean;
    moments[stride + c] = inverse;
    const double unbiased = variance * number / (number - 1);
    running_mean[c] += static_cast<float>(momentum * (mean - running_mean[c]));
    running_var[c] += static_cast<float>(momentum * (unbiased - running_var[c]));
  }
}

// Propagate the gradients of scale and shift to weight, bias and the sums (2, channels); if `more`,
// the latter are added to `to_sums`. The rows of to_norm and moments are `stride` apart.
inline void fold_gradient(const double* to_norm, const float* weight, const double* moments,
                          int64_t rows, int channels, int stride, double* to_sums, bool more,
                          float* to_weight, float* to_bias) {
  const auto number = static_cast<double>(rows);
  for (int c = 0; c < channels; ++c) {
    const double mean = moments[c], inverse = moments[stride + c];
    const double to_shift = to_norm[stride + c];
    const double by_weight = (to_norm[c] - to_shift * mean) * inverse;
    // The variance enters through inverse = (variance + eps)^(-1/2).
    const double by_square = by_weight * weight[c] * inverse * inverse * -0.5 / number;
    const double by_sum = -to_shift * weight[c] * inverse / number - 2 * mean * by_square;
    to_sums[c] = (more ? to_sums[c] : 0) + by_sum;
    to_sums[channels + c] = (more ? to_sums[channels + c] : 0) + by_square;
    to_weight[c] = static_cast<float>(by_weight);
    to_bias[c] = static_cast<float>(to_shift);
  }
}

}  // namespace sscn
