"""`adderzoo export`; what it writes is tested in tests/test_export.py and tests/deploy."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import Done

pytestmark = pytest.mark.usefixtures("one_thread")

PUBLISHED = ("--model", "adder_lenet5.digits")


@torch.no_grad()
def test_a_published_network_becomes_a_program_that_names_its_classes(
    adderzoo: Callable[..., Done], tmp_path: Path
) -> None:
    path = tmp_path / "lenet5.pt2"
    done = adderzoo("export", *PUBLISHED, "--dynamic-batch", path)
    assert (done.status, done.err) == (0, "adderzoo export: adder_lenet5.digits, published weights\n")
    assert re.fullmatch(
        rf"{path}: pt2, [\d,]+ bytes, for N x 1 x 32 x 32; its results differ from the network's by \S+ of their "
        r"standard deviation\n",
        done.out,
    )
    said = {"classes": "", "tag": ""}
    program = torch.export.load(path, extra_files=said)
    assert (said["classes"], said["tag"]) == ("0\n1\n2\n3\n4\n5\n6\n7\n8\n9", "digits")
    assert program.module()(torch.rand(3, 1, 32, 32)).shape == (3, 10)


def test_pytorchs_warning_about_torchscript_is_explained(adderzoo: Callable[..., Done], tmp_path: Path) -> None:
    done = adderzoo("export", *PUBLISHED, "--format", "torchscript", tmp_path / "lenet5.pt")
    assert done.status == 0
    assert done.rest == ["adderzoo export: PyTorch deprecates TorchScript and may drop it: pt2 and aoti take its place"]


@pytest.mark.parametrize(
    ("name", "options", "format"),
    [("a.onnx", (), "onnx"), ("a.pt2", (), "pt2"), ("a.pt", (), "torchscript"), ("a", ("--quantize", "DIGITS"), "c")],
)
def test_the_ending_says_the_format(
    adderzoo: Callable[..., Done], digits: Path, tmp_path: Path, name: str, options: tuple[str, ...], format: str
) -> None:
    options = tuple(option.replace("DIGITS", str(digits)) for option in options)
    done = adderzoo("export", tmp_path / name, *PUBLISHED, *options, "--workers", 0, "--json", "-")
    assert done.status == 0, done
    assert json.loads(done.out)["format"] == format
    if format == "onnx":
        import onnx

        onnx.checker.check_model(tmp_path / name)
    elif format == "torchscript":
        assert torch.jit.load(tmp_path / name)(torch.rand(1, 1, 32, 32)).shape == (1, 10)
    elif format == "c":
        assert (tmp_path / name / "adder_lenet5_digits.c").is_file()


def test_a_quantized_network_is_exported(adderzoo: Callable[..., Done], digits: Path, tmp_path: Path) -> None:
    quantized, path = tmp_path / "lenet5.safetensors", tmp_path / "lenet5.pt2"
    assert adderzoo("quantize", *PUBLISHED, "--data-dir", digits, "--workers", 0, quantized).status == 0
    done = adderzoo("export", "--model", "adder_lenet5", "--checkpoint", quantized, "--format", "pt2", path)
    assert done.status == 0
    operators = {str(node.target) for node in torch.export.load(path).graph.nodes}
    assert "adderzoo.adder2d_u8.default" in operators


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*PUBLISHED, "--format", "pt2", "OUT.pt"), r"OUT for the format pt2 must end in \.pt2, got .*OUT\.pt"),
        (
            (*PUBLISHED, "--format", "torchscript", "OUT.pt2"),
            r"OUT for the format torchscript must end in \.pt, got .*",
        ),
        ((*PUBLISHED, "OUT.pth"), r"OUT must end in \.onnx, \.pt2, \.pt, or be a folder for C, got .*OUT\.pth"),
        ((*PUBLISHED, "--bits", 7, "OUT.onnx"), r"bits is for C, a folder, but .*OUT\.onnx gets the format onnx"),
        ((*PUBLISHED, "--format", "pt2", "--img-size", 0, "OUT.pt2"), r"img-size must be at least 1, got 0"),
        (
            ("--model", "bicubic", "--format", "pt2", "OUT.pt2"),
            r"img-size must be given for a network for super-resolution, whose images have any size",
        ),
        (
            ("--model", "bicubic", "--format", "pt2", "--class-names", "FILE", "OUT.pt2"),
            r"class-names is for classifiers, but bicubic is for super-resolution",
        ),
    ],
)
def test_wrong_arguments_are_named(
    arguments: tuple[object, ...], message: str, adderzoo: Callable[..., Done], tmp_path: Path
) -> None:
    arguments = (*arguments[:-1], tmp_path / str(arguments[-1]))
    assert re.fullmatch(rf"adderzoo export: error: {message}", adderzoo("export", *arguments).error)
    assert not any(tmp_path.iterdir())
