"""scripts/reproduce/paper_costs.py, against the tables of "AdderNet" (CVPR 2020)."""

import importlib.util
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from adderzoo.analysis.costs import Operations, Profile, profile

CHECKOUT = Path(__file__).resolve().parent.parent
SCRIPT = CHECKOUT / "scripts" / "reproduce" / "paper_costs.py"


def _load() -> Any:
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[SCRIPT.stem] = importlib.util.module_from_spec(spec)  # where dataclasses look
    spec.loader.exec_module(module)
    return module


paper_costs = _load()


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name)


def of(name: str) -> Profile:
    model = on_meta(name)
    return profile(model, model.pretrained_cfg["input_size"])


def table(name: str) -> tuple[dict[str, list[str]], str]:
    """Cells by the first of their row, and the note."""
    lines, _, note = paper_costs.report(name).partition("\n\n")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines.splitlines()]
    return {first: cells for first, *cells in rows}, note


def stride_first(model: nn.Module) -> nn.Module:
    """ResNet-50 as it was first published: the stride on the 1x1 layer of a block and not on the 3x3 layer."""
    for module in model.modules():
        if hasattr(module, "conv3"):
            module.conv1.stride, module.conv2.stride = module.conv2.stride, module.conv1.stride
    return model


METHODS = ("adder", "cnn", "bnn")
# Every row of Tables 2 and 3 that follows from the definition of its network.
FOLLOWS = [f"{method}_{network}" for method in METHODS for network in ("resnet32", "resnet18", "resnet50")]
# And those that do not: (by the paper's words, with both ends), as the paper would print it.
OTHERS = {
    "adder_vgg_small": ({"add": "1.21G"}, {"add": "1.22G"}),
    "cnn_vgg_small": ({"mul": "0.60G", "add": "0.60G"}, {"mul": "0.61G", "add": "0.61G"}),
    "adder_resnet20": ({"add": "80.74M"}, {"add": "81.63M"}),
    "cnn_resnet20": ({"mul": "40.37M", "add": "40.37M"}, {"mul": "40.81M", "add": "40.81M"}),
    "bnn_resnet20": ({"add": "40.37M", "xnor": "40.37M"}, {"add": "40.81M", "xnor": "40.81M"}),
    "bnn_vgg_small": ({"add": "0.60G", "xnor": "0.60G"}, {"add": "0.61G", "xnor": "0.61G"}),
}


@pytest.mark.parametrize("name", FOLLOWS)
def test_rows_of_the_tables_that_follow_from_the_definitions(name: str) -> None:
    model = on_meta(name)
    if "resnet50" in name:
        stride_first(model)
    found = paper_costs.like_paper(profile(model, model.pretrained_cfg["input_size"]), ends=True)
    row = paper_costs.published(name)
    assert row is not None
    printed = row.prints(found.operations)
    if name == "adder_resnet32":  # 138.249472: the paper has rounded before it doubled
        assert (printed, row.figures) == ({"add": "138.25M"}, {"add": "138.24M"})
        assert row.prints(Operations(add=2 * 69_120_000)) == row.figures
    else:
        assert printed == row.figures
    assert {key for key, count in asdict(found.operations).items() if count} == row.figures.keys()


@pytest.mark.parametrize("name", OTHERS)
def test_rows_of_the_tables_that_do_not_follow_are_said_to(name: str) -> None:
    row = paper_costs.published(name)
    assert row is not None
    for ends, printed in zip((False, True), OTHERS[name], strict=True):
        assert row.prints(paper_costs.like_paper(of(name), ends).operations) == printed
        assert printed != row.figures
    assert "does not follow" in row.note


def test_the_papers_words_leave_out_both_ends() -> None:
    whole, counted = of("adder_resnet20"), paper_costs.like_paper(of("adder_resnet20"))
    assert counted.operations == Operations(add=2 * 40_370_176)
    names = [layer.name for layer in counted.layers]
    assert names == [layer.name for layer in whole.layers if layer.type == "Adder2d"]
    assert paper_costs.like_paper(of("cnn_resnet20")).operations == Operations(mul=40_370_176, add=40_370_176)


def test_networks_that_the_paper_does_not_have() -> None:
    for name in ("adder_resnet34", "resnet18", "bicubic", "adder_edsr_x2"):
        assert paper_costs.published(name) is None
        with pytest.raises(ValueError, match=f"the paper prints no operations of '{name}'"):
            paper_costs.report(name)
    assert paper_costs.published("cnn_resnet18.untrained") == paper_costs.published("cnn_resnet18")


def test_the_command_prints_every_network_of_the_paper() -> None:
    done = subprocess.run([sys.executable, SCRIPT], cwd=CHECKOUT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    methods = 3 * ["resnet20", "resnet32", "resnet18", "resnet50", "vgg_small"]
    assert done.stdout.count("printed in the paper's") == len(methods) + 2  # LeNet-5, adder and CNN
    assert done.stdout.count("\n\n| ") + 1 == len(methods) + 2


def test_lenet_counts_as_the_papers_section() -> None:
    rows, note = table("adder_lenet5")
    assert rows == {
        "adder_lenet5": ["#Add", "latency, cycles"],
        "---": ["---", "---"],
        "all layers but BatchNorm": ["833K", "1.7M"],
        "printed in the paper's section 4.1": ["870K", "1.7M"],
    }
    assert note.startswith("Printed are 435,886 products: ")


@pytest.mark.parametrize(
    ("name", "words", "figures", "printed", "note"),
    [
        ("adder_resnet32", ["137.36M"], ["138.25M"], ["138.24M"], "twice 69.12M"),
        ("cnn_resnet32", ["68.68M"] * 2, ["69.12M"] * 2, ["69.12M"] * 2, ""),
        ("cnn_resnet20", ["40.37M"] * 2, ["40.81M"] * 2, ["41.17M"] * 2, "does not follow"),
        ("adder_vgg_small", ["1.21G"], ["1.22G"], ["1.30G"], "does not follow"),
        ("adder_resnet18", ["3.4G"], ["3.6G"], ["3.6G"], ""),
        ("bnn_resnet18", ["1.7G"] * 2, ["1.8G"] * 2, ["1.8G"] * 2, ""),
    ],
)
def test_tables_of_the_paper(name: str, words: list[str], figures: list[str], printed: list[str], note: str) -> None:
    rows, said = table(name)
    kind, operations = {
        "adder": ("adder layers", ["#Add"]),
        "cnn": ("convolutions", ["#Mul", "#Add"]),
        "bnn": ("binary layers", ["#Add", "#XNOR"]),
    }[name.partition("_")[0]]
    where = "Table 3" if "resnet18" in name else "Table 2"
    assert rows[name] == operations
    assert rows["without BatchNorm, first and last layer"] == words
    assert rows[f"without BatchNorm, all layers as {kind}"] == figures
    assert rows[f"printed in the paper's {where}"] == printed
    assert bool(said) == bool(note)
    assert note in said


def test_the_reproductions_show_these_figures() -> None:
    page = (CHECKOUT / "docs" / "pages" / "results" / "reproductions.md").read_text()
    networks = ("vgg_small", "resnet20", "resnet32", "resnet18", "resnet50")
    papers = [table(f"cnn_{name}")[0] for name in networks]
    printed = [next(cells for name, cells in rows.items() if name.startswith("printed")) for rows in papers]
    for title, cells in (
        ("printed in Tables 2 and 3", printed),
        ("all layers but BatchNorm", [rows["without BatchNorm, all layers as convolutions"] for rows in papers]),
        ("without first and last layer too", [rows["without BatchNorm, first and last layer"] for rows in papers]),
    ):
        assert f"| {title} | {' | '.join(cell for cell, _ in cells)} |" in page
