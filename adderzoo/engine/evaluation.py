"""Evaluation of a classifier."""

import math
import sys
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from .group import is_first, sum_over_group


@dataclass(frozen=True)
class Execution:
    """Where and how a network runs.

    Attributes:
        device: Where the model is and the batches go; a name, such as "cuda", becomes one.
        amp_dtype: Run under autocast in this dtype; None for none.
        channels_last: Feed the images in this memory format.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    amp_dtype: torch.dtype | None = None
    channels_last: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "device", torch.device(self.device))

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, self.amp_dtype) if self.amp_dtype else nullcontext()

    def take(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) as the network is fed with them."""
        x = images.to(self.device, non_blocking=True)
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x


@dataclass(frozen=True)
class Result:
    """What `evaluate` measures. Accuracies and their standard errors are in percent."""

    top1: float
    top1_se: float
    top5: float
    top5_se: float
    loss: float
    images: int
    images_per_second: float

    @property
    def score(self) -> float:
        """By which epochs of a training are compared."""
        return self.top1

    def columns(self) -> dict[str, float]:
        """What a line of a training's summary says of it."""
        return {
            "eval_loss": self.loss,
            "eval_top1": self.top1,
            "eval_top1_se": self.top1_se,
            "eval_top5": self.top5,
        }

    def __str__(self) -> str:
        return (
            f"top-1 {self.top1:.2f} ± {self.top1_se:.2f} %, top-5 {self.top5:.2f} ± {self.top5_se:.2f} %, "
            f"loss {self.loss:.4f}, {self.images} images, {self.images_per_second:.0f} images/s"
        )


def evaluate(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    execution: Execution | None = None,
    images: int | None = None,
    description: str = "",
) -> Result:
    """Accuracy of a classifier, with a progress bar.

    In a process group every process evaluates its share and all get the common result.

    Args:
        model: Maps (N, C, H, W) to logits (N, classes). It is put into evaluation mode.
        loader: Batches of images (N, C, H, W) and class indices (N,).
        execution: Where the model is and how it runs; by default as it is, on the CPU.
        images: How many images of this process count; what a distributed sampler appends to even out the processes
            does not.
        description: Text before the progress bar.

    Returns:
        Top-1 and top-5 accuracy with standard errors sqrt(p (1 - p) / n), mean cross-entropy, the number of images, and
        images per second through the model (loading not counted, each shape of batch warmed up once).

    Raises:
        ValueError: if there are no images, or a label is none of the network's classes.
        ConnectionError: if another process of the group has failed.
    """
    execution = execution or Execution()
    device = execution.device
    model.eval()
    left = math.inf if images is None else images
    top1 = top5 = loss = count = seconds = 0.0
    warmed_up: set[torch.Size] = set()
    # leave=None: below another bar, that of a training, it makes room when it is done.
    bar = tqdm(loader, desc=description, unit="batch", leave=None, disable=not is_first())
    with torch.inference_mode(), execution.autocast(), bar as progress:
        for batch, labels in progress:
            x, target = execution.take(batch), labels.to(device)
            if x.shape not in warmed_up:  # a compiled network compiles anew for the smaller last batch
                model(x)
                warmed_up.add(x.shape)
            started = _now(device)
            logits = model(x)
            seconds += _now(device) - started

            least, most, classes = int(labels.min()), int(labels.max()), logits.shape[1]
            if least < 0 or most >= classes:
                raise ValueError(f"labels must be among the network's {classes} classes, got {least} to {most}")
            counted = int(min(left, len(x)))
            left -= counted
            logits, target = logits[:counted].float(), target[:counted]
            ranked = logits.topk(min(5, logits.shape[1])).indices == target[:, None]
            top1 += ranked[:, 0].sum().item()
            top5 += ranked.any(1).sum().item()
            loss += F.cross_entropy(logits, target, reduction="sum").item()
            count += counted
            if count:
                progress.set_postfix_str(f"top-1 {100 * top1 / count:.2f} %", refresh=False)

    # The throughputs of the processes add up.
    rate = count / max(seconds, sys.float_info.min)
    top1, top5, loss, count, rate = sum_over_group([top1, top5, loss, count, rate], device)
    if count == 0:
        raise ValueError("the data set is empty")
    return Result(
        top1=100 * top1 / count,
        top1_se=_standard_error(top1 / count, count),
        top5=100 * top5 / count,
        top5_se=_standard_error(top5 / count, count),
        loss=loss / count,
        images=int(count),
        images_per_second=rate,
    )


def check_results(results: Tensor) -> None:
    """Refuse what a network with unusable weights gives, such as a negative variance in BatchNorm.

    Raises:
        ValueError: if there is NaN or infinity.
    """
    if not results.isfinite().all():
        raise ValueError("the network's results are not finite: its weights cannot be used with these images")


def _standard_error(share: float, count: float) -> float:
    return 100 * math.sqrt(share * (1 - share) / count)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
