"""Pictures of a network: what it costs, how its filters are distributed, what it looks for, what bytes have to hold."""

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Laplace, Normal

from adderzoo.analysis.costs import Profile
from adderzoo.files.output import write_atomically
from adderzoo.layers import Adder2d, AdderLinear, AdderTranspose2d
from adderzoo.layers.fake_quantized import Observer

# Told apart by color-blind readers (M. Okabe and K. Ito, "Color Universal Design"), and by their hatches in print.
_BLUE, _VERMILION, _GREEN, _ORANGE, _GRAY = "#0072b2", "#d55e00", "#009e73", "#e69f00", "#8c8c8c"
_OPERATIONS = {
    "mul": ("multiplications", _VERMILION, "////"),
    "add": ("additions", _BLUE, ""),
    "xnor": ("XNORs", _GREEN, "...."),
    "shift": ("shifts", _ORANGE, "xxxx"),
}
_WIDTH = 7.2  # inches, of a page's text
_STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.6,
}


def import_matplotlib() -> Any:
    """matplotlib, or an error that says how to get it.

    Raises:
        ValueError: if it is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ValueError(
            f"pictures need matplotlib, which {sys.executable} does not have: pip install 'adderzoo[demo]'"
        ) from error
    return matplotlib


def _figure(height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(_WIDTH, height), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    write_atomically(path, lambda path: figure.savefig(path, dpi=200))


# ---------------------------------------------------------------------------------------------------------- operations


def draw_operations(profiles: Mapping[str, Profile], path: Path) -> None:
    """Bars of the operations of networks, and of the energy that they take in float32 and in int8.

    Args:
        profiles: What networks cost, by their names.
        path: File to write, .png, .pdf or .svg.

    Raises:
        ValueError: if matplotlib is not installed.
        OSError: if the file cannot be written.
    """
    with import_matplotlib().rc_context(_STYLE):
        _save(_operations(profiles), path)


def _operations(profiles: Mapping[str, Profile]) -> Any:
    from matplotlib.ticker import EngFormatter

    figure = _figure(0.7 + 0.34 * len(profiles))
    totals = [profile.operations for profile in profiles.values()]
    kinds = [kind for kind in _OPERATIONS if any(getattr(total, kind) for total in totals)]
    panels = {
        "operations": ([vars(total) for total in totals], 1.0, ""),
        "energy in float32": ([total.energies() for total in totals], 1e-3, "J"),
        "energy in int8": ([total.energies("int8") for total in totals], 1e-3, "J"),
    }
    for axes, (title, (rows, scale, unit)) in zip(
        figure.subplots(1, len(panels), sharey=True), panels.items(), strict=True
    ):
        ends = [0.0] * len(totals)
        for kind in kinds:
            label, color, hatch = _OPERATIONS[kind]
            parts = [row[kind] * scale for row in rows]
            axes.barh(range(len(totals)), parts, 0.6, ends, label=label, **_filled(color, hatch))
            ends = [end + part for end, part in zip(ends, parts, strict=True)]
        for index, end in enumerate(ends):
            axes.text(end, index, f" {EngFormatter(unit)(float(f'{end:.3g}'))}", va="center")
        axes.set_title(title, loc="left")
        axes.set_xlim(0, 1.35 * max(ends) or 1)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.set_yticks(range(len(totals)), profiles)
    axes.invert_yaxis()
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(kinds), frameon=False)
    return figure


def _filled(color: str, hatch: str) -> dict[str, Any]:
    """Of bars: hatched in white, without an edge, which would hide a small one."""
    return {"color": color, "hatch": hatch, "edgecolor": "white", "linewidth": 0}


# ------------------------------------------------------------------------------------------------------------- filters


_WITH_FILTERS = (Adder2d, AdderLinear, AdderTranspose2d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def filters(model: nn.Module) -> dict[str, Tensor]:
    """The weights of the convolutions, linear and adder layers of a network, by the names of these.

    Shape: (O, ...) each.

    Raises:
        ValueError: if there are none, as in a network for integer inference.
    """
    layers = {
        name: module.weight.detach().float()
        for name, module in model.named_modules()
        if isinstance(module, _WITH_FILTERS)
    }
    if not layers:
        raise ValueError(f"model must have convolutions, linear or adder layers, got {type(model).__name__} without")
    return layers


@dataclass(frozen=True)
class Fit:
    """The Laplace and the Gaussian density that fit numbers best, by maximum likelihood.

    Attributes:
        laplace: Around their median.
        gaussian: Around their mean.
        laplace_gain: By how many nats a number the Laplace density fits better, in log-likelihood; below 0 if the
            Gaussian density does.
    """

    laplace: Laplace
    gaussian: Normal
    laplace_gain: float

    @classmethod
    def of(cls, numbers: Tensor) -> Self:
        """Of numbers that are not all the same.

        Raises:
            ValueError: if they are, or some are not finite.
        """
        numbers = numbers.flatten().double()
        median, mean = numbers.median(), numbers.mean()
        deviation, std = (numbers - median).abs().mean(), (numbers - mean).square().mean().sqrt()
        if not 0 < std < math.inf:
            raise ValueError(f"numbers must be finite and differ, for a density to fit them, got {std=:g}")
        laplace, gaussian = Laplace(median, deviation), Normal(mean, std)
        gain = laplace.log_prob(numbers) - gaussian.log_prob(numbers)
        return cls(laplace, gaussian, float(gain.mean()))

    @property
    def better(self) -> str:
        """ "Laplace" or "Gaussian"."""
        return "Laplace" if self.laplace_gain > 0 else "Gaussian"


def draw_filters(models: Mapping[str, nn.Module], layers: Sequence[str], path: Path) -> None:
    """Histograms of the filters of some layers, a column a network, with the densities that fit best.

    It is the AdderNet paper's Figure 4. A histogram shows 99.8 % of the numbers, without its two tails.

    Args:
        models: Networks with these layers, by their names.
        layers: The layers, by their names.
        path: File to write, .png, .pdf or .svg.

    Raises:
        ValueError: if matplotlib is not installed, or as :meth:`Fit.of` for the filters of a layer.
        OSError: if the file cannot be written.
    """
    with import_matplotlib().rc_context(_STYLE):
        _save(_filters(models, layers), path)


def _filters(models: Mapping[str, nn.Module], layers: Sequence[str]) -> Any:
    figure = _figure(0.5 + 1.7 * len(layers))
    panels = figure.subplots(len(layers), len(models), squeeze=False)
    for column, (network, model) in enumerate(models.items()):
        weights = filters(model)
        for axes, layer in zip(panels[:, column], layers, strict=True):
            numbers = weights[layer].flatten()
            fit = Fit.of(numbers)
            low, high = (
                float(numbers.kthvalue(max(1, round(share * len(numbers)))).values) for share in (0.001, 0.999)
            )
            bins = min(100, len(np.histogram_bin_edges(numbers.numpy(), "fd", (low, high))) - 1)
            counts, edges = np.histogram(numbers.numpy(), bins, (low, high))
            axes.stairs(counts / (len(numbers) * np.diff(edges)), edges, fill=True, color="#cccccc", label="filters")
            x = torch.linspace(low, high, 401)
            axes.plot(x.numpy(), fit.laplace.log_prob(x).exp().numpy(), color=_VERMILION, label="Laplace")
            axes.plot(x.numpy(), fit.gaussian.log_prob(x).exp().numpy(), "--", color=_BLUE, label="Gaussian")
            better = f"{fit.better} fits better by {abs(fit.laplace_gain):.3f} nats a weight"
            axes.set_title(f"{network}, {layer}: {len(numbers):,} weights\n{better}")
            axes.set_xlim(low, high)
            axes.set_yticks([])
            axes.locator_params("x", nbins=5)
    figure.supylabel("density", fontsize=8)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def draw_first_layer(models: Mapping[str, nn.Module], path: Path) -> None:
    """The filters that see the image, side by side for each network: the AdderNet paper's Figure 2.

    Those of three channels are shown in color, others as the mean over their channels; 64 at most. All of a network
    have one scale, from its least number, black, to its greatest.

    Args:
        models: Networks by their names.
        path: File to write, .png, .pdf or .svg.

    Raises:
        ValueError: if matplotlib is not installed, or the first layer of a network has no images for filters.
        OSError: if the file cannot be written.
    """
    with import_matplotlib().rc_context(_STYLE):
        _save(_first_layer(models), path)


def _first_layer(models: Mapping[str, nn.Module]) -> Any:
    pictures = {}
    for network, model in models.items():
        layer, weight = next(iter(filters(model).items()))
        if weight.dim() != 4 or max(weight.shape[2:]) == 1:
            raise ValueError(f"model must begin with a layer of images, but {layer} of {network} has {[*weight.shape]}")
        weight = weight[:64] if weight.shape[1] == 3 else weight[:64].mean(1, keepdim=True)
        low, high = weight.aminmax()
        shades = (weight - low) / (high - low).clamp(min=1e-12)
        pictures[f"{network}, {layer}"] = shades.permute(0, 2, 3, 1).squeeze(-1).numpy()
    most = max(len(each) for each in pictures.values())
    rows = math.ceil(most / (16 // len(pictures)))
    columns = math.ceil(most / rows)
    figure = _figure(0.3 + min(_WIDTH / (columns * len(pictures)), 1) * rows)
    for part, (title, images) in zip(
        figure.subfigures(1, len(pictures), squeeze=False).flat, pictures.items(), strict=True
    ):
        part.suptitle(title, fontsize=8)
        grid = part.subplots(rows, columns, squeeze=False).flatten()
        for axes in grid:
            axes.axis("off")
        for axes, image in zip(grid, images, strict=False):
            axes.imshow(image, cmap="gray", vmin=0, vmax=1)
    return figure


# -------------------------------------------------------------------------------------------------------------- ranges


@dataclass(frozen=True)
class Range:
    """Of numbers: the least, the quantiles 0.001 and 0.999, the greatest."""

    low: float
    inner_low: float
    inner_high: float
    high: float

    @classmethod
    def of(cls, observer: Observer) -> Self:
        """Of what an observer has seen, with its quantiles."""
        return cls(observer.low, *observer.range, observer.high)


def ranges(model: nn.Module, loader: Iterable[Any] = ()) -> dict[str, tuple[Range, Range | None]]:
    """Of each layer with filters: the range of these, and that of its input, which bytes have to hold together.

    Args:
        model: The network, in evaluation mode.
        loader: Batches of images (N, C, H, W), or tuples that begin with them, preprocessed as for evaluation; without
            any there are no ranges of inputs.

    Raises:
        ValueError: as :func:`filters`, or if a number is not finite.
    """
    weights = filters(model)
    seen = {name: Observer(_QUANTILE) for name in weights}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, inputs, each=observer: each.update(inputs[0]))
        for name, observer in seen.items()
    ]
    try:
        with torch.no_grad():
            for batch in loader:
                model(batch if isinstance(batch, Tensor) else batch[0])
    finally:
        for handle in handles:
            handle.remove()
    found = {}
    for name, weight in weights.items():
        own = Observer(_QUANTILE)
        own.update(weight)
        found[name] = (Range.of(own), Range.of(seen[name]) if seen[name].low <= seen[name].high else None)
    return found


_QUANTILE = 0.999


def draw_ranges(found: Mapping[str, tuple[Range, Range | None]], title: str, path: Path) -> None:
    """The ranges of filters and inputs, layer by layer.

    Args:
        found: What :func:`ranges` returns.
        title: Above the picture.
        path: File to write, .png, .pdf or .svg.

    Raises:
        ValueError: if matplotlib is not installed.
        OSError: if the file cannot be written.
    """
    with import_matplotlib().rc_context(_STYLE):
        _save(_ranges(found, title), path)


def _ranges(found: Mapping[str, tuple[Range, Range | None]], title: str) -> Any:
    figure = _figure(0.9 + 0.2 * len(found))
    axes = figure.subplots()
    apart = 0.2 if any(input for _, input in found.values()) else 0
    for place, (label, color, shift) in enumerate((("filters", _BLUE, -apart), ("input", _ORANGE, apart))):
        rows = [(index + shift, pair[place]) for index, pair in enumerate(found.values())]
        there = [(y, each) for y, each in rows if each is not None]
        if not there:
            continue
        ys = [y for y, _ in there]
        axes.hlines(ys, [each.low for _, each in there], [each.high for _, each in there], color=color, linewidth=1)
        starts = [each.inner_low for _, each in there]
        widths = [each.inner_high - each.inner_low for _, each in there]
        axes.barh(ys, widths, 0.3, starts, label=label, **_filled(color, "" if place == 0 else "////"))
    axes.axvline(0, color="black", linewidth=0.6, zorder=0)
    axes.set_yticks(range(len(found)), found)
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.use_sticky_edges = False
    axes.margins(x=0.02)
    axes.tick_params(axis="y", length=0)
    axes.set_title(f"{title}: bars hold 99.8 % of all numbers, lines the rest")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure
