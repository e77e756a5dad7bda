"""scripts/reproduce/few_levels/accuracy.py."""

import runpy
from pathlib import Path

import numpy as np
import torch
from torch import nn

import adderzoo
from adderzoo.layers import Adder2d

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "reproduce" / "few_levels" / "accuracy.py"


def test_levels_are_those_whose_error_varies_least() -> None:
    """Of a layer of one channel and 1x1 filters, by NumPy, number by number."""
    script = runpy.run_path(str(SCRIPT))
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
