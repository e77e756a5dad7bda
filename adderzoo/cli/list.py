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
        "adderzoo list --pretrained",
        notes="For one image of the network's own input size: multiply-adds of its convolutions and linear layers, and "
        "elements |x - w| of its adder layers; what binary and shift layers compute is in neither. A network's name "
        "without a tag stands for its first one. Of classifiers top-1 accuracies are shown, with standard error, and "
        "on how many images; of networks for super-resolution PSNR in dB, and on which test set, the first of those "
        "that --json tells.",
    )
    parser.add_argument(
        "filter",
        metavar="FILTER",
        nargs="?",
        default="",
        help="show networks of these names or tags alone, such as 'adder_*' or '*.digits' (default: all)",
    )
    parser.add_argument(
        "--pretrained", action="store_true", help="show networks with published weights alone (default: all networks)"
    )
    add_json_argument(parser, "everything that is known, in exact numbers,")


def run(args: argparse.Namespace) -> None:
    from dataclasses import asdict

    from adderzoo.catalogue import networks

    with open_results(args) as results:
        found = networks(args.filter, pretrained=args.pretrained)
        if not found:
            kind = "network with published weights" if args.pretrained else "network"
            raise ValueError(f"no {kind} matches {args.filter!r}" if args.filter else f"there is no {kind}")
        results.write([asdict(network) for network in found])
        results.show(_table(found))


def _table(networks: Iterable["ModelInfo"]) -> str:
    rows = [("network", "params", "mult-adds", "adder", "input", "weights", "top-1 % / dB", "images")]
    for network in networks:
        cells = (
            network.name,
            _short(network.parameters),
            _short(network.multiply_adds),
            _short(network.adder_elements),
            "x".join(map(str, network.input_size)),
        )
        if not network.pretrained:
            rows.append((*cells, "-", "", ""))
        for weights in network.pretrained:
            rows.append((*cells, weights.tag, *_measured(weights.measured)))
            cells = ("", "", "", "", "")
    return align(rows, left={0, 4, 5})


def _measured(measured: "Measurement | None") -> tuple[str, str]:
    from adderzoo.catalogue import Quality

    if measured is None:
        return "", ""
    if isinstance(measured, Quality):
        first = measured.test_sets[0]
        return f"{first.psnr:.2f}", first.name
    return f"{measured.top1:.2f} ± {measured.top1_se:.2f}", f"{measured.images:,}"


def _short(count: int) -> str:
    """Three digits or so: 0.42M, 40.4M, 1.70G, 551.5G, 9.38T."""
    for unit, letter in ((1e12, "T"), (1e9, "G")):
        if count >= unit:
            return f"{count / unit:.{2 if count < 100 * unit else 1}f}{letter}"
    return f"{count / 1e6:.1f}M" if count >= 1e6 else f"{count / 1e6:.2f}M" if count else "0"
