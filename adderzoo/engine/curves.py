"""A picture of a training."""

from collections.abc import Sequence
from pathlib import Path

from adderzoo.files.output import write_atomically

from .training import Epoch

_TRAINING, _VALIDATION = "#8c8c8c", "#0072b2"  # told apart by color-blind readers, and in print


def draw_curves(history: Sequence[Epoch], path: Path, title: str = "") -> None:
    """Draw loss, top-1 accuracy or PSNR, and learning rate over the epochs.

    Args:
        history: Epochs of a training.
        path: PNG file to write.
        title: Above the curves.

    Raises:
        ImportError: if matplotlib is not installed.
        OSError: if the file cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    epochs = [epoch.epoch for epoch in history]
    classifier = history[0].train_top1 is not None
    score, unit = ("top1", "top-1 accuracy (%)") if classifier else ("psnr", "PSNR (dB)")
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    loss, quality, rate = figure.subplots(1, 3)
    mark = "o-" if len(history) == 1 else "-"
    for axes, what in ((loss, "loss"), (quality, score)):
        for part, name, color in (("train", "training", _TRAINING), ("eval", "validation", _VALIDATION)):
            values = [getattr(epoch, f"{part}_{what}", None) for epoch in history]
            if None not in values:
                axes.plot(epochs, values, mark, color=color, label=name)
    rate.plot(epochs, [epoch.lr for epoch in history], mark, color="black")
    loss.set_ylabel("loss")
    quality.set_ylabel(unit)
    rate.set_ylabel("learning rate")
    (quality if classifier else loss).legend(frameon=False)
    for axes in (loss, quality, rate):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    write_atomically(path, lambda path: figure.savefig(path, dpi=120))
