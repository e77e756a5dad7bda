"""Instructions by layer, adder network beside CNN: resnet8_cortex_m4.csv as a picture.

    python scripts/reproduce/microcontroller/picture.py OUT.png

The column `adder` comes from count.py with --csv, of what `adderzoo export --format c` writes of adder_resnet8; the
column `cnn` was counted the same way, in the int8 twin (see the page of benchmarks).
"""

import csv
import sys
from pathlib import Path

from matplotlib.figure import Figure

COLUMNS = (("adder", "adder network", "#0072b2"), ("cnn", "int8 CNN, CMSIS-NN", "#d55e00"))


def main() -> None:
    with (Path(__file__).parent / "resnet8_cortex_m4.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for index, (column, label, color) in enumerate(COLUMNS):
        counts = [int(row[column]) / 1e6 for row in rows]
        places = [place + 0.4 * index - 0.2 for place in range(len(rows))]
        axes.bar(places, counts, 0.4, color=color, label=f"{label}: {sum(counts):.1f} million")
    axes.set_xticks(range(len(rows)), [row["layer"] for row in rows], rotation=30, ha="right")
    axes.set_ylabel("executed instructions, millions")
    axes.set_title("ResNet-8, one image, Cortex-M4, counted under qemu", fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(sys.argv[1], dpi=120)


if __name__ == "__main__":
    main()
