"""scripts/reproduce/few_levels/: accuracy.py, and the form of time_gpu.py."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import adderzoo
from adderzoo.layers import Adder2d

FOLDER = Path(__file__).resolve().parent.parent / "scripts" / "reproduce" / "few_levels"


def test_levels_are_those_whose_error_varies_least() -> None:
    """Of a layer of one channel and 1x1 filters, by NumPy, number by number."""
    script = runpy.run_path(str(FOLDER / "accuracy.py"))
    torch.manual_seed(seed := 3)
    network = nn.Sequential(Adder2d(1, 40, 1, bias=False)).eval()
    images = 2 * torch.randn(8, 1, 16, 16).relu()
    simulation = adderzoo.calibrate(network, [images])
    before = simulation(images).double()
    (layer,) = (script["LeveledAdder2d"].convert(x) for x in simulation.modules() if isinstance(x, Adder2d))
    simulation(images)
    layer.fit(4)
    x, w = (layer.quantizer.bytes_of(tensor).long().flatten().numpy() for tensor in (images, layer.weight))
    filters, _ = layer.leveled()
    chosen = layer.quantizer.bytes_of(filters).long().flatten().numpy()
    levels = np.unique(layer.level_of.numpy())
    assert len(levels) == 4, f"seed {seed}"
    assert (levels[0], levels[-1]) == (0, 255)
    variances = np.array([[np.var(np.abs(x - byte) - np.abs(x - level)) for level in levels] for byte in w])
    of_chosen = variances[np.arange(len(w)), np.searchsorted(levels, chosen)]
    np.testing.assert_allclose(of_chosen, variances.min(1), rtol=1e-9, atol=1e-9, err_msg=f"seed {seed}")
    # The integer network errs by nothing in the mean but for the filters' rounding to bytes in the simulation.
    error = (script["integers"](simulation)(images).double() - before).mean((0, 2, 3))
    assert error.abs().max() < 1e-4, f"seed {seed}: {error.abs().max()}"


@pytest.mark.parametrize("m", [2, 3, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_convolutions_give_the_distances(m: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of bytes, by the definition; in float16 up to the rounding of the result."""
    monkeypatch.syspath_prepend(FOLDER)  # for levels.py
    script = runpy.run_path(str(FOLDER / "time_gpu.py"))
    torch.manual_seed(seed := 5)
    x = torch.randint(256, (2, 7, 6, 5), dtype=torch.uint8)
    indices = torch.randint(m, (4, 7, 3, 3))
    weight = torch.linspace(0, 255, m, dtype=torch.float64).round()[indices]
    patches = F.unfold(x.double(), 3, padding=1)  # (N, K, L)
    expected = (weight.flatten(1)[None, :, :, None] - patches[:, None]).abs().sum(2).view(2, 4, 6, 5) / 256
    actual = script["distances"](x, indices, m, dtype).double()
    relative = {torch.float32: 0.0, torch.float16: 2**-9}[dtype]  # of a sum and the constant, each rounded
    torch.testing.assert_close(actual, expected, rtol=relative, atol=0, msg=lambda text: f"seed {seed}: {text}")
