"""scripts/setup.sh, which the other scripts source, with a pip that only writes down what it is asked for."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"

# A Python whose virtual environments have this program as theirs, and whose pip compiles in an instant.
PYTHON = f"""#!/usr/bin/env bash
echo "$*" | head -1 >>"$CALLS"
case "$1 $2" in
"-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
"-m pip")
    [ -z "${{FAIL:-}}" ] || {{ echo "no such package" && exit 1; }}
    echo "  Downloading torch-2.14-cp311.whl (899.1 MB)"
    echo "  Downloading six-1.py3-none-any.whl (11 kB)"
    [[ "$*" != *" -e ."* ]] || {{ echo "[3/9] c++ it" && touch adderzoo/_C.abi3.so; }}
    ;;
"-c import sys; print(*sys.version_info[:2], sep=\\".\\")") echo "${{VERSION:-3.11}}" ;;
*) exec {sys.executable} "$@" ;;
esac
"""

SetUp = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    for name in ("scripts", "adderzoo/ops", "csrc/cpu/loops", "bin"):
        (folder / name).mkdir(parents=True)
    shutil.copy(SCRIPTS / "setup.sh", folder / "scripts")
    for name in ("setup.py", "adderzoo/ops/_build.py", "csrc/a.cpp", "csrc/cpu/b.cpp", "csrc/cpu/loops/c.h"):
        (folder / name).write_text("// 1")
    (folder / "pyproject.toml").write_text(
        '[project]\ndependencies = ["torch>=2.11"]\n[project.optional-dependencies]\n'
        'demo = ["matplotlib"]\nonnx = ["onnx"]\ndev = ["adderzoo[demo]", "pytest"]\n'
    )
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").write_text(PYTHON)
    (tmp_path / "bin" / "python3").chmod(0o755)
    return folder


@pytest.fixture
def set_up(checkout: Path, tmp_path: Path) -> SetUp:
    def run(extras: str = "dev", folder: Path = checkout, **variables: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "calls").write_text("")
        environment = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "CALLS": str(tmp_path / "calls"), "EXTRAS": extras}
        command = ["bash", "-euo", "pipefail", "-c", f"source {folder}/scripts/setup.sh; echo ready"]
        return subprocess.run(command, env=environment | variables, capture_output=True, text=True, timeout=60)

    return run


def calls(tmp_path: Path) -> list[str]:
    """What the last run has done that takes time: environments made, packages installed, libraries compiled."""
    lines = (tmp_path / "calls").read_text().splitlines()
    kinds = {"-m venv": "make", "-r": "install", "-e .": "compile"}
    return [next(kind for mark, kind in kinds.items() if mark in line) for line in lines if line.startswith("-m ")]


def test_the_first_script_says_what_it_does_and_the_second_does_nothing(set_up: SetUp, tmp_path: Path) -> None:
    first = set_up()
    assert (first.returncode, first.stdout) == (0, "ready\n"), first.stderr
    assert calls(tmp_path) == ["make", "install", "compile"]
    for line in (
        "Installing PyTorch and what else [dev] needs",
        "Downloading torch-2.14-cp311.whl (899.1 MB)",
        "Compiling the operators",
    ):
        assert line in first.stderr
    assert "compiled 3 of 9 files" in first.stderr
    assert "six" not in first.stderr
    second = set_up()
    assert (second.returncode, second.stderr, calls(tmp_path)) == (0, "", [])


def test_a_script_with_other_extras_installs_these_and_compiles_nothing(set_up: SetUp, tmp_path: Path) -> None:
    set_up("demo,onnx")
    set_up("dev")
    assert calls(tmp_path) == ["install"]
    set_up("demo,onnx")
    assert calls(tmp_path) == []


@pytest.mark.parametrize("name", ["csrc/a.cpp", "csrc/cpu/loops/c.h", "setup.py", "adderzoo/ops/_build.py"])
def test_what_is_compiled_is_compiled_again_when_it_changes_and_not_when_it_is_touched(
    set_up: SetUp, checkout: Path, tmp_path: Path, name: str
) -> None:
    set_up()
    (checkout / name).touch()
    set_up()
    assert calls(tmp_path) == []
    (checkout / name).write_text("// 2")
    set_up()
    assert calls(tmp_path) == ["compile"]


def test_a_library_that_was_deleted_and_kernels_that_are_asked_for_are_compiled(
    set_up: SetUp, checkout: Path, tmp_path: Path
) -> None:
    set_up()
    (checkout / "adderzoo" / "_C.abi3.so").unlink()
    set_up()
    assert calls(tmp_path) == ["compile"]
    set_up(ADDERZOO_CUDA="1")
    assert calls(tmp_path) == ["compile"]


def test_another_requirement_is_installed(set_up: SetUp, checkout: Path, tmp_path: Path) -> None:
    set_up()
    path = checkout / "pyproject.toml"
    path.write_text(path.read_text().replace('"matplotlib"', '"matplotlib>=3"'))
    set_up()
    assert calls(tmp_path) == ["install", "compile"]


def test_an_environment_that_was_moved_or_is_of_another_python_is_made_anew(
    set_up: SetUp, checkout: Path, tmp_path: Path
) -> None:
    set_up()
    done = set_up(VERSION="3.12")
    assert calls(tmp_path) == ["make", "install", "compile"]
    assert "Making .venv anew: it is of another folder or another Python" in done.stderr
    shutil.copytree(checkout, tmp_path / "copy")
    set_up(folder=tmp_path / "copy", VERSION="3.12")
    assert calls(tmp_path) == ["make", "install", "compile"]
    set_up(VERSION="3.12")
    assert calls(tmp_path) == []
    (checkout / ".venv" / "bin" / "python").unlink()  # of a Python that is no longer there
    set_up(VERSION="3.12")
    assert calls(tmp_path) == ["make", "install", "compile"]


def test_an_environment_of_somebody_elses_is_used_and_stays(set_up: SetUp, checkout: Path, tmp_path: Path) -> None:
    subprocess.run(
        [tmp_path / "bin" / "python3", "-m", "venv", checkout / ".venv"], env={"CALLS": "/dev/null"}, check=True
    )
    (checkout / ".venv" / "own").touch()
    set_up()
    assert calls(tmp_path) == ["install", "compile"]
    assert (checkout / ".venv" / "own").exists()


def test_what_fails_is_shown_whole_and_done_again(set_up: SetUp, tmp_path: Path) -> None:
    done = set_up(FAIL="1")
    assert done.returncode != 0
    assert "ready" not in done.stdout
    assert "no such package" in done.stderr
    assert "has failed" in done.stderr
    set_up()
    assert calls(tmp_path) == ["install", "compile"]
