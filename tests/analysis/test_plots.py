"""Pictures of networks: what is on them, against scipy and numpy."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import timm
import torch
from PIL import Image
from torch import nn

from adderzoo.analysis.costs import Layer, Profile, profile
from adderzoo.analysis.plots import (
    Fit,
    Range,
    draw_filters,
    draw_first_layer,
    draw_operations,
    draw_ranges,
    filters,
    ranges,
)
from adderzoo.layers import Adder2d, AdderLinear, AdderTranspose2d, BinaryConv2d, ShiftConv2d

BLUE, VERMILION, GREEN, ORANGE = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73), (0xE6, 0x9F, 0x00)


@pytest.fixture(scope="module")
def lenets() -> dict[str, nn.Module]:
    names = ("adder_lenet5", "cnn_lenet5")
    return {name: timm.create_model(f"{name}.mnist", pretrained=True).eval() for name in names}


def pixels(path: Path) -> np.ndarray:
    """(H, W, 3), of a page's width."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width == 1440  # 7.2 inches at 200 dots
        return np.asarray(image.convert("RGB"))


def count(path: Path, color: tuple[int, int, int]) -> int:
    return int((pixels(path) == color).all(2).sum())


# ---------------------------------------------------------------------------------------------------------- operations


def whole(**products: int) -> Profile:
    return Profile((1, 8, 8), (Layer("a", "A", products, 0, 0, 0),))


def test_bars_are_as_long_as_what_they_show(tmp_path: Path) -> None:
    """Additions are half of a convolution's operations and 0.9 / 4.6 of its energy: their areas are in proportion."""
    draw_operations({"one": whole(conv=1000)}, tmp_path / "new" / "o.png")
    seen = (pixels(tmp_path / "new" / "o.png") == BLUE).all(2)
    row = seen[: seen.shape[0] // 2].sum(0) > 10  # the bars, above the legend
    starts, ends = np.flatnonzero(np.diff(row.astype(int)) == 1), np.flatnonzero(np.diff(row.astype(int)) == -1)
    additions, float32, int8 = ends - starts
    assert float32 / additions == pytest.approx((0.9 / 4.6) / 0.5, abs=0.02)
    assert int8 / additions == pytest.approx((0.03 / 0.23) / 0.5, abs=0.02)


@pytest.mark.parametrize(
    ("products", "colors"),
    [("adder", {BLUE}), ("conv", {BLUE, VERMILION}), ("binary", {BLUE, GREEN}), ("shift", {BLUE, ORANGE})],
)
def test_operations_that_there_are_have_their_colors(
    products: str, colors: set[tuple[int, int, int]], tmp_path: Path
) -> None:
    draw_operations({"a network": whole(**{products: 5}), "nothing": whole()}, tmp_path / "o.png")
    for color in (BLUE, VERMILION, GREEN, ORANGE):
        assert (count(tmp_path / "o.png", color) > 1000) == (color in colors)


def test_numbers_are_written_beside_the_bars(tmp_path: Path) -> None:
    draw_operations({"a network": profile(timm.create_model("cnn_resnet20"), (3, 32, 32))}, tmp_path / "o.svg")
    text = (tmp_path / "o.svg").read_text()
    for shown in ("a network", "82 M", "189 µJ", "9.43 µJ"):
        assert f"<!-- {shown} -->" in text or f"<!--  {shown} -->" in text


# ------------------------------------------------------------------------------------------------------------- filters


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["laplace", "norm"])
def test_the_fits_are_those_of_scipy(kind: str, seed: int) -> None:
    numbers = getattr(scipy.stats, kind).rvs(3, 0.2, size=1001, random_state=seed)
    fit = Fit.of(torch.tensor(numbers).view(7, 11, 13))
    for name, ours in (("laplace", fit.laplace), ("norm", fit.gaussian)):
        theirs = getattr(scipy.stats, name).fit(numbers)
        assert (float(ours.mean), float(ours.scale)) == pytest.approx(theirs)
    likelihoods = [
        getattr(scipy.stats, name).logpdf(numbers, *getattr(scipy.stats, name).fit(numbers)).mean()
        for name in ("laplace", "norm")
    ]
    assert fit.laplace_gain == pytest.approx(likelihoods[0] - likelihoods[1])
    assert fit.better == {"laplace": "Laplace", "norm": "Gaussian"}[kind]


@pytest.mark.parametrize("numbers", [[2.0, 2.0], [1.0], [1.0, math.nan], [1.0, math.inf]])
def test_numbers_that_nothing_fits(numbers: list[float]) -> None:
    with pytest.raises(ValueError, match="numbers must be finite and differ, for a density to fit them, got std="):
        Fit.of(torch.tensor(numbers))


def test_filters_of_all_kinds_of_layers() -> None:
    layers = [nn.Conv2d(2, 3, 1), Adder2d(3, 4, 2), BinaryConv2d(4, 4, 1), ShiftConv2d(4, 4, 1)]
    layers += [AdderTranspose2d(4, 4, 2), nn.ConvTranspose2d(4, 4, 1), AdderLinear(4, 4)]
    model = nn.Sequential(*layers, nn.BatchNorm2d(4))
    found = filters(model.bfloat16())
    assert list(found) == [str(index) for index in range(7)]
    for layer, weight in zip(layers, found.values(), strict=True):
        assert weight.dtype == torch.float32
        assert torch.equal(weight, layer.weight.float())
        assert not weight.requires_grad
    with pytest.raises(ValueError, match="model must have convolutions, linear or adder layers, got Sequential"):
        filters(nn.Sequential(nn.BatchNorm2d(4)))


def test_figure_4_of_the_paper(lenets: dict[str, nn.Module], tmp_path: Path) -> None:
    """The third layer's filters are closer to a Laplace distribution in the adder network, to a Gaussian in the CNN."""
    better = {name: Fit.of(filters(model)["conv3"]).better for name, model in lenets.items()}
    assert better == {"adder_lenet5": "Laplace", "cnn_lenet5": "Gaussian"}
    draw_filters(lenets, ["conv1", "conv3"], tmp_path / "f.png")
    for color in (BLUE, VERMILION, (0xCC, 0xCC, 0xCC)):
        assert count(tmp_path / "f.png", color) > 1000
    draw_filters(lenets, ["conv3"], tmp_path / "f.svg")
    text = (tmp_path / "f.svg").read_text()
    for name, fits in better.items():
        assert f"<!-- {name}, conv3: 48,000 weights -->" in text
        assert f"<!-- {fits} fits better by 0." in text


def test_first_layers_are_shown_filter_by_filter(tmp_path: Path) -> None:
    gray, color = nn.Conv2d(1, 2, 2), nn.Conv2d(3, 2, 1, bias=False)
    with torch.no_grad():
        gray.weight.copy_(torch.tensor([[0, 1], [2, 3], [4, 5], [6, 8.0]]).view(2, 1, 2, 2) - 3)
    draw_first_layer({"gray": nn.Sequential(gray)}, tmp_path / "new" / "f.png")
    colors = {tuple(map(int, color)) for color in pixels(tmp_path / "new" / "f.png").reshape(-1, 3)[::7]}
    shades = [round(255 * value / 8) for value in (0, 1, 2, 3, 4, 5, 6, 8)]
    assert all(any(abs(shade - red) <= 1 and red == green == blue for red, green, blue in colors) for shade in shades)

    color = nn.Conv2d(3, 1, 2)
    with torch.no_grad():
        color.weight.copy_(torch.tensor([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1.0]]).view(1, 3, 2, 2))
    draw_first_layer({"color": nn.Sequential(color)}, tmp_path / "f.png")
    for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255)):
        assert count(tmp_path / "f.png", color) > 1000

    for model in (nn.Linear(4, 4), nn.Conv2d(3, 4, 1)):
        with pytest.raises(ValueError, match=r"model must begin with a layer of images, but 0 of other has \[4, "):
            draw_first_layer({"other": nn.Sequential(model)}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_many_filters_and_two_networks_fit_on_a_page(lenets: dict[str, nn.Module], tmp_path: Path) -> None:
    draw_first_layer(lenets, tmp_path / "f.png")
    assert pixels(tmp_path / "f.png").shape[0] < 300
    draw_first_layer({"one": nn.Sequential(nn.Conv2d(5, 200, 3))}, tmp_path / "f.png")  # 64 of them
    assert pixels(tmp_path / "f.png").shape[0] < 600


# -------------------------------------------------------------------------------------------------------------- ranges


def test_ranges_are_those_of_numpy(lenets: dict[str, nn.Module], tmp_path: Path) -> None:
    model = lenets["adder_lenet5"]
    images = torch.randn(6, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    found = ranges(model, [(images[:4], torch.zeros(4)), images[4:]])
    assert list(found) == ["conv1", "conv2", "conv3", "conv4", "fc"]
    with torch.inference_mode():
        inputs = {"conv1": images, "conv2": model.pool1(model.act1(model.bn1(model.conv1(images))))}
    for name, input in inputs.items():
        for range, numbers in zip(found[name], (model.get_submodule(name).weight.detach(), input), strict=True):
            assert isinstance(range, Range)
            expected = np.quantile(numbers.numpy(), (0, 0.001, 0.999, 1), method="lower")
            span = float(expected[-1] - expected[0])
            got = (range.low, range.inner_low, range.inner_high, range.high)
            assert got == pytest.approx(expected, abs=span / 4000)
    assert not any(module._forward_pre_hooks for module in model.modules())

    draw_ranges(found, "a network", tmp_path / "r.png")
    assert count(tmp_path / "r.png", BLUE) > 1000
    assert count(tmp_path / "r.png", ORANGE) > 100
    draw_ranges(ranges(model), "a network", tmp_path / "r.png")
    assert count(tmp_path / "r.png", BLUE) > 1000
    assert count(tmp_path / "r.png", ORANGE) == 0


def test_ranges_of_numbers_that_are_not_finite(lenets: dict[str, nn.Module]) -> None:
    with pytest.raises(ValueError, match="values must be finite"):
        ranges(lenets["cnn_lenet5"], [torch.full((1, 1, 32, 32), math.nan)])
    assert not any(module._forward_pre_hooks for module in lenets["cnn_lenet5"].modules())


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"pictures need matplotlib, .* pip install 'adderzoo\[demo\]'"):
        draw_operations({"one": whole(conv=1)}, tmp_path / "o.png")
