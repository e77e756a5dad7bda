"""`adderzoo export --format c`; the C itself is tested in tests/microcontroller."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Done

from adderzoo.cli import parsers

pytestmark = pytest.mark.usefixtures("one_thread")

PUBLISHED = ("--model", "adder_lenet5.digits")
IMAGES = ("--images", 40, "--workers", 0)


@pytest.fixture(scope="module")
def quantized(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from adderzoo.cli import main

    path = tmp_path_factory.mktemp("quantized") / "lenet5.safetensors"
    arguments = ("quantize", *PUBLISHED, "--data-dir", digits, *IMAGES, path)
    assert main([str(argument) for argument in arguments]) == 0
    return path


def test_a_tag_becomes_c_that_checks_itself(adderzoo: Callable[..., Done], digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = adderzoo("export", "--format", "c", "adder_lenet5.digits", out, "--quantize", digits, *IMAGES)
    assert done.status == 0
    assert re.fullmatch(
        rf"{out}: adder_lenet5_digits\.c, 7 bits, ranges from 40 images; RAM [\d,]+ bytes, flash [\d,]+ bytes and "
        r"about [\d,]+ of code; about 0\.\d\d million instructions on a Cortex-M4; the same class as "
        r"the network of bytes on (39|40) of 40 images\n",
        done.out,
    )
    header = (out / "adder_lenet5_digits.h").read_text()
    assert "416,520 elements |x - w| of adder layers" in header
    assert "In float 98.78 % of 899 images" in header
    assert '"0", "1", "2", "3"' in (out / "adder_lenet5_digits.c").read_text()
    assert {path.name for path in out.iterdir()} == {
        *(f"adder_lenet5_digits{end}" for end in (".h", ".c", "_test.c")),
        *("bare.c", "Makefile", "README.md"),
    }
    made = subprocess.run(["make", "CC=gcc", "CFLAGS=-O1"], cwd=out, capture_output=True, text=True)
    assert made.stdout.splitlines()[-1] == "PASS", made


def test_a_file_of_quantize_needs_no_images(adderzoo: Callable[..., Done], quantized: Path, tmp_path: Path) -> None:
    done = adderzoo("export", quantized, tmp_path / "out", "--no-multiply", "--vectors")
    assert (done.status, done.err) == (0, f"adderzoo export: adder_lenet5.digits, weights of {quantized}\n")
    assert done.out.startswith(f"{tmp_path / 'out'}: adder_lenet5_digits.c, 8 bits; RAM ")
    header = (tmp_path / "out" / "adder_lenet5_digits.h").read_text()
    assert "quantized to 8 bits, without multiplication but by SMLAD." in header
    assert "#define SHIFTS 1" in (tmp_path / "out" / "adder_lenet5_digits.c").read_text()
    assert (tmp_path / "out" / "vectors.npz").exists()


def test_a_tag_in_bytes_needs_no_images(adderzoo: Callable[..., Done], tmp_path: Path) -> None:
    done = adderzoo("export", "-m", "adder_lenet5.mnist_u8", tmp_path / "out")
    assert done.out.startswith(f"{tmp_path / 'out'}: adder_lenet5_mnist_u8.c, 8 bits; RAM ")
    made = subprocess.run(["make", "CC=gcc", "CFLAGS=-O1"], cwd=tmp_path / "out", capture_output=True, text=True)
    assert made.stdout.splitlines()[-1] == "PASS", made


def test_other_formats_take_a_name_too(adderzoo: Callable[..., Done], tmp_path: Path) -> None:
    assert adderzoo("export", "--format", "torchscript", "adder_lenet5.digits", tmp_path / "net.pt").status == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("adder_lenet5.digits", "OUT"), r"quantize must give images for adder_lenet5\.digits, .*: --quantize DIR"),
        (("QUANTIZED", "OUT", "--max-ram", 10_000), r"max-ram must be at least 10,488 bytes for .*, got 10,000"),
        (("QUANTIZED", "OUT", "--max-ram", 0), r"max-ram must be at least 1, got 0"),
        (("QUANTIZED", "OUT", "--bits", 7), r"bits needs --quantize DIR, got bits 7 without it"),
        (("QUANTIZED", "OUT", "--img-size", 40), r"img-size is not for C, which has one image .*"),
        (("QUANTIZED", "OUT", "--model", "adder_lenet5"), r"model must not be given beside NETWORK .*"),
        (("OUT",), r"model must name a network, or a file of weights, got none: -m NAME"),
        (("cnn_lenet5.digits", "OUT", "--quantize", "DIGITS", *IMAGES), r"model must have adder layers .*"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: tuple[object, ...],
    message: str,
    adderzoo: Callable[..., Done],
    quantized: Path,
    digits: Path,
    tmp_path: Path,
) -> None:
    places = {"OUT": tmp_path / "out", "QUANTIZED": quantized, "DIGITS": digits}
    done = adderzoo("export", "--format", "c", *(places.get(str(argument), argument) for argument in arguments))
    assert re.fullmatch(rf"adderzoo export: error: {message}", done.error)
    assert not any(tmp_path.iterdir())


def test_options_of_c_are_refused_for_other_formats(adderzoo: Callable[..., Done], tmp_path: Path) -> None:
    done = adderzoo("export", "--format", "pt2", *PUBLISHED, tmp_path / "net.pt2", "--no-multiply")
    expected = f"no-multiply is for C, a folder, but {tmp_path / 'net.pt2'} gets the format pt2"
    assert done.error == f"adderzoo export: error: {expected}"
    done = adderzoo("export", *PUBLISHED, tmp_path / "net.onnx", "--dataset", "torch/mnist")
    assert f"dataset is for C, a folder, but {tmp_path / 'net.onnx'} gets the format onnx" in done.error


def test_the_help_has_all_options_of_c_under_one_heading() -> None:
    text = parsers(["export"])[1]["export"].format_help().partition("C for microcontrollers:")[2]
    found = re.findall(r"^  (?:-\w \w, )?--([a-z-]+)", text, flags=re.MULTILINE)
    assert found == [
        *("quantize", "bits", "max-ram", "no-multiply", "vectors"),
        *("dataset", "split", "images", "batch-size", "workers"),
    ]
