/* Kernels: how a layer is computed. Constants are known where these functions are inlined, one copy for every shape. */

#define ADDER_PLAIN 0  /* C alone */
#define ADDER_SWAR 1   /* four points' bytes of 7 bits in a word, against one weight; weights of 0 are left out */
#define ADDER_DSP 2    /* Arm's USADA8: one instruction for four differences and their sum */
#define ADDER_HELIUM 3 /* Arm's VABAV: one for sixteen; else as DSP */
#ifndef ADDER_KERNEL
#if defined(__ARM_FEATURE_MVE) && defined(__OPTIMIZE__)
#define ADDER_KERNEL ADDER_HELIUM
#elif defined(__ARM_FEATURE_DSP) && defined(__thumb2__) && defined(__GNUC__) && defined(__OPTIMIZE__)
#define ADDER_KERNEL ADDER_DSP
#elif TOP <= 127
#define ADDER_KERNEL ADDER_SWAR
#else
#define ADDER_KERNEL ADDER_PLAIN
#endif
#endif

#if ADDER_KERNEL == ADDER_HELIUM
#include <arm_mve.h> /* the compiler's own */
#endif

#if defined(__BYTE_ORDER__) && defined(__ORDER_BIG_ENDIAN__)
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#error "the filters lie in words of little-endian order"
#endif
#endif

#if ADDER_KERNEL == ADDER_SWAR
#if TOP > 127
#error "ADDER_SWAR needs a network of 7 bits or fewer"
#endif
#define SWAR(swar, other) swar
typedef uint16_t filter_t; /* in lists */
#else
#define SWAR(swar, other) other
typedef uint32_t filter_t; /* four bytes */
#endif

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline, unused))
#define NOINLINE static __attribute__((noinline, unused))
#else
#define INLINE static inline
#define NOINLINE static
#endif

/* GCC's scheduling before the allocation of registers would spill what the kernels keep there, and its counted loops
   take a register away. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-schedule-insns", "no-branch-count-reg")
#endif

/* Every pointer that words are read through is to a multiple of four bytes of the arena. */
INLINE const uint32_t* words_at(const uint8_t* bytes) { return (const uint32_t*)(const void*)bytes; }

/* Sums wrap around in unsigned numbers; the result fits into 32 bits (the generator has seen to it), where two's
   complement and a shift that keeps the sign are taken for granted, as all compilers have them. */
INLINE uint8_t to_byte(uint32_t sum, uint32_t shift, uint32_t low, uint32_t top) {
#if ADDER_KERNEL >= ADDER_DSP
  uint32_t y;
  if (top == 255u && shift > 0u) {
    __asm__("usat %0, #8, %1, asr %2" : "=r"(y) : "r"(sum), "i"(shift));
  } else if (top == 127u && shift > 0u) {
    __asm__("usat %0, #7, %1, asr %2" : "=r"(y) : "r"(sum), "i"(shift));
  } else {
    const int32_t value = (int32_t)sum >> shift;
    y = value<0 ? 0u : value>(int32_t) top ? top : (uint32_t)value;
  }
  return (uint8_t)(low > 0u && y < low ? low : y);
#else
  const int32_t value = (int32_t)sum >> shift;
  return (uint8_t)(value<(int32_t)low ? low : value>(int32_t) top ? top : (uint32_t)value);
#endif
}

/* ------------------------------------------------------------------------------------------------------ adder layers
 */

/* A tile is of two points and four channels: s0 to s3 are the sums of the one point, s4 to s7 those of the other, which
   is `point` bytes further. Filters lie as four words of four channels, again and again. */
#if ADDER_KERNEL >= ADDER_DSP

#if defined(__ARM_FEATURE_MVE)

/* Counted loops of Armv8.1-M keep a register: the compiler is left to place the others. */
INLINE uint32_t usada8(uint32_t x, uint32_t w, uint32_t sum) {
  __asm__("usada8 %0, %1, %2, %0" : "+r"(sum) : "r"(x), "r"(w));
  return sum;
}
#define PAIR(near, far, j)   \
  f = w[j];                  \
  near = usada8(a, f, near); \
  far = usada8(b, f, far);
#define WORD(k)            \
  a = x[k];                \
  b = x[(k) + point / 4u]; \
  PAIR(s0, s4, 4 * (k)) PAIR(s1, s5, 4 * (k) + 1) PAIR(s2, s6, 4 * (k) + 2) PAIR(s3, s7, 4 * (k) + 3)

#else

#define PAIR(near, far, offset)             \
  "ldr %[f], [%[w], %[" offset              \
  "]]\n\t"                                  \
  "usada8 %[" near "], %[a], %[f], %[" near \
  "]\n\t"                                   \
  "usada8 %[" far "], %[b], %[f], %[" far "]\n\t"
/* Thirteen registers, of fourteen that there are; the compiler, left alone, spills some. */
#define WORD(k)                                                                                                  \
  __asm__(                                                                                                       \
      "ldr %[a], [%[x], %[i]]\n\t"                                                                               \
      "ldr %[b], [%[x], %[j]]\n\t" PAIR("s0", "s4", "w0") PAIR("s1", "s5", "w1") PAIR("s2", "s6", "w2")          \
          PAIR("s3", "s7", "w3")                                                                                 \
      : [s0] "+r"(s0), [s1] "+r"(s1), [s2] "+r"(s2), [s3] "+r"(s3), [s4] "+r"(s4), [s5] "+r"(s5), [s6] "+r"(s6), \
        [s7] "+r"(s7), [a] "=&r"(a), [b] "=&r"(b), [f] "=&r"(f)                                                  \
      : [x] "r"(x), [w] "r"(w), [i] "n"(4 * (k)), [j] "i"(4 * (k) + point), [w0] "n"(16 * (k)),                  \
        [w1] "n"(16 * (k) + 4), [w2] "n"(16 * (k) + 8), [w3] "n"(16 * (k) + 12)                                  \
      : "memory");

#endif

#define SUM_DECLARE uint32_t a, b, f;
#define LAST_WORDS(words)   \
  if ((words) % 4u >= 1u) { \
    WORD(0)                 \
  }                         \
  if ((words) % 4u >= 2u) { \
    WORD(1)                 \
  }                         \
  if ((words) % 4u >= 3u) { \
    WORD(2)                 \
  }                         \
  w += 4u * ((words) % 4u);

#if ADDER_KERNEL == ADDER_HELIUM

#define SUMS(near, far, j)                                              \
  near = vabavq_u8(near, vector_a, vreinterpretq_u8_u32(fours.val[j])); \
  far = vabavq_u8(far, vector_b, vreinterpretq_u8_u32(fours.val[j]));
/* A load that takes every fourth word gives four words of each channel. */
#define SUM_WORDS(words)                                                                                     \
  for (uint32_t left = (words); left >= 4u; left -= 4u, x += 4, w += 16) {                                   \
    const uint32x4x4_t fours = vld4q_u32(w);                                                                 \
    const uint8x16_t vector_a = vld1q_u8((const uint8_t*)x), vector_b = vld1q_u8((const uint8_t*)x + point); \
    SUMS(s0, s4, 0) SUMS(s1, s5, 1) SUMS(s2, s6, 2) SUMS(s3, s7, 3)                                          \
  }                                                                                                          \
  LAST_WORDS(words)

#else

#define FOUR_WORDS                        \
  WORD(0) WORD(1) WORD(2) WORD(3) x += 4; \
  w += 16;
#define SUM_WORDS(words)                                                                              \
  for (uint32_t left = (words); left >= 12u; left -= 12u, x += 12, w += 48) {                         \
    WORD(0) WORD(1) WORD(2) WORD(3) WORD(4) WORD(5) WORD(6) WORD(7) WORD(8) WORD(9) WORD(10) WORD(11) \
  }                                                                                                   \
  if ((words) % 12u >= 4u) {                                                                          \
    FOUR_WORDS                                                                                        \
  }                                                                                                   \
  if ((words) % 12u >= 8u) {                                                                          \
    FOUR_WORDS                                                                                        \
  }                                                                                                   \
  LAST_WORDS(words)

#endif

#else

INLINE uint32_t distance(uint32_t sum, const uint8_t* x, const uint8_t* w) {
  for (uint32_t k = 0; k < 4u; k++) {
    const int32_t difference = (int32_t)x[k] - (int32_t)w[k];
    sum += (uint32_t)(difference < 0 ? -difference : difference);
  }
  return sum;
}

#define SUM_DECLARE
#define SUM_WORDS(words)                                                                          \
  for (uint32_t k = 0; k < (words); k++, x += 1, w += 4) {                                        \
    const uint8_t *a = (const uint8_t*)x, *b = (const uint8_t*)x + point, *f = (const uint8_t*)w; \
    s0 = distance(s0, a, f);                                                                      \
    s1 = distance(s1, a, f + 4);                                                                  \
    s2 = distance(s2, a, f + 8);                                                                  \
    s3 = distance(s3, a, f + 12);                                                                 \
    s4 = distance(s4, b, f);                                                                      \
    s5 = distance(s5, b, f + 4);                                                                  \
    s6 = distance(s6, b, f + 8);                                                                  \
    s7 = distance(s7, b, f + 12);                                                                 \
  }

#endif

/* ------------------------------------------------------------------------------------------------------ convolutions
 */

/* Products of bytes and weights from -127 to 127: the processor's, or where it has none, by a table of squares:
   2 sum x w = sum x^2 + sum w^2 - sum (x - w)^2, where the first sum is the same for all channels, and the second lies
   behind the filters. */
#ifndef ADDER_SQUARES
#if SHIFTS || (defined(__riscv) && !defined(__riscv_mul))
#define ADDER_SQUARES 1
#else
#define ADDER_SQUARES 0
#endif
#endif

#if ADDER_SQUARES && ADDER_KERNEL < ADDER_DSP

#define SQUARE(n) (uint32_t)((n) * (n))
#define SQUARES_4(n) SQUARE(n), SQUARE((n) + 1), SQUARE((n) + 2), SQUARE((n) + 3)
#define SQUARES_16(n) SQUARES_4(n), SQUARES_4((n) + 4), SQUARES_4((n) + 8), SQUARES_4((n) + 12)
#define SQUARES_64(n) SQUARES_16(n), SQUARES_16((n) + 16), SQUARES_16((n) + 32), SQUARES_16((n) + 48)
/* Of -384 to 127: of all differences w - x, and of -(x + w). */
static const uint32_t squares[512] = {SQUARES_64(-384), SQUARES_64(-320), SQUARES_64(-256), SQUARES_64(-192),
                                      SQUARES_64(-128), SQUARES_64(-64),  SQUARES_64(0),    SQUARES_64(64)};

INLINE uint32_t product(uint32_t x, int32_t w) {
  const uint32_t* const square = squares + 384 - x;
  return (uint32_t)((int32_t)(square[-w] - square[w]) >> 2);
}

#else

INLINE uint32_t product(uint32_t x, int32_t w) { return (uint32_t)((int32_t)x * w); }

#endif

/* One point and four channels. Weights are of 16 bits, in pairs: of every four bytes the first and the third, then the
   second and the fourth. */
#if ADDER_KERNEL >= ADDER_DSP

#define PRODUCTS(sum, offset)            \
  "ldrd %[f], %[g], [%[w], %[" offset    \
  "]]\n\t"                               \
  "smlad %[" sum "], %[a], %[f], %[" sum \
  "]\n\t"                                \
  "smlad %[" sum "], %[b], %[g], %[" sum "]\n\t"
#define CONV_WORD(k)                                                                                                   \
  __asm__(                                                                                                             \
      "ldr %[b], [%[x], %[i]]\n\t"                                                                                     \
      "uxtb16 %[a], %[b]\n\t"                                                                                          \
      "uxtb16 %[b], %[b], ror #8\n\t" PRODUCTS("s0", "w0") PRODUCTS("s1", "w1") PRODUCTS("s2", "w2")                   \
          PRODUCTS("s3", "w3")                                                                                         \
      : [s0] "+r"(s0), [s1] "+r"(s1), [s2] "+r"(s2), [s3] "+r"(s3), [a] "=&r"(a), [b] "=&r"(b), [f] "=&r"(f),          \
        [g] "=&r"(g)                                                                                                   \
      : [x] "r"(x), [w] "r"(w), [i] "n"(4 * (k)), [w0] "n"(32 * (k)), [w1] "n"(32 * (k) + 8), [w2] "n"(32 * (k) + 16), \
        [w3] "n"(32 * (k) + 24)                                                                                        \
      : "memory");
#define CONV_POINTS 1u
#define CONV_BEGIN
#define CONV_END const uint32_t t0 = 0, t1 = 0, t2 = 0, t3 = 0;
#define CONV_DECLARE uint32_t a, b, f, g;
#define CONV_WORDS                                    \
  {                                                   \
    uint32_t left = words;                            \
    for (; left >= 3u; left -= 3u, x += 3, w += 24) { \
      CONV_WORD(0) CONV_WORD(1) CONV_WORD(2)          \
    }                                                 \
    for (; left > 0u; left -= 1u, x += 1, w += 8) {   \
      CONV_WORD(0)                                    \
    }                                                 \
  }

#else

#if defined(__riscv)
#define CONV_POINTS 2u
#else
#define CONV_POINTS 1u /* fewer registers */
#endif
#define CONV_DECLARE uint32_t t0 = 0, t1 = 0, t2 = 0, t3 = 0;
#define CONV_LANE(k, j)                                  \
  if (lanes > (k)) {                                     \
    CONV_X(k)                                            \
    CONV_ONE(s0, t0, 0 + (j))                            \
    CONV_ONE(s1, t1, 4 + (j))                            \
    CONV_ONE(s2, t2, 8 + (j)) CONV_ONE(s3, t3, 12 + (j)) \
  }
#if ADDER_SQUARES
/* The squares of both points' bytes. */
#define CONV_BEGIN                                                                     \
  uint32_t near_squares = 0, far_squares = 0;                                          \
  for (uint32_t tap = 0; tap < tap_rows; tap++) {                                      \
    for (uint32_t side = 0; side < tap_columns; side++) {                              \
      const uint8_t* x = patch + tap * tap_row + side * tap_column;                    \
      for (uint32_t k = 0; k < words; k++, x += 4) {                                   \
        for (uint32_t lane = 0; lane < lanes; lane++) {                                \
          near_squares += (squares + 384 - x[lane])[0];                                \
          far_squares += CONV_POINTS > 1u ? (squares + 384 - x[lane + point])[0] : 0u; \
        }                                                                              \
      }                                                                                \
    }                                                                                  \
  }
#define HALF(s, squared, j) s = (uint32_t)((int32_t)(squared + w[j] - s) >> 1);
#define CONV_END            \
  HALF(s0, near_squares, 0) \
  HALF(s1, near_squares, 1) \
  HALF(s2, near_squares, 2) \
  HALF(s3, near_squares, 3) \
  HALF(t0, far_squares, 0) HALF(t1, far_squares, 1) HALF(t2, far_squares, 2) HALF(t3, far_squares, 3)
#define CONV_X(k) const uint32_t *const a = squares + 384 - near[k], *const b = squares + 384 - far[k];
#define CONV_ONE(s, t, j)              \
  {                                    \
    const int32_t f = weights[j];      \
    s += a[f];                         \
    t += CONV_POINTS > 1u ? b[f] : 0u; \
  }
#else
#define CONV_BEGIN
#define CONV_END
#define CONV_X(k) const uint32_t a = near[k], b = far[k];
#define CONV_ONE(s, t, j)                                    \
  {                                                          \
    const int32_t f = weights[j];                            \
    s += (uint32_t)((int32_t)a * f);                         \
    t += CONV_POINTS > 1u ? (uint32_t)((int32_t)b * f) : 0u; \
  }
#endif
#define CONV_WORDS                                                \
  for (uint32_t k = 0; k < words; k++, x += 1, w += 8) {          \
    const uint8_t *near = (const uint8_t*)x, *far = near + point; \
    const int16_t* weights = (const int16_t*)(const void*)w;      \
    CONV_LANE(0u, 0)                                              \
    CONV_LANE(1u, 2)                                              \
    CONV_LANE(2u, 1)                                              \
    CONV_LANE(3u, 3)                                              \
  }

#endif

/* ------------------------------------------------------------------------------------------------------------ layers
 */

/* Multiplication, or shifts: then a multiplier is three signed powers of two, a byte for each: its exponent, and 128 if
   it is negative. */
typedef struct {
#if SHIFTS
  uint32_t power0, power1, power2, sign0, sign1, sign2;
#else
  uint32_t number;
#endif
} multiplier_t;

INLINE multiplier_t multiplier_of(int32_t number) {
  const uint32_t code = (uint32_t)number;
#if SHIFTS
  const multiplier_t multiplier = {code & 31u,
                                   (code >> 8) & 31u,
                                   (code >> 16) & 31u,
                                   0u - (code >> 7 & 1u),
                                   0u - (code >> 15 & 1u),
                                   0u - (code >> 23 & 1u)};
#else
  const multiplier_t multiplier = {code};
#endif
  return multiplier;
}

/* sum + x * multiplier; with shifts, `sum` has come from `biased`. */
INLINE uint32_t multiplied(uint32_t sum, uint32_t x, multiplier_t m) {
#if SHIFTS
  return sum + ((x << m.power0) ^ m.sign0) + ((x << m.power1) ^ m.sign1) + ((x << m.power2) ^ m.sign2);
#else
  return sum + x * m.number;
#endif
}

INLINE uint32_t biased(uint32_t bias, multiplier_t m) {
#if SHIFTS
  return bias - m.sign0 - m.sign1 - m.sign2; /* -x is the complement of x and one more */
#else
  (void)m;
  return bias;
#endif
}

INLINE uint32_t times(uint32_t x, int32_t number) {
  const multiplier_t m = multiplier_of(number);
  return multiplied(biased(0, m), x, m);
}

INLINE uint32_t affine_of(uint32_t sum, const int32_t* affine, uint32_t drop) {
  const uint32_t accumulator = drop > 0u ? (uint32_t)((int32_t)sum >> drop) : sum;
  return (uint32_t)affine[0] + times(accumulator, affine[1]);
}

#if ADDER_KERNEL == ADDER_SWAR

/* A word has the bytes of four points that lie `lanes` points apart in a row of the output, so that the next word has
   those of the points next to them, and a filter's weight meets four points of one channel at once:
   sum|x - w| = sum x - sum w + 2 sum max(w - x, 0), where a weight of 0, as about half are once they have been clipped
   to what bytes hold, has no part in the last sum. A filter is a list of the others, 16 bits each: how many words
   further its input lies (7 bits), the weight (7 bits), whether it is the last of the list, and whether after it the
   bytes, of 8 bits by now, must be added to sums of 16 bits. */

#ifndef ADDER_WORDS
#if defined(__riscv) && !defined(__riscv_32e) && !defined(__riscv_e)
#define ADDER_WORDS 8 /* words at a time, that registers have room for: each takes up to three */
#else
#define ADDER_WORDS 4
#endif
#endif

#define FOUR(n) (n) * 0x01010101u, ((n) + 1u) * 0x01010101u, ((n) + 2u) * 0x01010101u, ((n) + 3u) * 0x01010101u
#define SIXTEEN(n) FOUR(n), FOUR((n) + 4u), FOUR((n) + 8u), FOUR((n) + 12u)
static const uint32_t four_times[128] = {SIXTEEN(0u),  SIXTEEN(16u), SIXTEEN(32u), SIXTEEN(48u),
                                         SIXTEEN(64u), SIXTEEN(80u), SIXTEEN(96u), SIXTEEN(112u)};

/* max(w - x, 0) of four bytes, of 128 - x and w. */
INLINE uint32_t above(uint32_t x, uint32_t w) {
  const uint32_t sum = x + w, guard = sum & 0x80808080u;
  return sum & (guard - (guard >> 7));
}

INLINE uint32_t widened(uint32_t bytes) { return (bytes & 0x00ff00ffu) + ((bytes >> 8) & 0x00ff00ffu); }

INLINE uint32_t halves(uint32_t sum) { return (sum & 0xffffu) + (sum >> 16); }

/* The window of a tile from (height, width, 4 * words) bytes to words (4 * words, rows, columns) of 128 - x, which lie
   `plane` words apart by channel; lanes are `apart` bytes apart. `totals` gets the sums of the points' channels. */
NOINLINE void spread_out(const uint8_t* input, uint32_t* spread, uint32_t* totals, uint32_t rows, uint32_t columns,
                         uint32_t words, uint32_t row, uint32_t point, uint32_t apart, uint32_t plane) {
  for (uint32_t i = 0; i < rows; i++) {
    for (uint32_t j = 0; j < columns; j++, totals += 4) {
      const uint32_t* x = words_at(input + i * row + j * point);
      uint32_t* y = spread++;
      uint32_t t0 = 0, t1 = 0, t2 = 0, t3 = 0;
      for (uint32_t k = 0; k < words; k++, x++, y += 4u * plane) {
        const uint32_t a = x[0], b = x[apart / 4u], c = x[apart / 2u], d = x[3u * (apart / 4u)], even = 0x00ff00ffu;
        const uint32_t ab = (a & even) | (b & even) << 8, odd_ab = (a >> 8 & even) | (b & ~even);
        const uint32_t cd = (c & even) | (d & even) << 8, odd_cd = (c >> 8 & even) | (d & ~even);
        t0 += halves(widened(a));
        t1 += halves(widened(b));
        t2 += halves(widened(c));
        t3 += halves(widened(d));
        y[0] = 0x80808080u - ((ab & 0xffffu) | cd << 16);
        y[plane] = 0x80808080u - ((odd_ab & 0xffffu) | odd_cd << 16);
        y[2u * plane] = 0x80808080u - (ab >> 16 | (cd & 0xffff0000u));
        y[3u * plane] = 0x80808080u - (odd_ab >> 16 | (odd_cd & 0xffff0000u));
      }
      totals[0] = t0;
      totals[1] = t1;
      totals[2] = t2;
      totals[3] = t3;
    }
  }
}

#define EACH(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7)
#define DECLARE(k) uint32_t bytes##k = 0, even##k = 0, upper##k = 0;
#define OFFSET(k) ((k) / columns * row_step + (k) % columns * column_step)
#define FIRST(k)                       \
  if ((k) < words) {                   \
    bytes##k = above(x[OFFSET(k)], w); \
  }
#define NEXT(k)                         \
  if ((k) < words) {                    \
    bytes##k += above(x[OFFSET(k)], w); \
  }
/* The sums of 16 bits: of bytes 0 and 2; and of bytes 1, 2 and 3 as they lie, since the second are known. */
#define WIDEN(k)                       \
  if ((k) < words) {                   \
    even##k += bytes##k & 0x00ff00ffu; \
    upper##k += bytes##k >> 8;         \
  }
#define FINISH(k)                                                           \
  if ((k) < words) {                                                        \
    const uint32_t third = even##k >> 16, odd = upper##k - (third << 8);    \
    sums[4 * (k)] = (go_on ? sums[4 * (k)] : 0u) + (even##k & 0xffffu);     \
    sums[4 * (k) + 1] = (go_on ? sums[4 * (k) + 1] : 0u) + (odd & 0xffffu); \
    sums[4 * (k) + 2] = (go_on ? sums[4 * (k) + 2] : 0u) + third;           \
    sums[4 * (k) + 3] = (go_on ? sums[4 * (k) + 3] : 0u) + (odd >> 16);     \
  }

/* sum max(w - x, 0) of a list for `words` words in rows of `columns`, four sums each. */
INLINE const uint16_t* sum_list(const uint16_t* list, const uint32_t* x, uint32_t* sums, uint32_t words,
                                uint32_t columns, uint32_t row_step, uint32_t column_step, uint32_t lists) {
  for (uint32_t part = 0; part < lists; part++) {
    const uint32_t go_on = part > 0u;
    uint32_t entry;
    EACH(DECLARE)
    do {
      uint32_t w;
      entry = *list++;
      x += entry >> 9;
      w = four_times[entry >> 2 & 127u];
      EACH(FIRST)
      while ((entry & 1u) == 0u) {
        entry = *list++;
        x += entry >> 9;
        w = four_times[entry >> 2 & 127u];
        EACH(NEXT)
      }
      EACH(WIDEN)
    } while ((entry & 2u) == 0u);
    EACH(FINISH)
  }
  return list;
}

/* An adder layer, with what follows it. A tile is of tile_rows rows of tile_columns words; its window in the input is
   of window_rows by window_columns words. `channels` are those of the output and a multiple of four, `words` those of a
   point of the input. A filter is `lists` lists. */
INLINE void swar_layer(const uint8_t* input, uint8_t* output, const uint8_t* addend, int32_t* logits,
                       const uint16_t* filters, const int32_t* affine, int32_t addend_multiplier, uint32_t* scratch,
                       uint32_t height, uint32_t width, uint32_t channels, uint32_t words, uint32_t in_row,
                       uint32_t in_point, uint32_t out_row, uint32_t out_point, uint32_t addend_row,
                       uint32_t stride_height, uint32_t stride_width, uint32_t tap_rows, uint32_t tap_columns,
                       uint32_t tap_row, uint32_t tap_column, uint32_t lanes, uint32_t tile_rows, uint32_t tile_columns,
                       uint32_t window_rows, uint32_t window_columns, uint32_t lists, uint32_t shift, uint32_t low,
                       uint32_t top, uint32_t classes) {
  const uint32_t plane = window_rows * window_columns, tile = tile_rows * tile_columns;
  const uint32_t part = tile < ADDER_WORDS ? tile : ADDER_WORDS;
  const uint32_t part_columns = part < tile_columns ? part : tile_columns, part_rows = part / part_columns;
  const uint32_t in_height = (height - 1u) * stride_height + (tap_rows - 1u) * tap_row + 1u;
  uint32_t* const totals = scratch + 4u * words * plane;
  const multiplier_t addend_m = multiplier_of(addend_multiplier);
  for (uint32_t i = 0; i < height; i += tile_rows) {
    for (uint32_t j = 0; j < lanes; j += tile_columns) {
      const uint32_t first = i * stride_height, left = in_height - first;
      spread_out(input + first * in_row + j * stride_width * in_point, scratch, totals,
                 left < window_rows ? left : window_rows, window_columns, words, in_row, in_point,
                 lanes * stride_width * in_point, plane);
      for (uint32_t p = 0; p < tile; p += part) {
        const uint32_t i0 = p / tile_columns, j0 = p % tile_columns;
        const uint32_t start = i0 * stride_height * window_columns + j0 * stride_width;
        uint32_t sums[4 * ADDER_WORDS], points[4 * ADDER_WORDS];
        const uint16_t* list = filters;
        if (i + i0 >= height) {
          break;
        }
        for (uint32_t k = 0; k < part; k++) {
          const uint32_t* const corner = totals + 4u * (start + k / part_columns * stride_height * window_columns +
                                                        k % part_columns * stride_width);
          for (uint32_t lane = 0; lane < 4u; lane++) {
            uint32_t sum = 0;
            for (uint32_t tap = 0; tap < tap_rows; tap++) {
              for (uint32_t side = 0; side < tap_columns; side++) {
                sum += corner[4u * (tap * tap_row * window_columns + side * tap_column) + lane];
              }
            }
            points[4u * k + lane] = sum;
          }
        }
        for (uint32_t channel = 0; channel < channels; channel++) {
          const multiplier_t m = multiplier_of(affine[2u * channel + 1u]);
          const uint32_t bias = biased((uint32_t)affine[2u * channel], m);
          const uint32_t offset = (j + j0) * out_point + channel;
          list = sum_list(list, scratch + start, sums, part, part_columns, stride_height * window_columns, stride_width,
                          lists);
          for (uint32_t row = 0; row < part_rows && i + i0 + row < height; row++) {
            for (uint32_t column = 0; column < part_columns; column++) {
              const uint32_t at = 4u * (row * part_columns + column);
              for (uint32_t lane = 0; lane < 4u; lane++) {
                const uint32_t place = offset + (lane * lanes + column) * out_point;
                uint32_t v;
                if (lane * lanes + j + j0 + column >= width) {
                  break;
                }
                v = multiplied(bias, points[at + lane] + 2u * sums[at + lane], m);
                if (addend != 0) {
                  v = multiplied(biased(v, addend_m), addend[(i + i0 + row) * addend_row + place], addend_m);
                }
                if (logits != 0) {
                  if (channel < classes) {
                    logits[channel] = (int32_t)v;
                  }
                } else {
                  output[(i + i0 + row) * out_row + place] = to_byte(v, shift, low, top);
                }
              }
            }
          }
        }
      }
    }
  }
}

#else

#define OUTPUT(j, near, far)                                                                        \
  {                                                                                                 \
    uint32_t v0 = affine_of(near, affine + 2 * (j), 0u), v1 = affine_of(far, affine + 2 * (j), 0u); \
    if (addend != 0) {                                                                              \
      v0 += times(z[j], addend_multiplier);                                                         \
      v1 += times(z[(j) + out_point], addend_multiplier);                                           \
    }                                                                                               \
    if (logits != 0) {                                                                              \
      if (channel + (j) < classes) {                                                                \
        logits[channel + (j)] = (int32_t)v0;                                                        \
      }                                                                                             \
    } else {                                                                                        \
      y0[j] = to_byte(v0, shift, low, top);                                                         \
      if (two) {                                                                                    \
        y0[(j) + out_point] = to_byte(v1, shift, low, top);                                         \
      }                                                                                             \
    }                                                                                               \
  }

/* An adder layer, with what follows it. A filter has tap_rows * tap_columns segments of `words` words; the segments lie
   tap_row and tap_column bytes apart. The next point of the output is `point` bytes further in the input, the next row
   `row` bytes. `channels` are those of the output and a multiple of four. */
INLINE void adder_layer(const uint8_t* input, uint8_t* output, const uint8_t* addend, int32_t* logits,
                        const uint32_t* filters, const int32_t* affine, int32_t addend_multiplier, uint32_t height,
                        uint32_t width, uint32_t channels, uint32_t row, uint32_t point, uint32_t out_row,
                        uint32_t out_point, uint32_t addend_row, uint32_t tap_rows, uint32_t tap_columns,
                        uint32_t tap_row, uint32_t tap_column, uint32_t words, uint32_t shift, uint32_t low,
                        uint32_t top, uint32_t classes) {
  const int32_t* const first_affine = affine;
  for (uint32_t i = 0; i < height; i++) {
    for (uint32_t j = 0; j < width; j += 2u) {
      const uint8_t* const patch = input + i * row + j * point;
      const uint32_t two = j + 1u < width;
      const uint32_t* w = filters;
      affine = first_affine;
      for (uint32_t channel = 0; channel < channels; channel += 4u, affine += 8) {
        uint32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0, s4 = 0, s5 = 0, s6 = 0, s7 = 0;
        uint8_t* const y0 = output != 0 ? output + i * out_row + j * out_point + channel : 0;
        const uint8_t* const z = addend != 0 ? addend + i * addend_row + j * out_point + channel : 0;
        SUM_DECLARE
        for (uint32_t tap = 0; tap < tap_rows; tap++) {
          for (uint32_t side = 0; side < tap_columns; side++) {
            const uint32_t* x = words_at(patch + tap * tap_row + side * tap_column);
            SUM_WORDS(words)
          }
        }
        OUTPUT(0, s0, s4)
        OUTPUT(1, s1, s5)
        OUTPUT(2, s2, s6)
        OUTPUT(3, s3, s7)
      }
    }
  }
}

#endif

/* The same of a convolution. Of every word of the input `lanes` bytes have weights. */
#define CONV_OUTPUT(j, near, far)                                                               \
  {                                                                                             \
    const uint32_t v = affine_of(near, affine + 2u * (j), drop);                                \
    if (logits != 0) {                                                                          \
      if (channel + (j) < classes) {                                                            \
        logits[channel + (j)] = (int32_t)v;                                                     \
      }                                                                                         \
    } else {                                                                                    \
      y[j] = to_byte(v, shift, low, top);                                                       \
      if (two) {                                                                                \
        y[(j) + out_point] = to_byte(affine_of(far, affine + 2u * (j), drop), shift, low, top); \
      }                                                                                         \
    }                                                                                           \
  }

INLINE void conv_layer(const uint8_t* input, uint8_t* output, int32_t* logits, const uint32_t* filters,
                       const int32_t* affine, uint32_t height, uint32_t width, uint32_t channels, uint32_t row,
                       uint32_t point, uint32_t out_row, uint32_t out_point, uint32_t tap_rows, uint32_t tap_columns,
                       uint32_t tap_row, uint32_t tap_column, uint32_t words, uint32_t lanes, uint32_t shift,
                       uint32_t drop, uint32_t low, uint32_t top, uint32_t classes) {
  const int32_t* const first_affine = affine;
  (void)lanes;
  for (uint32_t i = 0; i < height; i++) {
    for (uint32_t j = 0; j < width; j += CONV_POINTS) {
      const uint8_t* const patch = input + i * row + j * point;
      const uint32_t two = CONV_POINTS > 1u && j + 1u < width;
      const uint32_t* w = filters;
      CONV_BEGIN
      affine = first_affine;
      for (uint32_t channel = 0; channel < channels; channel += 4u, affine += 8) {
        uint8_t* const y = output != 0 ? output + i * out_row + j * out_point + channel : 0;
        uint32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
        CONV_DECLARE
        for (uint32_t tap = 0; tap < tap_rows; tap++) {
          for (uint32_t side = 0; side < tap_columns; side++) {
            const uint32_t* x = words_at(patch + tap * tap_row + side * tap_column);
            CONV_WORDS
          }
        }
        CONV_END
        w += 4;
        CONV_OUTPUT(0u, s0, t0)
        CONV_OUTPUT(1u, s1, t1)
        CONV_OUTPUT(2u, s2, t2)
        CONV_OUTPUT(3u, s3, t3)
      }
    }
  }
}

/* Layers of groups of channels that are no multiples of four, byte by byte: of filters (O, kH, kW, C / groups). */
INLINE void grouped_layer(const uint8_t* input, uint8_t* output, const uint8_t* addend, const uint8_t* filters,
                          const int32_t* affine, int32_t addend_multiplier, uint32_t conv, uint32_t height,
                          uint32_t width, uint32_t channels, uint32_t groups, uint32_t group_channels, uint32_t row,
                          uint32_t point, uint32_t out_row, uint32_t out_point, uint32_t addend_row, uint32_t tap_rows,
                          uint32_t tap_columns, uint32_t tap_row, uint32_t tap_column, uint32_t shift, uint32_t drop,
                          uint32_t low, uint32_t top, uint32_t rest) {
  for (uint32_t i = 0; i < height; i++) {
    for (uint32_t j = 0; j < width; j++) {
      const uint8_t* w = filters;
      uint8_t* const y = output + i * out_row + j * out_point;
      for (uint32_t channel = 0; channel < channels; channel++) {
        const uint32_t group = channel / (channels / groups);
        const uint8_t* const patch = input + i * row + j * point + group * group_channels;
        uint32_t sum = 0, value;
        for (uint32_t tap = 0; tap < tap_rows; tap++) {
          for (uint32_t side = 0; side < tap_columns; side++) {
            const uint8_t* x = patch + tap * tap_row + side * tap_column;
            for (uint32_t k = 0; k < group_channels; k++, w++) {
              const int32_t weight = conv ? (int32_t)*(const int8_t*)w : (int32_t)*w;
              const int32_t difference = (int32_t)x[k] - weight;
              sum += conv ? product(x[k], weight) : (uint32_t)(difference < 0 ? -difference : difference);
            }
          }
        }
        value = affine_of(sum, affine + 2u * channel, drop);
        if (addend != 0) {
          value += times(addend[i * addend_row + j * out_point + channel], addend_multiplier);
        }
        y[channel] = to_byte(value, shift, low, top);
      }
      for (uint32_t channel = channels; channel < out_point; channel++) {
        y[channel] = (uint8_t)rest;
      }
    }
  }
}

/* ---------------------------------------------------------------------------------------------------- all other steps
 */

/* `pattern` into the border of an image: rows above and below, words left and right of every row of `row` words. */
NOINLINE void border(uint32_t* plane, uint32_t height, uint32_t row, uint32_t above_, uint32_t left, uint32_t below,
                     uint32_t right, uint32_t pattern) {
  for (uint32_t i = 0; i < above_ + height + below; i++, plane += row) {
    if (i < above_ || i >= above_ + height) {
      for (uint32_t k = 0; k < row; k++) {
        plane[k] = pattern;
      }
    } else {
      for (uint32_t k = 0; k < left; k++) {
        plane[k] = pattern;
      }
      for (uint32_t k = row - right; k < row; k++) {
        plane[k] = pattern;
      }
    }
  }
}

/* The image, (height, width, channels), into words. */
INLINE void read_image(const uint8_t* image, uint8_t* output, const uint8_t* table, uint32_t height, uint32_t width,
                       uint32_t channels, uint32_t out_row, uint32_t out_point, uint32_t rest) {
  for (uint32_t i = 0; i < height; i++) {
    uint8_t* y = output + i * out_row;
    for (uint32_t j = 0; j < width; j++, y += out_point) {
      for (uint32_t channel = 0; channel < channels; channel++) {
        const uint8_t pixel = *image++;
        y[channel] = table != 0 ? table[256u * channel + pixel] : pixel;
      }
      for (uint32_t channel = channels; channel < out_point; channel++) {
        y[channel] = (uint8_t)rest;
      }
    }
  }
}

/* The greatest byte of every window, or the least where `flip` is 255. `input` is the first byte of the image. */
NOINLINE void max_pool(const uint8_t* input, uint8_t* output, const uint8_t* flip, uint32_t in_height,
                       uint32_t in_width, uint32_t height, uint32_t width, uint32_t in_row, uint32_t out_row,
                       uint32_t point, uint32_t kernel_height, uint32_t kernel_width, uint32_t stride_height,
                       uint32_t stride_width, uint32_t above_, uint32_t left) {
  for (uint32_t i = 0; i < height; i++) {
    for (uint32_t j = 0; j < width; j++) {
      const uint32_t i0 = i * stride_height, j0 = j * stride_width;
      const uint32_t i1 = i0 + kernel_height < in_height + above_ ? i0 + kernel_height : in_height + above_;
      const uint32_t j1 = j0 + kernel_width < in_width + left ? j0 + kernel_width : in_width + left;
      const uint32_t first_row = i0 > above_ ? i0 : above_, first_column = j0 > left ? j0 : left;
      for (uint32_t channel = 0; channel < point; channel++) {
        const uint32_t mask = flip != 0 ? flip[channel] : 0u;
        uint32_t most = 0;
        for (uint32_t p = first_row; p < i1; p++) {
          const uint8_t* x = input + (p - above_) * in_row + (first_column - left) * point + channel;
          for (uint32_t q = first_column; q < j1; q++, x += point) {
            const uint32_t byte = *x ^ mask;
            most = byte > most ? byte : most;
          }
        }
        output[i * out_row + j * point + channel] = (uint8_t)(most ^ mask);
      }
    }
  }
}

/* The mean of every window, rounded. */
INLINE void average_pool(const uint8_t* input, uint8_t* output, const int32_t* affine, uint32_t height, uint32_t width,
                         uint32_t channels, uint32_t in_row, uint32_t out_row, uint32_t point, uint32_t kernel_height,
                         uint32_t kernel_width, uint32_t stride_height, uint32_t stride_width, uint32_t shift,
                         uint32_t drop, uint32_t low, uint32_t top, uint32_t rest) {
  for (uint32_t i = 0; i < height; i++) {
    for (uint32_t j = 0; j < width; j++) {
      uint8_t* const y = output + i * out_row + j * point;
      for (uint32_t channel = 0; channel < channels; channel++) {
        const uint8_t* x = input + i * stride_height * in_row + j * stride_width * point + channel;
        uint32_t sum = 0;
        for (uint32_t p = 0; p < kernel_height; p++, x += in_row) {
          for (uint32_t q = 0; q < kernel_width; q++) {
            sum += x[q * point];
          }
        }
        y[channel] = to_byte(affine_of(sum, affine, drop), shift, low, top);
      }
      for (uint32_t channel = channels; channel < point; channel++) {
        y[channel] = (uint8_t)rest;
      }
    }
  }
}
