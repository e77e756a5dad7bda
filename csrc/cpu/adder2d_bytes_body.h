// The loops over bytes: a part of adder2d_loops_body.h, which walks over the points for all types.
//
// A lane of eight bytes holds successive channels of one filter, and so one broadcast of eight source bytes serves all
// filters of a vector. The sum of eight absolute differences is one instruction on x86. All sums are exact.

// What has a name here is not left to the compiler. This serves every instruction set.
struct PlainBytes {
  typedef uint8_t Vector __attribute__((vector_size(ADDERZOO_VECTOR_BYTES)));
  // Of the differences of neighboring bytes: at most kBlock pairs of them fit into 16 bits.
  typedef uint16_t Sum __attribute__((vector_size(ADDERZOO_VECTOR_BYTES)));
  typedef int32_t Totals __attribute__((vector_size(ADDERZOO_VECTOR_BYTES)));
  static constexpr int64_t kChannels = ADDERZOO_VECTOR_BYTES / sizeof(int32_t);  // of a vector of totals

  static Vector broadcast(const uint8_t* from) {
    uint64_t lane;
    std::memcpy(&lane, from, sizeof(lane));
    typedef uint64_t Lanes __attribute__((vector_size(ADDERZOO_VECTOR_BYTES)));
    return (Vector)(lane - Lanes{});
  }
  static Sum add(Sum sum, Vector x, Vector w) {
    const Sum distance = (Sum)(x > w ? x - w : w - x);
    return sum + (distance & 255) + (distance >> 8);
  }
  // The sums of each filter of two vectors.
  static Totals totals(const Sum* two) {
    constexpr int kFilters = ADDERZOO_VECTOR_BYTES / kByteStep;
    Totals totals = {};
    for (int filter = 0; filter < 2 * kFilters; ++filter) {
      for (int i = 0; i < 4; ++i) totals[filter] += two[filter / kFilters][filter % kFilters * 4 + i];
    }
    return totals;
  }
  // Bytes of as many successive channels as there are totals.
  static Totals widen(const uint8_t* from) {
    Totals totals;
    for (int i = 0; i < kChannels; ++i) totals[i] = from[i];
    return totals;
  }
  static void narrow(uint8_t* to, Totals totals) {
    for (int i = 0; i < kChannels; ++i) to[i] = static_cast<uint8_t>(totals[i]);
  }
};
static_assert(kBlock * 2 * 255 < 1 << 16);

#if ADDERZOO_VECTOR_BYTES == 64
struct Bytes : PlainBytes {
  typedef uint64_t Sum __attribute__((vector_size(ADDERZOO_VECTOR_BYTES)));
  static Sum add(Sum sum, Vector x, Vector w) { return sum + (Sum)_mm512_sad_epu8((__m512i)x, (__m512i)w); }
  static Totals totals(const Sum* two) {
    const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    return (Totals)_mm512_permutex2var_epi32((__m512i)two[0], even, (__m512i)two[1]);
  }
  static Totals widen(const uint8_t* from) {
    return (Totals)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static void narrow(uint8_t* to, Totals totals) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8((__m512i)totals));
  }
};
#elif ADDERZOO_VECTOR_BYTES == 32
struct Bytes : PlainBytes {
  typedef uint64_t Sum __attribute__((vector_size(ADDERZOO_VECTOR_BYTES)));
  static Sum add(Sum sum, Vector x, Vector w) { return sum + (Sum)_mm256_sad_epu8((__m256i)x, (__m256i)w); }
  static Totals totals(const Sum* two) {
    const __m256 halves = _mm256_shuffle_ps((__m256)two[0], (__m256)two[1], 0b10001000);
    return (Totals)_mm256_permute4x64_epi64((__m256i)halves, 0b11011000);
  }
  static Totals widen(const uint8_t* from) {
    return (Totals)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
  }
  static void narrow(uint8_t* to, Totals totals) {
    const __m256i first_bytes = _mm256_set1_epi32(0x0c080400);
    const __m256i halves = _mm256_shuffle_epi8((__m256i)totals, first_bytes);
    const __m128i low = _mm256_castsi256_si128(halves), high = _mm256_extracti128_si256(halves, 1);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_unpacklo_epi32(low, high));
  }
};
#elif defined(__x86_64__)
struct Bytes : PlainBytes {
  typedef uint64_t Sum __attribute__((vector_size(ADDERZOO_VECTOR_BYTES)));
  static Sum add(Sum sum, Vector x, Vector w) { return sum + (Sum)_mm_sad_epu8((__m128i)x, (__m128i)w); }
  static Totals totals(const Sum* two) { return (Totals)_mm_shuffle_ps((__m128)two[0], (__m128)two[1], 0b10001000); }
  static Totals widen(const uint8_t* from) {
    int32_t four;
    std::memcpy(&four, from, sizeof(four));
    const __m128i zero = _mm_setzero_si128();
    return (Totals)_mm_unpacklo_epi16(_mm_unpacklo_epi8(_mm_cvtsi32_si128(four), zero), zero);
  }
  static void narrow(uint8_t* to, Totals totals) {
    const __m128i words = _mm_packs_epi32((__m128i)totals, (__m128i)totals);
    const int32_t four = _mm_cvtsi128_si32(_mm_packus_epi16(words, words));
    std::memcpy(to, &four, sizeof(four));
  }
};
#elif defined(__aarch64__)
struct Bytes : PlainBytes {
  static Sum add(Sum sum, Vector x, Vector w) {
    return (Sum)vpadalq_u8((uint16x8_t)sum, vabdq_u8((uint8x16_t)x, (uint8x16_t)w));
  }
  static Totals totals(const Sum* two) {
    return (Totals)vpaddq_u32(vpaddlq_u16((uint16x8_t)two[0]), vpaddlq_u16((uint16x8_t)two[1]));
  }
};
#else
using Bytes = PlainBytes;
#endif

// Points of a tile: each pair of point and vector has a sum in a register.
constexpr int points_of_byte_tile(int vectors) {
  const int points = (ADDERZOO_REGISTERS - 4 - vectors) / vectors;
  return points < 1 ? 1 : points > 8 ? 8 : points;
}

template <typename V, typename T>
inline __attribute__((always_inline)) V load_as(const T* from) {
  V v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

// Adds the distances of a block to the totals, or begins with them.
template <int kPoints, int kVecs>
void add_bytes(const Accumulation<uint8_t>& a, const uint8_t* region, const int64_t* offsets, const uint8_t* filters,
               int64_t block, int32_t* totals) {
  using Vector = Bytes::Vector;
  constexpr int64_t kStep = kPanel * kByteStep;
  const uint8_t* source[kPoints];
  Bytes::Sum sum[kPoints][kVecs] = {};
#pragma GCC unroll 8
  for (int p = 0; p < kPoints; ++p) source[p] = region + offsets[p];
  const int64_t panel_size = a.filter_steps * kStep;
  for (int64_t i = a.blocks[block]; i < a.blocks[block + 1]; ++i) {
    const Piece piece = a.pieces[i];
    const uint8_t* filter = filters + piece.step * kStep;
    const uint8_t* const last = filter + piece.length * kStep;
    for (int64_t at = piece.source; filter != last; at += kByteStep, filter += kStep) {
      Vector w[kVecs];
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) {
        w[v] = load_as<Vector>(filter + v / kVectors<uint8_t> * panel_size +
                               v % kVectors<uint8_t> * ADDERZOO_VECTOR_BYTES);
      }
#pragma GCC unroll 8
      for (int p = 0; p < kPoints; ++p) {
        const Vector x = Bytes::broadcast(source[p] + at);
#pragma GCC unroll 8
        for (int v = 0; v < kVecs; ++v) sum[p][v] = Bytes::add(sum[p][v], x, w[v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < kPoints; ++p) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; v += 2) {
      Bytes::Totals total = Bytes::totals(sum[p] + v);
      if (block > 0) total += load_as<Bytes::Totals>(totals);
      std::memcpy(totals, &total, sizeof(total));
      totals += sizeof(total) / sizeof(int32_t);
    }
  }
}

template <int kVecs>
void add_bytes(const Accumulation<uint8_t>& a, const uint8_t* region, const int64_t* offsets, const uint8_t* filters,
               int64_t block, int32_t* totals, int points) {
  constexpr int kMost = points_of_byte_tile(kVecs);
#define ADDERZOO_CASE(n) \
  case n:                \
    if constexpr (n <= kMost) return add_bytes<n, kVecs>(a, region, offsets, filters, block, totals);
  switch (points) { ADDERZOO_POINTS(ADDERZOO_CASE) }
#undef ADDERZOO_CASE
}

// The same where every channel has its own copy of the source, for one point and one panel.
inline void add_own_bytes(const Accumulation<uint8_t>& a, const uint8_t* source, const uint8_t* filters, int64_t block,
                          int32_t* totals) {
  typedef uint8_t Vector __attribute__((vector_size(kPanel)));
  typedef uint16_t Sum __attribute__((vector_size(kPanel * sizeof(uint16_t))));
  Sum sum = {};
  for (int64_t i = a.blocks[block]; i < a.blocks[block + 1]; ++i) {
    const Piece piece = a.pieces[i];
    for (int64_t step = 0; step < piece.length; ++step) {
      const Vector x = load_as<Vector>(source + piece.source + step * a.source_step);
      const Vector w = load_as<Vector>(filters + (piece.step + step) * kPanel);
      sum += __builtin_convertvector(x > w ? x - w : w - x, Sum);
    }
  }
  for (int64_t i = 0; i < kPanel; ++i) totals[i] = sum[i] + (block > 0 ? totals[i] : 0);
}

struct NoAddend {};
template <typename Addend>
constexpr bool kHasAddend = true;
template <>
constexpr bool kHasAddend<NoAddend> = false;

// What the epilogue does to the sums of successive channels. `at` is their place in addend and output.
template <typename Addend, typename Output>
struct ByteEpilogue {
  using Ints = Bytes::Totals;
  using Floats = Vector<float>;

  // Of the sum of a float of less than 2^22 and this, the last bits are the float rounded to an integer.
  static constexpr float kIntegers = 0x1.8p23f;
  static constexpr int32_t kBitsOfIntegers = 0x4b400000;

  ByteEpilogue(const Epilogue<uint8_t>& e, const Addend* addend, Output* output)
      : addend(addend),
        output(output),
        addend_scale(Simd<float>::broadcast(e.addend_scale)),
        lowest(Simd<float>::broadcast(e.lowest)),
        highest(Simd<float>::broadcast(e.highest)),
        zero_point(Ints{} + (e.zero_point - kBitsOfIntegers)) {}

  inline __attribute__((always_inline)) void apply(Ints sums, Floats scale, Floats shift, int64_t at) const {
    // An opaque product does not become part of a multiply-add, which would not round it.
    Floats y = Simd<float>::opaque(__builtin_convertvector(sums, Floats) * scale) + shift;
    if constexpr (kHasAddend<Addend>) {
      Floats converted;
      if constexpr (sizeof(Addend) == 1) {
        converted = __builtin_convertvector(Bytes::widen(addend + at), Floats);
      } else {
        converted = load(addend + at);
      }
      y += Simd<float>::opaque(converted * addend_scale);
    }
    if constexpr (sizeof(Output) == 1) {
      y = Simd<float>::min(Simd<float>::max(y, lowest), highest);
      Bytes::narrow(output + at, (Ints)(y + kIntegers) + zero_point);
    } else {
      store(output + at, Simd<float>::max(lowest, y));
    }
  }

  const Addend* addend;
  Output* output;
  Floats addend_scale, lowest, highest;
  Ints zero_point;
};

// Turns the totals of an item into outputs.
template <int64_t kWidth, typename Addend, typename Output>
void finish_bytes(const Accumulation<uint8_t>& a, const Item<uint8_t>& item, int64_t first_channel,
                  const Addend* addend, Output* output) {
  using Finish = ByteEpilogue<Addend, Output>;
  constexpr int64_t kLanes = Bytes::kChannels;
  constexpr int kVecs = kWidth / kLanes;
  Vector<float> scale[kVecs], shift[kVecs];
#pragma GCC unroll 8
  for (int v = 0; v < kVecs; ++v) {
    scale[v] = load_channels(a.epilogue.scale, first_channel + v * kLanes, a.channels);
    shift[v] = load_channels(a.epilogue.shift, first_channel + v * kLanes, a.channels);
  }
  const int32_t* totals = item.totals;
  // Only the lanes of the item's own group are its to write, and to read from the addend.
  const int64_t from = first_channel < item.first_channel ? item.first_channel - first_channel : 0;
  const int64_t channels = smaller(kWidth, item.last_channel - first_channel) - from;
  if (channels == kWidth) {
    const Finish epilogue(a.epilogue, addend, output);
    for (int64_t p = 0; p < item.points; ++p, totals += kWidth) {
      const int64_t at = item.output_offsets[p] + first_channel;
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) {
        epilogue.apply(load_as<typename Finish::Ints>(totals + v * kLanes), scale[v], shift[v], at + v * kLanes);
      }
    }
    return;
  }
  Output results[kWidth];
  Addend addends[kWidth] = {};
  const Finish epilogue(a.epilogue, addends, results);
  for (int64_t p = 0; p < item.points; ++p, totals += kWidth) {
    const int64_t at = item.output_offsets[p] + first_channel + from;
    if constexpr (kHasAddend<Addend>) std::memcpy(addends + from, addend + at, channels * sizeof(Addend));
    for (int v = 0; v < kVecs; ++v) {
      epilogue.apply(load_as<typename Finish::Ints>(totals + v * kLanes), scale[v], shift[v], v * kLanes);
    }
    std::memcpy(output + at, results + from, channels * sizeof(Output));
  }
}

// So many points before they are written, addend and output are fetched into the second cache.
constexpr int64_t kFetchAhead = 96;

// Fetches what the item reads or writes of some points at `place`: all their channels, of which a tile has few.
template <typename T>
void fetch(const Item<uint8_t>& item, int64_t point, int64_t points, const T* place) {
  const int64_t first = item.first_panel * kPanel, last = smaller(item.last_panel * kPanel, item.last_channel);
  for (const int64_t end = smaller(point + points, item.points); point < end; ++point) {
    const T* const channels = place + item.output_offsets[point];
    for (int64_t c = first; c < last; c += 64 / sizeof(T)) __builtin_prefetch(channels + c, 0, 2);
  }
}

// All points of an item, for kPanels panels from `panel` on.
template <int kPanels, typename Addend, typename Output>
void run_byte_panels(const Accumulation<uint8_t>& a, const Item<uint8_t>& item, int64_t panel, const Addend* addend,
                     Output* output) {
  constexpr int kVecs = kPanels * kVectors<uint8_t>;
  constexpr int64_t kWidth = kPanels * kPanel;
  constexpr int kMost = points_of_byte_tile(kVecs);
  const uint8_t* filters = a.filters + panel * a.filter_steps * kPanel * (a.shared ? kByteStep : 1);
  const int64_t tiles = (item.points + kMost - 1) / kMost;
  for (int64_t block = 0; block < a.num_blocks; ++block) {
    int64_t point = 0;
    for (int64_t t = 0; t < tiles; ++t) {
      // Tiles of equal size, or nearly so: a small one at the end would not fill the pipelines.
      const int points = static_cast<int>((item.points - point + (tiles - t) - 1) / (tiles - t));
      int32_t* totals = item.totals + point * kWidth;
      if (block == 0 && panel == item.first_panel) {
        if constexpr (kHasAddend<Addend>) fetch(item, point + kFetchAhead, points, addend);
        fetch(item, point + kFetchAhead, points, output);
      }
      if (a.shared) {
        add_bytes<kVecs>(a, item.region, item.offsets + point, filters, block, totals, points);
      } else {
        const uint8_t* source = item.region + (panel - item.first_panel) * kPanel;
        for (int p = 0; p < points; ++p) {
          add_own_bytes(a, source + item.offsets[point + p], filters, block, totals + p * kWidth);
        }
      }
      point += points;
    }
  }
  finish_bytes<kWidth>(a, item, panel * kPanel, addend, output);
}

template <typename Addend, typename Output>
void run_bytes(const Accumulation<uint8_t>& a, const Item<uint8_t>& item, const Addend* addend, Output* output) {
  constexpr int kMost = kMaxPanels<uint8_t>;
  int64_t panel = item.first_panel;
  for (; a.shared && panel + kMost <= item.last_panel; panel += kMost) {
    run_byte_panels<kMost>(a, item, panel, addend, output);
  }
  for (; panel < item.last_panel; ++panel) run_byte_panels<1>(a, item, panel, addend, output);
}

template <typename Output>
void run_bytes(const Accumulation<uint8_t>& a, const Item<uint8_t>& item, Output* output) {
  if (a.epilogue.byte_addend != nullptr) {
    run_bytes(a, item, a.epilogue.byte_addend, output);
  } else if (a.epilogue.float_addend != nullptr) {
    run_bytes(a, item, a.epilogue.float_addend, output);
  } else {
    run_bytes<NoAddend>(a, item, nullptr, output);
  }
}

inline void run_function(const Accumulation<uint8_t>& a, const Item<uint8_t>& item) {
  a.epilogue.float_output == nullptr ? run_bytes(a, item, a.output) : run_bytes(a, item, a.epilogue.float_output);
}

// The best tile, with operands that the first cache holds.
inline int64_t ceiling_of_bytes(int64_t steps) {
  constexpr int kVecs = kMaxPanels<uint8_t> * kVectors<uint8_t>;
  constexpr int kPoints = points_of_byte_tile(kVecs);
  constexpr int64_t kSteps = 64;
  uint8_t source[(kPoints + kSteps) * kByteStep], filters[kSteps * kVecs * ADDERZOO_VECTOR_BYTES];
  for (uint8_t& x : source) x = 1;
  for (uint8_t& w : filters) w = 2;
  Bytes::Sum sum[kPoints][kVecs] = {};
  for (int64_t step = 0; step < steps; ++step) {
    const int64_t at = step % kSteps;
    Bytes::Vector w[kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) w[v] = load_as<Bytes::Vector>(filters + (at * kVecs + v) * ADDERZOO_VECTOR_BYTES);
#pragma GCC unroll 8
    for (int p = 0; p < kPoints; ++p) {
      const Bytes::Vector x = Bytes::broadcast(source + (p + at) * kByteStep);
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) sum[p][v] = Bytes::add(sum[p][v], x, w[v]);
    }
  }
  Bytes::Totals all = {};
#pragma GCC unroll 8
  for (int p = 0; p < kPoints; ++p) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; v += 2) all += Bytes::totals(sum[p] + v);
  }
  Simd<float>::opaque((Vector<float>)all);
  return steps * kPoints * kVecs * ADDERZOO_VECTOR_BYTES;
}
