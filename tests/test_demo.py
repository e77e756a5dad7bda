"""The demo, as scripts/demo.sh runs it."""

import re
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent


def test_demo_measures_the_networks_and_draws_pictures(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "demo.py"), "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "timm.create_model and torch.hub.load give the same network: yes" in done.stdout
    rows = dict(re.findall(r"^(adder_lenet5|cnn_lenet5) +([\d.]+) ± [\d.]+ +\d+$", done.stdout, re.MULTILINE))
    # Scikit-learn's own example, a support vector machine on the same halves, is right on 97 %.
    assert rows.keys() == {"adder_lenet5", "cnn_lenet5"}
    assert all(float(top1) > 97 for top1 in rows.values())
    with Image.open(tmp_path / "demo.png") as picture:
        assert min(picture.size) > 500
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 100
    with Image.open(tmp_path / "super_resolution.png") as picture:
        panels = picture.width // picture.height  # bicubic interpolation, adder network, CNN and original
        assert panels >= 3
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 1000
