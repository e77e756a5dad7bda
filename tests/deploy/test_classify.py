"""scripts/deploy: a program without Python names what `adderzoo predict` names."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from example_data import write_digits
from PIL import Image

from adderzoo import ops
from adderzoo.cli import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (shutil.which("cmake") and shutil.which(os.environ.get("CXX", "c++"))):
        pytest.skip("there is no CMake, or no C++ compiler")
    if not list((ROOT / "adderzoo").glob("_C.*so")):
        pytest.skip(f"the library is not in the package: {ops.backend()}")
    folder = tmp_path_factory.mktemp("build")
    configure = ["cmake", "-S", ROOT / "scripts" / "deploy", "-B", folder, f"-DTORCH={Path(torch.__file__).parent}"]
    done = subprocess.run(configure, capture_output=True, text=True)
    if "PNG" in done.stderr:
        pytest.skip("there is no libpng with headers")
    assert done.returncode == 0, done.stdout + done.stderr
    done = subprocess.run(["cmake", "--build", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "classify"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder)
    return folder


def classify(program: Path, package: Path, *images: Path) -> subprocess.CompletedProcess[str]:
    """The program, in an environment without Python."""
    (library,) = (ROOT / "adderzoo").glob("_C.*so")
    environment = {"PATH": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run([program, package, library, *images], env=environment, capture_output=True, text=True)


def parse(text: str) -> dict[str, dict[str, float]]:
    """Of every file the classes and their percentages."""
    files: dict[str, dict[str, float]] = {}
    path = ""
    for line in text.splitlines():
        if found := re.fullmatch(r" *([\d.]+) %  (.*)", line):
            files[path][found[2]] = float(found[1])
        else:
            path = line
            files[path] = {}
    return files


@pytest.mark.parametrize("kind", ["float", "bytes"])
def test_the_program_gives_the_probabilities_of_predict(
    kind: str, program: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = ["--model", "adder_lenet5.digits"]
    if kind == "bytes":
        quantized = tmp_path / "lenet5.safetensors"
        assert main(["quantize", *network, "--data-dir", str(digits), "--workers", "0", str(quantized)]) == 0
        network[2:] = ["--checkpoint", str(quantized)]
    package = tmp_path / "lenet5.pt2"
    assert main(["export", *network, "--format", "aoti", str(package)]) == 0

    images = sorted((digits / "test").glob("*/*.png"))[::60]
    # The shorter side is resized and the middle cut out; in color, which becomes gray.
    wide = Image.merge("RGB", [Image.open(path).resize((30, 20)) for path in images[:3]])
    wide.save(tmp_path / "wide.png")
    images.append(tmp_path / "wide.png")
    capsys.readouterr()
    assert main(["predict", *network, "--topk", "5", *map(str, images)]) == 0
    expected = parse(capsys.readouterr().out)
    done = classify(program, package, *images)
    assert done.returncode == 0, done.stderr
    got = parse(done.stdout)
    assert list(got) == list(expected) == [str(path) for path in images]
    for path, classes in got.items():
        assert next(iter(classes)) == next(iter(expected[path]))
        for name in classes.keys() & expected[path].keys():
            assert classes[name] == pytest.approx(expected[path][name], abs=0.02)  # the last digit
    if kind == "float":
        check_errors(program, package, images[0], tmp_path)


def check_errors(program: Path, package: Path, image: Path, folder: Path) -> None:
    """One line that names what is wrong; here, since a package takes long to make."""
    (folder / "text.png").write_text("no image")
    Image.open(image).convert("I;16").save(folder / "deep.png")
    for arguments, message in (
        ((package, folder / "text.png"), r"image .*text\.png cannot be read: .*"),
        ((package, folder / "deep.png"), r"image .*deep\.png must have 8 bits a channel, got 16"),
        ((folder / "absent.pt2", image), r".+"),
    ):
        done = classify(program, *arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert re.fullmatch(rf"classify: error: {message}", done.stderr.splitlines()[-1]), done.stderr
