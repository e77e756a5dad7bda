// The loops, written once on the compiler's vector extension and compiled once for each instruction set.
//
// The including file defines ADDERZOO_CAPABILITY (a namespace), ADDERZOO_VECTOR_BYTES and ADDERZOO_REGISTERS. It
// includes everything else before it switches the instruction set on, so that no inline function that other files share
// is compiled with instructions that another processor lacks.

namespace adderzoo::cpu::ADDERZOO_CAPABILITY {
namespace {

template <typename T>
struct Simd;
template <>
struct Simd<float> {
  typedef float Vector __attribute__((vector_size(ADDERZOO_VECTOR_BYTES)));
  typedef int32_t Bits __attribute__((vector_size(ADDERZOO_VECTOR_BYTES)));
  static constexpr int32_t kAllButSign = 0x7fffffff;
};
template <>
struct Simd<double> {
  typedef double Vector __attribute__((vector_size(ADDERZOO_VECTOR_BYTES)));
  typedef int64_t Bits __attribute__((vector_size(ADDERZOO_VECTOR_BYTES)));
  static constexpr int64_t kAllButSign = 0x7fffffffffffffff;
};

template <typename T>
using Vector = typename Simd<T>::Vector;
template <typename T>
constexpr int64_t kLanes = ADDERZOO_VECTOR_BYTES / sizeof(T);

// A plain float32 sum of thousands of terms loses the precision that the operator promises (1e-6 of the sum of
// |x| + |w|), so sums are taken in blocks and the blocks added.
constexpr int64_t kBlock = 128;

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

// One term of the sum. Comparisons with a NaN are false, so a NaN passes through all three functions.
template <Function F, typename T>
inline __attribute__((always_inline)) Vector<T> term(T source, Vector<T> filter, Vector<T> input) {
  if constexpr (F == Function::kDistance) {
    const Vector<T> difference = source - filter;
    return (Vector<T>)((typename Simd<T>::Bits)difference & Simd<T>::kAllButSign);
  } else {
    const Vector<T> zero = {}, one = zero + T(1), minus_one = zero - T(1);
    Vector<T> slope = filter - input;
    if constexpr (F == Function::kClippedSlope) {
      slope = one < slope ? one : slope;
      slope = minus_one > slope ? minus_one : slope;
    } else {
      slope = slope > zero ? one : (slope < zero ? minus_one : slope);
    }
    return source * slope;
  }
}

// Points and vectors of one register tile. The distance keeps one register for each pair, the slopes two (the sum and
// the input); the filter's vectors and the temporaries need the rest. With one vector a point, eight points hide the
// latency of the addition.
constexpr int points_of_tile(Function function, int vectors) {
  constexpr bool many = ADDERZOO_REGISTERS >= 32;
  if (function == Function::kDistance) return vectors == 1 ? 8 : vectors == 2 ? (many ? 8 : 5) : 6;
  return vectors == 1 ? (many ? 8 : 5) : vectors == 2 ? (many ? 6 : 3) : 3;
}

template <typename T>
int vectors_of_block(int64_t channels) {
  const int64_t vectors = (channels + kLanes<T> - 1) / kLanes<T>;
  return vectors >= 3 && ADDERZOO_REGISTERS >= 32 ? 4 : vectors >= 2 ? 2 : 1;
}

template <typename T>
int64_t block_width(int64_t channels) {
  return vectors_of_block<T>(channels) * kLanes<T>;
}

// Not std::min: a template of the standard library, once compiled here, could serve the whole program.
int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <Function F, int kPoints, int kVectors, typename T>
void tile(const Accumulation<T>& a, int64_t first_point, int64_t group, int64_t block) {
  constexpr int64_t width = kVectors * kLanes<T>;
  const int64_t first_channel = block * width;
  const int64_t valid_channels = smaller(width, a.channels - first_channel);
  const int64_t points = a.batch * a.rows * a.columns;
  const int valid_points = static_cast<int>(smaller(kPoints, points - first_point));

  int64_t image[kPoints], row[kPoints], column[kPoints];
  for (int p = 0; p < kPoints; ++p) {
    const int64_t point = smaller(first_point + p, points - 1);
    column[p] = point % a.columns;
    row[p] = point / a.columns % a.rows;
    image[p] = point / (a.columns * a.rows);
  }

  Vector<T> sum[kPoints][kVectors] = {};
  Vector<T> total[kPoints][kVectors] = {};
  Vector<T> input[kPoints][kVectors] = {};
  if constexpr (F != Function::kDistance) {
    for (int p = 0; p < kPoints; ++p) {
      const T* from = a.input + image[p] * a.input_strides.image + row[p] * a.input_strides.row +
                      column[p] * a.input_strides.column + group * a.channels + first_channel;
      T channels[width] = {};
      std::memcpy(channels, from, valid_channels * sizeof(T));
      for (int v = 0; v < kVectors; ++v) input[p][v] = load(channels + v * kLanes<T>);
    }
  }

  const int64_t pixel = a.groups * a.source_channels;
  const int64_t blocks = divide_up(a.channels, width);
  const T* filters = a.filters + (group * blocks + block) * a.filter_taps * a.source_channels * width;
  int64_t pending = 0;
  for (int64_t t = 0; t < a.num_taps; ++t) {
    const Tap tap = a.taps[t];
    const T* source[kPoints];
    bool inside[kPoints], all_inside = true;
    for (int p = 0; p < kPoints; ++p) {
      const int64_t y = row[p] * a.step_h + tap.row;
      const int64_t x = column[p] * a.step_w + tap.column;
      inside[p] = y >= 0 && y < a.source_height && x >= 0 && x < a.source_width;
      all_inside = all_inside && inside[p];
      source[p] = inside[p] ? a.source + ((image[p] * a.source_height + y) * a.source_width + x) * pixel +
                                  group * a.source_channels
                            : a.zeros;
    }
    // Where there is no gradient, a slope counts for nothing, and 0 * NaN would: the sums of this tap are kept apart.
    const bool apart = F != Function::kDistance && !all_inside;
    const auto add_to_totals = [&](bool of_all_points) __attribute__((always_inline)) {
      for (int p = 0; p < kPoints; ++p) {
        for (int v = 0; v < kVectors; ++v) {
          if (of_all_points || inside[p]) total[p][v] += sum[p][v];
          sum[p][v] = Vector<T>{};
        }
      }
      pending = 0;
    };
    if (apart) add_to_totals(true);
    const T* filter = filters + tap.index * a.source_channels * width;
    for (int64_t begin = 0; begin < a.source_channels; begin += kBlock) {
      const int64_t length = smaller(kBlock, a.source_channels - begin);
      if (pending + length > kBlock) add_to_totals(!apart);
      pending += length;
      for (int64_t c = begin; c < begin + length; ++c, filter += width) {
        Vector<T> w[kVectors];
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) w[v] = load(filter + v * kLanes<T>);
#pragma GCC unroll 8
        for (int p = 0; p < kPoints; ++p) {
#pragma GCC unroll 8
          for (int v = 0; v < kVectors; ++v) sum[p][v] += term<F>(source[p][c], w[v], input[p][v]);
        }
      }
    }
    if (apart) add_to_totals(false);
  }

  const Strides& to = a.output_strides;
  for (int p = 0; p < kPoints; ++p) {
    T channels[width];
    for (int v = 0; v < kVectors; ++v) {
      total[p][v] += sum[p][v];
      store(channels + v * kLanes<T>, F == Function::kDistance ? -total[p][v] : total[p][v]);
    }
    if (p >= valid_points) continue;
    T* output = a.output + image[p] * to.image + row[p] * to.row + column[p] * to.column +
                (group * a.channels + first_channel) * to.channel;
    if (to.channel == 1) {
      std::memcpy(output, channels, valid_channels * sizeof(T));
    } else {
      for (int64_t c = 0; c < valid_channels; ++c) output[c * to.channel] = channels[c];
    }
  }
}

template <typename T>
int64_t tiles(Function function, const Accumulation<T>& a) {
  return divide_up(a.batch * a.rows * a.columns, points_of_tile(function, vectors_of_block<T>(a.channels)));
}

template <typename T>
int64_t num_items(Function function, const Accumulation<T>& a) {
  return a.groups * divide_up(a.channels, block_width<T>(a.channels)) * tiles(function, a);
}

// The store of a point's sums counts as one more tap.
template <typename T>
int64_t item_steps(Function function, const Accumulation<T>& a) {
  const int vectors = vectors_of_block<T>(a.channels);
  return points_of_tile(function, vectors) * (a.num_taps + 1) * (vectors * a.source_channels + kStepsOfPixel);
}

template <Function F, int kVectors, typename T>
void run_tiles(const Accumulation<T>& a, int64_t begin, int64_t end) {
  constexpr int kPoints = points_of_tile(F, kVectors);
  const int64_t tiles_of_block = tiles(F, a);
  const int64_t blocks = divide_up(a.channels, kVectors * kLanes<T>);
  // All points of one block of filters, then the next block: the block's filters stay in the cache.
  for (int64_t item = begin; item < end; ++item) {
    const int64_t block = item / tiles_of_block;
    tile<F, kPoints, kVectors>(a, item % tiles_of_block * kPoints, block / blocks, block % blocks);
  }
}

template <Function F, typename T>
void run_function(const Accumulation<T>& a, int64_t begin, int64_t end) {
  switch (vectors_of_block<T>(a.channels)) {
    case 1:
      return run_tiles<F, 1>(a, begin, end);
    case 2:
      return run_tiles<F, 2>(a, begin, end);
    default:
      return run_tiles<F, 4>(a, begin, end);
  }
}

template <typename T>
void run(Function function, const Accumulation<T>& a, int64_t begin, int64_t end) {
  switch (function) {
    case Function::kDistance:
      return run_function<Function::kDistance>(a, begin, end);
    case Function::kClippedSlope:
      return run_function<Function::kClippedSlope>(a, begin, end);
    case Function::kSignSlope:
      return run_function<Function::kSignSlope>(a, begin, end);
  }
}

template <typename T>
int64_t packed_size(const FilterShape& s) {
  const int64_t width = block_width<T>(s.channels);
  return s.groups * divide_up(s.channels, width) * width * s.source_channels * s.taps;
}

template <typename T>
void pack(const T* weight, T* packed, const FilterShape& s) {
  const int64_t width = block_width<T>(s.channels);
  for (int64_t group = 0; group < s.groups; ++group) {
    for (int64_t first = 0; first < s.channels; first += width) {
      for (int64_t tap = 0; tap < s.taps; ++tap) {
        for (int64_t source = 0; source < s.source_channels; ++source) {
          const T* from = weight + group * s.group_stride + source * s.source_stride + tap;
          for (int64_t c = first; c < first + width; ++c) {
            *packed++ = c < s.channels ? from[c * s.channel_stride] : T(0);
          }
        }
      }
    }
  }
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

// Constant initialisers: nothing of this instruction set runs while the library is loaded.
template <typename T>
constexpr Loops<T> kLoops = {
    .capability = ADDERZOO_CAPABILITY_NAME,
    .num_items = num_items<T>,
    .item_steps = item_steps<T>,
    .run = run<T>,
    .packed_size = packed_size<T>,
    .pack = pack<T>,
    .filter_sign_gradient = filter_sign_gradient<T>,
};

}  // namespace

extern const Loops<float> kFloat;
extern const Loops<double> kDouble;
constexpr Loops<float> kFloat = kLoops<float>;
constexpr Loops<double> kDouble = kLoops<double>;

}  // namespace adderzoo::cpu::ADDERZOO_CAPABILITY
