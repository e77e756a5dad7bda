"""`adderzoo list`."""

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ._parser import Parser
from ._results import add_json_argument, open_results
from ._table import align

if TYPE_CHECKING:
    from adderzoo.catalogue import Measurement, ModelInfo


def add_arguments(parser: Parser) -> None:
    parser.explain(
        "[FILTER] [options]",
        'adderzoo list "*_resnet20"',
        "adderzoo list --pretrained --sort top1",
        notes="Costs are those of one image of the network's input size: multiply-adds of convolutions and linear "
        "layers, and elements |x - w| of adder layers; operations of binary and shift layers are in neither. A "
        "name without a tag stands for its first tag. Quality is top-1 accuracy with its standard error and "
        "the number of images, or for super-resolution PSNR in dB on the first test set; --json has the "
        "others. Images a second are in float32, fused or compiled, measured on the machine named in the "
        "package's results/speed.csv; for super-resolution on images that become 320x180.",
    )
    parser.add_argument(
        "filter",
        metavar="FILTER",
        nargs="?",
        default="",
        help="show only networks whose name or tag matches, such as 'adder_*' or '*.digits' (default: all)",
    )
    parser.add_argument(
        "--pretrained", action="store_true", help="show only networks with published weights (default: all networks)"
    )
    parser.add_argument(
        "--sort",
        choices=("top1", "ops", "speed", "params"),
        help="order by accuracy, by operations (multiply-adds and elements together), by images a second or by "
        "parameters, the best first (default: by name)",
    )
    add_json_argument(parser, "everything that is known, in exact numbers,")


def run(args: argparse.Namespace) -> None:
    from dataclasses import asdict

    from adderzoo.catalogue import in_order, networks

    with open_results(args) as results:
        found = networks(args.filter, pretrained=args.pretrained)
        if not found:
            kind = "network with published weights" if args.pretrained else "network"
            raise ValueError(f"no {kind} matches {args.filter!r}" if args.filter else f"there is no {kind}")
        if args.sort:
            found = in_order(found, args.sort)
        results.write([asdict(network) for network in found])
        results.show(_table(found))


def _table(networks: Iterable["ModelInfo"]) -> str:
    from adderzoo.catalogue import short

    rows = [("network", "params", "mult-adds", "adder", "images/s", "weights", "top-1 % / dB", "images")]
    for network in networks:
        cells = (
            network.name,
            short(network.parameters),
            short(network.multiply_adds),
            short(network.adder_elements),
            _rate(network.images_per_second),
        )
        if not network.pretrained:
            rows.append((*cells, "-", "", ""))
        for weights in network.pretrained:
            rows.append((*cells, weights.tag, *_measured(weights.measured)))
            cells = ("", "", "", "", "")
    return align(rows, left={0, 5})


def _measured(measured: "Measurement | None") -> tuple[str, str]:
    from adderzoo.catalogue import Quality

    if measured is None:
        return "", ""
    if isinstance(measured, Quality):
        first = measured.test_sets[0]
        return f"{first.psnr:.2f}", first.name
    return f"{measured.top1:.2f} ± {measured.top1_se:.2f}", f"{measured.images:,}"


def _rate(images_per_second: float | None) -> str:
    if images_per_second is None:
        return "-"
    return f"{images_per_second:.3g}" if images_per_second < 1000 else f"{images_per_second:.0f}"
