"""Instructions that a network takes for one image on microcontrollers, counted under qemu, exactly, by layer.

    adderzoo export OUT -m adder_resnet20.cifar10 --quantize CIFAR10
    python scripts/reproduce/microcontroller/count.py OUT [--layers] [--functions] [--csv FILE] [MACHINE ...]

It needs Debian's gcc-arm-none-eabi, gcc-riscv64-unknown-elf, qemu-system-arm and qemu-system-misc. The logits of every
machine are held to the golden ones. These are executed instructions, not cycles: no board was timed. Cycles of a
Cortex-M4 are an estimate, by the timings of its manual, from the instructions that were executed.
"""

import argparse
import csv
import re
import tempfile
from pathlib import Path

from machines import AROUND, MACHINES, build, compiled_plugin, run


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", metavar="OUT", type=Path, help="what `adderzoo export --format c` has written")
    parser.add_argument("machines", metavar="MACHINE", nargs="*", help=f"of {', '.join(MACHINES)} (all)")
    parser.add_argument("--layers", action="store_true", help="every layer's instructions too")
    parser.add_argument("--csv", metavar="FILE", type=Path, help="write every layer's instructions to FILE")
    parser.add_argument("--functions", action="store_true", help="every function's instructions too")
    args = parser.parse_args()
    unknown = [name for name in args.machines if name not in MACHINES]
    tests = list(args.folder.glob("*_test.c"))
    if unknown or len(tests) != 1:
        parser.error(
            f"MACHINE must be one of {', '.join(MACHINES)}, got {unknown[0]}" if unknown else f"no C in {args.folder}"
        )
    name = tests[0].name.removesuffix("_test.c")
    images = int(re.search(r"#define IMAGES (\d+)", tests[0].read_text())[1])  # type: ignore[index]
    rows: list[tuple[str, str, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        plugin = compiled_plugin(Path(folder))
        for machine in args.machines or MACHINES:
            program = build(args.folder, MACHINES[machine], name=name)
            text, counts = run(program, MACHINES[machine], plugin, name)
            if text != "PASS\n":
                raise SystemExit(f"{machine}: {text}")
            inside = {function: count for function, count in counts.functions.items() if function not in AROUND}
            print(f"{machine:14} {sum(inside.values()) / images / 1e6:8.2f} million", flush=True)
            if counts.cycles:
                print(f"{'':14} {counts.cycles / images / 1e6:8.2f} million cycles, estimated", flush=True)
            shown = list(counts.layers.items()) if args.layers else []
            shown += sorted(inside.items(), key=lambda item: -item[1]) if args.functions else []
            for part, count in shown:
                print(f"    {part:24} {count / images:12,.0f}")
            rows += [(machine, layer, round(count / images)) for layer, count in counts.layers.items()]
    if args.csv:
        with args.csv.open("w", newline="") as file:
            csv.writer(file).writerows([("machine", "layer", "instructions"), *rows])


if __name__ == "__main__":
    main()
