// The loops, written once and compiled once for each instruction set.
//
// The including file defines ADDERZOO_CAPABILITY (a namespace), ADDERZOO_VECTOR_BYTES and ADDERZOO_REGISTERS. It
// includes everything else before it switches the instruction set on, so that no inline function that other files share
// is compiled with instructions that another processor lacks.

namespace adderzoo::cpu::ADDERZOO_CAPABILITY {
namespace {

// What has a name here is not left to the compiler. This serves every instruction set; the fast ones follow.
template <typename T>
struct PlainSimd {
  typedef T Vector __attribute__((vector_size(ADDERZOO_VECTOR_BYTES)));
  static constexpr int kLanes = ADDERZOO_VECTOR_BYTES / sizeof(T);
  static constexpr bool kMaxDistance = false;

  static Vector broadcast(T x) { return x - Vector{}; }
  // The compiler no longer knows what is in it.
  static Vector opaque(Vector x) { return x; }
  static Vector add(Vector sum, Vector x, Vector) { return sum + x; }
  static Vector multiply_add(Vector a, Vector b, Vector sum) { return sum + a * b; }
  static Vector max(Vector a, Vector b) { return a > b ? a : b; }
  static Vector distance(Vector a, Vector b) { return a > b ? a - b : b - a; }
  static Vector clip(Vector x, Vector one) {
    x = one < x ? one : x;
    return -one > x ? -one : x;
  }
  static T sum(Vector x) {
    T sum = 0;
    for (int i = 0; i < kLanes; ++i) sum += x[i];
    return sum;
  }
};

template <typename T>
struct Simd : PlainSimd<T> {};

#if ADDERZOO_VECTOR_BYTES == 64
template <>
struct Simd<float> : PlainSimd<float> {
  static constexpr bool kMaxDistance = true;
  static Vector broadcast(float x) { return (Vector)_mm512_set1_ps(x); }
  static Vector opaque(Vector x) {
    asm volatile("" : "+v"(x));
    return x;
  }
  // `one` is opaque, or else this would become an addition.
  static Vector add(Vector sum, Vector x, Vector one) { return (Vector)_mm512_fmadd_ps((__m512)x, (__m512)one, (__m512)sum); }
  static Vector multiply_add(Vector a, Vector b, Vector sum) {
    return (Vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
  }
  static Vector max(Vector a, Vector b) { return (Vector)_mm512_max_ps((__m512)a, (__m512)b); }
  static Vector distance(Vector a, Vector b) { return (Vector)_mm512_abs_ps((__m512)(a - b)); }
  // The smaller magnitude of the two with the sign of the first, in one instruction.
  static Vector clip(Vector x, Vector one) { return (Vector)_mm512_range_ps((__m512)x, (__m512)one, 0b0010); }
  static float sum(Vector x) { return _mm512_reduce_add_ps((__m512)x); }
};
#elif ADDERZOO_VECTOR_BYTES == 32
template <>
struct Simd<float> : PlainSimd<float> {
  static constexpr bool kMaxDistance = true;
  static Vector broadcast(float x) { return (Vector)_mm256_set1_ps(x); }
  static Vector opaque(Vector x) {
    asm volatile("" : "+x"(x));
    return x;
  }
  static Vector add(Vector sum, Vector x, Vector one) { return (Vector)_mm256_fmadd_ps((__m256)x, (__m256)one, (__m256)sum); }
  static Vector multiply_add(Vector a, Vector b, Vector sum) {
    return (Vector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
  }
  static Vector max(Vector a, Vector b) { return (Vector)_mm256_max_ps((__m256)a, (__m256)b); }
  static Vector distance(Vector a, Vector b) {
    return (Vector)_mm256_andnot_ps(_mm256_set1_ps(-0.0f), (__m256)(a - b));
  }
  static Vector clip(Vector x, Vector one) {
    return (Vector)_mm256_max_ps(_mm256_min_ps((__m256)x, (__m256)one), (__m256)-one);
  }
};
#elif defined(__aarch64__)
// The absolute difference is one instruction, so there is nothing to win from the maximum.
template <>
struct Simd<float> : PlainSimd<float> {
  static Vector broadcast(float x) { return (Vector)vdupq_n_f32(x); }
  static Vector multiply_add(Vector a, Vector b, Vector sum) {
    return (Vector)vfmaq_f32((float32x4_t)sum, (float32x4_t)a, (float32x4_t)b);
  }
  static Vector distance(Vector a, Vector b) { return (Vector)vabdq_f32((float32x4_t)a, (float32x4_t)b); }
  static Vector clip(Vector x, Vector one) {
    return (Vector)vmaxq_f32(vminq_f32((float32x4_t)x, (float32x4_t)one), (float32x4_t)-one);
  }
  static float sum(Vector x) { return vaddvq_f32((float32x4_t)x); }
};
#elif defined(__x86_64__)
template <>
struct Simd<float> : PlainSimd<float> {
  static constexpr bool kMaxDistance = true;
  static Vector broadcast(float x) { return (Vector)_mm_set1_ps(x); }
  static Vector max(Vector a, Vector b) { return (Vector)_mm_max_ps((__m128)a, (__m128)b); }
  static Vector distance(Vector a, Vector b) { return (Vector)_mm_andnot_ps(_mm_set1_ps(-0.0f), (__m128)(a - b)); }
  static Vector clip(Vector x, Vector one) {
    return (Vector)_mm_max_ps(_mm_min_ps((__m128)x, (__m128)one), (__m128)-one);
  }
};
#endif

template <typename T>
using Vector = typename Simd<T>::Vector;
template <typename T>
constexpr int64_t kLanes = Simd<T>::kLanes;
// Vectors of a panel.
template <typename T>
constexpr int kVectors = static_cast<int>(kPanel / kLanes<T>);
// Panels of a tile at most: four vectors of AVX-512.
template <typename T>
constexpr int kMaxPanels = ADDERZOO_REGISTERS >= 32 && kVectors<T> < 4 ? 4 / kVectors<T> : 1;

template <typename T>
inline __attribute__((always_inline)) Vector<T> load(const T* from) {
  Vector<T> v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

template <typename T>
inline __attribute__((always_inline)) void store(T* to, Vector<T> v) {
  std::memcpy(to, &v, sizeof(v));
}

// Not std::min: a template of the standard library, once compiled here, could serve the whole program.
constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

constexpr bool has_input(Function f) { return f != Function::kDistance && f != Function::kMaxDistance; }

// What recomputes a tile for which the fast form does not hold.
constexpr Function exact(Function f) {
  return f == Function::kMaxDistance ? Function::kDistance
         : f == Function::kClippedSlope ? Function::kExactClippedSlope
                                        : f;
}

// The sum with one more term.
//
// kMaxDistance adds max(x, w), from which |x - w| = 2 max(x, w) - x - w: two instructions for three. Where multiply-adds
// and comparisons run on different ports, the addition as a multiply-add by one is for nothing (AMD Zen 4 and 5: the
// speed of a convolution). Its rounding error is one of sum(|x| + |w|), like the plain form's, but it is not relative to
// the result: for x and w near 1000 that differ by 1, y is right to 5e-4 of itself. Infinities give inf - inf = NaN:
// such tiles are done again in the plain form.
//
// Comparisons with a NaN are false, so a NaN passes through the exact functions. Where there is no gradient, a slope
// counts for nothing, and 0 * NaN would: the exact ones leave it out.
template <Function F, typename T>
inline __attribute__((always_inline)) Vector<T> add_term(Vector<T> sum, Vector<T> source, Vector<T> filter,
                                                         Vector<T> input, Vector<T> one) {
  if constexpr (F == Function::kDistance) {
    return sum + Simd<T>::distance(source, filter);
  } else if constexpr (F == Function::kMaxDistance) {
    return Simd<T>::add(sum, Simd<T>::max(source, filter), one);
  } else if constexpr (F == Function::kClippedSlope) {
    return Simd<T>::multiply_add(source, Simd<T>::clip(filter - input, one), sum);
  } else {
    const Vector<T> zero = {}, slope = filter - input;
    Vector<T> bounded;
    if constexpr (F == Function::kSignSlope) {
      bounded = slope > zero ? one : (slope < zero ? -one : slope);
    } else {
      bounded = one < slope ? one : slope;
      bounded = -one > bounded ? -one : bounded;
    }
    return sum + (source == zero ? zero : source * bounded);
  }
}

// Points of a tile. A distance needs one register for each pair of point and vector, a slope two (sum and input); one
// vector of filters, one of the source and the constant one have to fit beside them. The pointers of more than eight
// points would not fit into the general registers.
constexpr int points_of_tile(Function f, int vectors) {
  constexpr int registers = ADDERZOO_REGISTERS - 3;
  const int points = (registers - vectors) / (has_input(f) ? 2 * vectors : vectors);
  return points < 1 ? 1 : points > 8 ? 8 : points;
}

// What a tile works on. Arrays are those of its first point.
template <typename T>
struct Tile {
  const T* source;         // the region, at the tile's first channel if sources are not shared
  const int64_t* offsets;  // of the points in it
  const T* filters;        // of the tile's first panel
  int64_t panel_size;
  const T* inputs;  // (points, vectors)
  T* totals;        // (points, vectors)
};

// Adds the terms of one block of steps to the totals.
template <Function F, bool kShared, int kPoints, int kVecs, typename T>
void add_block(const Accumulation<T>& a, const Tile<T>& tile, int64_t block) {
  constexpr int64_t width = kVecs * kLanes<T>;
  const Vector<T> one = Simd<T>::opaque(Vector<T>{} + T(1));
  const T* source[kPoints];
  Vector<T> sum[kPoints][kVecs] = {};
  Vector<T> input[kPoints][kVecs] = {};
#pragma GCC unroll 8
  for (int p = 0; p < kPoints; ++p) {
    source[p] = tile.source + tile.offsets[p];
    if constexpr (has_input(F)) {
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) input[p][v] = load(tile.inputs + p * width + v * kLanes<T>);
    }
  }

  for (int64_t i = a.blocks[block]; i < a.blocks[block + 1]; ++i) {
    const Piece piece = a.pieces[i];
    const T* filter = tile.filters + piece.step * kPanel;
    const T* const end = filter + piece.length * kPanel;
    const int64_t panel_size = tile.panel_size;
    const int64_t source_step = kShared ? 1 : a.source_step;
    for (int64_t at = piece.source; filter != end; at += source_step, filter += kPanel) {
      Vector<T> w[kVecs];
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) {
        w[v] = load(filter + v / kVectors<T> * panel_size + v % kVectors<T> * kLanes<T>);
      }
#pragma GCC unroll 8
      for (int p = 0; p < kPoints; ++p) {
        Vector<T> x = {};
        if constexpr (kShared) x = Simd<T>::broadcast(source[p][at]);
#pragma GCC unroll 8
        for (int v = 0; v < kVecs; ++v) {
          if constexpr (!kShared) x = load(source[p] + at + v * kLanes<T>);
          sum[p][v] = add_term<F, T>(sum[p][v], x, w[v], input[p][v], one);
        }
      }
    }
  }

#pragma GCC unroll 8
  for (int p = 0; p < kPoints; ++p) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      T* total = tile.totals + p * width + v * kLanes<T>;
      store(total, block == 0 ? sum[p][v] : load(total) + sum[p][v]);
    }
  }
}

template <Function F, bool kShared, int kVecs, typename T>
void add_block(const Accumulation<T>& a, const Tile<T>& tile, int64_t block, int points) {
  constexpr int kMost = points_of_tile(F, kVecs);
#define ADDERZOO_POINTS(n) \
  case n:                  \
    if constexpr (n <= kMost) return add_block<F, kShared, n, kVecs>(a, tile, block);
  switch (points) {
    ADDERZOO_POINTS(1)
    ADDERZOO_POINTS(2)
    ADDERZOO_POINTS(3)
    ADDERZOO_POINTS(4)
    ADDERZOO_POINTS(5)
    ADDERZOO_POINTS(6)
    ADDERZOO_POINTS(7)
    ADDERZOO_POINTS(8)
  }
#undef ADDERZOO_POINTS
}

// The points of an item, and its scratch memory.
template <typename T>
struct Item {
  int64_t points;
  int64_t group, first_panel, last_panel;
  int64_t first_channel, last_channel;  // of the group
  const T* region;
  int64_t *offsets, *output_offsets, *input_offsets;
  T *region_copy, *row_sums, *pixel_sums, *sums;  // sums of the sources of each point
  T *totals, *inputs;
};

template <typename T>
T sum_of(const T* from, int64_t length) {
  Vector<T> sums = {};
  int64_t i = 0;
  for (; i + kLanes<T> <= length; i += kLanes<T>) sums += load(from + i);
  T sum = Simd<T>::sum(sums);
  for (; i < length; ++i) sum += from[i];
  return sum;
}

template <typename T>
void transpose(const T* from, int64_t channel_stride, int64_t column_stride, T* to, int64_t pixel, int64_t channels,
               int64_t pixels) {
  for (int64_t first = 0; first < channels; first += 16) {
    const int64_t last = smaller(channels, first + 16);
    for (int64_t x = 0; x < pixels; ++x) {
      for (int64_t c = first; c < last; ++c) to[x * pixel + c] = from[c * channel_stride + x * column_stride];
    }
  }
}

// Copies a row of the source, with its padding, into the region. `row` and `column` may lie outside.
template <typename T>
void stage_row(const Accumulation<T>& a, const Item<T>& item, int64_t image, int64_t row, int64_t column, T* to) {
  const Strides& s = a.source_strides;
  if (row < 0 || row >= a.source_height) {
    std::memset(to, 0, a.region_width * a.region_pixel * sizeof(T));
    return;
  }
  const int64_t left = column < 0 ? smaller(-column, a.region_width) : 0;
  int64_t right = smaller(a.region_width, a.source_width - column);
  right = right < left ? left : right;
  std::memset(to, 0, left * a.region_pixel * sizeof(T));
  std::memset(to + right * a.region_pixel, 0, (a.region_width - right) * a.region_pixel * sizeof(T));
  to += left * a.region_pixel;
  const int64_t pixels = right - left;
  const T* from = a.source + image * s.image + row * s.row + (column + left) * s.column;
  if (a.shared) {
    from += item.group * a.source_channels * s.channel;
    if (s.channel == 1) {
      if (s.column == a.region_pixel) {
        std::memcpy(to, from, pixels * a.region_pixel * sizeof(T));
      } else {
        for (int64_t x = 0; x < pixels; ++x) {
          std::memcpy(to + x * a.region_pixel, from + x * s.column, a.source_channels * sizeof(T));
        }
      }
      return;
    }
    transpose(from, s.channel, s.column, to, a.region_pixel, a.source_channels, pixels);
    return;
  }
  // Each channel's own copy: (source channel, channel).
  const int64_t first = item.first_panel * kPanel, channels = smaller(a.source_step, a.channels - first);
  for (int64_t x = 0; x < pixels; ++x, to += a.region_pixel, from += s.column) {
    for (int64_t c = 0; c < a.source_channels; ++c) {
      T* lanes = to + c * a.source_step;
      if (a.source_channels == 1 && a.group_channels == 1 && s.channel == 1) {
        std::memcpy(lanes, from + first, channels * sizeof(T));
      } else {
        int64_t group = first / a.group_channels, in_group = first % a.group_channels;
        for (int64_t l = 0; l < channels; ++l) {
          lanes[l] = from[(group * a.source_channels + c) * s.channel];
          if (++in_group == a.group_channels) {
            in_group = 0;
            ++group;
          }
        }
      }
      for (int64_t l = channels; l < a.source_step; ++l) lanes[l] = T(0);
    }
  }
}

// Adds to `row_sums` the sums over each point's taps of one region row, where `pixels` begins.
template <typename T>
void sum_row(const Accumulation<T>& a, const T* pixels, T* pixel_sums, T* row_sums) {
  if (a.num_tap_columns == 1) {
    for (int64_t x = 0; x < a.columns; ++x) {
      row_sums[x] = sum_of(pixels + x * a.step_w * a.region_pixel, a.source_channels);
    }
    return;
  }
  const int64_t width = (a.columns - 1) * a.step_w + a.tap_columns[a.num_tap_columns - 1] - a.tap_columns[0] + 1;
  for (int64_t x = 0; x < width; ++x) pixel_sums[x] = sum_of(pixels + x * a.region_pixel, a.source_channels);
  std::memset(row_sums, 0, a.columns * sizeof(T));
  for (int64_t j = 0; j < a.num_tap_columns; ++j) {
    const T* from = pixel_sums + a.tap_columns[j] - a.tap_columns[0];
    for (int64_t x = 0; x < a.columns; ++x) row_sums[x] += from[x * a.step_w];
  }
}

// Finds the points of rows [begin, end) of all images, and their region.
template <typename T>
void prepare_item(const Accumulation<T>& a, Item<T>& item, int64_t begin, int64_t end) {
  const bool taps = a.num_blocks > 0 && a.num_tap_rows > 0;
  const int64_t region_row = a.region_width * a.region_pixel;
  const int64_t first_row = taps ? a.tap_rows[0] : 0, first_column = taps ? a.tap_columns[0] : 0;
  const int64_t reach = taps ? a.tap_rows[a.num_tap_rows - 1] - first_row + 1 : 0;
  T* staged = item.region_copy;
  int64_t point = 0;
  for (int64_t row = begin; row < end;) {
    const int64_t image = row / a.rows, y0 = row % a.rows, rows = smaller(end - row, a.rows - y0);
    const int64_t region_rows = taps ? (rows - 1) * a.step_h + reach : 0;
    const int64_t top = y0 * a.step_h + first_row;
    int64_t at;
    if (a.staged) {
      at = staged - item.region_copy;
      for (int64_t r = 0; r < region_rows; ++r, staged += region_row) {
        stage_row(a, item, image, top + r, first_column, staged);
      }
    } else {
      at = image * a.source_strides.image + top * a.source_strides.row + first_column * a.source_strides.column +
           item.group * a.source_channels;
    }
    if (a.function == Function::kMaxDistance && a.shared) {
      for (int64_t r = 0; r < region_rows; ++r) {
        bool needed = false;
        for (int64_t i = 0; i < a.num_tap_rows; ++i) needed |= (r - (a.tap_rows[i] - first_row)) % a.step_h == 0;
        if (needed) sum_row(a, item.region + at + r * region_row, item.pixel_sums, item.row_sums + r * a.columns);
      }
    }
    for (int64_t y = 0; y < rows; ++y) {
      T* sums = item.sums + point;
      if (a.function == Function::kMaxDistance && a.shared) {
        std::memset(sums, 0, a.columns * sizeof(T));
        for (int64_t i = 0; i < a.num_tap_rows; ++i) {
          const T* from = item.row_sums + (y * a.step_h + a.tap_rows[i] - first_row) * a.columns;
          for (int64_t x = 0; x < a.columns; ++x) sums[x] += from[x];
        }
      }
      for (int64_t x = 0; x < a.columns; ++x, ++point) {
        item.offsets[point] = at + y * a.step_h * region_row + x * a.step_w * a.region_pixel;
        item.output_offsets[point] =
            image * a.output_strides.image + (y0 + y) * a.output_strides.row + x * a.output_strides.column;
        item.input_offsets[point] =
            image * a.input_strides.image + (y0 + y) * a.input_strides.row + x * a.input_strides.column;
      }
    }
    row += rows;
  }
  item.points = point;
}

// Copies x at the points, `width` channels from `first` on, zeros for those beyond `last`.
template <typename T>
void load_inputs(const Accumulation<T>& a, const Item<T>& item, int64_t first, int64_t last, int64_t width) {
  const int64_t channels = smaller(width, last - first), stride = a.input_strides.channel;
  for (int64_t p = 0; p < item.points; ++p) {
    T* to = item.inputs + p * width;
    const T* from = a.input + item.input_offsets[p] + first * stride;
    if (stride == 1) {
      std::memcpy(to, from, channels * sizeof(T));
    } else {
      for (int64_t c = 0; c < channels; ++c) to[c] = from[c * stride];
    }
    for (int64_t c = channels; c < width; ++c) to[c] = T(0);
  }
}

// Turns a tile's totals into sums of terms; false if the fast form does not hold for them.
template <Function F, typename T>
bool finish_sums(T* totals, const T* inputs, const T* sums, const T* filter_sums, int points, int64_t width) {
  Vector<T> odd = {};
  for (int p = 0; p < points; ++p) {
    for (int64_t c = 0; c < width; c += kLanes<T>) {
      T* total = totals + p * width + c;
      if constexpr (F == Function::kMaxDistance) {
        const Vector<T> zero = {};
        const Vector<T> y = (sums[p] + load(filter_sums + c)) - T(2) * load(total);
        odd += y - y;
        store(total, y > zero ? zero : y);
      } else if constexpr (F == Function::kDistance) {
        store(total, -load(total));
      } else if constexpr (F == Function::kClippedSlope) {
        const Vector<T> x = load(inputs + p * width + c);
        const Vector<T> zero = {}, one = zero + T(1);
        odd += x == x ? zero : one;
      }
    }
  }
  const T sum = Simd<T>::sum(odd);
  return sum == T(0);
}

template <typename T>
void apply_epilogue(const Accumulation<T>& a, const Item<T>& item, int64_t point, int points, T* totals,
                    int64_t first_channel, int64_t width) {
  const Epilogue<T>& e = a.epilogue;
  const int64_t channels = smaller(width, a.channels - first_channel);
  for (int p = 0; p < points; ++p, totals += width) {
    for (int64_t c = 0; c < channels; ++c) totals[c] = totals[c] * e.scale[first_channel + c] + e.shift[first_channel + c];
    if (e.addend != nullptr) {
      const T* addend = e.addend + item.output_offsets[point + p] + first_channel * a.output_strides.channel;
      if (a.output_strides.channel == 1) {
        for (int64_t c = 0; c < channels; ++c) totals[c] += addend[c];
      } else {
        for (int64_t c = 0; c < channels; ++c) totals[c] += addend[c * a.output_strides.channel];
      }
    }
    if (e.relu) {
      for (int64_t c = 0; c < channels; ++c) totals[c] = totals[c] < T(0) ? T(0) : totals[c];
    }
  }
}

// All points of an item, for kPanels panels from `panel` on.
template <Function F, bool kShared, int kPanels, typename T>
void run_panels(const Accumulation<T>& a, const Item<T>& item, int64_t panel) {
  constexpr int kVecs = kPanels * kVectors<T>;
  constexpr int64_t width = kPanels * kPanel;
  constexpr int kMost = points_of_tile(F, kVecs);
  const int64_t first_channel = panel * kPanel;
  if constexpr (has_input(F)) load_inputs(a, item, first_channel, a.channels, width);

  const int64_t tiles = (item.points + kMost - 1) / kMost;
  const int64_t panel_size = a.filter_steps * kPanel;
  const T* filters = a.filters + panel * panel_size;
  // Only the lanes of the item's own group are its to write.
  const int64_t from = first_channel < item.first_channel ? item.first_channel - first_channel : 0;
  const int64_t to = smaller(width, item.last_channel - first_channel);

  for (int64_t block = 0; block < a.num_blocks; ++block) {
    int64_t point = 0;
    for (int64_t t = 0; t < tiles; ++t) {
      // Tiles of equal size, or nearly so: a small one at the end would not fill the pipelines.
      const int points = static_cast<int>((item.points - point + (tiles - t) - 1) / (tiles - t));
      const Tile<T> tile{
          .source = item.region + (kShared ? 0 : first_channel - item.first_panel * kPanel),
          .offsets = item.offsets + point,
          .filters = filters,
          .panel_size = panel_size,
          .inputs = item.inputs + point * width,
          .totals = item.totals + point * width,
      };
      add_block<F, kShared, kVecs>(a, tile, block, points);
      if (block == a.num_blocks - 1) {
        T* totals = tile.totals;
        if (!finish_sums<F>(totals, tile.inputs, item.sums + point, a.filter_sums + first_channel, points, width)) {
          for (int64_t b = 0; b < a.num_blocks; ++b) {
            for (int p = 0; p < points; ++p) {
              Tile<T> one = tile;
              one.offsets += p;
              one.inputs += p * width;
              one.totals += p * width;
              add_block<exact(F), kShared, 1, kVecs>(a, one, b);
            }
          }
          finish_sums<exact(F)>(totals, tile.inputs, item.sums, a.filter_sums, points, width);
        }
        if (a.epilogue.scale != nullptr) apply_epilogue(a, item, point, points, totals, first_channel, width);
        if (a.output_strides.channel == 1) {
          for (int p = 0; p < points; ++p) {
            T* output = a.output + item.output_offsets[point + p] + first_channel;
            if (to - from == width) {
#pragma GCC unroll 8
              for (int v = 0; v < kVecs; ++v) store(output + v * kLanes<T>, load(totals + p * width + v * kLanes<T>));
            } else {
              for (int64_t c = from; c < to; ++c) output[c] = totals[p * width + c];
            }
          }
        }
      }
      point += points;
    }
  }
  if (a.output_strides.channel != 1) {
    for (int64_t c = from; c < to; ++c) {
      T* output = a.output + (first_channel + c) * a.output_strides.channel;
      for (int64_t p = 0; p < item.points; ++p) output[item.output_offsets[p]] = item.totals[p * width + c];
    }
  }
}

template <Function F, bool kShared, typename T>
void run_item(const Accumulation<T>& a, const Item<T>& item) {
  for (int64_t panel = item.first_panel; panel < item.last_panel;) {
    const int64_t left = item.last_panel - panel;
    if (kMaxPanels<T> >= 4 && left >= 4) {
      run_panels<F, kShared, kMaxPanels<T> >= 4 ? 4 : 1>(a, item, panel);
      panel += 4;
    } else if (kMaxPanels<T> >= 2 && left >= 2) {
      run_panels<F, kShared, kMaxPanels<T> >= 2 ? 2 : 1>(a, item, panel);
      panel += 2;
    } else {
      run_panels<F, kShared, 1>(a, item, panel);
      panel += 1;
    }
  }
}

template <typename T>
void run(const Accumulation<T>& a, int64_t begin, int64_t end, T* scratch) {
  Item<T> item;
  // Numbers of eight bytes first.
  int64_t* offsets = reinterpret_cast<int64_t*>(scratch);
  item.offsets = offsets;
  item.output_offsets = offsets + a.max_points;
  item.input_offsets = offsets + 2 * a.max_points;
  item.totals = reinterpret_cast<T*>(offsets + 3 * a.max_points);
  item.inputs = item.totals + a.max_points * kMaxPanels<T> * kPanel;
  item.sums = item.inputs + a.max_points * kMaxPanels<T> * kPanel;
  item.region_copy = item.sums + a.max_points;
  item.row_sums = item.region_copy + (a.staged ? a.max_region_rows * a.region_width * a.region_pixel : 0);
  item.pixel_sums = item.row_sums + a.max_region_rows * a.columns;
  item.region = a.staged ? item.region_copy : a.source;

  const int64_t groups = a.shared ? a.groups : 1, group_channels = a.shared ? a.group_channels : a.channels;
  int64_t prepared = -1;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t chunk = i / (groups * a.panel_chunks), group = i / a.panel_chunks % groups;
    item.group = group;
    item.first_channel = group * group_channels;
    item.last_channel = item.first_channel + group_channels;
    const int64_t last_panel = (item.last_channel + kPanel - 1) / kPanel;
    item.first_panel = item.first_channel / kPanel + i % a.panel_chunks * a.panels_of_item;
    item.last_panel = smaller(last_panel, item.first_panel + a.panels_of_item);
    if (item.first_panel >= item.last_panel) continue;
    const int64_t region = a.shared ? i / a.panel_chunks : i;  // the panels of a chunk share it
    if (region != prepared) {
      const int64_t rows = a.batch * a.rows;
      prepare_item(a, item, chunk * a.rows_of_item, smaller(rows, (chunk + 1) * a.rows_of_item));
      prepared = region;
    }
#define ADDERZOO_RUN(function)                                                                  \
  case function:                                                                                \
    if (a.shared) {                                                                             \
      run_item<function, true>(a, item);                                                        \
    } else {                                                                                    \
      run_item<function == Function::kMaxDistance ? Function::kDistance : function, false>(a, item); \
    }                                                                                           \
    break;
    switch (a.function) {
      ADDERZOO_RUN(Function::kDistance)
      ADDERZOO_RUN(Function::kMaxDistance)
      ADDERZOO_RUN(Function::kClippedSlope)
      ADDERZOO_RUN(Function::kExactClippedSlope)
      ADDERZOO_RUN(Function::kSignSlope)
    }
#undef ADDERZOO_RUN
  }
}

template <typename T>
void sum_filters(const T* packed, T* sums, int64_t channels, int64_t steps, int64_t begin, int64_t end) {
  for (int64_t panel = begin; panel < end; ++panel) {
    Vector<T> total[kVectors<T>] = {};
    const T* from = packed + panel * steps * kPanel;
    for (int64_t first = 0; first < steps; first += kBlock) {
      Vector<T> sum[kVectors<T>] = {};
      for (int64_t step = first; step < smaller(steps, first + kBlock); ++step, from += kPanel) {
        for (int v = 0; v < kVectors<T>; ++v) sum[v] += load(from + v * kLanes<T>);
      }
      for (int v = 0; v < kVectors<T>; ++v) total[v] += sum[v];
    }
    for (int v = 0; v < kVectors<T>; ++v) store(sums + panel * kPanel + v * kLanes<T>, total[v]);
  }
}

template <typename T>
void pack(const T* weight, T* packed, T* sums, const FilterShape& s, int64_t begin, int64_t end) {
  const int64_t steps = s.steps();
  for (int64_t panel = begin; panel < end; ++panel) {
    const T* lane[kPanel];
    const int64_t lanes = smaller(kPanel, s.channels - panel * kPanel);
    for (int64_t l = 0; l < lanes; ++l) {
      const int64_t channel = panel * kPanel + l;
      lane[l] = weight + channel / s.group_channels * s.group_stride + channel % s.group_channels * s.channel_stride;
    }
    T* to = packed + panel * steps * kPanel;
    for (int64_t tap = 0; tap < s.taps; ++tap) {
      const int64_t from = s.reverse_taps ? s.taps - 1 - tap : tap;
      for (int64_t source = 0; source < s.source_channels; ++source, to += kPanel) {
        const int64_t at = source * s.source_stride + from;
        for (int64_t l = 0; l < lanes; ++l) to[l] = lane[l][at];
        for (int64_t l = lanes; l < kPanel; ++l) to[l] = T(0);
      }
    }
  }
  sum_filters(packed, sums, s.channels, steps, begin, end);
}

template <typename T>
void filter_sign_gradient(const FilterSignGradient<T>& a, int64_t begin, int64_t end) {
  const Geometry& s = a.geometry;
  const int64_t taps = s.taps();
  const int64_t x_pixel = s.groups * s.channels, g_pixel = s.groups * s.filters;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t tap = item % taps, output_channel = item / taps, group = output_channel / s.filters;
    const int64_t offset_h = tap / s.kernel_w * s.dilation_h - s.padding_h;
    const int64_t offset_w = tap % s.kernel_w * s.dilation_w - s.padding_w;
    for (int64_t first = 0; first < s.channels; first += kBlock) {
      const int64_t channels = smaller(kBlock, s.channels - first);
      const int64_t at = (output_channel * s.channels + first) * taps + tap;
      const T zeros[kBlock] = {};
      T filter[kBlock], sum[kBlock] = {}, total[kBlock] = {};
      for (int64_t c = 0; c < channels; ++c) filter[c] = a.weight[at + c * taps];

      const T* g = a.grad + output_channel;
      int64_t pending = 0;
      for (int64_t n = 0; n < s.batch; ++n) {
        for (int64_t oh = 0; oh < s.out_height; ++oh) {
          const int64_t y = oh * s.stride_h + offset_h;
          for (int64_t ow = 0; ow < s.out_width; ++ow, g += g_pixel) {
            const int64_t x = ow * s.stride_w + offset_w;
            const bool inside = y >= 0 && y < s.height && x >= 0 && x < s.width;
            const T* source =
                inside ? a.input + ((n * s.height + y) * s.width + x) * x_pixel + group * s.channels + first : zeros;
            for (int64_t c = 0; c < channels; ++c) {
              const T difference = source[c] - filter[c];
              sum[c] += *g * (difference > T(0) ? T(1) : (difference < T(0) ? T(-1) : difference));
            }
            if (++pending == kBlock) {
              for (int64_t c = 0; c < channels; ++c) {
                total[c] += sum[c];
                sum[c] = T(0);
              }
              pending = 0;
            }
          }
        }
      }
      for (int64_t c = 0; c < channels; ++c) a.grad_weight[at + c * taps] = total[c] + sum[c];
    }
  }
}

// The best tile of each function, with operands that the first cache holds.
template <Function F, bool kMultiply, typename T>
int64_t ceiling_of(int64_t steps) {
  constexpr int kVecs = kMaxPanels<T> * kVectors<T>;
  constexpr int kPoints = points_of_tile(F, kVecs);
  constexpr int64_t kSteps = 64;
  T source[kPoints + kSteps], filters[kSteps * kVecs * kLanes<T>];
  for (T& x : source) x = T(0.5);
  for (T& w : filters) w = T(0.25);
  const Vector<T> one = Simd<T>::opaque(Vector<T>{} + T(1));
  Vector<T> sum[kPoints][kVecs] = {}, input[kPoints][kVecs];
  for (auto& vectors : input) {
    for (Vector<T>& x : vectors) x = Simd<T>::opaque(one);
  }
  for (int64_t step = 0; step < steps; ++step) {
    const int64_t at = step % kSteps;
    Vector<T> w[kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) w[v] = load(filters + (at * kVecs + v) * kLanes<T>);
#pragma GCC unroll 8
    for (int p = 0; p < kPoints; ++p) {
      const Vector<T> x = Simd<T>::broadcast(source[p + at]);
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) {
        if constexpr (kMultiply) {
          sum[p][v] = Simd<T>::multiply_add(x, w[v], sum[p][v]);
        } else {
          sum[p][v] = add_term<F, T>(sum[p][v], x, w[v], input[p][v], one);
        }
      }
    }
  }
  Vector<T> all = {};
  for (int p = 0; p < kPoints; ++p) {
    for (int v = 0; v < kVecs; ++v) all += sum[p][v];
  }
  Simd<T>::opaque(all);
  return steps * kPoints * kVecs * kLanes<T>;
}

template <typename T>
int64_t ceiling(Ceiling form, int64_t steps) {
  constexpr Function distance = Simd<T>::kMaxDistance ? Function::kMaxDistance : Function::kDistance;
  switch (form) {
    case Ceiling::kMultiplyAdd:
      return ceiling_of<distance, true, T>(steps);
    case Ceiling::kDistance:
      return ceiling_of<distance, false, T>(steps);
    default:
      return ceiling_of<Function::kClippedSlope, false, T>(steps);
  }
}

// Constant initialisers: nothing of this instruction set runs while the library is loaded.
template <typename T>
constexpr Loops<T> kLoops = {
    .capability = ADDERZOO_CAPABILITY_NAME,
    .max_distance = Simd<T>::kMaxDistance,
    .run = run<T>,
    .pack = pack<T>,
    .sum_filters = sum_filters<T>,
    .filter_sign_gradient = filter_sign_gradient<T>,
    .ceiling = ceiling<T>,
};

}  // namespace

extern const Loops<float> kFloat;
extern const Loops<double> kDouble;
constexpr Loops<float> kFloat = kLoops<float>;
constexpr Loops<double> kDouble = kLoops<double>;

}  // namespace adderzoo::cpu::ADDERZOO_CAPABILITY
