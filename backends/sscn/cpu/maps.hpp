// The functions of maps.cpp, once for each instruction set; Engine describes them.
#pragma once

#include "engine.hpp"

namespace sscn::SSCN_TARGET {

int64_t sort_sites(const int32_t* sites, int64_t rows, Numbering numbering, int64_t size,
                   int64_t* keys, int64_t* order, int threads);
void connect(const int64_t* keys_in, int64_t rows_in, const int64_t* keys_out, int64_t rows_out,
             Numbering numbering, int kernel_size, int block, int32_t* in, uint8_t* out,
             int32_t* span, int threads);
int64_t coarsen(const int64_t* keys, int64_t rows, int dim, int64_t* coarse, int32_t* first);
void connect_down(const int64_t* keys, int64_t rows, const int32_t* first, int64_t parents, int dim,
                  int block, int32_t* in, uint8_t* out, int32_t* span, int threads);
void connect_up(const int64_t* keys, int64_t rows, const int32_t* first, int64_t parents, int dim,
                int block, int32_t* in, uint8_t* out, int32_t* span, int threads);

}  // namespace sscn::SSCN_TARGET
