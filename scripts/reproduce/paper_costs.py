"""Count what tables of "AdderNet" (CVPR 2020) and its follow-up count of networks, beside what they print.

python scripts/reproduce/paper_costs.py [NETWORK ...]
"""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import timm
import torch

import adderzoo
from adderzoo.analysis.costs import Operations, Profile, profile


def like_paper(profile: Profile, ends: bool = False) -> Profile:
    """The layers that "AdderNet" (CVPR 2020) counts in its Tables 2 and 3.

    "Since computational cost in batch normalization layer, the first layer and the last layer are significantly less
    than other layers, we omit these layers when counting FLOPs" (section 4.2). The figures in the tables are others:
    those for ResNet-18, 32 and 50 come out with the first and the last layer, as if they were of the network's kind.

    Args:
        profile: Of the network.
        ends: Count first and last layer as the figures do.
    """
    layers = [replace(layer, scaled=0) for layer in profile.layers if layer.products]
    if ends:
        kind = max((layer.kind for layer in layers), key=profile.products)
        layers = [replace(layer, products={kind: sum(layer.products.values())}) for layer in layers]
    return replace(profile, layers=tuple(layers if ends else layers[1:-1]))


@dataclass(frozen=True)
class Published:
    """What the paper prints for a network.

    Attributes:
        where: Its table or section.
        figures: As printed, such as "41.17M", by the names of :class:`Operations`, and "latency".
        note: Why a figure is not that of the network here with both ends, where it is not; "" where it is.
        ends: Whether the first and the last layer are counted by the paper's words too.
    """

    where: str
    figures: Mapping[str, str]
    note: str = ""
    ends: bool = False

    def prints(self, operations: Operations) -> dict[str, str]:
        """The same figures for these operations, with as many digits."""
        counts = {**asdict(operations), "latency": operations.latency()}
        return {name: _printed(counts[name], text) for name, text in self.figures.items()}


def _printed(count: int | None, like: str) -> str:
    unit = {"K": 1e3, "M": 1e6, "G": 1e9}[like[-1]]
    return "-" if count is None else f"{count / unit:.{len(like.partition('.')[2][:-1])}f}{like[-1]}"


# By network: where, products of the CNN, additions of the adder network, note.
_TABLES = {
    "vgg_small": ("Table 2", "0.65G", "1.30G", "The printed figure does not follow from the layers of VGG-small."),
    "resnet20": (
        "Table 2",
        "41.17M",
        "82.34M",
        "The printed figure does not follow from the layers in the authors' code.",
    ),
    "resnet32": ("Table 2", "69.12M", "138.24M", "Printed is twice 69.12M, which was rounded before."),
    "resnet18": ("Table 3", "1.8G", "3.6G", ""),
    "resnet50": (
        "Table 3",
        "3.9G",
        "7.7G",
        "Printed is a figure of ResNet-50 with the stride in a block's first 1x1 layer; here it is in the 3x3 layer.",
    ),
}


_LENET5 = {
    "adder": {"add": "870K", "latency": "1.7M"},
    "cnn": {"mul": "435K", "add": "435K", "latency": "2.6M"},
}
_LENET5_NOTE = (
    "Printed are 435,886 products: one more for each output of a layer, a bias that is not there here, and two for "
    "each output of the BatchNorm behind conv1, conv2 and conv3."
)


def published(name: str) -> Published | None:
    """What the paper prints for a network, by its registered name; None if nothing."""
    method, _, network = name.partition(".")[0].partition("_")
    if network == "lenet5" and method in _LENET5:
        return Published("section 4.1", _LENET5[method], _LENET5_NOTE, ends=True)
    if network not in _TABLES or method not in ("adder", "cnn", "bnn"):
        return None
    where, products, additions, note = _TABLES[network]
    figures = {
        "adder": {"add": additions},
        "cnn": {"mul": products, "add": products},
        "bnn": {"add": products, "xnor": products},
    }[method]
    return Published(where, figures, note)


_TITLES = {"mul": "#Mul", "add": "#Add", "xnor": "#XNOR", "latency": "latency, cycles"}
_KINDS = {"conv": "convolutions", "adder": "adder layers", "binary": "binary layers"}


def report(name: str) -> str:
    """What is counted by the paper's words, what by its figures, and what it prints, as a Markdown table.

    Raises:
        ValueError: if the paper prints nothing for this network.
    """
    row = published(name)
    if row is None:
        raise ValueError(f"the paper prints no operations of {name!r}")
    with torch.device("meta"):
        model: Any = timm.create_model(name)
    whole = profile(model, model.pretrained_cfg["input_size"])
    words, figures = like_paper(whole), like_paper(whole, ends=True)
    ways = {"all layers but BatchNorm": figures}
    if not row.ends:
        ways = {
            "without BatchNorm, first and last layer": words,
            f"without BatchNorm, all layers as {_KINDS[figures.layers[0].kind]}": figures,
        }
    lines = [(name, *(_TITLES[key] for key in row.figures)), ("---", *("---" for _ in row.figures))]
    lines += [(text, *row.prints(each.operations).values()) for text, each in ways.items()]
    lines.append((f"printed in the paper's {row.where}", *row.figures.values()))
    note = f"\n\n{row.note}" if row.prints(figures.operations) != row.figures else ""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + note


if __name__ == "__main__":
    names = sys.argv[1:] or [name for name in adderzoo.list_models() if published(name)]
    print("\n\n".join(map(report, names)))
