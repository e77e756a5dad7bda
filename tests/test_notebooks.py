"""The notebooks of the documentation run from top to bottom, in a folder of their own, and say what they should."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import adderzoo

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(adderzoo.__file__).parent
NOTEBOOKS = sorted((ROOT / "docs" / "pages" / "notebooks").glob("*.ipynb"))

# What is true behind the last cell: more than chance, by far.
RESULTS = {
    "adder-against-cnn": "min(accuracy.values()) > 97 and accuracy.keys() == {'adder', 'cnn'}",
    "fine-tune": "accuracy > 90 and classifier.class_names == ['even', 'odd']",
    "quantize": "min(accuracy.values()) > 97 and agreement > 98",
}


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def code(notebook: dict[str, Any]) -> list[str]:
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_there_is_a_result_for_each() -> None:
    assert [path.stem for path in NOTEBOOKS] == sorted(RESULTS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, tmp_path: Path) -> None:
    cells = "\n".join(code(read(path)))
    # Threads and pictures as in the tests of the documentation's blocks: none that wait, none that need a screen.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(
        [sys.executable, "-c", f"{cells}\nassert {RESULTS[path.stem]}"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_short_and_has_neither_outputs_nor_a_kernel_of_its_own(path: Path) -> None:
    notebook = read(path)
    assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["name"]) == (4, "python3")
    for cell in notebook["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"]) <= 10
    assert notebook["cells"][0]["cell_type"] == "markdown"
    assert all(cell.keys() >= {"cell_type", "metadata", "source"} for cell in notebook["cells"])
