"""Training of a classifier.

A :class:`Training` is what steps change; :func:`train` is the loop over epochs, :func:`train_epoch` the loop over
batches, :func:`write_epoch` what an epoch leaves on disk.
"""

import csv
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from adderzoo.checkpoints import save_weights, write_atomically
from adderzoo.layers import Adder2d, AdderLinear
from adderzoo.optim import adaptive_lr

from .evaluation import Result

# Steps between two looks at the loss: a look makes the host wait for a GPU.
LOOK_EVERY = 20


@dataclass(frozen=True)
class Epoch:
    """A line of summary.csv, under timm's names; without validation images, `eval_*` are None."""

    epoch: int
    train_loss: float
    train_top1: float
    eval_loss: float | None
    eval_top1: float | None
    eval_top1_se: float | None
    eval_top5: float | None
    lr: float
    seconds: float

    def __str__(self) -> str:
        text = f"epoch {self.epoch}: loss {self.train_loss:.4f}, training top-1 {self.train_top1:.2f} %"
        if self.eval_top1 is not None:
            text += f", validation top-1 {self.eval_top1:.2f} ± {self.eval_top1_se:.2f} %"
        return text + f", lr {self.lr:.4g}, {self.seconds:.1f} s"


@dataclass
class Training:
    """A network, what trains it, and how far it has come."""

    model: nn.Module
    optimizer: Optimizer
    scheduler: Scheduler | None
    scaler: torch.amp.GradScaler
    step: int = 0
    history: list[Epoch] = field(default_factory=list)

    @property
    def lr(self) -> float:
        return max(float(group["lr"]) for group in self.optimizer.param_groups)


def create_optimizer(
    model: nn.Module,
    opt: str = "momentum",
    lr: float | None = None,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    eta: float = 0.2,
) -> Optimizer:
    """timm's optimiser of this name, with the adaptive learning rate of adder filters, as the paper's authors use it.

    Args:
        model: Its parameters all decay, BatchNorm's too, but those that its `no_weight_decay` names.
        opt: Such as "momentum" (SGD), "sgd" (with Nesterov's momentum), "adamw".
        lr: Learning rate; None is 0.1 for SGD, else the optimiser's own default.
        momentum: Of optimisers that have one.
        weight_decay: Weight decay.
        eta: Of the adaptive learning rate; 0 turns it off. Networks without adder filters do without it.

    Raises:
        ValueError: if timm knows no such optimiser, or one of the numbers is nothing it takes.
    """
    # What "addersgd" adds to "sgd" is what `eta` says here.
    opt = opt.lower().removeprefix("adder")
    if lr is None and opt in {"momentum", "sgd"}:
        lr = 0.1
    try:
        optimizer = create_optimizer_v2(
            model, opt, lr=lr, momentum=momentum, weight_decay=weight_decay, filter_bias_and_bn=False
        )
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"opt {opt!r} cannot be used: {error}") from error
    if eta and any(isinstance(module, Adder2d | AdderLinear) for module in model.modules()):
        adaptive_lr(optimizer, eta)
    return optimizer


def create_scheduler(optimizer: Optimizer, sched: str, epochs: int, warmup_epochs: int = 0) -> Scheduler | None:
    """timm's learning rate scheduler of this name, which acts once an epoch.

    Raises:
        ValueError: if timm knows no such scheduler.
    """
    try:
        return create_scheduler_v2(optimizer, sched, num_epochs=epochs, warmup_epochs=warmup_epochs)[0]
    except (AssertionError, ValueError) as error:
        raise ValueError(f"sched {sched!r} cannot be used: {error}") from error


def train(
    training: Training,
    loader: Any,
    epochs: int,
    validate: Callable[[nn.Module], Result] | None = None,
    loss: nn.Module | None = None,
    device: torch.device | str = "cpu",
    amp_dtype: torch.dtype | None = None,
    channels_last: bool = False,
    description: str = "",
) -> Iterator[Epoch]:
    """Train, epoch by epoch, with a progress bar; each is yielded when it is complete.

    Args:
        training: Goes on after the epochs of its history.
        loader: Batches of images (N, C, H, W) and class indices (N,), of a known number.
        epochs: How many there are to be in the history.
        validate: What follows each epoch.
        loss: Of logits (N, classes) and class indices; cross-entropy by default.
        device: Where the model is and the batches go.
        amp_dtype: Run under autocast in this dtype.
        channels_last: Feed the images in this memory format.
        description: Text before the progress bar.

    Raises:
        ValueError: if the loss is not finite, or a label is none of the network's classes.
    """
    loss = nn.CrossEntropyLoss() if loss is None else loss
    total, done = epochs * len(loader), len(training.history) * len(loader)
    # smoothing=0: the time left comes from the average, which has the validation in it. A log file wants few lines.
    every = 0.1 if sys.stderr.isatty() else 30
    with tqdm(desc=description, unit="batch", total=total, initial=done, smoothing=0, mininterval=every) as progress:
        while len(training.history) < epochs:
            number, lr, started = len(training.history) + 1, training.lr, time.perf_counter()
            progress.set_description(f"{description} epoch {number}/{epochs}".strip(), refresh=False)
            mean_loss, top1 = train_epoch(
                training, loader, loss, torch.device(device), amp_dtype, channels_last, progress
            )
            result = validate(training.model) if validate else None
            if training.scheduler:
                training.scheduler.step(number, result.top1 if result else -mean_loss)
            epoch = Epoch(
                epoch=number,
                train_loss=mean_loss,
                train_top1=top1,
                eval_loss=result.loss if result else None,
                eval_top1=result.top1 if result else None,
                eval_top1_se=result.top1_se if result else None,
                eval_top5=result.top5 if result else None,
                lr=lr,
                seconds=time.perf_counter() - started,
            )
            training.history.append(epoch)
            yield epoch


def train_epoch(
    training: Training,
    loader: Any,
    loss: nn.Module,
    device: torch.device,
    amp_dtype: torch.dtype | None,
    channels_last: bool,
    progress: tqdm,
) -> tuple[float, float]:
    """One pass over the data.

    Returns:
        Mean loss and top-1 accuracy in percent, both of the network as it was at each batch.
    """
    model, optimizer, scaler = training.model.train(), training.optimizer, training.scaler
    context: AbstractContextManager = torch.autocast(device.type, amp_dtype) if amp_dtype else nullcontext()
    losses: list[Tensor] = []
    right: Tensor | int = 0
    images = 0
    for index, (batch, labels) in enumerate(loader):
        x, target = batch.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        with context:
            logits = model(x).float()
            value = _loss(loss, logits, target)

        optimizer.zero_grad()
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
        training.step += 1
        if training.scheduler:
            training.scheduler.step_update(training.step)

        losses.append(value.detach())
        right = right + (logits.detach().argmax(1) == target).sum()
        images += len(x)
        if device.type == "cpu" or index % LOOK_EVERY == 0 or index + 1 == len(loader):
            _check_finite(losses, training)
            text = f"loss {losses[-1].item():.4f}, top-1 {100 * int(right) / images:.2f} %, lr {training.lr:.4g}"
            progress.set_postfix_str(text, refresh=False)
        progress.update()
    return torch.stack(losses).mean().item(), 100 * int(right) / images


def _loss(loss: nn.Module, logits: Tensor, target: Tensor) -> Tensor:
    try:
        return loss(logits, target)
    except IndexError as error:
        raise ValueError(f"labels must be among the network's {logits.shape[1]} classes: {error}") from error


def _check_finite(losses: list[Tensor], training: Training) -> None:
    finite = torch.stack(losses[-LOOK_EVERY:]).isfinite().tolist()
    if all(finite):
        return
    index = len(losses) - len(finite) + finite.index(False)
    step, epoch = training.step - len(losses) + index + 1, len(training.history) + 1
    raise ValueError(
        f"the loss is {losses[index].item()} at step {step} (step {index + 1} of epoch {epoch}): "
        "a lower learning rate may help; what earlier epochs have written is untouched"
    )


def write_epoch(folder: Path, training: Training, metadata: Mapping[str, str]) -> None:
    """Write what the last epoch of a training leaves: last.safetensors, best.safetensors and summary.csv.

    The best epoch has the highest top-1 accuracy on the validation images and among equals the lowest loss; without
    validation there is none. Each file is replaced completely or not at all.

    Args:
        folder: Where to.
        training: With at least one epoch in its history.
        metadata: What the weights' files say beside epoch and accuracy.

    Raises:
        OSError: if a file cannot be written.
    """
    epoch = training.history[-1]
    metadata = {**metadata, "epoch": str(epoch.epoch)}
    if epoch.eval_top1 is not None:
        metadata |= {"top1": f"{epoch.eval_top1:.2f}", "top1_se": f"{epoch.eval_top1_se:.2f}"}
    save_weights(training.model, folder / "last.safetensors", metadata)
    if best_epoch(training.history) is epoch:
        save_weights(training.model, folder / "best.safetensors", metadata)
    write_atomically(folder / "summary.csv", lambda path: _write_summary(path, training.history))


def best_epoch(history: list[Epoch]) -> Epoch | None:
    """The first epoch of highest validation accuracy, and among those of lowest loss; None without validation."""

    def quality(epoch: Epoch) -> tuple[float, float]:
        assert epoch.eval_top1 is not None
        assert epoch.eval_loss is not None
        return epoch.eval_top1, -epoch.eval_loss if math.isfinite(epoch.eval_loss) else -math.inf

    return max((epoch for epoch in history if epoch.eval_top1 is not None), key=quality, default=None)


def _write_summary(path: Path, history: list[Epoch]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, asdict(history[0]))
        writer.writeheader()
        writer.writerows(asdict(epoch) for epoch in history)
