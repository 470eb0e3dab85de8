// Sorting sites and listing the pairs of kernel maps; compiled once for each instruction set.
//
// The 64 sites that share all but the lowest six bits of their keys form a brick (4 x 4 x 4, or
// 8 x 8), which is one 64-bit mask: a neighbour is a bit test, and its row the brick's first row
// plus the number of bits below. Only bricks need a hash table.
#include "maps.hpp"

#include "parallel.hpp"
#include "scratch.hpp"

#include <cstring>

namespace sscn::SSCN_TARGET {
namespace {

constexpr int kBrickBits = 6;

uint64_t spread(uint64_t v, int dim) {
  if (dim == 2) {
    v &= 0xffffffff;
    v = (v | v << 16) & 0x0000ffff0000ffff;
    v = (v | v << 8) & 0x00ff00ff00ff00ff;
    v = (v | v << 4) & 0x0f0f0f0f0f0f0f0f;
    v = (v | v << 2) & 0x3333333333333333;
    return (v | v << 1) & 0x5555555555555555;
  }
  v &= 0x1fffff;
  v = (v | v << 32) & 0x001f00000000ffff;
  v = (v | v << 16) & 0x001f0000ff0000ff;
  v = (v | v << 8) & 0x100f00f00f00f00f;
  v = (v | v << 4) & 0x10c30c30c30c30c3;
  return (v | v << 2) & 0x1249249249249249;
}

uint64_t compact(uint64_t v, int dim) {
  if (dim == 2) {
    v &= 0x5555555555555555;
    v = (v | v >> 1) & 0x3333333333333333;
    v = (v | v >> 2) & 0x0f0f0f0f0f0f0f0f;
    v = (v | v >> 4) & 0x00ff00ff00ff00ff;
    v = (v | v >> 8) & 0x0000ffff0000ffff;
    return (v | v >> 16) & 0xffffffff;
  }
  v &= 0x1249249249249249;
  v = (v | v >> 2) & 0x10c30c30c30c30c3;
  v = (v | v >> 4) & 0x100f00f00f00f00f;
  v = (v | v >> 8) & 0x001f0000ff0000ff;
  v = (v | v >> 16) & 0x001f00000000ffff;
  return (v | v >> 32) & 0x1fffff;
}

// Make room for a whole brick below the batch index, also in tiny volumes.
struct Widening {
  int from, to;
  explicit Widening(Numbering n) : from(n.dim * n.bits), to(from < kBrickBits ? kBrickBits : from) {}
  uint64_t operator()(int64_t key) const {
    const auto k = static_cast<uint64_t>(key);
    return (k >> from) << to | (k & ((uint64_t{1} << from) - 1));
  }
};

struct Brick {
  uint64_t mask;
  int64_t first;
};

class Bricks {
 public:
  Bricks(const int64_t* keys, int64_t rows, Widening widen) {
    int64_t number = 0;
    for (int64_t i = 0; i < rows; ++i)
      number += i == 0 || widen(keys[i]) >> kBrickBits != widen(keys[i - 1]) >> kBrickBits;
    int log = 4;
    while ((int64_t{1} << log) < 2 * number) ++log;
    shift_ = 64 - log;
    last_ = (uint64_t{1} << log) - 1;
    slots_ = table_.get<Slot>(last_ + 1);
    for (uint64_t i = 0; i <= last_; ++i) slots_[i].key = kEmpty;
    for (int64_t i = 0; i < rows;) {
      const uint64_t brick = widen(keys[i]) >> kBrickBits;
      Slot& slot = slots_[place(brick)];
      slot = {brick, {0, i}};
      for (; i < rows; ++i) {
        const uint64_t key = widen(keys[i]);
        if (key >> kBrickBits != brick) break;
        slot.brick.mask |= uint64_t{1} << (key & 63);
      }
    }
  }

  Brick find(uint64_t key) const {
    const Slot& slot = slots_[place(key)];
    return slot.key == key ? slot.brick : Brick{0, 0};
  }

 private:
  struct Slot {
    uint64_t key;
    Brick brick;
  };
  static constexpr uint64_t kEmpty = ~uint64_t{0};

  uint64_t place(uint64_t key) const {
    uint64_t i = key * 0x9e3779b97f4a7c15 >> shift_;
    while (slots_[i].key != key && slots_[i].key != kEmpty) i = (i + 1) & last_;
    return i;
  }

  Scratch table_;
  Slot* slots_;
  uint64_t last_;
  int shift_;
};

// Where each tap leads from each place in a brick: the neighbouring brick and the place in it.
struct Steps {
  int dim, window, reach, taps, neighbours;
  Scratch memory;
  uint16_t* step;  // (taps, 64): neighbour << 6 | place

  Steps(int dim_, int kernel_size) : dim(dim_) {
    const int side_bits = kBrickBits / dim, side = 1 << side_bits;
    const int centre = kernel_size / 2;
    reach = (centre + side - 1) / side;
    window = 2 * reach + 1;
    taps = neighbours = 1;
    for (int d = 0; d < dim; ++d) taps *= kernel_size, neighbours *= window;
    step = memory.get<uint16_t>(static_cast<size_t>(taps) * 64);
    for (int tap = 0; tap < taps; ++tap)
      for (int place = 0; place < 64; ++place) {
        int neighbour = 0, scale = 1, rest = tap;
        uint64_t to = 0;
        for (int axis = 0; axis < dim; ++axis) {  // axis 0 is the fastest: the last coordinate
          const int from = static_cast<int>(compact(static_cast<uint64_t>(place) >> axis, dim));
          const int at = from + rest % kernel_size - centre + reach * side;
          rest /= kernel_size;
          neighbour += (at >> side_bits) * scale;
          scale *= window;
          to |= spread(static_cast<uint64_t>(at & (side - 1)), dim) << axis;
        }
        step[tap * 64 + place] = static_cast<uint16_t>(neighbour << 6 | static_cast<int>(to));
      }
  }
};

// Look up the bricks around one brick; those outside the volume are empty.
void find_neighbours(const Bricks& bricks, const Steps& steps, uint64_t key, int bits_above,
                     Brick* found) {
  const int dim = steps.dim, axis_bits = bits_above / dim;
  const uint64_t batch = key >> bits_above;
  const int64_t limit = int64_t{1} << axis_bits;
  int64_t at[3] = {0, 0, 0};
  for (int axis = 0; axis < dim; ++axis) {
    const uint64_t own = bits_above == 0 ? 0 : key & ((uint64_t{1} << bits_above) - 1);
    at[axis] = static_cast<int64_t>(compact(own >> axis, dim));
  }
  for (int n = 0; n < steps.neighbours; ++n) {
    uint64_t neighbour = batch << bits_above;
    bool inside = true;
    int rest = n;
    for (int axis = 0; axis < dim; ++axis) {
      const int64_t to = at[axis] + rest % steps.window - steps.reach;
      rest /= steps.window;
      inside &= to >= 0 && to < limit;
      neighbour |= spread(static_cast<uint64_t>(to), dim) << axis;
    }
    found[n] = inside ? bricks.find(neighbour) : Brick{0, 0};
  }
}

}  // namespace

int64_t sort_sites(const int32_t* sites, int64_t rows, Numbering numbering, int64_t size,
                   int64_t* keys, int64_t* order, int threads) {
  const int dim = numbering.dim, columns = dim + 1;
  constexpr int kDigit = 11, kBuckets = 1 << kDigit;
  const int parts = rows < 32768 ? 1 : (threads < 1 ? 1 : threads);
  Scratch memory;
  // Each part of the rows notes its first bad row and the bits in use.
  struct Part {
    int64_t bad;
    uint64_t bits;
  };
  auto* part = memory.get<Part>(static_cast<size_t>(parts));
  const auto start = [&](int64_t p) { return rows * p / parts; };
  parallel_for(threads, parts, [&](int64_t p, int) {
    part[p] = {-1, 0};
    for (int64_t i = start(p); i < start(p + 1); ++i) {
      const int32_t* site = sites + i * columns;
      bool good = site[0] >= 0;
      auto key = static_cast<uint64_t>(site[0]) << (dim * numbering.bits);
      for (int axis = 0; axis < dim; ++axis) {
        const int32_t at = site[dim - axis];
        good &= at >= 0 && at < size;
        key |= spread(static_cast<uint64_t>(at), dim) << axis;
      }
      if (!good && part[p].bad < 0) part[p].bad = i;
      part[p].bits |= key;
      keys[i] = static_cast<int64_t>(key);
      order[i] = i;
    }
  });
  uint64_t used = 0;
  for (int p = 0; p < parts; ++p) {
    if (part[p].bad >= 0) return part[p].bad;
    used |= part[p].bits;
  }
  int passes = 0;
  while (passes * kDigit < 64 && used >> (passes * kDigit) != 0) ++passes;
  Scratch spare_memory;
  auto* spare_keys = spare_memory.get<int64_t>(static_cast<size_t>(2 * rows));
  int64_t* spare_order = spare_keys + rows;
  Scratch count_memory;
  auto* count = count_memory.get<int64_t>(static_cast<size_t>(parts) * kBuckets);
  int64_t *from_keys = keys, *from_order = order, *to_keys = spare_keys, *to_order = spare_order;
  for (int pass = 0; pass < passes; ++pass) {
    const int shift = pass * kDigit;
    const auto digit = [&](int64_t key) {
      return static_cast<uint64_t>(key) >> shift & (kBuckets - 1);
    };
    parallel_for(threads, parts, [&](int64_t p, int) {
      int64_t* mine = count + p * kBuckets;
      std::memset(mine, 0, kBuckets * sizeof(int64_t));
      for (int64_t i = start(p); i < start(p + 1); ++i) ++mine[digit(from_keys[i])];
    });
    int64_t total = 0;
    for (int bucket = 0; bucket < kBuckets; ++bucket)
      for (int p = 0; p < parts; ++p) {
        int64_t& slot = count[p * kBuckets + bucket];
        const int64_t number = slot;
        slot = total;
        total += number;
      }
    parallel_for(threads, parts, [&](int64_t p, int) {
      int64_t* mine = count + p * kBuckets;
      for (int64_t i = start(p); i < start(p + 1); ++i) {
        const int64_t to = mine[digit(from_keys[i])]++;
        to_keys[to] = from_keys[i];
        to_order[to] = from_order[i];
      }
    });
    int64_t* swap = from_keys;
    from_keys = to_keys, to_keys = swap;
    swap = from_order;
    from_order = to_order, to_order = swap;
  }
  if (from_keys != keys) {
    std::memcpy(keys, from_keys, static_cast<size_t>(rows) * sizeof(int64_t));
    std::memcpy(order, from_order, static_cast<size_t>(rows) * sizeof(int64_t));
  }
  for (int64_t i = 1; i < rows; ++i)
    if (keys[i] == keys[i - 1]) return rows + order[i];
  return -1;
}

void connect(const int64_t* keys_in, int64_t rows_in, const int64_t* keys_out, int64_t rows_out,
             Numbering numbering, int kernel_size, int block, int32_t* in, uint8_t* out,
             int32_t* span, int threads) {
  const Widening widen(numbering);
  const Bricks bricks(keys_in, rows_in, widen);
  const Steps steps(numbering.dim, kernel_size);
  const int taps = steps.taps, bits_above = widen.to - kBrickBits;
  const int64_t blocks = (rows_out + block - 1) / block;
  const auto per_worker = static_cast<size_t>(block) * steps.neighbours;
  Scratch memory;
  auto* around = memory.get<Brick>(per_worker * static_cast<size_t>(threads < 1 ? 1 : threads));
  parallel_for(threads, blocks, [&](int64_t b, int worker) {
    Brick* mine = around + static_cast<size_t>(worker) * per_worker;
    const int64_t first = b * block;
    const int rows = static_cast<int>(rows_out - first < block ? rows_out - first : block);
    const Brick* near[256];
    uint8_t place[256];
    uint64_t last = ~uint64_t{0};
    Brick* found = mine - steps.neighbours;
    for (int i = 0; i < rows; ++i) {
      const uint64_t key = widen(keys_out[first + i]);
      if (key >> kBrickBits != last) {
        last = key >> kBrickBits;
        found += steps.neighbours;
        find_neighbours(bricks, steps, last, bits_above, found);
      }
      near[i] = found;
      place[i] = key & 63;
    }
    int32_t* to_in = in + first * taps;
    uint8_t* to_out = out + first * taps;
    int32_t* starts = span + b * (taps + 1);
    int32_t number = 0;
    for (int tap = 0; tap < taps; ++tap) {
      starts[tap] = number;
      const uint16_t* step = steps.step + tap * 64;
      // Written always and kept by advancing: a branch here would be mispredicted often. At most
      // rows * tap pairs are kept before a tap, so the write stays within the block's room.
      for (int i = 0; i < rows; ++i) {
        const int to = step[place[i]];
        const Brick brick = near[i][to >> 6];
        const int bit = to & 63;
        to_in[number] = static_cast<int32_t>(
            brick.first + __builtin_popcountll(brick.mask & ((uint64_t{1} << bit) - 1)));
        to_out[number] = static_cast<uint8_t>(i);
        number += static_cast<int32_t>(brick.mask >> bit & 1);
      }
    }
    starts[taps] = number;
  });
}

int64_t coarsen(const int64_t* keys, int64_t rows, int dim, int64_t* coarse, int32_t* first) {
  int64_t parents = 0;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t parent = keys[i] >> dim;
    if (parents == 0 || coarse[parents - 1] != parent) {
      coarse[parents] = parent;
      first[parents++] = static_cast<int32_t>(i);
    }
  }
  return parents;
}

void connect_down(const int64_t* keys, int64_t rows, const int32_t* first, int64_t parents, int dim,
                  int block, int32_t* in, uint8_t* out, int32_t* span, int threads) {
  const int taps = 1 << dim;
  parallel_for(threads, (parents + block - 1) / block, [&](int64_t b, int) {
    const int64_t begin = b * block, end = begin + block < parents ? begin + block : parents;
    const auto last = [&](int64_t p) { return p + 1 < parents ? first[p + 1] : rows; };
    int32_t* starts = span + b * (taps + 1);
    int32_t number[9] = {};
    for (int64_t i = first[begin]; i < last(end - 1); ++i) ++number[(keys[i] & (taps - 1)) + 1];
    for (int tap = 0; tap < taps; ++tap) number[tap + 1] += number[tap];
    std::memcpy(starts, number, static_cast<size_t>(taps + 1) * sizeof(int32_t));
    for (int64_t p = begin; p < end; ++p)
      for (int64_t i = first[p]; i < last(p); ++i) {
        const int64_t at = begin * taps + number[keys[i] & (taps - 1)]++;
        in[at] = static_cast<int32_t>(i);
        out[at] = static_cast<uint8_t>(p - begin);
      }
  });
}

void connect_up(const int64_t* keys, int64_t rows, const int32_t* first, int64_t parents, int dim,
                int block, int32_t* in, uint8_t* out, int32_t* span, int threads) {
  const int taps = 1 << dim;
  parallel_for(threads, (rows + block - 1) / block, [&](int64_t b, int) {
    const int64_t begin = b * block, end = begin + block < rows ? begin + block : rows;
    int64_t low = 0, high = parents;  // the parent of the block's first row
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (first[middle] <= begin ? low : high) = middle;
    }
    int32_t* starts = span + b * (taps + 1);
    int32_t number[9] = {};
    for (int64_t i = begin; i < end; ++i) ++number[(keys[i] & (taps - 1)) + 1];
    for (int tap = 0; tap < taps; ++tap) number[tap + 1] += number[tap];
    std::memcpy(starts, number, static_cast<size_t>(taps + 1) * sizeof(int32_t));
    for (int64_t i = begin; i < end; ++i) {
      if (low + 1 < parents && first[low + 1] <= i) ++low;
      const int64_t at = begin * taps + number[keys[i] & (taps - 1)]++;
      in[at] = static_cast<int32_t>(low);
      out[at] = static_cast<uint8_t>(i - begin);
    }
  });
}

}  // namespace sscn::SSCN_TARGET
