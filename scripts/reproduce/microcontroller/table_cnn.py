"""A convolution of bytes on rv32i, which has no multiplier: products from a table of 128 KB.

    python scripts/reproduce/microcontroller/table_cnn.py

The layer is the second of `adder_resnet8`: 3 x 3, 16 to 16 channels, 32 x 32 points, accumulators alone, without bias
and scale. Prints executed instructions for one product and sum, counted under qemu; sums are held to libgcc's. Filters
are offsets into a row of the table; a tile is of some points and four channels. The best is what to compare with.
"""

import shutil
import tempfile
from pathlib import Path

from machines import MACHINES, build, compiled_plugin, run

import adderzoo.microcontroller

_ELEMENTS = 32 * 32 * 16 * 9 * 16

_TEST = """
#include <stdint.h>
int puts(const char *text);
void table_init(void);
int net_run(void);
uint32_t by_product(void);
int main(void)
{
    table_init();
    const uint32_t sum = (uint32_t)net_run();
    puts(sum == by_product() ? "PASS" : "FAIL");
    return 0;
}
"""

_BEGIN = """
#include <stdint.h>
#define POINT 16
#define ROW (34 * POINT)
static int16_t table[256 * 256];
static uint8_t image[34 * ROW];
static uint16_t offsets[4][144][4]; /* twice a weight + 128, of four channels */
static int32_t sums[16 * 32 * 32];
void table_init(void);
int net_run(void);
uint32_t by_product(void);
void table_init(void)
{
    uint32_t state = 1;
    for (int x = 0; x < 256; x++) {
        for (int w = 0; w < 256; w++) {
            table[256 * x + w] = (int16_t)(x * (w - 128));
        }
    }
    for (uint32_t i = 0; i < sizeof image; i++) {
        state = state * 1664525u + 1013904223u;
        image[i] = (uint8_t)(state >> 24);
    }
    for (int i = 0; i < 4 * 144 * 4; i++) {
        state = state * 1664525u + 1013904223u;
        (&offsets[0][0][0])[i] = (uint16_t)((state >> 24) << 1);
    }
}
static uint32_t checksum(void)
{
    uint32_t sum = 0;
    for (int i = 0; i < 16 * 32 * 32; i++) {
        sum = sum * 31u + (uint32_t)sums[i];
    }
    return sum;
}
uint32_t __attribute__((noinline)) by_product(void)
{
    for (int i = 0; i < 32; i++) {
        for (int j = 0; j < 32; j++) {
            for (int o = 0; o < 16; o++) {
                int32_t sum = 0;
                for (int k = 0; k < 144; k++) {
                    sum += image[(i + k / 48) * ROW + j * POINT + k % 48] * ((offsets[o / 4][k][o % 4] >> 1) - 128);
                }
                sums[(i * 32 + j) * 16 + o] = sum;
            }
        }
    }
    return checksum();
}
"""


def layer(points: int, unroll: int) -> str:
    """C of the loop: a tile of so many points and four channels."""
    sums = [f"s{point}_{channel}" for point in range(points) for channel in range(4)]
    lines = ["static void __attribute__((noinline)) layer(void)", "{"]
    lines += [
        "for (int i = 0; i < 32; i++) {",
        f"for (int j = 0; j < 32; j += {points}) {{",
        "for (int q = 0; q < 4; q++) {",
    ]
    lines += ["const uint16_t *w = offsets[q][0];", f"int32_t {', '.join(f'{name} = 0' for name in sums)};"]
    lines += ["for (int tap = 0; tap < 3; tap++) {", "const uint8_t *x = image + (i + tap) * ROW + j * POINT;"]
    lines += [f"for (const uint8_t *end = x + 48; x != end; x += {unroll}, w += {4 * unroll}) {{"]
    for k in range(unroll):
        lines += ["{"]
        lines += [
            f"const char *r{p} = (const char *)table + ((uint32_t)x[{k} + {p} * POINT] << 9);" for p in range(points)
        ]
        for channel in range(4):
            lines += [f"{{ const uint32_t o = w[{4 * k + channel}];"]
            lines += [f"s{p}_{channel} += *(const int16_t *)(const void *)(r{p} + o);" for p in range(points)]
            lines += ["}"]
        lines += ["}"]
    lines += ["}", "}", "int32_t *y = sums + (i * 32 + j) * 16 + 4 * q;"]
    lines += [f"y[{16 * p + c}] = s{p}_{c};" for p in range(points) for c in range(4)]
    lines += ["}", "}", "}", "}", "int net_run(void)", "{", "/* layer: */", "layer();", "/* end: */"]
    lines += ["return (int)checksum();", "}"]
    return "\n".join(lines) + "\n"


def main() -> None:
    bare = Path(adderzoo.microcontroller.__file__).parent / "c" / "bare.c"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plugin = compiled_plugin(folder)
        shutil.copy(bare, folder)
        (folder / "net_test.c").write_text(_TEST)
        for points, unroll in ((1, 4), (2, 2), (4, 1)):
            (folder / "net.c").write_text(_BEGIN + layer(points, unroll))
            program = build(folder, MACHINES["rv32i"], "-fno-schedule-insns")  # which would spill sums
            text, counts = run(program, MACHINES["rv32i"], plugin)
            if text != "PASS\n":
                raise SystemExit(text)
            each = counts.layers["layer"] / _ELEMENTS
            print(f"{points} points, {unroll} elements at a time: {each:.2f}", flush=True)


if __name__ == "__main__":
    main()
