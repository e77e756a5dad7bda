/* Kernels: how a layer is computed. Constants are known where these functions are inlined, one copy for every shape. */

#define ADDER_PLAIN 0  /* C alone */
#define ADDER_SWAR 1   /* four bytes of 7 bits in a word: five operations for four differences */
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
#define G 0x80808080u       /* the guard bits of filters, which no difference borrows beyond */
#define B(plain, swar) swar /* the bias has -sum(w) in it: sum|x - w| = sum x - sum w + 2 sum max(w - x, 0) */
#else
#define G 0u
#define B(plain, swar) plain
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
#define SUM_FINISH
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

#elif ADDER_KERNEL == ADDER_SWAR

/* max(w - x, 0) of four bytes; f has guard bits. */
INLINE uint32_t above(uint32_t x, uint32_t f) {
  const uint32_t difference = f - x, guard = difference & 0x80808080u;
  return difference & (guard - (guard >> 7));
}

/* Bytes in pairs: of two bytes of 7 bits the sum fits into one. */
INLINE uint32_t widened(uint32_t bytes) { return (bytes & 0x00ff00ffu) + ((bytes >> 8) & 0x00ff00ffu); }

INLINE uint32_t halves(uint32_t sum) { return (sum & 0xffffu) + (sum >> 16); }

#define ONE(s, x0, j) s += widened(above(x0, w[j]));
#define TWO(s, x0, x1, j) s += widened(above(x0, w[j]) + above(x1, w[(j) + 4]));
#define SUM_DECLARE uint32_t t0 = 0, t1 = 0, t2 = 0, t3 = 0, t4 = 0, t5 = 0, t6 = 0, t7 = 0;
/* 16 bits hold the sums of 256 words; longer ones are added up in between. */
#define SUM_WORDS(words)                                                                                               \
  for (uint32_t start = 0; start < (words); start += 256u) {                                                           \
    const uint32_t length = (words) - start < 256u ? (words) - start : 256u;                                           \
    for (uint32_t k = 0; k + 1u < length; k += 2u, x += 2, w += 8) {                                                   \
      const uint32_t a0 = x[0], a1 = x[1], b0 = x[point / 4u], b1 = x[point / 4u + 1u];                                \
      TWO(t0, a0, a1, 0)                                                                                               \
      TWO(t4, b0, b1, 0)                                                                                               \
      TWO(t1, a0, a1, 1)                                                                                               \
      TWO(t5, b0, b1, 1) TWO(t2, a0, a1, 2) TWO(t6, b0, b1, 2) TWO(t3, a0, a1, 3) TWO(t7, b0, b1, 3)                   \
    }                                                                                                                  \
    if (length % 2u != 0u) {                                                                                           \
      const uint32_t a0 = x[0], b0 = x[point / 4u];                                                                    \
      ONE(t0, a0, 0)                                                                                                   \
      ONE(t4, b0, 0) ONE(t1, a0, 1) ONE(t5, b0, 1) ONE(t2, a0, 2) ONE(t6, b0, 2) ONE(t3, a0, 3) ONE(t7, b0, 3) x += 1; \
      w += 4;                                                                                                          \
    }                                                                                                                  \
    if (all_words > 256u) {                                                                                            \
      SUM_HALVES                                                                                                       \
      t0 = t1 = t2 = t3 = t4 = t5 = t6 = t7 = 0;                                                                       \
    }                                                                                                                  \
  }
#define SUM_HALVES       \
  s0 += 2u * halves(t0); \
  s1 += 2u * halves(t1); \
  s2 += 2u * halves(t2); \
  s3 += 2u * halves(t3); \
  s4 += 2u * halves(t4); \
  s5 += 2u * halves(t5); \
  s6 += 2u * halves(t6); \
  s7 += 2u * halves(t7);
#define SUM_FINISH         \
  if (all_words <= 256u) { \
    SUM_HALVES             \
  }

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
#define SUM_FINISH

#endif

/* ------------------------------------------------------------------------------------------------------ convolutions
 */

/* A byte times a weight from -127 to 127: the processor's product, or where it has none, a difference of two squares:
   x * w = floor((x + w)^2 / 4) - floor((x - w)^2 / 4), exactly, since x + w and x - w are both even or both odd. */
#ifndef ADDER_SQUARES
#if SHIFTS || (defined(__riscv) && !defined(__riscv_mul))
#define ADDER_SQUARES 1
#else
#define ADDER_SQUARES 0
#endif
#endif

#if ADDER_SQUARES && ADDER_KERNEL < ADDER_DSP

/* A quarter of the squares of -127 to 382. */
static const uint16_t squares[510] = {
    4032,  3969,  3906,  3844,  3782,  3721,  3660,  3600,  3540,  3481,  3422,  3364,  3306,  3249,  3192,  3136,
    3080,  3025,  2970,  2916,  2862,  2809,  2756,  2704,  2652,  2601,  2550,  2500,  2450,  2401,  2352,  2304,
    2256,  2209,  2162,  2116,  2070,  2025,  1980,  1936,  1892,  1849,  1806,  1764,  1722,  1681,  1640,  1600,
    1560,  1521,  1482,  1444,  1406,  1369,  1332,  1296,  1260,  1225,  1190,  1156,  1122,  1089,  1056,  1024,
    992,   961,   930,   900,   870,   841,   812,   784,   756,   729,   702,   676,   650,   625,   600,   576,
    552,   529,   506,   484,   462,   441,   420,   400,   380,   361,   342,   324,   306,   289,   272,   256,
    240,   225,   210,   196,   182,   169,   156,   144,   132,   121,   110,   100,   90,    81,    72,    64,
    56,    49,    42,    36,    30,    25,    20,    16,    12,    9,     6,     4,     2,     1,     0,     0,
    0,     1,     2,     4,     6,     9,     12,    16,    20,    25,    30,    36,    42,    49,    56,    64,
    72,    81,    90,    100,   110,   121,   132,   144,   156,   169,   182,   196,   210,   225,   240,   256,
    272,   289,   306,   324,   342,   361,   380,   400,   420,   441,   462,   484,   506,   529,   552,   576,
    600,   625,   650,   676,   702,   729,   756,   784,   812,   841,   870,   900,   930,   961,   992,   1024,
    1056,  1089,  1122,  1156,  1190,  1225,  1260,  1296,  1332,  1369,  1406,  1444,  1482,  1521,  1560,  1600,
    1640,  1681,  1722,  1764,  1806,  1849,  1892,  1936,  1980,  2025,  2070,  2116,  2162,  2209,  2256,  2304,
    2352,  2401,  2450,  2500,  2550,  2601,  2652,  2704,  2756,  2809,  2862,  2916,  2970,  3025,  3080,  3136,
    3192,  3249,  3306,  3364,  3422,  3481,  3540,  3600,  3660,  3721,  3782,  3844,  3906,  3969,  4032,  4096,
    4160,  4225,  4290,  4356,  4422,  4489,  4556,  4624,  4692,  4761,  4830,  4900,  4970,  5041,  5112,  5184,
    5256,  5329,  5402,  5476,  5550,  5625,  5700,  5776,  5852,  5929,  6006,  6084,  6162,  6241,  6320,  6400,
    6480,  6561,  6642,  6724,  6806,  6889,  6972,  7056,  7140,  7225,  7310,  7396,  7482,  7569,  7656,  7744,
    7832,  7921,  8010,  8100,  8190,  8281,  8372,  8464,  8556,  8649,  8742,  8836,  8930,  9025,  9120,  9216,
    9312,  9409,  9506,  9604,  9702,  9801,  9900,  10000, 10100, 10201, 10302, 10404, 10506, 10609, 10712, 10816,
    10920, 11025, 11130, 11236, 11342, 11449, 11556, 11664, 11772, 11881, 11990, 12100, 12210, 12321, 12432, 12544,
    12656, 12769, 12882, 12996, 13110, 13225, 13340, 13456, 13572, 13689, 13806, 13924, 14042, 14161, 14280, 14400,
    14520, 14641, 14762, 14884, 15006, 15129, 15252, 15376, 15500, 15625, 15750, 15876, 16002, 16129, 16256, 16384,
    16512, 16641, 16770, 16900, 17030, 17161, 17292, 17424, 17556, 17689, 17822, 17956, 18090, 18225, 18360, 18496,
    18632, 18769, 18906, 19044, 19182, 19321, 19460, 19600, 19740, 19881, 20022, 20164, 20306, 20449, 20592, 20736,
    20880, 21025, 21170, 21316, 21462, 21609, 21756, 21904, 22052, 22201, 22350, 22500, 22650, 22801, 22952, 23104,
    23256, 23409, 23562, 23716, 23870, 24025, 24180, 24336, 24492, 24649, 24806, 24964, 25122, 25281, 25440, 25600,
    25760, 25921, 26082, 26244, 26406, 26569, 26732, 26896, 27060, 27225, 27390, 27556, 27722, 27889, 28056, 28224,
    28392, 28561, 28730, 28900, 29070, 29241, 29412, 29584, 29756, 29929, 30102, 30276, 30450, 30625, 30800, 30976,
    31152, 31329, 31506, 31684, 31862, 32041, 32220, 32400, 32580, 32761, 32942, 33124, 33306, 33489, 33672, 33856,
    34040, 34225, 34410, 34596, 34782, 34969, 35156, 35344, 35532, 35721, 35910, 36100, 36290, 36481};

INLINE uint32_t product(uint32_t x, int32_t w) {
  const uint16_t* const square = squares + 127 + x;
  return (uint32_t)square[w] - (uint32_t)square[-w];
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

INLINE uint32_t products(uint32_t sum, const uint8_t* x, const int16_t* w, uint32_t lanes) {
  sum += product(x[0], w[0]);
  sum += lanes > 1u ? product(x[1], w[2]) : 0u;
  sum += lanes > 2u ? product(x[2], w[1]) : 0u;
  return sum + (lanes > 3u ? product(x[3], w[3]) : 0u);
}

#define CONV_DECLARE
#define CONV_WORDS                                           \
  for (uint32_t k = 0; k < words; k++, x += 1, w += 8) {     \
    const uint8_t* bytes = (const uint8_t*)x;                \
    const int16_t* weights = (const int16_t*)(const void*)w; \
    s0 = products(s0, bytes, weights, lanes);                \
    s1 = products(s1, bytes, weights + 4, lanes);            \
    s2 = products(s2, bytes, weights + 8, lanes);            \
    s3 = products(s3, bytes, weights + 12, lanes);           \
  }

#endif

/* ------------------------------------------------------------------------------------------------------------ layers
 */

/* Multiplication, or shifts: then a multiplier is three signed powers of two, a byte for each: its exponent, 32 if
   there is none, and 128 if it is negative. */
INLINE uint32_t times(uint32_t x, int32_t multiplier) {
#if SHIFTS
  const uint32_t code = (uint32_t)multiplier;
  uint32_t sum = 0;
  for (uint32_t term = 0; term < 24u; term += 8u) {
    const uint32_t byte = code >> term, power = (byte & 32u) != 0u ? 0u : x << (byte & 31u);
    sum = (byte & 128u) != 0u ? sum - power : sum + power;
  }
  return sum;
#else
  return x * (uint32_t)multiplier;
#endif
}

INLINE uint32_t affine_of(uint32_t sum, const int32_t* affine, uint32_t drop) {
  const uint32_t accumulator = drop > 0u ? (uint32_t)((int32_t)sum >> drop) : sum;
  return (uint32_t)affine[0] + times(accumulator, affine[1]);
}

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
#if ADDER_KERNEL == ADDER_SWAR
      const uint32_t all_words = tap_rows * tap_columns * words;
      uint32_t sum_near = 0, sum_far = 0;
      for (uint32_t tap = 0; tap < tap_rows; tap++) {
        for (uint32_t side = 0; side < tap_columns; side++) {
          const uint32_t* x = words_at(patch + tap * tap_row + side * tap_column);
          for (uint32_t start = 0; start < words; start += 128u) {
            const uint32_t length = words - start < 128u ? words - start : 128u;
            uint32_t near = 0, far = 0;
            for (uint32_t k = 0; k < length; k++, x++) {
              near += widened(x[0]);
              far += widened(x[point / 4u]);
            }
            sum_near += halves(near);
            sum_far += halves(far);
          }
        }
      }
#else
      const uint32_t sum_near = 0, sum_far = 0;
#endif
      affine = first_affine;
      for (uint32_t channel = 0; channel < channels; channel += 4u, affine += 8) {
        uint32_t s0 = sum_near, s1 = sum_near, s2 = sum_near, s3 = sum_near;
        uint32_t s4 = sum_far, s5 = sum_far, s6 = sum_far, s7 = sum_far;
        uint8_t* const y0 = output != 0 ? output + i * out_row + j * out_point + channel : 0;
        const uint8_t* const z = addend != 0 ? addend + i * addend_row + j * out_point + channel : 0;
        SUM_DECLARE
        for (uint32_t tap = 0; tap < tap_rows; tap++) {
          for (uint32_t side = 0; side < tap_columns; side++) {
            const uint32_t* x = words_at(patch + tap * tap_row + side * tap_column);
            SUM_WORDS(words)
          }
        }
        SUM_FINISH
        OUTPUT(0, s0, s4)
        OUTPUT(1, s1, s5)
        OUTPUT(2, s2, s6)
        OUTPUT(3, s3, s7)
      }
    }
  }
}

/* The same of a convolution. Of every word of the input `lanes` bytes have weights. */
INLINE void conv_layer(const uint8_t* input, uint8_t* output, int32_t* logits, const uint32_t* filters,
                       const int32_t* affine, uint32_t height, uint32_t width, uint32_t channels, uint32_t row,
                       uint32_t point, uint32_t out_row, uint32_t out_point, uint32_t tap_rows, uint32_t tap_columns,
                       uint32_t tap_row, uint32_t tap_column, uint32_t words, uint32_t lanes, uint32_t shift,
                       uint32_t drop, uint32_t low, uint32_t top, uint32_t classes) {
  const int32_t* const first_affine = affine;
  (void)lanes;
  for (uint32_t i = 0; i < height; i++) {
    for (uint32_t j = 0; j < width; j++) {
      const uint8_t* const patch = input + i * row + j * point;
      const uint32_t* w = filters;
      affine = first_affine;
      for (uint32_t channel = 0; channel < channels; channel += 4u, affine += 8) {
        uint32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
        CONV_DECLARE
        for (uint32_t tap = 0; tap < tap_rows; tap++) {
          for (uint32_t side = 0; side < tap_columns; side++) {
            const uint32_t* x = words_at(patch + tap * tap_row + side * tap_column);
            CONV_WORDS
          }
        }
        s0 = affine_of(s0, affine, drop);
        s1 = affine_of(s1, affine + 2, drop);
        s2 = affine_of(s2, affine + 4, drop);
        s3 = affine_of(s3, affine + 6, drop);
        if (logits != 0) {
          logits[channel] = (int32_t)s0;
          if (channel + 1u < classes) {
            logits[channel + 1u] = (int32_t)s1;
          }
          if (channel + 2u < classes) {
            logits[channel + 2u] = (int32_t)s2;
          }
          if (channel + 3u < classes) {
            logits[channel + 3u] = (int32_t)s3;
          }
        } else {
          uint8_t* const y = output + i * out_row + j * out_point + channel;
          y[0] = to_byte(s0, shift, low, top);
          y[1] = to_byte(s1, shift, low, top);
          y[2] = to_byte(s2, shift, low, top);
          y[3] = to_byte(s3, shift, low, top);
        }
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
