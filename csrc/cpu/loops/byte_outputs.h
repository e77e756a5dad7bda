// From the sums of bytes to outputs: scale, shift and addend, rounded to bytes or not.
#pragma once

#include "item.h"

namespace adderzoo::cpu::ADDERZOO_CAPABILITY {
namespace {

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
void finish_bytes(const Accumulation<uint8_t>& work, const Item<uint8_t>& item, int64_t first_channel,
                  const Addend* addend, Output* output) {
  using Finish = ByteEpilogue<Addend, Output>;
  constexpr int64_t kLanes = Bytes::kChannels;
  constexpr int kVecs = kWidth / kLanes;
  Vector<float> scale[kVecs], shift[kVecs];
#pragma GCC unroll 8
  for (int v = 0; v < kVecs; ++v) {
    scale[v] = load_channels(work.output.epilogue.scale, first_channel + v * kLanes, work.output.channels);
    shift[v] = load_channels(work.output.epilogue.shift, first_channel + v * kLanes, work.output.channels);
  }
  const int32_t* totals = item.totals;
  // Only the lanes of the item's own group are its to write, and to read from the addend.
  const int64_t from = first_channel < item.first_channel ? item.first_channel - first_channel : 0;
  const int64_t channels = smaller(kWidth, item.last_channel - first_channel) - from;
  if (channels == kWidth) {
    const Finish epilogue(work.output.epilogue, addend, output);
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
  const Finish epilogue(work.output.epilogue, addends, results);
  for (int64_t p = 0; p < item.points; ++p, totals += kWidth) {
    const int64_t at = item.output_offsets[p] + first_channel + from;
    if constexpr (kHasAddend<Addend>) std::memcpy(addends + from, addend + at, channels * sizeof(Addend));
    for (int v = 0; v < kVecs; ++v) {
      epilogue.apply(load_as<typename Finish::Ints>(totals + v * kLanes), scale[v], shift[v], v * kLanes);
    }
    std::memcpy(output + at, results + from, channels * sizeof(Output));
  }
}

}  // namespace
}  // namespace adderzoo::cpu::ADDERZOO_CAPABILITY
