// Temporary memory of a kernel.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>

namespace sscn {
namespace {

// One aligned, uninitialised allocation that grows on demand.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(memory_); }

  template <class T>
  T* get(size_t number) {
    const size_t wanted = (number * sizeof(T) + 63) / 64 * 64 + 64;
    if (wanted > capacity_) {
      std::free(memory_);
      capacity_ = 0;
      memory_ = std::aligned_alloc(64, wanted);
      if (!memory_) throw std::bad_alloc();
      capacity_ = wanted;
    }
    return static_cast<T*>(memory_);
  }

  bool holds(const void* memory) const { return memory && memory == memory_; }

 private:
  void* memory_ = nullptr;
  size_t capacity_ = 0;
};

}  // namespace
}  // namespace sscn
