"""What a source distribution holds. `scripts/check_wheel.sh` makes a wheel of it, and installs both."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOP = {"LICENSE", "MANIFEST.in", "README.md", "hubconf.py", "pyproject.toml", "setup.py"}
GENERATED = {"PKG-INFO", "setup.cfg"}


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_source_distribution_has_what_a_build_takes_and_nothing_else(tmp_path: Path) -> None:
    copy, out = tmp_path / "copy", tmp_path / "out"
    for name in ("adderzoo", "csrc", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in TOP:
        shutil.copy(ROOT / name, copy)
    expected = TOP | {name for name in files_in(copy) if name.startswith(("adderzoo/", "csrc/"))}
    (copy / "adderzoo" / "_C.abi3.so").touch()  # of an editable installation

    # A folder for CUDA that has no nvcc, as some systems set, is no reason to fail; nor is that kernels are asked for.
    environment = {**os.environ, "CUDA_HOME": str(tmp_path), "ADDERZOO_CUDA": "1"}
    build = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    command = [sys.executable, "-c", build, str(out)]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (distribution,) = out.iterdir()
    with tarfile.open(distribution) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert {name for name in files_in(unpacked) if "egg-info/" not in name} == expected | GENERATED
