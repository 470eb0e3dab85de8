// Arrays of a plan in one block of memory, for the kernels of the CPU and of the GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

namespace sscn {

// Bytes of an array, and the first and the last step that uses it.
struct Lifetime {
  int64_t bytes;
  int64_t first;
  int64_t last;
};

struct Placement {
  std::vector<int64_t> offsets;
  int64_t total = 0;
};

// An array takes the smallest free place that is large enough; its place is free again after the
// last step that uses it.
inline Placement place(const std::vector<Lifetime>& arrays, int64_t alignment) {
  Placement found;
  found.offsets.resize(arrays.size());
  std::vector<int64_t> sizes(arrays.size());
  std::multimap<int64_t, int64_t> free;         // size to offset
  std::multimap<int64_t, size_t> begins, ends;  // step to array
  for (size_t i = 0; i < arrays.size(); ++i) begins.emplace(arrays[i].first, i);
  for (const auto& [step, i] : begins) {
    while (!ends.empty() && ends.begin()->first < step) {
      const size_t ended = ends.begin()->second;
      free.emplace(sizes[ended], found.offsets[ended]);
      ends.erase(ends.begin());
    }
    const int64_t wanted = (arrays[i].bytes + alignment - 1) / alignment * alignment;
    const auto fitting = free.lower_bound(wanted);
    if (fitting == free.end()) {
      found.offsets[i] = found.total;
      sizes[i] = wanted;
      found.total += wanted;
    } else {
      found.offsets[i] = fitting->second;
      sizes[i] = fitting->first;
      free.erase(fitting);
    }
    ends.emplace(arrays[i].last, i);
  }
  return found;
}

}  // namespace sscn
