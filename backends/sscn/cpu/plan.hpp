// Passes that are planned once: the instructions of a network, of which only some words depend on
// the event. A planned pass builds all maps and runs all layers in one call from Python.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "placement.hpp"
#include "program.hpp"
#include "scratch.hpp"

namespace sscn {
namespace {

// Return the output rows per block of a gather map; few rows have smaller blocks, which occupy all
// threads.
int block_rows(int64_t rows) { return rows >= 8192 ? 256 : rows >= 2048 ? 128 : 64; }

// A gather map of the plan. A kernel size above 1 is that of a submanifold convolution of the
// level, 1 is the identity; 0 gathers from the level to the next coarser one, -1 from that one to
// the level.
struct PlannedMap {
  int64_t level;
  int64_t kernel_size;
};

// An array that instructions share: its size, and the first and the last instruction that use it.
struct PlannedArray {
  int64_t level;  // -1 if the size does not depend on the batch
  int64_t bytes;  // per row of the level, or in all
  int64_t first;
  int64_t last;
};

// What a word of an instruction stands for.
enum class Meaning : int64_t {
  kRows,   // the rows of level `index`
  kSize,   // the rows of level `index` times `offset`
  kPairs,  // this and the next five words: the gather map `index`
  kArray,  // the address of array `index`, plus `offset` bytes
  kSaved,  // in a backward pass: that of array `index` of the forward pass, plus `offset` bytes
  kGiven,  // address `index` of those given to the pass, plus `offset` bytes
};

struct Reference {
  int64_t word;  // position in the words of all instructions
  Meaning meaning;
  int64_t index;
  int64_t offset;
};

// Instructions, and the words among them that depend on the batch.
struct Program {
  std::vector<int64_t> words;
  std::vector<Reference> references;
  std::vector<PlannedArray> arrays;
};

// A forward pass and, in training, the backward pass that belongs to it.
struct Plan {
  Program forward;
  Program backward;
  std::vector<PlannedMap> maps;
  int64_t levels;
  int dim;
};

// The gather maps of a plan on the sites of a batch.
class PlannedMaps {
 public:
  PlannedMaps(const Engine& engine, const Plan& plan, const int64_t* keys, int64_t rows,
              int64_t spatial_size, int threads) {
    std::vector<Level> levels(static_cast<size_t>(plan.levels));
    std::vector<std::unique_ptr<Scratch>> coarser;
    for (Level& level : levels) {
      level.keys = keys;
      level.numbering = {plan.dim, bits_of(spatial_size)};
      rows_.push_back(rows);
      if (&level == &levels.back()) break;
      const auto number = static_cast<size_t>(rows);
      coarser.push_back(std::make_unique<Scratch>());
      auto* memory = coarser.back()->get<int64_t>(number + (number + 1) / 2);
      level.first = reinterpret_cast<int32_t*>(memory + rows);
      rows = engine.coarsen(keys, rows, plan.dim, memory, level.first);
      keys = memory;
      spatial_size = (spatial_size + 1) / 2;
    }
    int64_t bytes = 0;
    for (const PlannedMap& map : plan.maps) bytes += size_of(map, plan.dim);
    auto* memory = memory_.get<char>(static_cast<size_t>(bytes));
    for (const PlannedMap& map : plan.maps) {
      pairs_.push_back(lay_out(map, plan.dim, memory));
      memory += size_of(map, plan.dim);
      build(engine, map, levels, pairs_.back(), threads);
    }
  }

  int64_t rows(int64_t level) const { return rows_[static_cast<size_t>(level)]; }
  int64_t fewest_rows() const { return rows_.back(); }
  const Pairs& pairs(int64_t map) const { return pairs_[static_cast<size_t>(map)]; }

 private:
  struct Level {
    const int64_t* keys;
    Numbering numbering;
    int32_t* first;  // first child of each parent
  };

  static int bits_of(int64_t spatial_size) {
    int bits = 0;
    while (bits < 62 && (int64_t{1} << bits) < spatial_size) ++bits;
    return bits;
  }

  static int taps_of(const PlannedMap& map, int dim) {
    int taps = 1;
    for (int axis = 0; axis < dim; ++axis)
      taps *= map.kernel_size < 1 ? 2 : static_cast<int>(map.kernel_size);
    return taps;
  }

  int64_t rows_out(const PlannedMap& map) const {
    return rows(map.kernel_size == 0 ? map.level + 1 : map.level);
  }

  int64_t size_of(const PlannedMap& map, int dim) const {
    if (map.kernel_size == 1) return 0;
    const int64_t number = rows_out(map), taps = taps_of(map, dim), block = block_rows(number);
    return (5 * number * taps + 4 * ((number + block - 1) / block) * (taps + 1) + 63) / 64 * 64;
  }

  Pairs lay_out(const PlannedMap& map, int dim, char* memory) const {
    const int64_t number = rows_out(map);
    const int taps = taps_of(map, dim), block = block_rows(number);
    if (map.kernel_size == 1) return {nullptr, nullptr, nullptr, number, 1, block};
    auto* in = reinterpret_cast<int32_t*>(memory);
    auto* span = in + number * taps;
    auto* out = reinterpret_cast<uint8_t*>(span + ((number + block - 1) / block) * (taps + 1));
    return {in, out, span, number, taps, block};
  }

  void build(const Engine& engine, const PlannedMap& map, const std::vector<Level>& levels,
             const Pairs& pairs, int threads) const {
    const Level& at = levels[static_cast<size_t>(map.level)];
    const int64_t number = rows(map.level);
    auto* in = const_cast<int32_t*>(pairs.in);
    auto* out = const_cast<uint8_t*>(pairs.out);
    auto* span = const_cast<int32_t*>(pairs.span);
    if (map.kernel_size > 1)
      engine.connect(at.keys, number, at.keys, number, at.numbering,
                     static_cast<int>(map.kernel_size), pairs.block, in, out, span, threads);
    else if (map.kernel_size < 1)
      (map.kernel_size == 0 ? engine.connect_down : engine.connect_up)(
          at.keys, number, at.first, rows(map.level + 1), at.numbering.dim, pairs.block, in, out,
          span, threads);
  }

  std::vector<int64_t> rows_;
  std::vector<Pairs> pairs_;
  Scratch memory_;
};

// The arrays of a program in one allocation.
class PlacedArrays {
 public:
  PlacedArrays(const Program& program, const PlannedMaps& maps) {
    std::vector<Lifetime> lives;
    lives.reserve(program.arrays.size());
    for (const PlannedArray& array : program.arrays) {
      const int64_t rows = array.level < 0 ? 1 : maps.rows(array.level);
      lives.push_back({rows * array.bytes, array.first, array.last});
    }
    Placement placement = place(lives, 64);
    offsets_ = std::move(placement.offsets);
    base_ = memory_.get<char>(static_cast<size_t>(placement.total));
  }

  char* at(int64_t array) const { return base_ + offsets_[static_cast<size_t>(array)]; }

 private:
  std::vector<int64_t> offsets_;
  Scratch memory_;
  char* base_;
};

// A forward pass that has run: its maps and, if a backward pass may follow, its arrays.
struct PlannedPass {
  std::shared_ptr<const PlannedMaps> maps;
  std::unique_ptr<PlacedArrays> arrays;
};

void run_program(const Engine& engine, const Program& program, const PlannedMaps& maps,
                 const PlacedArrays& arrays, const PlacedArrays* saved,
                 const std::vector<uintptr_t>& given, int threads) {
  const auto word_of = [](const void* address) {
    return static_cast<int64_t>(reinterpret_cast<uintptr_t>(address));
  };
  std::vector<int64_t> words = program.words;
  for (const auto& [place, meaning, index, offset] : program.references) {
    int64_t* word = words.data() + place;
    switch (meaning) {
      case Meaning::kRows:
        *word = maps.rows(index);
        break;
      case Meaning::kSize:
        *word = maps.rows(index) * offset;
        break;
      case Meaning::kPairs: {
        const Pairs& pairs = maps.pairs(index);
        const int64_t fields[] = {word_of(pairs.in), word_of(pairs.out), word_of(pairs.span),
                                  pairs.rows,        pairs.taps,         pairs.block};
        std::copy(std::begin(fields), std::end(fields), word);
        break;
      }
      case Meaning::kArray:
        *word = word_of(arrays.at(index) + offset);
        break;
      case Meaning::kSaved:
        *word = word_of(saved->at(index) + offset);
        break;
      case Meaning::kGiven:
        *word = static_cast<int64_t>(given[static_cast<size_t>(index)]) + offset;
        break;
    }
  }
  run(engine, words.data(), static_cast<int64_t>(words.size()) / kWords, nullptr, threads);
}

}  // namespace
}  // namespace sscn
