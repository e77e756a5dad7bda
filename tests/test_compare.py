"""scripts/reproduce/compare.py."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from example_data import write_digits
from safetensors.torch import load_file, save_file

import adderzoo as package
from adderzoo.cli import main
from adderzoo.models import WEIGHTS

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "reproduce" / "compare.py"


@pytest.mark.usefixtures("one_thread")
def test_networks_are_compared_image_by_image(tmp_path: Path) -> None:
    """A network, and the same with the logits of two classes swapped: wrong where the first is right on these two."""
    write_digits(tmp_path)
    plain = load_file(WEIGHTS / "adder_lenet5.digits.safetensors")
    order = torch.tensor([1, 0, *range(2, 10)])
    of_logits = {key for key, value in plain.items() if key.startswith(("fc.", "bn_fc.")) and value.ndim}
    swapped = plain | {key: plain[key][order].contiguous() for key in of_logits}
    files, accuracies = [], []
    for name, weights in (("plain", plain), ("swapped", swapped)):
        files.append(tmp_path / name / "last.safetensors")
        files[-1].parent.mkdir()
        save_file(weights, files[-1], {"format": "pt", "architecture": "adder_lenet5", "num_classes": "10"})
        arguments = ["--model", "adder_lenet5", "--checkpoint", files[-1], "--data-dir", tmp_path / "test", "-j", 0]
        result = tmp_path / "result.json"
        assert main(["validate", *map(str, arguments), "--json", str(result)]) == 0
        accuracies.append(json.loads(result.read_text())["top1"] / 100)
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path / "test", *files],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(package.__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    gain = accuracies[1] - accuracies[0]
    assert -0.3 < gain < -0.1
    # The two networks disagree on as many images as the first is more often right on.
    deviation = math.sqrt(-gain - gain**2)
    assert done.stdout.splitlines()[2:] == [
        f"| plain | {100 * accuracies[0]:.2f} ± 0.48 |  |",
        f"| swapped | {100 * accuracies[1]:.2f} ± 1.38 | {100 * gain:.2f} ± {196 * deviation / math.sqrt(899):.2f} |",
    ]
