"""Write what networks cost and have reached: networks.json, adderzoo/results, README.md, a guide and the model cards.

    python scripts/publish_results.py [--speed] [NETWORK ...]

--speed measures first how fast the adder networks are, or those that are named, each in turns with its CNN twin. What
this machine has measured already is not measured again, so an interrupted run goes on where it was; networks that are
named are measured anew. All of them take a quarter of an hour or more on two cores, where nothing else should run;
OMP_NUM_THREADS sets PyTorch's threads.
"""

import argparse
import contextlib
import io
import re
import textwrap
from pathlib import Path

from adderzoo.catalogue import QUANTIZED, short
from adderzoo.cli import main as adderzoo
from adderzoo.files.output import write_atomically
from adderzoo.publish.card import write_cards
from adderzoo.publish.networks import write_networks
from adderzoo.publish.results import measure_speeds, read_tables, write_results

ROOT = Path(__file__).resolve().parent.parent
GUIDE = ROOT / "docs" / "pages" / "guides" / "networks.md"

# Between these lines README.md has what is generated.
BEGIN, END = "<!-- results: begin -->\n", "<!-- results: end -->\n"

HEAD = (
    "| network | weights | measured on (images) | top-1 % or dB | CNN twin | multiply-adds + elements | CNN twin | "
    "images/s in float32, CNN twin | in bytes, CNN twin in int8 |"
)


def write_readme(path: Path) -> None:
    """Write the table of trained adder networks into README.md.

    Raises:
        ValueError: if it has no place for it.
    """
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} must have the lines {BEGIN.strip()} and {END.strip()}")
    _write(path, f"{before}{begin}\n{readme_table(read_tables())}\n{end}{after}")


def readme_table(rows: list[dict[str, str]]) -> str:
    """One row a tag of adder networks, with the first of its data sets, and what was timed where."""
    first: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        if row["network"].startswith("adder_") and row["tag"]:
            first.setdefault((row["network"], row["tag"]), row)
    lines = [HEAD, re.sub(r"[^|]+", " --- ", HEAD)]
    for row in first.values():
        dataset = row["dataset"].partition(",")[0].removeprefix("scikit-learn ")
        scale = f" x{row['scale']}" if row.get("scale") else ""
        cells = [
            f"`{row['network']}`",
            f"`{row['tag']}`",
            f"{dataset}{scale} ({int(row['images']):,})",
            _reached(row, ""),
            _reached(row, "cnn_"),
            f"{short(int(row['multiply_adds']))} + {short(int(row['adder_elements']))}",
            short(int(row["cnn_multiply_adds"])),
            "-" if QUANTIZED.search(row["tag"]) else _rates(row, "float32"),
            _rates(row, "int8"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\n" + textwrap.fill(_timing(list(first.values())), 120, break_on_hyphens=False) + "\n"


def _reached(row: dict[str, str], prefix: str) -> str:
    if row.get(f"{prefix}psnr"):
        return f"{float(row[f'{prefix}psnr']):.2f}"
    top1, error = row.get(f"{prefix}top1"), row.get(f"{prefix}top1_se")
    return f"{float(top1):.2f} ± {float(error):.2f}" if top1 and error else "-"


def _rates(row: dict[str, str], precision: str) -> str:
    pair = [row[f"{prefix}images_per_second_{precision}"] for prefix in ("", "cnn_")]
    return ", ".join(_rate(float(rate)) if rate else "-" for rate in pair)


def _rate(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _timing(rows: list[dict[str, str]]) -> str:
    """On what, and what super-resolution takes, whose energy looks better than it is on a CPU."""
    timed = [row for row in rows if row["machine"]]
    times = [
        float(row["cnn_images_per_second_float32"]) / float(row["images_per_second_float32"])
        for row in timed
        if row.get("psnr") and row["cnn_images_per_second_float32"]
    ]
    return (
        "Images a second, of an adder network (`fuse`; `quantize`) in turns with its CNN twin (`torch.compile` with "
        "freezing; torchao's int8, likewise): batches of 128, for super-resolution single images that become 320x180. "
        f"On {'; '.join(sorted({row['machine'] for row in timed})) or 'no machine yet'}."
        + (
            f" There super-resolution takes {min(times):.1f} to {max(times):.1f} times as long as the CNN, and its "
            "operations about half the energy in a chip's model."
            if times
            else ""
        )
    )


def write_guide(path: Path) -> None:
    """Write what `adderzoo list "*_resnet20"` prints into the guide to networks."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        adderzoo(["list", "*_resnet20"])
    block = f"```text\n{printed.getvalue()}```\n"
    _write(path, re.sub(r"^```text\nnetwork .*?^```\n", lambda _: block, path.read_text(), flags=re.DOTALL | re.M))


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda path: path.write_text(text, encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", metavar="NETWORK", nargs="*", help="adder networks to measure anew")
    parser.add_argument("--speed", action="store_true", help="measure how fast networks are before")
    args = parser.parse_args()
    write_networks()
    if args.speed or args.networks:
        measure_speeds(args.networks, again=bool(args.networks))
    write_results()
    write_cards()
    write_readme(ROOT / "README.md")
    write_guide(GUIDE)


if __name__ == "__main__":
    main()
