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
  using Mask = decltype(Vector{} != Vector{});
  static constexpr int kLanes = ADDERZOO_VECTOR_BYTES / sizeof(T);
  static constexpr bool kMaxDistance = false;

  static Vector broadcast(T x) { return x - Vector{}; }
  // The compiler no longer knows what is in it.
  static Vector opaque(Vector x) {
#if defined(__x86_64__)
    asm volatile("" : "+v"(x));
#elif defined(__aarch64__)
    asm volatile("" : "+w"(x));
#else
    asm volatile("" : "+m"(x));
#endif
    return x;
  }
  static Vector add(Vector sum, Vector x, Vector) { return sum + x; }
  static Vector multiply_add(Vector a, Vector b, Vector sum) { return sum + a * b; }
  // Of two, if one is NaN, the second.
  static Vector max(Vector a, Vector b) { return a > b ? a : b; }
  static Vector min(Vector a, Vector b) { return a < b ? a : b; }
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
  // Of each of four.
  static void sums(const Vector* four, T* to) {
    for (int i = 0; i < 4; ++i) to[i] = sum(four[i]);
  }
  static bool any(Mask mask) {
    bool any = false;
    for (int i = 0; i < kLanes; ++i) any |= mask[i] != 0;
    return any;
  }
  static void transpose4(const T* from, int64_t stride, T* a, T* b, T* c, T* d) {
    for (int i = 0; i < 4; ++i, from += stride) {
      a[i] = from[0];
      b[i] = from[1];
      c[i] = from[2];
      d[i] = from[3];
    }
  }
};

#if defined(__x86_64__)
inline __attribute__((always_inline)) void transpose4_of_floats(const float* from, int64_t stride, float* a, float* b,
                                                                float* c, float* d) {
  __m128 w = _mm_loadu_ps(from), x = _mm_loadu_ps(from + stride), y = _mm_loadu_ps(from + 2 * stride),
         z = _mm_loadu_ps(from + 3 * stride);
  _MM_TRANSPOSE4_PS(w, x, y, z);
  _mm_storeu_ps(a, w);
  _mm_storeu_ps(b, x);
  _mm_storeu_ps(c, y);
  _mm_storeu_ps(d, z);
}

inline __attribute__((always_inline)) void sums_of_floats(__m128 w, __m128 x, __m128 y, __m128 z, float* to) {
  const __m128 wx = _mm_add_ps(_mm_unpacklo_ps(w, x), _mm_unpackhi_ps(w, x));  // even w, even x, odd w, odd x
  const __m128 yz = _mm_add_ps(_mm_unpacklo_ps(y, z), _mm_unpackhi_ps(y, z));
  _mm_storeu_ps(to, _mm_add_ps(_mm_movelh_ps(wx, yz), _mm_movehl_ps(yz, wx)));
}
#elif defined(__aarch64__)
inline __attribute__((always_inline)) void transpose4_of_floats(const float* from, int64_t stride, float* a, float* b,
                                                                float* c, float* d) {
  const float32x4_t w = vld1q_f32(from), x = vld1q_f32(from + stride), y = vld1q_f32(from + 2 * stride),
                    z = vld1q_f32(from + 3 * stride);
  // First and third column of two rows, and second and fourth.
  const float64x2_t wx_ac = vreinterpretq_f64_f32(vtrn1q_f32(w, x)), wx_bd = vreinterpretq_f64_f32(vtrn2q_f32(w, x)),
                    yz_ac = vreinterpretq_f64_f32(vtrn1q_f32(y, z)), yz_bd = vreinterpretq_f64_f32(vtrn2q_f32(y, z));
  vst1q_f32(a, vreinterpretq_f32_f64(vtrn1q_f64(wx_ac, yz_ac)));
  vst1q_f32(b, vreinterpretq_f32_f64(vtrn1q_f64(wx_bd, yz_bd)));
  vst1q_f32(c, vreinterpretq_f32_f64(vtrn2q_f64(wx_ac, yz_ac)));
  vst1q_f32(d, vreinterpretq_f32_f64(vtrn2q_f64(wx_bd, yz_bd)));
}
#endif

template <typename T>
struct Simd : PlainSimd<T> {};

#if ADDERZOO_VECTOR_BYTES == 64
template <>
struct Simd<float> : PlainSimd<float> {
  static constexpr auto transpose4 = transpose4_of_floats;
  static constexpr bool kMaxDistance = true;
  static Vector broadcast(float x) { return (Vector)_mm512_set1_ps(x); }
  // `one` is opaque, or else this would become an addition.
  static Vector add(Vector sum, Vector x, Vector one) {
    return (Vector)_mm512_fmadd_ps((__m512)x, (__m512)one, (__m512)sum);
  }
  static Vector multiply_add(Vector a, Vector b, Vector sum) {
    return (Vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
  }
  static Vector max(Vector a, Vector b) { return (Vector)_mm512_max_ps((__m512)a, (__m512)b); }
  static Vector min(Vector a, Vector b) { return (Vector)_mm512_min_ps((__m512)a, (__m512)b); }
  static Vector distance(Vector a, Vector b) { return (Vector)_mm512_abs_ps((__m512)(a - b)); }
  // The smaller magnitude of the two with the sign of the first, in one instruction.
  static Vector clip(Vector x, Vector one) { return (Vector)_mm512_range_ps((__m512)x, (__m512)one, 0b0010); }
  static void sums(const Vector* four, float* to) {
    const __m512 w = (__m512)four[0], x = (__m512)four[1], y = (__m512)four[2], z = (__m512)four[3];
    // Halves of two, then a quarter of each, then two of its floats, then one.
    const __m512 wx = _mm512_add_ps(_mm512_shuffle_f32x4(w, x, 0x44), _mm512_shuffle_f32x4(w, x, 0xee));
    const __m512 yz = _mm512_add_ps(_mm512_shuffle_f32x4(y, z, 0x44), _mm512_shuffle_f32x4(y, z, 0xee));
    __m512 each = _mm512_add_ps(_mm512_shuffle_f32x4(wx, yz, 0x88), _mm512_shuffle_f32x4(wx, yz, 0xdd));
    each = _mm512_add_ps(each, _mm512_permute_ps(each, 0b01001110));
    each = _mm512_add_ps(each, _mm512_permute_ps(each, 0b10110001));
    _mm_storeu_ps(to, _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, each)));
  }
  static bool any(Mask mask) { return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0; }
};
#elif ADDERZOO_VECTOR_BYTES == 32
template <>
struct Simd<float> : PlainSimd<float> {
  static constexpr auto transpose4 = transpose4_of_floats;
  static constexpr bool kMaxDistance = true;
  static Vector broadcast(float x) { return (Vector)_mm256_set1_ps(x); }
  static Vector add(Vector sum, Vector x, Vector one) {
    return (Vector)_mm256_fmadd_ps((__m256)x, (__m256)one, (__m256)sum);
  }
  static Vector multiply_add(Vector a, Vector b, Vector sum) {
    return (Vector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
  }
  static Vector max(Vector a, Vector b) { return (Vector)_mm256_max_ps((__m256)a, (__m256)b); }
  static Vector min(Vector a, Vector b) { return (Vector)_mm256_min_ps((__m256)a, (__m256)b); }
  static Vector distance(Vector a, Vector b) {
    return (Vector)_mm256_andnot_ps(_mm256_set1_ps(-0.0f), (__m256)(a - b));
  }
  static Vector clip(Vector x, Vector one) {
    return (Vector)_mm256_max_ps(_mm256_min_ps((__m256)x, (__m256)one), (__m256)-one);
  }
  static void sums(const Vector* four, float* to) {
    __m128 halves[4];
    for (int i = 0; i < 4; ++i) {
      const __m256 x = (__m256)four[i];
      halves[i] = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    }
    sums_of_floats(halves[0], halves[1], halves[2], halves[3], to);
  }
  static bool any(Mask mask) { return !_mm256_testz_si256((__m256i)mask, (__m256i)mask); }
};
#elif defined(__aarch64__)
// The absolute difference is one instruction, so there is nothing to win from the maximum.
template <>
struct Simd<float> : PlainSimd<float> {
  static constexpr auto transpose4 = transpose4_of_floats;
  static Vector broadcast(float x) { return (Vector)vdupq_n_f32(x); }
  static Vector multiply_add(Vector a, Vector b, Vector sum) {
    return (Vector)vfmaq_f32((float32x4_t)sum, (float32x4_t)a, (float32x4_t)b);
  }
  static Vector distance(Vector a, Vector b) { return (Vector)vabdq_f32((float32x4_t)a, (float32x4_t)b); }
  static Vector clip(Vector x, Vector one) {
    return (Vector)vmaxq_f32(vminq_f32((float32x4_t)x, (float32x4_t)one), (float32x4_t)-one);
  }
};
#elif defined(__x86_64__)
template <>
struct Simd<float> : PlainSimd<float> {
  static constexpr auto transpose4 = transpose4_of_floats;
  static constexpr bool kMaxDistance = true;
  static Vector broadcast(float x) { return (Vector)_mm_set1_ps(x); }
  static Vector max(Vector a, Vector b) { return (Vector)_mm_max_ps((__m128)a, (__m128)b); }
  static Vector min(Vector a, Vector b) { return (Vector)_mm_min_ps((__m128)a, (__m128)b); }
  static Vector distance(Vector a, Vector b) { return (Vector)_mm_andnot_ps(_mm_set1_ps(-0.0f), (__m128)(a - b)); }
  static Vector clip(Vector x, Vector one) {
    return (Vector)_mm_max_ps(_mm_min_ps((__m128)x, (__m128)one), (__m128)-one);
  }
  static void sums(const Vector* four, float* to) {
    sums_of_floats((__m128)four[0], (__m128)four[1], (__m128)four[2], (__m128)four[3], to);
  }
};
#endif

template <typename T>
using Vector = typename Simd<T>::Vector;
template <typename T>
using Mask = typename Simd<T>::Mask;
template <typename T>
constexpr int64_t kLanes = Simd<T>::kLanes;
// Vectors of a panel.
template <typename T>
constexpr int kVectors = static_cast<int>(kPanel / kLanes<T>);
template <>
constexpr int kVectors<uint8_t> = static_cast<int>(kPanel * kByteStep / ADDERZOO_VECTOR_BYTES);
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
  return f == Function::kMaxDistance    ? Function::kDistance
         : f == Function::kClippedSlope ? Function::kExactClippedSlope
                                        : f;
}

// The sum with one more term.
//
// kMaxDistance adds max(x, w), from which |x - w| = 2 max(x, w) - x - w: two instructions for three. Where
// multiply-adds and comparisons run on different ports, the addition as a multiply-add by one is for nothing (AMD Zen
// 5: the speed of a convolution). Like the plain form's, its rounding error is within 1e-6 of sum(|x| + |w|). It is not
// relative to the result, and infinities give inf - inf = NaN: `finish` finds tiles where either matters, and `redo`
// replaces those values by the plain form's.
//
// Comparisons with a NaN are false, so a NaN passes through the exact functions. Where there is no gradient because the
// source ends, a slope counts for nothing, and 0 * NaN would: the exact ones leave out what has the bits of `outside`.
template <Function F, typename T>
inline __attribute__((always_inline)) Vector<T> add_term(Vector<T> sum, Vector<T> source, Vector<T> filter,
                                                         Vector<T> input, Vector<T> one, Mask<T> outside) {
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
    return sum + ((Mask<T>)source == outside ? zero : source * bounded);
  }
}

// Whether a tile keeps its totals in registers beside its sums and takes all blocks at once. A wide one has no room for
// them; it takes the same block as all other tiles of the item, while its filters lie in the first cache.
constexpr bool takes_all_blocks(Function f, int vectors) {
  return ADDERZOO_REGISTERS >= 32 && vectors <= (has_input(f) ? 1 : 2);
}

// Points of a tile. Each pair of point and vector needs a register for the sum, one for the total where all blocks are
// taken at once, and one for the input of a slope; one vector of filters, one of the source and the constant one have
// to fit beside them. The pointers of more than eight points would not fit into the general registers.
constexpr int points_of_tile(Function f, int vectors) {
  const int pair = 1 + takes_all_blocks(f, vectors) + has_input(f);
  const int spare = takes_all_blocks(f, vectors) ? 8 : 3;
  const int points = (ADDERZOO_REGISTERS - spare - vectors) / (pair * vectors);
  return points < 1 ? 1 : points > 8 ? 8 : points;
}

// What the compiler makes for every number of points that a tile may have.
#define ADDERZOO_POINTS(make) make(1) make(2) make(3) make(4) make(5) make(6) make(7) make(8)

// What a tile works on. Arrays are those of its first point.
template <typename T>
struct Tile {
  const T* source;         // the region, at the tile's first channel if sources are not shared
  const int64_t* offsets;  // of the points in it
  const T* filters;        // of the tile's first panel
  int64_t panel_size;
  const T* inputs;  // (points, vectors)
  T* totals;        // (points, vectors)
  // What the next item reads comes into the second cache meanwhile, some bytes with every step.
  const char* ahead;
  int64_t ahead_step;
};

// Adds the terms of the blocks [begin, end) to the totals, or begins with them.
template <Function F, bool kShared, int kPoints, int kVecs, typename T>
void add_blocks(const Accumulation<T>& a, const Tile<T>& tile, int64_t begin, int64_t end) {
  constexpr int64_t width = kVecs * kLanes<T>;
  const Vector<T> one = Simd<T>::opaque(Vector<T>{} + T(1));
  // As `pad` marks it; nothing in a region that is the source itself (only a NaN that no processor makes).
  const Mask<T> outside = a.staged ? (Mask<T>)-Vector<T>{} : ~Mask<T>{};
  const T* source[kPoints];
  Vector<T> sum[kPoints][kVecs] = {};
  Vector<T> total[kPoints][kVecs] = {};
  Vector<T> input[kPoints][kVecs] = {};
#pragma GCC unroll 8
  for (int p = 0; p < kPoints; ++p) {
    source[p] = tile.source + tile.offsets[p];
    if constexpr (has_input(F)) {
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) input[p][v] = load(tile.inputs + p * width + v * kLanes<T>);
    }
  }

  const char* ahead = tile.ahead;
  for (int64_t block = begin; block < end; ++block) {
    for (int64_t i = a.blocks[block]; i < a.blocks[block + 1]; ++i) {
      const Piece piece = a.pieces[i];
      const T* filter = tile.filters + piece.step * kPanel;
      const T* const last = filter + piece.length * kPanel;
      const int64_t panel_size = tile.panel_size;
      const int64_t source_step = kShared ? 1 : a.source_step;
      if constexpr (kVecs < 4) {
        const char* const until = ahead + piece.length * tile.ahead_step;
        for (; ahead < until; ahead += 64) __builtin_prefetch(ahead, 0, 2);
        ahead = until;
      }
      for (int64_t at = piece.source; filter != last; at += source_step, filter += kPanel) {
        if constexpr (kVecs >= 4) {
          __builtin_prefetch(ahead, 0, 2);
          ahead += tile.ahead_step;
        }
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
            sum[p][v] = add_term<F, T>(sum[p][v], x, w[v], input[p][v], one, outside);
          }
        }
      }
    }
    if constexpr (takes_all_blocks(F, kVecs)) {
#pragma GCC unroll 8
      for (int p = 0; p < kPoints; ++p) {
#pragma GCC unroll 8
        for (int v = 0; v < kVecs; ++v) {
          total[p][v] += sum[p][v];
          sum[p][v] = Vector<T>{};
        }
      }
    } else {
#pragma GCC unroll 8
      for (int p = 0; p < kPoints; ++p) {
#pragma GCC unroll 8
        for (int v = 0; v < kVecs; ++v) {
          T* to = tile.totals + p * width + v * kLanes<T>;
          store(to, block == 0 ? sum[p][v] : load(to) + sum[p][v]);
          sum[p][v] = Vector<T>{};
        }
      }
    }
  }
  if constexpr (takes_all_blocks(F, kVecs)) {
#pragma GCC unroll 8
    for (int p = 0; p < kPoints; ++p) {
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) store(tile.totals + p * width + v * kLanes<T>, total[p][v]);
    }
  }
}

template <Function F, bool kShared, int kVecs, typename T>
void add_blocks(const Accumulation<T>& a, const Tile<T>& tile, int64_t begin, int64_t end, int points) {
  constexpr int kMost = points_of_tile(F, kVecs);
#define ADDERZOO_CASE(n) \
  case n:                \
    if constexpr (n <= kMost) return add_blocks<F, kShared, n, kVecs>(a, tile, begin, end);
  switch (points) { ADDERZOO_POINTS(ADDERZOO_CASE) }
#undef ADDERZOO_CASE
}

// Sums of bytes are integers.
template <typename T>
struct TotalOf {
  using Type = T;
};
template <>
struct TotalOf<uint8_t> {
  using Type = int32_t;
};
template <typename T>
using Total = typename TotalOf<T>::Type;

// The points of an item, and its scratch memory.
template <typename T>
struct Item {
  int64_t points;
  int64_t group, first_panel, last_panel;
  int64_t first_channel, last_channel;  // of the group
  const T* region;
  int64_t *offsets, *output_offsets, *input_offsets;
  T *region_copy, *row_sums, *pixel_sums;
  T *sums, *limits;  // of the sources of each point
  Total<T>* totals;
  T* inputs;
  const char* ahead;  // where the source of the next item begins that this one does not read
  int64_t ahead_bytes;
};

template <typename T>
Vector<T> magnitude(Vector<T> x) {
  return Simd<T>::distance(x, Vector<T>{});
}

// A distance below a 64th of the magnitudes that the fast form subtracts for it has lost more bits than six: for x and
// w near 1000 that differ by 1 its error would be 5e-4 of it. NaN, which no distance exceeds, where their sum might be
// infinite, which the distance need not be.
template <typename T>
T limit_of(T magnitudes) {
  return magnitudes / 64 + (4 * magnitudes - 4 * magnitudes);
}

// The sums of the channels of `count` pixels, which are `stride` apart, and those of their magnitudes. Four pixels at a
// time, lest one addition waits for the other; in blocks, since constants round in one direction.
template <typename T>
void sum_pixels(const T* from, int64_t stride, int64_t channels, int64_t count, T* sums, T* magnitudes) {
  constexpr int64_t kFew = 32 * kLanes<T>;
  for (int64_t first = 0; first < count; first += 4) {
    const T* pixels[4];
    for (int64_t p = 0; p < 4; ++p) pixels[p] = from + smaller(first + p, count - 1) * stride;
    Vector<T> total[4] = {}, total_magnitude[4] = {};
    int64_t i = 0;
    while (i + kLanes<T> <= channels) {
      Vector<T> part[4] = {};
      for (const int64_t end = smaller(channels, i + kFew); i + kLanes<T> <= end; i += kLanes<T>) {
#pragma GCC unroll 4
        for (int p = 0; p < 4; ++p) {
          const Vector<T> x = load(pixels[p] + i);
          part[p] += x;
          total_magnitude[p] += magnitude<T>(x);
        }
      }
#pragma GCC unroll 4
      for (int p = 0; p < 4; ++p) total[p] += part[p];
    }
    T four[4], four_magnitudes[4];
    Simd<T>::sums(total, four);
    Simd<T>::sums(total_magnitude, four_magnitudes);
    for (; i < channels; ++i) {
      for (int p = 0; p < 4; ++p) {
        four[p] += pixels[p][i];
        four_magnitudes[p] += pixels[p][i] < T(0) ? -pixels[p][i] : pixels[p][i];
      }
    }
    for (int64_t p = 0; p < smaller(4, count - first); ++p) {
      sums[first + p] = four[p];
      magnitudes[first + p] = four_magnitudes[p];
    }
  }
}

// to(c)[r] = from[r * stride + c], four by four.
template <typename T, typename To>
inline __attribute__((always_inline)) void transpose(const T* from, int64_t stride, int64_t rows, int64_t columns,
                                                     const To& to) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4, from += 4 * stride) {
    int64_t c = 0;
    for (; c + 4 <= columns; c += 4) {
      Simd<T>::transpose4(from + c, stride, to(c) + r, to(c + 1) + r, to(c + 2) + r, to(c + 3) + r);
    }
    for (; c < columns; ++c) {
      for (int i = 0; i < 4; ++i) to(c)[r + i] = from[i * stride + c];
    }
  }
  for (; r < rows; ++r, from += stride) {
    for (int64_t c = 0; c < columns; ++c) to(c)[r] = from[c];
  }
}

// Writes padded pixels into the region. Bytes beyond the last channel are zero, as in the filters. Where the source is
// a gradient, padding is not zero but nothing: zeros with a minus sign, which the gradient's own have not
// (`stage_row`).
template <typename T>
void pad(const Accumulation<T>& a, T* to, int64_t pixels) {
  if (a.input != nullptr) {
    for (int64_t i = 0; i < pixels * a.region_pixel; ++i) to[i] = -T(0);
    return;
  }
  std::memset(to, a.padding, pixels * a.region_pixel * sizeof(T));
  if (a.padding == 0 || !a.shared || a.region_pixel == a.source_channels) return;
  for (int64_t x = 0; x < pixels; ++x, to += a.region_pixel) {
    std::memset(to + a.source_channels, 0, (a.region_pixel - a.source_channels) * sizeof(T));
  }
}

// Copies neighboring pixels of the source into the region.
template <typename T>
void stage_pixels(const Accumulation<T>& a, const Item<T>& item, const T* from, int64_t pixels, T* to) {
  const Strides& s = a.source_strides;
  if (a.shared) {
    from += item.group * a.source_channels * s.channel;
    if (s.channel == 1) {
      // Not where pixels of a group, filled up with zeros, are as long as those of all groups.
      if (s.column == a.region_pixel && a.source_channels == a.region_pixel) {
        std::memcpy(to, from, pixels * a.region_pixel * sizeof(T));
      } else {
        const int64_t beyond = a.region_pixel - a.source_channels;
        for (int64_t x = 0; x < pixels; ++x, to += a.region_pixel) {
          std::memcpy(to, from + x * s.column, a.source_channels * sizeof(T));
          if (beyond > 0) std::memset(to + a.source_channels, 0, beyond * sizeof(T));
        }
      }
      return;
    }
    transpose(from, s.channel, a.source_channels, pixels, [&](int64_t x) { return to + x * a.region_pixel; });
    return;
  }
  // Each channel's own copy: (source channel, channel), zeros beyond the last channel.
  const int64_t first = item.first_panel * kPanel, channels = smaller(a.source_step, a.channels - first);
  if (a.source_channels == 1 && a.group_channels == 1 && s.channel == 1) {
    for (int64_t x = 0; x < pixels; ++x, to += a.region_pixel, from += s.column) {
      std::memcpy(to, from + first, channels * sizeof(T));
      std::memset(to + channels, 0, (a.source_step - channels) * sizeof(T));
    }
    return;
  }
  int64_t places[kMaxOwnChannels];
  for (int64_t l = 0; l < a.source_step; ++l) {
    places[l] = l < channels ? (first + l) / a.group_channels * a.source_channels * s.channel : 0;
  }
  for (int64_t x = 0; x < pixels; ++x, from += s.column) {
    for (int64_t c = 0; c < a.source_channels; ++c, to += a.source_step) {
      const T* channel = from + c * s.channel;
      for (int64_t l = 0; l < a.source_step; ++l) to[l] = channel[places[l]];
      for (int64_t l = channels; l < a.source_step; ++l) to[l] = T(0);
    }
  }
}

// Copies a row of the source, with its padding, into the region. `row` and `column` may lie outside.
template <typename T>
void stage_row(const Accumulation<T>& a, const Item<T>& item, int64_t image, int64_t row, int64_t column, T* to) {
  if (row < 0 || row >= a.source_height) {
    pad(a, to, a.region_width);
    return;
  }
  const Strides& s = a.source_strides;
  const int64_t left = column < 0 ? smaller(-column, a.region_width) : 0;
  int64_t right = smaller(a.region_width, a.source_width - column);
  right = right < left ? left : right;
  pad(a, to, left);
  pad(a, to + right * a.region_pixel, a.region_width - right);
  if (left == right) return;
  to += left * a.region_pixel;
  const int64_t pixels = right - left;
  stage_pixels(a, item, a.source + image * s.image + row * s.row + (column + left) * s.column, pixels, to);
  if (a.input == nullptr) return;
  for (int64_t i = 0; i < pixels * a.region_pixel; ++i) to[i] += T(0);  // which takes the sign off a zero
}

// Adds those of one tap, of points that are `step` apart, to sums and sums of magnitudes.
template <typename T>
void add_tap(T* __restrict sums, T* __restrict magnitudes, const T* from, const T* from_magnitudes, int64_t step,
             int64_t count) {
  if (step == 1) {
    for (int64_t i = 0; i < count; ++i) {
      sums[i] += from[i];
      magnitudes[i] += from_magnitudes[i];
    }
  } else {
    for (int64_t i = 0; i < count; ++i) {
      sums[i] += from[i * step];
      magnitudes[i] += from_magnitudes[i * step];
    }
  }
}

// Writes to `row_sums` the sums over each point's taps of one region row, where `pixels` begins, and behind them those
// of the magnitudes.
template <typename T>
void sum_row(const Accumulation<T>& a, const T* pixels, T* pixel_sums, T* row_sums) {
  T* const row_magnitudes = row_sums + a.columns;
  if (a.num_tap_columns == 1) {
    sum_pixels(pixels, a.step_w * a.region_pixel, a.source_channels, a.columns, row_sums, row_magnitudes);
    return;
  }
  const int64_t width = (a.columns - 1) * a.step_w + a.tap_columns[a.num_tap_columns - 1] - a.tap_columns[0] + 1;
  T* const pixel_magnitudes = pixel_sums + width;
  sum_pixels(pixels, a.region_pixel, a.source_channels, width, pixel_sums, pixel_magnitudes);
  std::memset(row_sums, 0, 2 * a.columns * sizeof(T));
  for (int64_t j = 0; j < a.num_tap_columns; ++j) {
    const int64_t first = a.tap_columns[j] - a.tap_columns[0];
    add_tap(row_sums, row_magnitudes, pixel_sums + first, pixel_magnitudes + first, a.step_w, a.columns);
  }
}

inline void write_offsets(int64_t* to, int64_t first, int64_t step, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = first + i * step;
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
    const bool sums_needed = a.function == Function::kMaxDistance && a.shared;
    if constexpr (Simd<T>::kMaxDistance) {
      for (int64_t r = 0; sums_needed && r < region_rows; ++r) {
        bool needed = false;
        for (int64_t i = 0; i < a.num_tap_rows; ++i) needed |= (r - (a.tap_rows[i] - first_row)) % a.step_h == 0;
        if (needed) sum_row(a, item.region + at + r * region_row, item.pixel_sums, item.row_sums + 2 * r * a.columns);
      }
    }
    for (int64_t y = 0; y < rows; ++y) {
      if (sums_needed) {
        T *const sums = item.sums + point, *const limits = item.limits + point;
        std::memset(sums, 0, a.columns * sizeof(T));
        std::memset(limits, 0, a.columns * sizeof(T));
        for (int64_t i = 0; i < a.num_tap_rows; ++i) {
          const T* from = item.row_sums + 2 * (y * a.step_h + a.tap_rows[i] - first_row) * a.columns;
          add_tap(sums, limits, from, from + a.columns, 1, a.columns);
        }
        for (int64_t x = 0; x < a.columns; ++x) limits[x] = limit_of(limits[x]);
      }
      write_offsets(item.offsets + point, at + y * a.step_h * region_row, a.step_w * a.region_pixel, a.columns);
      const Strides &to = a.output_strides, &from = a.input_strides;
      write_offsets(item.output_offsets + point, image * to.image + (y0 + y) * to.row, to.column, a.columns);
      if (a.input != nullptr) {
        write_offsets(item.input_offsets + point, image * from.image + (y0 + y) * from.row, from.column, a.columns);
      }
      point += a.columns;
    }
    item.ahead = reinterpret_cast<const char*>(a.source);
    item.ahead_bytes = 0;
    if (a.source_strides.channel == 1) {
      const int64_t next = image * a.source_height + smaller(a.source_height, top + region_rows),
                    step_rows = rows * a.step_h;
      const int64_t last = smaller(a.batch * a.source_height, next + step_rows);
      item.ahead = reinterpret_cast<const char*>(a.source + next * a.source_strides.row);
      item.ahead_bytes = (last - next) * a.source_strides.row * sizeof(T);
    }
    row += rows;
  }
  item.points = point;
}

// Length of the run of points from `point` on whose places, in steps of `column`, follow one another.
template <typename T>
int64_t run_of_points(const Item<T>& item, const int64_t* offsets, int64_t point) {
  int64_t end = point + 1;
  while (end < item.points && offsets[end] == offsets[end - 1] + 1) ++end;
  return end - point;
}

// Copies x at the points, `width` channels from `first` on, zeros for those beyond the last.
template <typename T>
void load_inputs(const Accumulation<T>& a, const Item<T>& item, int64_t first, int64_t width) {
  const int64_t channels = smaller(width, a.channels - first), stride = a.input_strides.channel;
  if (channels < width) std::memset(item.inputs, 0, item.points * width * sizeof(T));
  if (stride == 1) {
    for (int64_t p = 0; p < item.points; ++p) {
      std::memcpy(item.inputs + p * width, a.input + item.input_offsets[p] + first, channels * sizeof(T));
    }
    return;
  }
  for (int64_t p = 0; p < item.points;) {
    const int64_t run = run_of_points(item, item.input_offsets, p);
    T* to = item.inputs + p * width;
    transpose(a.input + item.input_offsets[p] + first * stride, stride, channels, run,
              [&](int64_t x) { return to + x * width; });
    p += run;
  }
}

template <typename T>
void add(T* to, const T* addend, int64_t length, bool relu) {
  if (relu) {
    for (int64_t i = 0; i < length; ++i) {
      const T sum = to[i] + addend[i];
      to[i] = sum < T(0) ? T(0) : sum;
    }
  } else {
    for (int64_t i = 0; i < length; ++i) to[i] += addend[i];
  }
}

// Writes the totals where a point's channels do not lie together.
template <typename T>
void store_planes(const Accumulation<T>& a, const Item<T>& item, int64_t first, int64_t from, int64_t to,
                  int64_t width) {
  const int64_t plane = a.output_strides.channel;
  for (int64_t p = 0; p < item.points;) {
    const int64_t run = run_of_points(item, item.output_offsets, p);
    T* output = a.output + item.output_offsets[p] + (first + from) * plane;
    transpose(item.totals + p * width + from, width, run, to - from, [&](int64_t c) { return output + c * plane; });
    if (a.epilogue.addend != nullptr) {
      const T* addend = a.epilogue.addend + (output - a.output);
      for (int64_t c = 0; c < to - from; ++c) add(output + c * plane, addend + c * plane, run, a.epilogue.relu);
    }
    p += run;
  }
}

// Zeros beyond the last channel.
template <typename T>
Vector<T> load_channels(const T* from, int64_t first, int64_t channels) {
  if (first + kLanes<T> <= channels) return load(from + first);
  T padded[kLanes<T>] = {};
  if (first < channels) std::memcpy(padded, from + first, (channels - first) * sizeof(T));
  return load(padded);
}

// Whether finish() writes to the output: where the channels are all the item's own, and lie together. Else its results
// take the totals' place.
template <typename T>
bool writes_output(const Accumulation<T>& a, const Item<T>& item, int64_t first_channel, int64_t width) {
  return a.output_strides.channel == 1 && first_channel >= item.first_channel &&
         first_channel + width <= item.last_channel;
}

// Turns a tile's totals into outputs. Returns false if the fast form does not hold for one of them; those of a single
// point are marked, if asked for.
template <Function F, bool kAffine, int kVecs, typename T>
bool finish(const Accumulation<T>& a, const Item<T>& item, int64_t point, int points, int64_t first_channel,
            typename Simd<T>::Mask* marks = nullptr) {
  constexpr int64_t width = kVecs * kLanes<T>;
  const Vector<T> zero = {};
  const Epilogue<T>& epilogue = a.epilogue;
  Vector<T> filter_sums[kVecs], limits[kVecs], scale[kVecs], shift[kVecs];
  for (int v = 0; v < kVecs; ++v) {
    if constexpr (F == Function::kMaxDistance) {
      filter_sums[v] = load(a.filter_sums + first_channel + v * kLanes<T>);
      limits[v] = load(a.filter_limits + first_channel + v * kLanes<T>);
    }
    if constexpr (kAffine) {
      scale[v] = load_channels(epilogue.scale, first_channel + v * kLanes<T>, a.channels);
      shift[v] = load_channels(epilogue.shift, first_channel + v * kLanes<T>, a.channels);
    }
  }

  const bool direct = writes_output(a, item, first_channel, width);
  typename Simd<T>::Mask odd = {};
  for (int p = 0; p < points; ++p) {
    T* totals = item.totals + (point + p) * width;
    T* output = direct ? a.output + item.output_offsets[point + p] + first_channel : totals;
    Vector<T> sum = {}, limit = {};
    if constexpr (F == Function::kMaxDistance) {
      sum = Simd<T>::broadcast(item.sums[point + p]);
      limit = Simd<T>::broadcast(item.limits[point + p]);
    }
    for (int v = 0; v < kVecs; ++v) {
      Vector<T> y = load(totals + v * kLanes<T>);
      if constexpr (F == Function::kMaxDistance) {
        y = (sum + filter_sums[v]) - (y + y);
        const typename Simd<T>::Mask odd_here = ~(y <= -(limit + limits[v]));  // true of a NaN as well
        odd |= odd_here;
        if (marks != nullptr) marks[v] = odd_here;
      } else if constexpr (F == Function::kDistance) {
        y = -y;
      } else if constexpr (F == Function::kClippedSlope) {
        const Vector<T> x = load(item.inputs + (point + p) * width + v * kLanes<T>);
        odd |= x != x;
        if (marks != nullptr) marks[v] = x != x;
      }
      if constexpr (kAffine) {
        y = Simd<T>::multiply_add(y, scale[v], shift[v]);
        if (epilogue.addend == nullptr && epilogue.relu) y = y < zero ? zero : y;
      }
      store(output + v * kLanes<T>, y);
    }
    if (kAffine && epilogue.addend != nullptr && a.output_strides.channel == 1) {
      const T* addend = epilogue.addend + item.output_offsets[point + p] + first_channel;
      add(output, addend, smaller(width, a.channels - first_channel), epilogue.relu);
    }
  }
  return !Simd<T>::any(odd);
}

// Takes the exact form's results where the fast form does not hold. The others stay as they are: else they would depend
// on the tile that they happen to lie in, and so on the number of threads.
template <Function F, bool kShared, bool kAffine, int kVecs, typename T>
__attribute__((noinline)) void redo(const Accumulation<T>& a, const Item<T>& item, Tile<T> tile, int64_t point,
                                    int points, int64_t first_channel) {
  constexpr int64_t width = kVecs * kLanes<T>;
  const bool direct = writes_output(a, item, first_channel, width);
  for (const int64_t end = point + points; point < end; ++point, ++tile.offsets) {
    tile.inputs = item.inputs + point * width;
    tile.totals = item.totals + point * width;
    // finish() may have overwritten the totals.
    add_blocks<F, kShared, 1, kVecs>(a, tile, 0, a.num_blocks);
    typename Simd<T>::Mask odd[kVecs];
    if (finish<F, kAffine, kVecs>(a, item, point, 1, first_channel, odd)) continue;
    T* results = direct ? a.output + item.output_offsets[point] + first_channel : tile.totals;
    T fast[width];
    std::memcpy(fast, results, sizeof(fast));
    add_blocks<exact(F), kShared, 1, kVecs>(a, tile, 0, a.num_blocks);
    finish<exact(F), kAffine, kVecs>(a, item, point, 1, first_channel);
    for (int64_t i = 0; i < width; ++i) {
      if (odd[i / kLanes<T>][i % kLanes<T>] == 0) results[i] = fast[i];
    }
  }
}

// All points of an item, for kPanels panels from `panel` on.
template <Function F, bool kShared, bool kAffine, int kPanels, typename T>
void run_panels(const Accumulation<T>& a, const Item<T>& item, int64_t panel) {
  constexpr int kVecs = kPanels * kVectors<T>;
  constexpr int64_t width = kPanels * kPanel;
  constexpr int kMost = points_of_tile(F, kVecs);
  const int64_t first_channel = panel * kPanel, panel_size = a.filter_steps * kPanel;
  if constexpr (has_input(F)) load_inputs(a, item, first_channel, width);

  const int64_t tiles = (item.points + kMost - 1) / kMost;
  const int64_t steps = a.num_tap_rows * a.num_tap_columns * a.source_channels;
  const int64_t ahead_step = panel == item.first_panel ? item.ahead_bytes / (tiles * steps + 1) : 0;
  const int64_t blocks = takes_all_blocks(F, kVecs) ? a.num_blocks : 1;
  for (int64_t block = 0; block < a.num_blocks; block += blocks) {
    int64_t point = 0;
    for (int64_t t = 0; t < tiles; ++t) {
      // Tiles of equal size, or nearly so: a small one at the end would not fill the pipelines.
      const int points = static_cast<int>((item.points - point + (tiles - t) - 1) / (tiles - t));
      const Tile<T> tile{
          .source = item.region + (kShared ? 0 : first_channel - item.first_panel * kPanel),
          .offsets = item.offsets + point,
          .filters = a.filters + panel * panel_size,
          .panel_size = panel_size,
          .inputs = item.inputs + point * width,
          .totals = item.totals + point * width,
          .ahead =
              item.ahead + (block * kBlock * tiles + t * smaller(kBlock * blocks, steps - block * kBlock)) * ahead_step,
          .ahead_step = ahead_step,
      };
      add_blocks<F, kShared, kVecs>(a, tile, block, block + blocks, points);
      if (block + blocks == a.num_blocks) {
        [[maybe_unused]] const bool holds = finish<F, kAffine, kVecs>(a, item, point, points, first_channel);
        if constexpr (exact(F) != F) {
          if (!holds) redo<F, kShared, kAffine, kVecs>(a, item, tile, point, points, first_channel);
        }
      }
      point += points;
    }
  }

  // Only the lanes of the item's own group are its to write.
  const int64_t from = first_channel < item.first_channel ? item.first_channel - first_channel : 0;
  const int64_t to = smaller(width, item.last_channel - first_channel);
  if (a.output_strides.channel != 1) {
    store_planes(a, item, first_channel, from, to, width);
  } else if (to - from < width) {
    for (int64_t p = 0; p < item.points; ++p) {
      std::memcpy(a.output + item.output_offsets[p] + first_channel + from, item.totals + p * width + from,
                  (to - from) * sizeof(T));
    }
  }
}

template <Function F, bool kShared, bool kAffine, typename T>
void run_item(const Accumulation<T>& a, const Item<T>& item) {
  for (int64_t panel = item.first_panel; panel < item.last_panel;) {
    const int64_t left = item.last_panel - panel;
    if (kMaxPanels<T> >= 4 && left >= 4) {
      run_panels<F, kShared, kAffine, kMaxPanels<T> >= 4 ? 4 : 1>(a, item, panel);
      panel += 4;
    } else if (kMaxPanels<T> >= 2 && left >= 2) {
      run_panels<F, kShared, kAffine, kMaxPanels<T> >= 2 ? 2 : 1>(a, item, panel);
      panel += 2;
    } else {
      run_panels<F, kShared, kAffine, 1>(a, item, panel);
      panel += 1;
    }
  }
}

// The sources of unshared layers are loaded as vectors: there the sum of a point's sources, which the maximum needs, is
// one of each channel, and would cost as much as it saves.
template <Function F, bool kAffine, typename T>
void run_shared(const Accumulation<T>& a, const Item<T>& item) {
  constexpr Function kUnshared = F == Function::kMaxDistance ? Function::kDistance : F;
  a.shared ? run_item<F, true, kAffine>(a, item) : run_item<kUnshared, false, kAffine>(a, item);
}

template <typename T>
void run_function(const Accumulation<T>& a, const Item<T>& item) {
  const bool affine = a.epilogue.scale != nullptr;
  switch (a.function) {
    case Function::kDistance:
      affine ? run_shared<Function::kDistance, true>(a, item) : run_shared<Function::kDistance, false>(a, item);
      break;
    case Function::kMaxDistance:
      affine ? run_shared<Function::kMaxDistance, true>(a, item) : run_shared<Function::kMaxDistance, false>(a, item);
      break;
    case Function::kClippedSlope:
      run_shared<Function::kClippedSlope, false>(a, item);
      break;
    case Function::kExactClippedSlope:
      run_shared<Function::kExactClippedSlope, false>(a, item);
      break;
    case Function::kSignSlope:
      run_shared<Function::kSignSlope, false>(a, item);
      break;
  }
}

#include "adder2d_bytes_body.h"

template <typename T>
void run(const Accumulation<T>& a, int64_t begin, int64_t end, T* scratch) {
  Item<T> item;
  // Numbers of eight bytes first.
  int64_t* offsets = reinterpret_cast<int64_t*>(scratch);
  item.offsets = offsets;
  item.output_offsets = offsets + a.max_points;
  item.input_offsets = offsets + 2 * a.max_points;
  item.totals = reinterpret_cast<Total<T>*>(offsets + 3 * a.max_points);
  item.inputs = reinterpret_cast<T*>(item.totals + a.max_points * kMaxPanels<T> * kPanel);
  item.sums = item.inputs + (a.input == nullptr ? 0 : a.max_points * kMaxPanels<T> * kPanel);
  item.limits = item.sums + a.max_points;
  item.region_copy = item.limits + a.max_points;
  item.row_sums = item.region_copy + (a.staged ? a.max_region_rows * a.region_width * a.region_pixel : 0);
  item.pixel_sums = item.row_sums + 2 * a.max_region_rows * a.columns;
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
    run_function(a, item);
  }
}

template <typename T>
void sum_filters(const T* packed, T* sums, T* limits, int64_t steps, int64_t begin, int64_t end) {
  // So many steps at a time that four additions do not wait for one another; and in blocks, as above.
  constexpr int kSteps = kVectors<T> < 4 ? 4 / kVectors<T> : 1, kVecs = kSteps * kVectors<T>;
  constexpr int64_t kFew = 32 * kSteps;
  for (int64_t panel = begin; panel < end; ++panel) {
    Vector<T> total[kVecs] = {}, total_magnitude[kVecs] = {};
    const T* from = packed + panel * steps * kPanel;
    for (int64_t first = 0; first < steps; first += kFew) {
      Vector<T> sum[kVecs] = {};
      const auto add = [&](int v) {
        const Vector<T> w = load(from + v * kLanes<T>);
        sum[v] += w;
        total_magnitude[v] += magnitude<T>(w);
      };
      const int64_t last = smaller(steps, first + kFew);
      int64_t step = first;
      for (; step + kSteps <= last; step += kSteps, from += kSteps * kPanel) {
#pragma GCC unroll 8
        for (int v = 0; v < kVecs; ++v) add(v);
      }
      for (; step < last; ++step, from += kPanel) {
        for (int v = 0; v < kVectors<T>; ++v) add(v);
      }
      for (int v = 0; v < kVecs; ++v) total[v] += sum[v];
    }
    for (int v = 0; v < kVectors<T>; ++v) {
      for (int other = v + kVectors<T>; other < kVecs; other += kVectors<T>) {
        total[v] += total[other];
        total_magnitude[v] += total_magnitude[other];
      }
      store(sums + panel * kPanel + v * kLanes<T>, total[v]);
      store(limits + panel * kPanel + v * kLanes<T>, limit_of(total_magnitude[v]));
    }
  }
}

template <typename T>
void pack(const T* weight, T* packed, T* sums, T* limits, const FilterShape& s, int64_t begin, int64_t end) {
  const int64_t steps = s.steps();
  for (int64_t panel = begin; panel < end; ++panel) {
    T* to = packed + panel * steps * kPanel;
    const int64_t first = panel * kPanel, lanes = smaller(kPanel, s.channels - first);
    if (lanes < kPanel) std::memset(to, 0, steps * kPanel * sizeof(T));
    // Lanes of one group are equally far apart.
    for (int64_t lane = 0; lane < lanes;) {
      const int64_t channel = first + lane, in_group = channel % s.group_channels;
      const int64_t run = smaller(lanes - lane, s.group_channels - in_group);
      const T* from = weight + channel / s.group_channels * s.group_stride + in_group * s.channel_stride;
      for (int64_t source = 0; source < s.source_channels; ++source, from += s.source_stride) {
        const auto step = [&](int64_t tap) {
          return to + ((s.reverse_taps ? s.taps - 1 - tap : tap) * s.source_channels + source) * kPanel + lane;
        };
        if (s.taps == 1 && s.channel_stride == 1) {
          std::memcpy(step(0), from, run * sizeof(T));
        } else if (s.taps == 1) {
          // Sources are adjacent in the filter and in the panel.
          transpose(from, s.channel_stride, run, s.source_channels, [&](int64_t c) { return to + c * kPanel + lane; });
          break;
        } else {
          transpose(from, s.channel_stride, run, s.taps, step);
        }
      }
      lane += run;
    }
  }
  sum_filters(packed, sums, limits, steps, begin, end);
}

template <typename T>
T sign_of(T x) {
  return x > T(0) ? T(1) : (x < T(0) ? T(-1) : x);
}

template <typename T, bool kFiltersAreLanes>
void filter_sign_gradient_of(const FilterSignGradient<T>& a, int64_t begin, int64_t end) {
  const Geometry& s = a.geometry;
  const int64_t taps = s.taps(), others = kFiltersAreLanes ? s.channels : s.filters;
  const int64_t x_pixel = s.groups * s.channels, g_pixel = s.groups * s.filters;
  const int64_t lane_stride = kFiltersAreLanes ? s.channels * taps : taps;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t tap = item % taps, other = item / taps % others, group = item / taps / others;
    const int64_t offset_h = tap / s.kernel_w * s.dilation_h - s.padding_h;
    const int64_t offset_w = tap % s.kernel_w * s.dilation_w - s.padding_w;
    for (int64_t first = 0; first < a.lanes(); first += kBlock) {
      const int64_t lanes = smaller(kBlock, a.lanes() - first);
      const int64_t filter0 = group * s.filters + (kFiltersAreLanes ? first : other);
      const int64_t channel0 = kFiltersAreLanes ? other : first;
      const int64_t at = (filter0 * s.channels + channel0) * taps + tap;
      const T zeros[kBlock] = {};
      T filter[kBlock], sum[kBlock] = {}, total[kBlock] = {};
      for (int64_t i = 0; i < lanes; ++i) filter[i] = a.weight[at + i * lane_stride];

      const T* g = a.grad + filter0;
      int64_t pending = 0;
      for (int64_t n = 0; n < s.batch; ++n) {
        for (int64_t oh = 0; oh < s.out_height; ++oh) {
          const int64_t y = oh * s.stride_h + offset_h;
          for (int64_t ow = 0; ow < s.out_width; ++ow, g += g_pixel) {
            const int64_t x = ow * s.stride_w + offset_w;
            const bool inside = y >= 0 && y < s.height && x >= 0 && x < s.width;
            const T* source =
                inside ? a.input + ((n * s.height + y) * s.width + x) * x_pixel + group * s.channels + channel0 : zeros;
            for (int64_t i = 0; i < lanes; ++i) {
              const T difference = source[kFiltersAreLanes ? 0 : i] - filter[i];
              sum[i] +=
                  g[kFiltersAreLanes ? i : 0] * (difference > T(0) ? T(1) : (difference < T(0) ? T(-1) : difference));
            }
            if (++pending == kBlock) {
              for (int64_t i = 0; i < lanes; ++i) {
                total[i] += sum[i];
                sum[i] = T(0);
              }
              pending = 0;
            }
          }
        }
      }
      for (int64_t i = 0; i < lanes; ++i) a.grad_weight[at + i * lane_stride] = total[i] + sum[i];
    }
  }
}

template <typename T>
void narrow_filter_sign_gradient(const FilterSignGradient<T>& a, int64_t begin, int64_t end) {
  constexpr int64_t kLanes = 16;
  const Geometry& s = a.geometry;
  const int64_t taps = s.taps();
  for (int64_t item = begin; item < end; ++item) {  // an element of the filters, as they lie in memory
    const int64_t tap = item % taps, c = item / taps % s.channels, f = item / taps / s.channels;
    const int64_t offset_h = tap / s.kernel_w * s.dilation_h - s.padding_h;
    const int64_t offset_w = tap % s.kernel_w * s.dilation_w - s.padding_w;
    const int64_t left = offset_w < 0 ? smaller(s.out_width, -offset_w) : 0;
    int64_t right = smaller(s.out_width, s.width - offset_w);
    if (right < left) right = left;
    const T filter = a.weight[item];
    T sum[kLanes] = {}, total[kLanes] = {};
    int64_t pending = 0;
    for (int64_t n = 0; n < s.batch; ++n) {
      for (int64_t oh = 0; oh < s.out_height; ++oh) {
        const T* g = a.grad + ((n * s.groups * s.filters + f) * s.out_height + oh) * s.out_width;
        const int64_t y = oh * s.stride_h + offset_h;
        const bool inside = y >= 0 && y < s.height;
        const int64_t begin_x = inside ? left : s.out_width, end_x = inside ? right : s.out_width;
        const T padded = sign_of(-filter);
        for (int64_t i = 0; i < begin_x; ++i) sum[i % kLanes] += g[i] * padded;
        for (int64_t i = end_x; i < s.out_width; ++i) sum[i % kLanes] += g[i] * padded;
        if (inside) {
          const int64_t channel = f / s.filters * s.channels + c;
          const T* x = a.input + ((n * s.groups * s.channels + channel) * s.height + y) * s.width + offset_w;
          int64_t i = begin_x;
          for (; i + kLanes <= end_x; i += kLanes) {
            for (int64_t j = 0; j < kLanes; ++j) sum[j] += g[i + j] * sign_of(x[i + j] - filter);
          }
          for (int64_t j = 0; i < end_x; ++i, ++j) sum[j] += g[i] * sign_of(x[i] - filter);
        }
        pending += s.out_width / kLanes + 3;
        if (pending >= kBlock) {
          for (int64_t j = 0; j < kLanes; ++j) {
            total[j] += sum[j];
            sum[j] = T(0);
          }
          pending = 0;
        }
      }
    }
    T result = 0;
    for (int64_t j = 0; j < kLanes; ++j) result += total[j] + sum[j];
    a.grad_weight[item] = result;
  }
}

template <typename T>
void filter_sign_gradient(const FilterSignGradient<T>& a, int64_t begin, int64_t end) {
  if (a.narrow()) return narrow_filter_sign_gradient(a, begin, end);
  a.filters_are_lanes() ? filter_sign_gradient_of<T, true>(a, begin, end)
                        : filter_sign_gradient_of<T, false>(a, begin, end);
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
          sum[p][v] = add_term<F, T>(sum[p][v], x, w[v], input[p][v], one, Mask<T>{});
        }
      }
    }
  }
  Vector<T> all = {};
  // Unrolled as well: else GCC writes the sums to memory in every step, for this loop to find them there (aarch64).
#pragma GCC unroll 8
  for (int p = 0; p < kPoints; ++p) {
#pragma GCC unroll 8
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

// Constant initializers: nothing of this instruction set runs while the library is loaded.
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
extern const Loops<uint8_t> kBytes;
constexpr Loops<uint8_t> kBytes = {.run = run<uint8_t>, .ceiling = ceiling_of_bytes};

}  // namespace adderzoo::cpu::ADDERZOO_CAPABILITY
