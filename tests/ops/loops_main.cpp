// Holds the loops in csrc/cpu to the definition, without PyTorch, so that they can be run where PyTorch is not: under
// an emulator of another processor, with sanitizers. Prints a line for each failure and how many values were compared.
//
// Arguments, all optional: n, to take only every n-th combination of form, layouts and type of the geometries that are
// listed here; how many geometries are drawn at random beside them; and the seed of these, which is printed.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <limits>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "../../csrc/benchmark/ceilings.h"
#include "adder2d_plan.h"

namespace {

using namespace adderzoo;
using namespace adderzoo::cpu;

int64_t failures = 0, comparisons = 0, combinations = 0, every = 1;

bool is_left_out() { return ++combinations % every != 0; }

// ------------------------------------------------------------------------------------------------------------ problems

enum class Values {
  kPlain,      // with many ties of x and w
  kCanceling,  // pixels near the filters and far from zero, where the fast distance does not hold: first all, then some
  kOpposed,    // large numbers of both signs, in some places the same in pixels and filters: their sums hide them
  kHuge,       // numbers whose sums overflow, though some of their distances do not
  kOddInput,   // NaN and infinities in the input
  kOdd,        // and in filters and gradient
};

struct Problem {
  Geometry g;
  Values values;
  // NHWC; filters are (filter, tap, channel). All are float32 numbers.
  std::vector<double> x, w, dy;

  int64_t in() const { return g.groups * g.channels; }
  int64_t out() const { return g.groups * g.filters; }
};

std::string name(const Geometry& g) {
  char text[200];
  std::snprintf(
      text, sizeof(text),
      "batch %d, %d groups of %d to %d channels, %dx%d, kernel %dx%d, stride %dx%d, padding %dx%d, dilation %dx%d",
      int(g.batch), int(g.groups), int(g.channels), int(g.filters), int(g.height), int(g.width), int(g.kernel_h),
      int(g.kernel_w), int(g.stride_h), int(g.stride_w), int(g.padding_h), int(g.padding_w), int(g.dilation_h),
      int(g.dilation_w));
  return text;
}

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t below(uint64_t end) {
    state_ = state_ * 6364136223846793005 + 1442695040888963407;
    return (state_ >> 33) % end;
  }
  // About normal; a quarter are multiples of a half.
  float number() {
    double sum = -6;
    for (int i = 0; i < 12; ++i) sum += double(below(1 << 24)) / (1 << 24);
    return float(below(4) == 0 ? std::round(2 * sum) / 2 : sum);
  }

 private:
  uint64_t state_;
};

Problem problem(const Geometry& g, Values values, uint64_t seed) {
  Problem p{.g = g, .values = values, .x = {}, .w = {}, .dy = {}};
  Random random(seed);
  p.x.resize(g.batch * g.height * g.width * p.in());
  p.w.resize(p.out() * g.taps() * g.channels);
  p.dy.resize(g.batch * g.out_height * g.out_width * p.out());
  for (auto* numbers : {&p.x, &p.w, &p.dy}) {
    for (double& number : *numbers) number = random.number();
  }
  if (values == Values::kCanceling) {
    for (double& w : p.w) w = float(100 + w / 8);
    for (size_t i = 0; i < p.x.size(); i += p.in()) {
      const bool near = i < p.x.size() / 2 || random.below(2) == 0;
      for (int64_t c = 0; near && c < p.in(); ++c) p.x[i + c] = float(100 + p.x[i + c] / 8);
    }
  }
  if (values == Values::kOpposed || values == Values::kHuge) {
    const double large = values == Values::kHuge ? 3e38 : 1 << 20;
    for (auto* numbers : {&p.x, &p.w}) {
      for (size_t i = 0; i < numbers->size(); ++i) {
        if (random.below(3) == 0) (*numbers)[i] = float(i % g.channels % 2 ? large : -large);
      }
    }
  }
  const auto spoil = [&](std::vector<double>& numbers) {
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    for (const double odd : {std::nan(""), kInfinity, -kInfinity}) {
      if (!numbers.empty()) numbers[random.below(numbers.size())] = odd;
    }
  };
  if (values == Values::kOddInput || values == Values::kOdd) spoil(p.x);
  if (values == Values::kOdd) {
    spoil(p.w);
    spoil(p.dy);
  }
  return p;
}

// ----------------------------------------------------------------------------------------------------------- reference

struct Bounded {
  std::vector<double> values, magnitudes;  // rounding errors are measured by the magnitudes
  explicit Bounded(size_t size) : values(size), magnitudes(size) {}
};

// The layouts are those of the problem.
struct Reference {
  Bounded y, clipped, sign, filter_sign, filter_full;
};

double finite_magnitude(double x) { return std::isfinite(x) ? std::fabs(x) : 0; }
double sign(double x) { return x > 0 ? 1 : x < 0 ? -1 : x; }
double clip(double x) { return x > 1 ? 1 : x < -1 ? -1 : x; }

Reference reference(const Problem& p) {
  const Geometry& g = p.g;
  Reference r{.y = Bounded(p.dy.size()),
              .clipped = Bounded(p.x.size()),
              .sign = Bounded(p.x.size()),
              .filter_sign = Bounded(p.w.size()),
              .filter_full = Bounded(p.w.size())};
  const std::vector<double> padding(g.channels);
  for (int64_t n = 0; n < g.batch; ++n) {
    for (int64_t oh = 0; oh < g.out_height; ++oh) {
      for (int64_t ow = 0; ow < g.out_width; ++ow) {
        for (int64_t o = 0; o < p.out(); ++o) {
          const int64_t to = ((n * g.out_height + oh) * g.out_width + ow) * p.out() + o;
          const double dy = p.dy[to];
          for (int64_t tap = 0; tap < g.taps(); ++tap) {
            const int64_t y = oh * g.stride_h + tap / g.kernel_w * g.dilation_h - g.padding_h;
            const int64_t x = ow * g.stride_w + tap % g.kernel_w * g.dilation_w - g.padding_w;
            const bool inside = y >= 0 && y < g.height && x >= 0 && x < g.width;
            const int64_t from = ((n * g.height + y) * g.width + x) * p.in() + o / g.filters * g.channels;
            const int64_t filter = (o * g.taps() + tap) * g.channels;
            for (int64_t c = 0; c < g.channels; ++c) {
              const double source = inside ? p.x[from + c] : 0, w = p.w[filter + c];
              r.y.values[to] -= std::fabs(source - w);
              r.y.magnitudes[to] += finite_magnitude(source) + finite_magnitude(w);
              r.filter_sign.values[filter + c] += dy * sign(source - w);
              r.filter_sign.magnitudes[filter + c] += finite_magnitude(dy);
              r.filter_full.values[filter + c] += dy * (source - w);
              r.filter_full.magnitudes[filter + c] +=
                  finite_magnitude(dy) * (finite_magnitude(source) + finite_magnitude(w));
              if (!inside) continue;
              r.clipped.values[from + c] += dy * clip(w - source);
              r.sign.values[from + c] += dy * sign(w - source);
              r.sign.magnitudes[from + c] += finite_magnitude(dy) * (1 + finite_magnitude(source));
            }
          }
        }
      }
    }
  }
  r.clipped.magnitudes = r.sign.magnitudes;
  return r;
}

// ------------------------------------------------------------------------------------------------------------- tensors

enum class Layout { kContiguous, kChannelsLast };
constexpr Layout kLayouts[] = {Layout::kContiguous, Layout::kChannelsLast};

const char* name(Layout layout) { return layout == Layout::kContiguous ? "NCHW" : "NHWC"; }

// An image tensor: with values, and as much memory as they need, so that sanitizers see every step beyond; or without
// and with guards around it.
template <typename T>
class Image {
 public:
  Image(int64_t batch, int64_t channels, int64_t height, int64_t width, Layout layout)
      : channels_(channels), height_(height), width_(width), guard_(kGuard) {
    strides_ = layout == Layout::kContiguous ? Strides{channels * height * width, width, 1, height * width}
                                             : Strides{height * width * channels, width * channels, channels, 1};
    memory_.resize(batch * channels * height * width + 2 * guard_, T(kUnwritten));
  }
  Image(int64_t batch, int64_t channels, int64_t height, int64_t width, Layout layout, const std::vector<double>& nhwc)
      : Image(batch, channels, height, width, layout) {
    guard_ = 0;
    memory_ = std::vector<T>(nhwc.size());
    for (size_t i = 0; i < nhwc.size(); ++i) memory_[place(i)] = T(nhwc[i]);
  }

  double get(int64_t i) const { return memory_[guard_ + place(i)]; }
  bool guards_hold() const {
    for (int64_t i = 0; i < guard_; ++i) {
      if (memory_[i] != T(kUnwritten) || memory_[memory_.size() - 1 - i] != T(kUnwritten)) return false;
    }
    return true;
  }
  // To the bit, but that a NaN is a NaN.
  bool same(const Image& other) const {
    for (size_t i = 0; i < memory_.size(); ++i) {
      const bool both_nan = std::isnan(memory_[i]) && std::isnan(other.memory_[i]);
      if (!both_nan && std::memcmp(&memory_[i], &other.memory_[i], sizeof(T)) != 0) return false;
    }
    return true;
  }
  const T* data() const { return memory_.data() + guard_; }
  View<T> view() { return {memory_.data() + guard_, strides_}; }
  View<const T> view() const { return {memory_.data() + guard_, strides_}; }

 private:
  static constexpr int64_t kGuard = 67;  // odd: what it guards is not aligned
  static constexpr double kUnwritten = 12345;

  int64_t place(int64_t i) const {
    const int64_t c = i % channels_, x = i / channels_ % width_, y = i / channels_ / width_ % height_;
    const int64_t n = i / channels_ / width_ / height_;
    return n * strides_.image + y * strides_.row + x * strides_.column + c * strides_.channel;
  }

  int64_t channels_, height_, width_, guard_;
  Strides strides_;
  std::vector<T> memory_;
};

// Begins at a cache line and ends where it should. Full of NaN: nobody may count on zeros.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, size * sizeof(T) + (size == 0)) != 0) std::abort();
    std::memset(memory, 0xff, size * sizeof(T));
    memory_.reset(static_cast<T*>(memory));
  }
  T* get() const { return memory_.get(); }
  T& operator[](int64_t i) const { return memory_.get()[i]; }

 private:
  struct Free {
    void operator()(T* memory) const { std::free(memory); }
  };
  std::unique_ptr<T, Free> memory_;
};

// -------------------------------------------------------------------------------------------------------------- checks

void fail(const std::string& what, const Problem& p, const std::string& how) {
  static const char* const kNames[] = {"plain", "canceling", "opposed", "huge", "odd input", "odd"};
  std::printf("FAILED: %s; %s; %s values: %s\n", what.c_str(), name(p.g).c_str(), kNames[int(p.values)], how.c_str());
  ++failures;
}

template <typename T>
constexpr double kTolerance = sizeof(T) == sizeof(float) ? 1e-6 : 1e-14;

template <typename T>
const char* type_name() {
  return sizeof(T) == sizeof(float) ? "float" : "double";
}

// Compares get(i), and NaN and infinities with those of the same sign.
template <typename Get>
void compare(const std::string& what, const Problem& p, const Get& get, const std::vector<double>& expected,
             const std::vector<double>& bounds) {
  int64_t wrong = 0, first = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double actual = get(i);
    const bool right = std::isfinite(expected[i]) ? std::fabs(actual - expected[i]) <= bounds[i]
                       : std::isnan(expected[i])  ? std::isnan(actual)
                                                  : actual == expected[i];
    if (right) continue;
    if (wrong++ == 0) first = int64_t(i);
  }
  comparisons += int64_t(expected.size());
  if (wrong == 0) return;
  char text[200];
  std::snprintf(text, sizeof(text), "%d of %d wrong, first the one at %d: %.9g, expected %.9g within %.3g", int(wrong),
                int(expected.size()), int(first), get(first), expected[first], bounds[first]);
  fail(what, p, text);
}

std::vector<double> scaled(std::vector<double> numbers, double factor) {
  for (double& number : numbers) number *= factor;
  return numbers;
}

// As many threads would, each with scratch memory of its own; the last first, since items are independent.
template <typename T>
void run(const Accumulation<T>& work, int64_t threads) {
  for (int64_t thread = threads - 1; thread >= 0; --thread) {
    const int64_t begin = work.items.count * thread / threads, end = work.items.count * (thread + 1) / threads;
    if (begin == end) continue;
    const Buffer<T> scratch(work.items.scratch_size);
    loops<T>().run(work, begin, end, scratch.get());
  }
}

template <typename T>
struct Filters {
  std::vector<T> dense;  // OIHW
  Buffer<T> packed, sums, limits;

  Filters(const Problem& p, const FilterShape& s)
      : dense(p.w.size()),
        packed(s.panels() * s.steps() * kPanel),
        sums(s.panels() * kPanel),
        limits(s.panels() * kPanel) {
    const Geometry& g = p.g;
    for (size_t i = 0; i < dense.size(); ++i) {
      const int64_t c = i % g.channels, tap = i / g.channels % g.taps(), o = i / g.channels / g.taps();
      dense[(o * g.channels + c) * g.taps() + tap] = T(p.w[i]);
    }
    const int64_t middle = s.panels() / 2;
    loops<T>().pack(dense.data(), packed.get(), sums.get(), limits.get(), s, middle, s.panels());
    loops<T>().pack(dense.data(), packed.get(), sums.get(), limits.get(), s, 0, middle);
  }
};

template <typename T>
void check_packing(const Problem& p) {
  const Geometry& g = p.g;
  for (const bool forward : {true, false}) {
    const FilterShape shape = forward ? forward_filters(g) : backward_filters(g);
    const Filters<T> filters(p, shape);
    const int64_t channels = forward ? p.out() : p.in(), sources = forward ? g.channels : g.filters;
    std::vector<double> packed(shape.panels() * shape.steps() * kPanel), zeros(packed.size());
    std::vector<double> sums(shape.panels() * kPanel), bounds(sums.size());
    for (int64_t channel = 0; channel < channels; ++channel) {
      for (int64_t step = 0; step < shape.steps(); ++step) {
        const int64_t tap = forward ? step / sources : g.taps() - 1 - step / sources, source = step % sources;
        const int64_t o = forward ? channel : channel / g.channels * g.filters + source;
        const double w = p.w[(o * g.taps() + tap) * g.channels + (forward ? source : channel % g.channels)];
        packed[(channel / kPanel * shape.steps() + step) * kPanel + channel % kPanel] = w;
        sums[channel] += w;
        bounds[channel] += kTolerance<T> * finite_magnitude(w);
      }
    }
    const std::string what = std::string(type_name<T>()) + (forward ? " filters" : " backward filters");
    compare(what + ", packed", p, [&](int64_t i) { return filters.packed[i]; }, packed, zeros);
    if (p.values == Values::kHuge) continue;  // sums that are infinite in one type
    compare(what + ", their sums", p, [&](int64_t i) { return filters.sums[i]; }, sums, bounds);
    const Buffer<T> again(shape.panels() * kPanel), limits(shape.panels() * kPanel);
    loops<T>().sum_filters(filters.packed.get(), again.get(), limits.get(), shape.steps(), 0, shape.panels());
    compare(what + ", summed", p, [&](int64_t i) { return again[i]; }, sums, bounds);
  }
}

struct Affine {
  const char* name;
  bool scaled, added, relu;
};

constexpr Affine kAffines[] = {{"", false, false, false},
                               {", scaled", true, false, false},
                               {", scaled, ReLU", true, false, true},
                               {", scaled, added", true, true, false},
                               {", scaled, added, ReLU", true, true, true}};

template <typename T>
void check_forward(const Problem& p, const Reference& r) {
  const Geometry& g = p.g;
  const Filters<T> filters(p, forward_filters(g));
  Random random(1);
  std::vector<double> added(r.y.values.size());
  std::vector<T> scale(p.out()), shift(p.out());
  for (double& number : added) number = random.number();
  for (int64_t o = 0; o < p.out(); ++o) {
    scale[o] = T((random.below(2) ? 0.25f : -0.25f) + random.number() / 32);
    shift[o] = T(4 * random.number());
  }

  for (const Function function : {Function::kDistance, Function::kMaxDistance}) {
    for (const Affine& affine : kAffines) {
      Bounded expected = r.y;
      for (size_t i = 0; i < added.size(); ++i) {
        double &y = expected.values[i], &bound = expected.magnitudes[i];
        // The plain form's error is one of the result; the other one's, where so much is subtracted that it gives way.
        const bool gives_way = std::fabs(y) < bound / 70;
        if (std::isfinite(y) && (function == Function::kDistance || gives_way)) bound = std::fabs(y);
        bound *= kTolerance<T>;
        // Filters all near 100, and numbers of one size, are like constants, whose roundings have one sign
        // (docs/pages/internals/operator.md).
        if (p.values == Values::kOpposed || (p.values == Values::kCanceling && !gives_way)) bound *= 5;
        y = T(y);  // infinite where it exceeds what the type holds
        if (!affine.scaled) continue;
        const double a = scale[i % p.out()], b = shift[i % p.out()], c = affine.added ? added[i] : 0;
        bound = bound * std::fabs(a) + kTolerance<T> * (finite_magnitude(y * a) + std::fabs(b) + std::fabs(c));
        y = y * a + b + c;
        if (affine.relu && y < 0) y = 0;
      }
      for (const Layout from : kLayouts) {
        const Image<T> x(g.batch, p.in(), g.height, g.width, from, p.x);
        for (const Layout to : kLayouts) {
          if (is_left_out()) continue;
          const Image<T> addend(g.batch, p.out(), g.out_height, g.out_width, to, added);
          const std::string what = std::string(type_name<T>()) + " forward, " +
                                   (function == Function::kDistance ? "plain form" : "maximum form") + affine.name +
                                   ", " + name(from) + " to " + name(to);
          std::unique_ptr<Image<T>> first;
          for (const int64_t threads : {1, 2, 7}) {
            auto y = std::make_unique<Image<T>>(g.batch, p.out(), g.out_height, g.out_width, to);
            Plan<T> plan;
            // Additions as multiply-adds by one give the same, to the last bit.
            const bool fma = function == Function::kMaxDistance && threads == 2;
            plan.work.function = fma ? Function::kMaxFmaDistance : function;
            plan.work.filters.packed = filters.packed.get();
            plan.work.filters.sums = filters.sums.get();
            plan.work.filters.limits = filters.limits.get();
            if (affine.scaled) {
              plan.work.output.epilogue = {.scale = scale.data(),
                                           .shift = shift.data(),
                                           .addend = affine.added ? addend.data() : nullptr,
                                           .relu = affine.relu};
            }
            plan_forward(plan, g, x.view(), y->view(), threads);
            run(plan.work, threads);
            if (!y->guards_hold()) fail(what, p, "written beyond the output");
            if (first == nullptr) {
              compare(what, p, [&](int64_t i) { return y->get(i); }, expected.values, expected.magnitudes);
              first = std::move(y);
            } else if (!y->same(*first)) {
              fail(what, p,
                   "not the same with " + std::to_string(threads) + " threads" + (fma ? ", by multiply-adds" : ""));
            }
          }
        }
      }
    }
  }
}

template <typename T>
void check_backward(const Problem& p, const Reference& r) {
  const Geometry& g = p.g;
  const Filters<T> filters(p, backward_filters(g));
  struct Case {
    Function function;
    const char* name;
  };
  for (const Case& c : {Case{Function::kClippedSlope, "clipped"}, Case{Function::kExactClippedSlope, "exactly clipped"},
                        Case{Function::kSignSlope, "sign"}}) {
    // Only for filters whose sums are finite.
    if (c.function == Function::kClippedSlope && p.values >= Values::kHuge && p.values != Values::kOddInput) continue;
    const Bounded& expected = c.function == Function::kSignSlope ? r.sign : r.clipped;
    const std::vector<double> bounds = scaled(expected.magnitudes, kTolerance<T>);
    for (const Layout of_dy : kLayouts) {
      const Image<T> dy(g.batch, p.out(), g.out_height, g.out_width, of_dy, p.dy);
      for (const Layout of_x : kLayouts) {
        const Image<T> x(g.batch, p.in(), g.height, g.width, of_x, p.x);
        for (const Layout to : kLayouts) {
          if (is_left_out()) continue;
          const std::string what = std::string(type_name<T>()) + " input gradient, " + c.name + ", " + name(of_dy) +
                                   " with x " + name(of_x) + " to " + name(to);
          std::unique_ptr<Image<T>> first;
          for (const int64_t threads : {1, 2, 7}) {
            auto dx = std::make_unique<Image<T>>(g.batch, p.in(), g.height, g.width, to);
            for (int64_t row = 0; row < std::min(g.stride_h, g.height); ++row) {
              for (int64_t column = 0; column < std::min(g.stride_w, g.width); ++column) {
                Plan<T> plan;
                // Subtractions as multiply-adds by one give the same, to the last bit.
                const bool fma = c.function == Function::kClippedSlope && threads == 2;
                plan.work.function = fma ? Function::kFmaClippedSlope : c.function;
                plan.work.filters.packed = filters.packed.get();
                plan_backward(plan, g, row, column, dy.view(), x.view(), dx->view(), threads);
                run(plan.work, threads);
              }
            }
            if (!dx->guards_hold()) fail(what, p, "written beyond the gradient");
            if (first == nullptr) {
              compare(what, p, [&](int64_t i) { return dx->get(i); }, expected.values, bounds);
              first = std::move(dx);
            } else if (!dx->same(*first)) {
              fail(what, p, "not the same with " + std::to_string(threads) + " threads");
            }
          }
        }
      }
    }
  }
}

template <typename T>
void check_filter_gradient(const Problem& p, const Reference& r) {
  const Geometry& g = p.g;
  const Image<T> x(g.batch, p.in(), g.height, g.width, Layout::kChannelsLast, p.x);
  const Image<T> dy(g.batch, p.out(), g.out_height, g.out_width, Layout::kChannelsLast, p.dy);
  const Filters<T> filters(p, forward_filters(g));
  struct Case {
    FilterSlope slope;
    const char* name;
  };
  for (const Case& c : {Case{FilterSlope::kFull, "full"}, Case{FilterSlope::kSign, "sign"},
                        Case{FilterSlope::kFiniteSign, "finite sign"}}) {
    const bool full = c.slope == FilterSlope::kFull;
    if (full && p.values == Values::kHuge) continue;  // differences that are infinite in one type
    if (c.slope == FilterSlope::kFiniteSign && p.values > Values::kHuge) continue;
    const Buffer<T> result(p.w.size());
    const FilterGradient<T> work{.slope = c.slope,
                                 .geometry = g,
                                 .input = x.data(),
                                 .grad = dy.data(),
                                 .weight = filters.dense.data(),
                                 .grad_weight = result.get()};
    const int64_t items = work.items();
    loops<T>().filter_gradient(work, items / 3, items);
    loops<T>().filter_gradient(work, 0, items / 3);
    const auto get = [&](int64_t i) {
      const int64_t channel = i % g.channels, tap = i / g.channels % g.taps(), o = i / g.channels / g.taps();
      return result[(o * g.channels + channel) * g.taps() + tap];
    };
    const Bounded& expected = full ? r.filter_full : r.filter_sign;
    compare(std::string(type_name<T>()) + " gradient of the filters, " + c.name, p, get, expected.values,
            scaled(expected.magnitudes, kTolerance<T>));
  }
  const bool finite = std::all_of(p.x.begin(), p.x.end(), [](double number) { return std::isfinite(number); });
  if (loops<T>().all_finite(x.data(), static_cast<int64_t>(p.x.size())) != finite) fail("finite input", p, "not seen");
}

template <typename T>
void check(const Problem& p, const Reference& r) {
  check_packing<T>(p);
  check_forward<T>(p, r);
  check_backward<T>(p, r);
  check_filter_gradient<T>(p, r);
}

// --------------------------------------------------------------------------------------------------------------- bytes

// Bytes as the operator takes them: filters as adderzoo/ops/packing.py packs them, zeros where there is none.
Buffer<uint8_t> packed_bytes(const Problem& p) {
  const Geometry& g = p.g;
  const int64_t size = g.groups == 1 || g.filters >= kPanel ? kByteStep : 1, steps = (g.channels + size - 1) / size;
  const int64_t panels = (p.out() + kPanel - 1) / kPanel;
  Buffer<uint8_t> packed(panels * g.taps() * steps * kPanel * size);
  std::memset(packed.get(), 0, panels * g.taps() * steps * kPanel * size);
  for (size_t i = 0; i < p.w.size(); ++i) {
    const int64_t c = i % g.channels, tap = i / g.channels % g.taps(), o = i / g.channels / g.taps();
    const int64_t step = (o / kPanel * g.taps() + tap) * steps + c / size;
    packed[(step * kPanel + o % kPanel) * size + c % size] = uint8_t(p.w[i]);
  }
  return packed;
}

// Distances of bytes, in integers.
std::vector<int32_t> byte_distances(const Problem& p, int32_t padding) {
  const Geometry& g = p.g;
  std::vector<int32_t> sums(p.dy.size());
  for (size_t i = 0; i < sums.size(); ++i) {
    const int64_t o = i % p.out(), ow = i / p.out() % g.out_width, oh = i / p.out() / g.out_width % g.out_height;
    const int64_t n = i / p.out() / g.out_width / g.out_height;
    for (int64_t tap = 0; tap < g.taps(); ++tap) {
      const int64_t y = oh * g.stride_h + tap / g.kernel_w * g.dilation_h - g.padding_h;
      const int64_t x = ow * g.stride_w + tap % g.kernel_w * g.dilation_w - g.padding_w;
      const bool inside = y >= 0 && y < g.height && x >= 0 && x < g.width;
      const int64_t from = ((n * g.height + y) * g.width + x) * p.in() + o / g.filters * g.channels;
      for (int64_t c = 0; c < g.channels; ++c) {
        sums[i] +=
            std::abs((inside ? int32_t(p.x[from + c]) : padding) - int32_t(p.w[(o * g.taps() + tap) * g.channels + c]));
      }
    }
  }
  return sums;
}

enum class Addend { kNone, kBytes, kFloats };

// The forms of the distance of bytes.
std::vector<Function> byte_forms() {
  const Function fastest = loops<uint8_t>().distance;
  if (fastest == Function::kDistance) return {fastest};
  return {Function::kDistance, fastest};
}

void check_bytes(const Geometry& g, uint64_t seed) {
  Problem p = problem(g, Values::kPlain, seed);
  Random random(seed);
  for (auto* numbers : {&p.x, &p.w}) {
    // Runs of the extremes, for the largest sums.
    for (double& number : *numbers) number = random.below(8) == 0 ? (numbers == &p.x ? 255 : 0) : random.below(256);
  }
  std::vector<double> bytes_added(p.dy.size()), floats_added(p.dy.size());
  for (double& number : bytes_added) number = random.below(256);
  for (double& number : floats_added) number = 30 * random.number();
  if (!floats_added.empty()) floats_added[random.below(floats_added.size())] = std::nan("");
  std::vector<float> scale(p.out()), shift(p.out());
  const float terms = float(g.taps() * g.channels);
  for (int64_t o = 0; o < p.out(); ++o) {
    scale[o] = (1 + random.number() / 8) / terms * (random.below(4) ? -1 : 1);
    // Halves: sums that lie between two bytes.
    shift[o] = random.below(8) ? 80 * random.number() : 0.5f * random.below(500);
    if (random.below(4) == 0) scale[o] = 0.25f;
  }
  const Buffer<uint8_t> filters = packed_bytes(p);
  for (const Addend addend : {Addend::kNone, Addend::kBytes, Addend::kFloats}) {
    for (const bool float_output : {false, true}) {
      for (const bool relu : {false, true}) {
        if (is_left_out()) continue;
        const uint8_t padding = uint8_t(random.below(256));
        const int32_t most = random.below(2) ? 255 : 15, zero_point = int32_t(random.below(most + 1));
        const float addend_scale = 0.3f, lowest = relu ? 0 : float_output ? -INFINITY : float(-zero_point);
        const std::vector<int32_t> sums = byte_distances(p, padding);
        std::vector<double> expected(sums.size());
        for (size_t i = 0; i < sums.size(); ++i) {
          // Stored, lest the compiler contracts them.
          volatile float scaled = float(sums[i]) * scale[i % p.out()];
          volatile float y = scaled + shift[i % p.out()];
          if (addend != Addend::kNone) {
            scaled = float(addend == Addend::kBytes ? bytes_added[i] : floats_added[i]) * addend_scale;
            y = y + scaled;
          }
          if (float_output) {
            expected[i] = y < lowest ? lowest : y;
          } else {
            const float bounded = std::fmin(y > lowest ? y : lowest, float(most - zero_point));
            expected[i] = std::nearbyint(bounded) + zero_point;
          }
        }
        const Image<uint8_t> x(g.batch, p.in(), g.height, g.width, Layout::kChannelsLast, p.x);
        const Image<uint8_t> byte_addend(g.batch, p.out(), g.out_height, g.out_width, Layout::kChannelsLast,
                                         bytes_added);
        const Image<float> float_addend(g.batch, p.out(), g.out_height, g.out_width, Layout::kChannelsLast,
                                        floats_added);
        static const char* const kAddends[] = {"", ", bytes added", ", floats added"};
        const std::string what = std::string("bytes to ") + (float_output ? "floats" : "bytes") +
                                 kAddends[int(addend)] + (relu ? ", ReLU" : "");
        for (const Function function : byte_forms()) {
          for (const int64_t threads : {1, 3}) {
            Image<uint8_t> bytes(g.batch, p.out(), g.out_height, g.out_width, Layout::kChannelsLast);
            Image<float> floats(g.batch, p.out(), g.out_height, g.out_width, Layout::kChannelsLast);
            Plan<uint8_t> plan;
            plan.work.function = function;
            plan.work.filters.packed = filters.get();
            plan.work.region.padding = padding;
            plan.work.output.epilogue = {.scale = scale.data(),
                                         .shift = shift.data(),
                                         .byte_addend = addend == Addend::kBytes ? byte_addend.data() : nullptr,
                                         .float_addend = addend == Addend::kFloats ? float_addend.data() : nullptr,
                                         .addend_scale = addend_scale,
                                         .lowest = lowest,
                                         .highest = float(most - zero_point),
                                         .zero_point = zero_point,
                                         .float_output = float_output ? floats.view().data : nullptr};
            plan_forward(plan, g, x.view(), bytes.view(), threads);
#ifdef __x86_64__
            // As torch.set_flush_denormal(True) does, which sums of denormal numbers must not see.
            const unsigned before = _mm_getcsr(), flushing = before | 0x8040;
            _mm_setcsr(flushing);
            run(plan.work, threads);
            if ((_mm_getcsr() & 0x8040) != 0x8040) fail(what, p, "flags not restored");
            _mm_setcsr(before);
#else
            run(plan.work, threads);
#endif
            if (!bytes.guards_hold() || !floats.guards_hold()) fail(what, p, "written beyond the output");
            const auto get = [&](int64_t i) { return float_output ? floats.get(i) : bytes.get(i); };
            compare(what, p, get, expected, std::vector<double>(expected.size()));
          }
        }
      }
    }
  }
}

// ---------------------------------------------------------------------------------------------------------- geometries

struct Pair {
  int64_t h, w;
  Pair(int64_t both) : h(both), w(both) {}
  Pair(int64_t h, int64_t w) : h(h), w(w) {}
};

struct Channels {
  int64_t groups, in, out;  // in and out: of a group
};

Geometry geometry(int64_t batch, Channels channels, Pair size, Pair kernel, Pair stride = 1, Pair padding = 0,
                  Pair dilation = 1) {
  const auto out = [](int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
    return (size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
  };
  return {.batch = batch,
          .groups = channels.groups,
          .channels = channels.in,
          .filters = channels.out,
          .height = size.h,
          .width = size.w,
          .out_height = out(size.h, kernel.h, stride.h, padding.h, dilation.h),
          .out_width = out(size.w, kernel.w, stride.w, padding.w, dilation.w),
          .kernel_h = kernel.h,
          .kernel_w = kernel.w,
          .stride_h = stride.h,
          .stride_w = stride.w,
          .padding_h = padding.h,
          .padding_w = padding.w,
          .dilation_h = dilation.h,
          .dilation_w = dilation.w};
}

std::vector<Geometry> geometries() {
  std::vector<Geometry> all = {
      // Kernels, strides, paddings and dilations
      geometry(2, {1, 3, 17}, {9, 8}, 3, 2, 1),
      geometry(1, {1, 6, 16}, {10, 14}, 5),
      geometry(1, {1, 3, 33}, {15, 17}, 7, 2, 3),
      geometry(2, {1, 5, 7}, {7, 6}, {2, 3}, 1, {0, 1}),
      geometry(1, {1, 17, 6}, {11, 12}, 3, 1, 2, 2),
      geometry(1, {1, 4, 5}, {12, 11}, {2, 3}, {3, 2}, {1, 2}, {2, 3}),
      geometry(1, {1, 16, 18}, {8, 9}, 3, 3, 1),
      geometry(1, {1, 2, 3}, 3, 2, 1, 3),                               // rows that see only padding
      geometry(3, {1, 1, 17}, {5, 3}, {4, 5}, {2, 1}, {1, 3}, {1, 2}),  // taps that see only padding
      geometry(1, {1, 16, 16}, 2, 5, 1, 2),
      geometry(2, {1, 5, 16}, {3, 2}, {1, 3}, 2, {2, 4}, {1, 3}),
      // Taps of a row that share the lanes of bytes
      geometry(2, {1, 1, 6}, {10, 11}, 5, 1, 2),
      geometry(1, {1, 4, 20}, {7, 9}, {1, 2}, 1, {0, 1}),
      geometry(1, {2, 3, 20}, {8, 9}, 3, {1, 2}, 1),
      // Pixels without taps
      geometry(2, {1, 16, 17}, {8, 7}, 1, 3),
      geometry(1, {1, 40, 20}, {6, 7}, 1, 2),
      geometry(1, {1, 6, 5}, {9, 10}, 2, 3),
      geometry(1, {1, 4, 4}, {1, 2}, 1, 3),
      // One pixel, no image, and images that share an item
      geometry(1, {1, 1, 1}, 1, 1),
      geometry(5, {1, 130, 33}, 1, 1),
      geometry(3, {1, 3, 16}, 1, 7, 1, 3),
      geometry(0, {1, 3, 4}, 5, 3),
      geometry(40, {1, 16, 6}, 2, 3, 1, 1),
      geometry(33, {1, 6, 17}, {3, 4}, {2, 3}, 2, 1),
      geometry(30, {2, 16, 17}, {2, 3}, 1),
      geometry(50, {5, 1, 1}, 2, 3, 1, 1),
      // Many items, and rows that are longer than one
      geometry(2, {1, 4, 16}, {40, 30}, 3, 1, 1),
      geometry(1, {1, 3, 16}, {5, 260}, 3, 1, 1),
      geometry(1, {1, 3, 16}, {2, 1000}, 3, 1, 1),
      geometry(1, {1, 16, 3}, {1, 800}, {1, 5}),
      geometry(2, {1, 2, 5}, {3, 1200}, {2, 3}, {1, 2}, {0, 2}, {1, 2}),
      geometry(1, {6, 1, 1}, {2, 900}, 3, 1, 1),
      geometry(2, {1, 16, 33}, {20, 19}, 1),
      geometry(1, {20, 1, 1}, {30, 31}, 3, 2, 1),
      // More source channels than a block
      geometry(1, {1, 130, 64}, {5, 6}, 1),
      geometry(2, {1, 300, 80}, {3, 5}, 1, 2),
      geometry(1, {1, 200, 17}, {5, 4}, 3, 1, 1),
      geometry(1, {1, 33, 129}, {4, 5}, {2, 3}, {2, 1}, 1),
      geometry(1, {2, 130, 3}, 4, 3, 1, 1),
      // Groups, wider than a panel and narrower
      geometry(2, {2, 24, 24}, 5, 3, 1, 1),
      geometry(1, {3, 16, 24}, {5, 6}, 3, 2, 1),
      geometry(1, {3, 24, 40}, {4, 5}, 1),
      geometry(1, {3, 17, 20}, 4, {2, 3}, 1, 1),
      geometry(1, {4, 32, 16}, 4, 3, 1, 1),
      geometry(1, {4, 22, 38}, {3, 4}, 1),  // the third group begins late in a panel and ends early in another
      geometry(2, {4, 3, 5}, {6, 5}, 3, 1, 1),
      geometry(1, {8, 8, 8}, {5, 6}, 3, 2, 1),
      geometry(1, {2, 33, 6}, {5, 4}, 3, 1, 1),
      geometry(1, {2, 6, 33}, {5, 4}, 3, 1, 1),
      geometry(1, {11, 15, 15}, 3, 1),
      // Depthwise, and with several filters for a channel
      geometry(2, {17, 1, 1}, {6, 7}, 3, 1, 1),
      geometry(1, {80, 1, 1}, {9, 8}, 5, 2, 2),
      geometry(1, {130, 1, 1}, 7, 3, 1, 2, 2),
      geometry(2, {64, 1, 1}, {5, 6}, {2, 3}, {1, 2}),
      geometry(1, {144, 1, 1}, {6, 5}, 3),  // of no copies in bytes, in two items
      geometry(1, {10, 1, 3}, {7, 6}, 3, 1, 1),
      geometry(2, {33, 1, 2}, {5, 6}, 3, 2, 1),
      geometry(1, {6, 1, 17}, {6, 5}, 3, 1, 1),
  };
  // Channels that fill vectors, tiles and panels, and that overhang them
  const int64_t channels[] = {1, 3, 6, 15, 16, 17, 33, 64, 80, 130};
  for (int i = 0; i < 10; ++i) {
    all.push_back(geometry(1, {1, channels[i], channels[(3 * i + 2) % 10]}, {4, 5}, i % 2 ? 1 : 3, 1, i % 2 ? 0 : 1));
    all.push_back(geometry(2, {1, channels[(7 * i + 4) % 10], channels[i]}, {5, 3}, 3, 2, 1));
  }
  return all;
}

constexpr Values kAllValues[] = {Values::kPlain, Values::kCanceling, Values::kOpposed,
                                 Values::kHuge,  Values::kOddInput,  Values::kOdd};

// One of a million or so, of at most so many elements as take some milliseconds.
Geometry random_geometry(Random& random) {
  const auto one_of = [&](std::initializer_list<int64_t> numbers) {
    return numbers.begin()[random.below(numbers.size())];
  };
  const auto pair = [&](std::initializer_list<int64_t> numbers) { return Pair(one_of(numbers), one_of(numbers)); };
  for (;;) {
    const Channels channels{one_of({1, 1, 1, 2, 3, 4, 5, 8, 11}), one_of({1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 24, 33}),
                            one_of({1, 2, 3, 5, 8, 15, 16, 17, 24, 32, 33, 48, 65})};
    const Pair kernel = pair({1, 1, 2, 3, 3, 4, 5}), stride = pair({1, 1, 1, 2, 3, 5}), padding = pair({0, 0, 1, 2, 3});
    const Pair dilation = pair({1, 1, 2, 3});
    const Pair size(1 + random.below(12), 1 + random.below(12));
    const int64_t batch = random.below(20) == 0 ? 0 : 1 + random.below(3);
    const Geometry g = geometry(batch, channels, size, kernel, stride, padding, dilation);
    const bool fits =
        size.h + 2 * padding.h > dilation.h * (kernel.h - 1) && size.w + 2 * padding.w > dilation.w * (kernel.w - 1);
    const int64_t outputs = batch * g.out_height * g.out_width * channels.groups * channels.out;
    if (fits && outputs * channels.in * g.taps() <= 200'000) return g;
  }
}

// ----------------------------------------------------------------------------------------------------------------
// plans

template <typename Number>
void expect(const char* what, const std::vector<Number>& actual, const std::vector<Number>& expected) {
  if (actual == expected) return;
  std::printf("FAILED: %s are not those of the example:", what);
  for (const Number number : actual) std::printf(" %lld", static_cast<long long>(number));
  std::printf("\n");
  ++failures;
}

// A plan of the example, and what it points to.
struct Example {
  Image<float> x, y;
  Buffer<float> filters;
  Plan<float> plan;

  Example()
      : x(1, 16, 8, 8, Layout::kContiguous, std::vector<double>(16 * 64)),
        y(1, 16, 8, 8, Layout::kContiguous),
        filters(144 * kPanel) {
    plan.work.function = Function::kMaxDistance;
    plan.work.filters = {.packed = filters.get(), .sums = filters.get(), .limits = filters.get(), .steps = 0};
    plan_forward(plan, geometry(1, {1, 16, 16}, 8, 3, 1, 1), std::as_const(x).view(), y.view(), 1);
  }
};

// What adder2d_accumulation.h says of it.
void check_example() {
  const Example example;
  const Accumulation<float>& work = example.plan.work;
  using Numbers = std::vector<int64_t>;
  expect<int64_t>("lattice", {work.lattice.rows, work.lattice.columns, work.lattice.step_h, work.lattice.step_w},
                  {8, 8, 1, 1});
  expect("tap rows", example.plan.tap_rows, {-1, 0, 1});
  expect("tap columns", example.plan.tap_columns, {-1, 0, 1});
  expect<int64_t>("filters", {work.filters.steps}, {144});
  expect<int64_t>("items", {work.items.count, work.items.rows, work.items.max_points, work.items.panels},
                  {2, 4, 32, 1});
  expect<int64_t>("regions", {work.items.max_region_rows, work.region.width, work.region.pixel, work.region.step},
                  {6, 10, 16, 1});
  Numbers pieces;
  for (const Piece& piece : example.plan.pieces) pieces.insert(pieces.end(), {piece.source, piece.step, piece.length});
  expect("pieces", pieces, {0, 0, 48, 160, 48, 48, 320, 96, 32, 352, 128, 16});
  expect("blocks", example.plan.blocks, {0, 3, 4});
}

// That no plan which breaks an invariant is taken.
void check_invariants() {
  using Break = void (*)(Plan<float>&);
  static constexpr Break kBreaks[] = {
      [](Plan<float>& plan) { plan.work.lattice.step_h = 0; },
      [](Plan<float>& plan) { plan.work.lattice.num_tap_rows = 0; },
      [](Plan<float>& plan) { std::swap(plan.tap_rows[0], plan.tap_rows[1]); },
      [](Plan<float>& plan) { plan.work.source.data = nullptr; },
      [](Plan<float>& plan) { ++plan.work.source.channels; },
      [](Plan<float>& plan) { plan.work.region.staged = false; },
      [](Plan<float>& plan) { plan.work.region.shared = false; },
      [](Plan<float>& plan) { --plan.work.region.width; },
      [](Plan<float>& plan) { ++plan.work.region.pixel; },
      [](Plan<float>& plan) { ++plan.work.region.row; },
      [](Plan<float>& plan) { ++plan.work.region.point; },
      [](Plan<float>& plan) { plan.work.region.joined = true; },
      [](Plan<float>& plan) { plan.work.region.lane = kByteStep; },
      [](Plan<float>& plan) { ++plan.blocks.back(); },
      [](Plan<float>& plan) { plan.blocks[1] = 4; },
      [](Plan<float>& plan) { plan.pieces[1].source = 1000; },
      [](Plan<float>& plan) { plan.pieces[3].step = 129; },
      [](Plan<float>& plan) { ++plan.pieces[3].length; },
      [](Plan<float>& plan) { plan.work.filters.packed = nullptr; },
      [](Plan<float>& plan) { plan.work.filters.limits = nullptr; },
      [](Plan<float>& plan) { --plan.work.filters.steps; },
      [](Plan<float>& plan) { plan.work.output.groups = 2; },
      [](Plan<float>& plan) { plan.work.output.input = plan.work.source.data; },
      [](Plan<float>& plan) { plan.work.output.epilogue.scale = plan.work.source.data; },
      [](Plan<float>& plan) { plan.work.output.epilogue.relu = true; },
      [](Plan<float>& plan) { plan.work.items.rows = 2; },
      [](Plan<float>& plan) { plan.work.items.columns = 7; },
      [](Plan<float>& plan) { plan.work.items.column_chunks = 2; },
      [](Plan<float>& plan) { plan.work.items.panels = 0; },
      [](Plan<float>& plan) { plan.work.items.max_points = 16; },
      [](Plan<float>& plan) { plan.work.items.max_region_rows = 5; },
      [](Plan<float>& plan) { plan.work.items.scratch_size = 0; },
  };
  for (size_t i = 0; i < std::size(kBreaks); ++i) {
    Example example;
    kBreaks[i](example.plan);
    try {
      check_plan(example.plan);
    } catch (const std::logic_error&) {
      continue;
    }
    std::printf("FAILED: a plan that is broken in way %d is taken\n", static_cast<int>(i));
    ++failures;
  }
}

void check_all_types(const Geometry& g, Values values, uint64_t seed) {
  const Problem p = problem(g, values, seed);
  const Reference r = reference(p);
  check<float>(p, r);
  check<double>(p, r);
}

}  // namespace

int main(int argc, char** argv) try {
  const auto argument = [&](int i, int64_t otherwise) {
    return argc > i ? std::strtoll(argv[i], nullptr, 10) : otherwise;
  };
  every = std::max<int64_t>(1, argument(1, 1));
  const int64_t draws = argument(2, 300);
  const uint64_t seed = argument(3, std::random_device()());
  std::printf("%lld random geometries, seed %llu\n", static_cast<long long>(draws),
              static_cast<unsigned long long>(seed));
  const std::vector<Geometry> all = geometries();
  for (size_t i = 0; i < all.size(); ++i) {
    for (const Values values : kAllValues) check_all_types(all[i], values, i);
    check_bytes(all[i], i);
  }
  every = 11;  // of a number of combinations that it does not divide
  Random random(seed);
  for (int64_t i = 0; i < draws; ++i) {
    const Geometry g = random_geometry(random);
    check_all_types(g, kAllValues[i % std::size(kAllValues)], random.below(1u << 31));
    check_bytes(g, random.below(1u << 31));
  }
  check_example();
  check_invariants();
  for (const Ceiling form : {Ceiling::kMultiplyAdd, Ceiling::kDistance, Ceiling::kSlope, Ceiling::kByteDistance}) {
    if (ceiling_loop(form)(form, 100) > 0) continue;
    std::printf("FAILED: a ceiling counts no elements\n");
    ++failures;
  }
  std::printf("capability %s: %lld values compared, %lld failures\n", loops<float>().capability,
              static_cast<long long>(comparisons), static_cast<long long>(failures));
  return failures == 0 ? 0 : 1;
} catch (const std::exception& error) {
  std::printf("FAILED: %s\n", error.what());
  return 1;
}
