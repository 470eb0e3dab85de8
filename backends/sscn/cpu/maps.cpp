// Sorting sites and listing the pairs of kernel maps; compiled once for each instruction set.
//
// The 64 voxels whose keys share all but the lowest six bits form a brick (4 x 4 x 4, or 8 x 8).
// A hash table holds the bricks that have sites. For each brick of output sites, a dense window
// covers the brick and all voxels within the kernel's reach, and holds the row of each site.
// Finding a neighbour is then one look-up in the window, at an offset that depends on the tap
// alone.
#include "maps.hpp"

#include "parallel.hpp"
#include "scratch.hpp"

#include <cstring>
#include <memory>

namespace sscn::SSCN_TARGET {
namespace {

constexpr int kBrickBits = 6;
constexpr uint64_t kPlaces = (1 << kBrickBits) - 1;
constexpr uint64_t kNoKey = uint64_t{1} << 63;

template <int kDim>
inline uint64_t spread(uint64_t v) {
  if constexpr (kDim == 2) {
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

uint64_t spread(uint64_t v, int dim) { return dim == 2 ? spread<2>(v) : spread<3>(v); }

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

// Shifts the batch index, so that the bits below it number at least one brick, also in tiny
// volumes.
struct Widening {
  int from, to;
  explicit Widening(Numbering n)
      : from(n.dim * n.bits), to(from < kBrickBits ? kBrickBits : from) {}
  uint64_t operator()(int64_t key) const {
    const auto k = static_cast<uint64_t>(key);
    return (k >> from) << to | (k & ((uint64_t{1} << from) - 1));
  }
};

// The bricks of a level, numbered from 1 in the order of their keys; 0 is the empty brick.
class Bricks {
 public:
  Bricks(const int64_t* keys, int64_t rows, Widening widen) {
    places_ = place_memory_.get<uint8_t>(static_cast<size_t>(rows));
    int64_t number = 0;
    uint64_t last = kNoKey;
    for (int64_t i = 0; i < rows; ++i) {
      const uint64_t site = widen(keys[i]);
      places_[i] = static_cast<uint8_t>(site & kPlaces);
      number += site >> kBrickBits != last;
      last = site >> kBrickBits;
    }
    const auto bricks = static_cast<size_t>(number) + 2;
    keys_ = key_memory_.get<uint64_t>(bricks);
    first_ = first_memory_.get<int32_t>(bricks);
    keys_[0] = kNoKey;
    first_[0] = 0;
    int64_t brick = 0;
    for (int64_t i = 0; i < rows; ++i) {
      const uint64_t key = widen(keys[i]) >> kBrickBits;
      if (keys_[brick] == key) continue;
      keys_[++brick] = key;
      first_[brick] = static_cast<int32_t>(i);
    }
    first_[number + 1] = static_cast<int32_t>(rows);
    int log = 6;
    while (log < 40 && (int64_t{1} << log) < 6 * number) ++log;
    shift_ = 64 - log;
    const size_t room = size_t{1} << log;
    last_ = room - 1;
    slots_ = table_.get<int32_t>(room);
    std::memset(slots_, 0, room * sizeof(int32_t));
    for (brick = 1; brick <= number; ++brick) {
      uint64_t slot = home(keys_[brick]);
      while (slots_[slot]) slot = (slot + 1) & last_;
      slots_[slot] = static_cast<int32_t>(brick);
    }
  }

  // Return the first row of a brick. Its last row is the one before the first of the next brick.
  int32_t first(int32_t brick) const { return first_[brick]; }
  int place(int32_t row) const { return places_[row]; }

  // Return the number of a brick, 0 if there is none. The table is sparse, so that a collision in
  // the first slot is rare and the branch is predicted well. The existence of a brick is not
  // predictable, so that no branch may depend on it alone.
  int32_t find(uint64_t key) const {
    uint64_t slot = home(key);
    int32_t brick = slots_[slot];
    while (__builtin_expect((brick != 0) & (keys_[brick] != key), 0)) {
      slot = (slot + 1) & last_;
      brick = slots_[slot];
    }
    return brick;
  }

 private:
  uint64_t home(uint64_t key) const { return key * 0x9e3779b97f4a7c15 >> shift_; }

  Scratch table_, key_memory_, first_memory_, place_memory_;
  int32_t *slots_, *first_;
  uint8_t* places_;
  uint64_t* keys_;
  uint64_t last_;
  int shift_;
};

// Offsets within a window; the last axis varies fastest.
struct Steps {
  int dim, kernel_size, window, reach, taps, neighbours;  // window: bricks per side
  int size;                                               // voxels in a window
  Scratch tap_memory, from_memory, target_memory;
  int32_t* tap;     // (taps,) offset of each tap from the first
  int32_t* from;    // (64,) offset of the first tap for each voxel of the central brick
  int32_t* target;  // (neighbours, 64) offset of each voxel of each brick; `size` if outside

  Steps(int dim_, int kernel_size_) : dim(dim_), kernel_size(kernel_size_) {
    const int side_bits = kBrickBits / dim, side = 1 << side_bits;
    const int centre = kernel_size / 2, wide = side + 2 * centre;
    reach = (centre + side - 1) / side;
    window = 2 * reach + 1;
    taps = neighbours = size = 1;
    for (int d = 0; d < dim; ++d) taps *= kernel_size, neighbours *= window, size *= wide;
    tap = tap_memory.get<int32_t>(static_cast<size_t>(taps));
    from = from_memory.get<int32_t>(64);
    target = target_memory.get<int32_t>(static_cast<size_t>(neighbours) * 64);
    const auto coordinate = [&](int place, int axis) {
      return static_cast<int>(compact(static_cast<uint64_t>(place) >> axis, dim));
    };
    for (int number = 0; number < taps; ++number) {
      int rest = number, scale = 1, at = 0;
      for (int axis = 0; axis < dim; ++axis, rest /= kernel_size, scale *= wide)
        at += rest % kernel_size * scale;  // axis 0 is the fastest: the last coordinate
      tap[number] = at;
    }
    for (int place = 0; place < 64; ++place) {
      int scale = 1, at = 0;
      for (int axis = 0; axis < dim; ++axis, scale *= wide) at += coordinate(place, axis) * scale;
      from[place] = at;
    }
    for (int neighbour = 0; neighbour < neighbours; ++neighbour)
      for (int place = 0; place < 64; ++place) {
        int rest = neighbour, scale = 1, at = 0;
        bool within = true;
        for (int axis = 0; axis < dim; ++axis, rest /= window, scale *= wide) {
          const int c = (rest % window - reach) * side + coordinate(place, axis) + centre;
          within &= c >= 0 && c < wide;
          at += c * scale;
        }
        target[neighbour * 64 + place] = within ? at : size;
      }
  }
};

// Return the offsets of a kernel, cached from the last map: all levels of a network share a kernel.
const Steps& steps_of(int dim, int kernel_size) {
  static thread_local std::unique_ptr<Steps> steps;
  if (!steps || steps->dim != dim || steps->kernel_size != kernel_size)
    steps = std::make_unique<Steps>(dim, kernel_size);
  return *steps;
}

// Look up the bricks around one brick; those outside the volume are empty.
void find_neighbours(const Bricks& bricks, const Steps& steps, uint64_t key, int bits_above,
                     int32_t* found) {
  constexpr int kMostWindow = 64;
  const uint64_t volume = (uint64_t{1} << bits_above) - 1;
  uint64_t part[3][kMostWindow];  // the bits of one axis in the key, or kNoKey
  int window[3] = {1, 1, 1};
  part[2][0] = 0;
  for (int axis = 0; axis < steps.dim; ++axis) {
    // An increment carries through the bits of the other axes if they are set; a decrement borrows
    // through them if they are clear.
    const uint64_t bits = spread(~uint64_t{0}, steps.dim) << axis & volume;
    uint64_t* own = part[axis] + steps.reach;
    *own = key & bits;
    for (int w = 1; w <= steps.reach; ++w) {
      own[-w] = own[1 - w] - 1 < kNoKey - 1 ? (own[1 - w] - 1) & bits : kNoKey;
      own[w] = own[w - 1] < bits ? ((own[w - 1] | ~bits) + 1) & bits : kNoKey;
    }
    window[axis] = steps.window;
  }
  const uint64_t batch = key & ~volume;
  for (int c = 0; c < window[2]; ++c)
    for (int b = 0; b < window[1]; ++b)
      for (int a = 0; a < window[0]; ++a) {
        const uint64_t neighbour = part[0][a] | part[1][b] | part[2][c];
        *found++ = neighbour < kNoKey ? bricks.find(batch | neighbour) : 0;
      }
}

// Write the rows of all sites around a brick to a window, -1 for voxels without a site. `present`
// is scratch memory for the list of neighbours that exist, which avoids mispredicted branches.
void fill_window(const Bricks& bricks, const Steps& steps, const int32_t* around, int32_t* present,
                 int32_t* window) {
  std::memset(window, 0xff, static_cast<size_t>(steps.size) * sizeof(int32_t));
  int number = 0;
  for (int neighbour = 0; neighbour < steps.neighbours; ++neighbour) {
    present[number] = neighbour;
    number += around[neighbour] != 0;
  }
  for (int i = 0; i < number; ++i) {
    const int32_t* target = steps.target + present[i] * 64;
    const int32_t brick = around[present[i]], end = bricks.first(brick + 1);
    for (int32_t row = bricks.first(brick); row < end; ++row)
      window[target[bricks.place(row)]] = row;
  }
}

// List the pairs of one tap and return their number. `window` is offset by the tap, `from` has the
// offset of each row. Every candidate is written, and overwritten by the next one unless it is a
// pair: a branch would often be mispredicted.
inline int list_pairs(const int32_t* window, const int32_t* from, int rows, int32_t* in,
                      uint8_t* out) {
  int pairs = 0;
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) {
    const int32_t row = window[from[i]];
    in[pairs] = row;
    out[pairs] = static_cast<uint8_t>(i);
    pairs += row >= 0;
  }
  return pairs;
}

struct Wide {  // a key with its row, if both together do not fit into 64 bits
  uint64_t key;
  uint64_t row;
};
inline uint64_t digits_of(uint64_t item) { return item; }
inline uint64_t digits_of(const Wide& item) { return item.key; }

// Radix sort of items by bits [from, to) of their digits, with at most ten bits per pass, the least
// significant bits first. Each pass moves the items between `items` and `spare` and swaps the two.
// Threads count and move parts of the rows.
template <class Item>
Item* radix_sort(Item* items, Item* spare, int64_t rows, int from, int to, int parts, int threads) {
  const int passes = (to - from + 9) / 10, bits = passes ? (to - from + passes - 1) / passes : 0;
  const int buckets = 1 << bits;
  Scratch memory;
  auto* count = memory.get<int64_t>(static_cast<size_t>(parts) * buckets);
  const auto start = [&](int64_t p) { return rows * p / parts; };
  for (int shift = from; shift < to; shift += bits) {
    parallel_for(threads, parts, [&](int64_t p, int) {
      int64_t* mine = count + p * buckets;
      std::memset(mine, 0, static_cast<size_t>(buckets) * sizeof(int64_t));
      for (int64_t i = start(p), end = start(p + 1); i < end; ++i)
        ++mine[digits_of(items[i]) >> shift & (buckets - 1)];
    });
    int64_t total = 0;
    for (int bucket = 0; bucket < buckets; ++bucket)
      for (int p = 0; p < parts; ++p) {
        int64_t& slot = count[p * buckets + bucket];
        const int64_t number = slot;
        slot = total;
        total += number;
      }
    parallel_for(threads, parts, [&](int64_t p, int) {
      int64_t* mine = count + p * buckets;
      for (int64_t i = start(p), end = start(p + 1); i < end; ++i)
        spare[mine[digits_of(items[i]) >> shift & (buckets - 1)]++] = items[i];
    });
    Item* swap = items;
    items = spare, spare = swap;
  }
  return items;
}

int bits_of(uint64_t value) { return value ? 64 - __builtin_clzll(value) : 0; }

inline bool lies_within(const int32_t* site, int dim, uint32_t size) {
  bool within = site[0] >= 0;
  for (int axis = 1; axis <= dim; ++axis) within &= static_cast<uint32_t>(site[axis]) < size;
  return within;
}

// Write the keys of sites [begin, end). Returns the bitwise or of the keys, or a value with all
// bits set if a site is outside the volume.
template <int kDim>
uint64_t encode(const int32_t* sites, int64_t begin, int64_t end, int bits, uint32_t size,
                uint64_t* keys) {
  uint64_t used = 0;
  for (int64_t i = begin; i < end; ++i) {
    const int32_t* site = sites + i * (kDim + 1);
    uint64_t key = static_cast<uint64_t>(site[0]) << (kDim * bits);
    for (int axis = 0; axis < kDim; ++axis)
      key |= spread<kDim>(static_cast<uint64_t>(site[kDim - axis])) << axis;
    used |= key | -static_cast<uint64_t>(!lies_within(site, kDim, size));
    keys[i] = key;
  }
  return used;
}

}  // namespace

int64_t sort_sites(const int32_t* sites, int64_t rows, Numbering numbering, int64_t size,
                   int64_t* keys, int64_t* order, int threads) {
  const int dim = numbering.dim;
  const int parts = rows < 8192 ? 1 : (threads < 1 ? 1 : threads);
  const auto start = [&](int64_t p) { return rows * p / parts; };
  Scratch part_memory;
  auto* part = part_memory.get<uint64_t>(static_cast<size_t>(parts));
  auto* encoded = reinterpret_cast<uint64_t*>(keys);
  const auto volume = static_cast<uint32_t>(size);
  parallel_for(threads, parts, [&](int64_t p, int) {
    const auto function = dim == 2 ? encode<2> : encode<3>;
    part[p] = function(sites, start(p), start(p + 1), numbering.bits, volume, encoded);
  });
  uint64_t used = 0;
  for (int p = 0; p < parts; ++p) used |= part[p];
  if (used == ~uint64_t{0})
    for (int64_t i = 0; i < rows; ++i)
      if (!lies_within(sites + i * (dim + 1), dim, volume)) return i;
  const int key_bits = bits_of(used), row_bits = bits_of(static_cast<uint64_t>(rows));
  Scratch memory;
  const auto number = static_cast<size_t>(rows);
  const auto each_part = [&](auto&& function) {
    parallel_for(threads, parts, [&](int64_t p, int) {
      for (int64_t i = start(p), end = start(p + 1); i < end; ++i) function(i);
    });
  };
  if (key_bits + row_bits <= 64) {
    auto* items = memory.get<uint64_t>(2 * number);
    each_part([&](int64_t i) { items[i] = encoded[i] << row_bits | static_cast<uint64_t>(i); });
    const uint64_t* sorted =
        radix_sort(items, items + rows, rows, row_bits, row_bits + key_bits, parts, threads);
    each_part([&](int64_t i) {
      keys[i] = static_cast<int64_t>(sorted[i] >> row_bits);
      order[i] = static_cast<int64_t>(sorted[i] & ((uint64_t{1} << row_bits) - 1));
    });
  } else {
    auto* items = memory.get<Wide>(2 * number);
    each_part([&](int64_t i) { items[i] = {encoded[i], static_cast<uint64_t>(i)}; });
    const Wide* sorted = radix_sort(items, items + rows, rows, 0, key_bits, parts, threads);
    each_part([&](int64_t i) {
      keys[i] = static_cast<int64_t>(sorted[i].key);
      order[i] = static_cast<int64_t>(sorted[i].row);
    });
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
  const Steps& steps = steps_of(numbering.dim, kernel_size);
  const int taps = steps.taps, bits_above = widen.to - kBrickBits;
  const int64_t blocks = (rows_out + block - 1) / block;
  // A window has one additional element, the target of voxels outside of it.
  const auto room = static_cast<size_t>(steps.size) + 1, per_worker = block * room;
  const auto workers = static_cast<size_t>(threads < 1 ? 1 : threads);
  Scratch memory, around_memory;
  auto* windows = memory.get<int32_t>(per_worker * workers);
  auto* around = around_memory.get<int32_t>(2 * static_cast<size_t>(steps.neighbours) * workers);
  parallel_for(threads, blocks, [&](int64_t b, int worker) {
    int32_t* mine = windows + static_cast<size_t>(worker) * per_worker;
    int32_t* found = around + 2 * static_cast<size_t>(worker) * steps.neighbours;
    const int64_t first = b * block;
    const int rows = static_cast<int>(rows_out - first < block ? rows_out - first : block);
    int32_t from[256];
    uint64_t last = ~uint64_t{0};
    size_t next = 0;
    for (int i = 0; i < rows; ++i) {
      const uint64_t key = widen(keys_out[first + i]);
      if (key >> kBrickBits != last) {
        last = key >> kBrickBits;
        find_neighbours(bricks, steps, last, bits_above, found);
        fill_window(bricks, steps, found, found + steps.neighbours, mine + next);
        next += room;
      }
      from[i] = static_cast<int32_t>(next - room) + steps.from[key & kPlaces];
    }
    // At most rows * tap pairs precede a tap, so that all writes are within the allocated memory.
    int32_t* to_in = in + first * taps;
    uint8_t* to_out = out + first * taps;
    int32_t* starts = span + b * (taps + 1);
    int number = 0;
    for (int tap = 0; tap < taps; ++tap) {
      starts[tap] = number;
      number += list_pairs(mine + steps.tap[tap], from, rows, to_in + number, to_out + number);
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
    int64_t low = 0, high = parents;  // binary search for the parent of the block's first row
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
