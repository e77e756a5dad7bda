"""The README's code blocks run as they stand."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from example_data import write_digits, write_photos

import adderzoo

ROOT = Path(__file__).resolve().parent.parent
BLOCKS = re.findall(r"^```(python|bash)\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
# These set up the environment that the test is run by.
COMMANDS = ("bash scripts/demo.sh", "bash scripts/test.sh")
LOOP = [block for block in BLOCKS if "for epoch in range(epochs)" in block[1]]
OTHERS = [block for block in BLOCKS[1:] if block not in LOOP]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout as a reader has it after the demo; without code of the package where one is installed."""
    folder = tmp_path_factory.mktemp("clone")
    package = Path(adderzoo.__file__).parent
    if package.parent == ROOT:
        names = ["adderzoo", "csrc", "hubconf.py", "scripts"]
    else:  # an installation from a wheel, say, which is to be tested in the place of the checkout's
        names = ["adderzoo/weights", "hubconf.py", "scripts"]
        (folder / "adderzoo").mkdir()
    for name in names:
        (folder / name).symlink_to(ROOT / name)
    write_digits(folder / "demo" / "digits")
    write_photos(folder / "demo" / "photos")
    return folder


def test_the_first_block_is_the_two_commands() -> None:
    language, code = BLOCKS[0]
    lines = [line.partition("#")[0].strip() for line in code.splitlines()]
    assert (language, lines) == ("bash", list(COMMANDS))
    assert all((ROOT / command.split()[1]).is_file() for command in COMMANDS)


def run(language: str, code: str, clone: Path) -> str:
    # One thread: small networks gain nothing from more, and lose much beside another program on the same cores.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code] if language == "python" else ["bash", "-euo", "pipefail", "-c", code]
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(("language", "code"), OTHERS, ids=[code.splitlines()[0] for _, code in OTHERS])
def test_block_runs(language: str, code: str, clone: Path) -> None:
    run(language, code, clone)


def test_the_training_loop_learns(clone: Path) -> None:
    ((language, code),) = LOOP
    # Chance is 10 %, scikit-learn's own example (a support vector machine on the same halves) 97 %.
    assert float(re.findall(r"([\d.]+) % of the held-out half", run(language, code, clone))[-1]) > 95


def test_fine_tuning_beats_training_from_scratch(clone: Path) -> None:
    accuracies = {}
    if not (clone / "demo" / "train").exists():  # the test of the blocks has not run
        for language, code in BLOCKS:
            if "demo/parity" in code:
                run(language, code, clone)
    for name in ("fine_tuned", "from_scratch"):
        with (clone / "demo" / "train" / name / "summary.csv").open(newline="") as file:
            accuracies[name] = float(list(csv.DictReader(file))[-1]["eval_top1"])
    assert accuracies["fine_tuned"] > 95
    # By more than three standard errors of the difference, which is at most 1.7 for 879 images.
    assert accuracies["fine_tuned"] > accuracies["from_scratch"] + 5.1
