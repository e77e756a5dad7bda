"""Training of a network.

A :class:`Training` is what steps change, a :class:`Recipe` what they are; :func:`run_epochs` is the loop over epochs,
:func:`train_epoch` the loop over batches.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from timm.data import Mixup
from timm.scheduler.scheduler import Scheduler
from timm.task import TrainingTask
from timm.utils import ModelEmaV3, NativeScaler, dispatch_clip_grad, distribute_bn, random_seed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.swa_utils import update_bn
from tqdm import tqdm

from adderzoo.models._state_dict import classifier_prefixes
from adderzoo.optim import LR_FACTOR

from .evaluation import Execution, Result
from .group import in_group, is_first, sum_over_group
from .super_resolution import SuperResolutionResult

# Steps between two looks at the loss: a look makes the host wait for a GPU.
LOOK_EVERY = 20

# For the BatchNorm statistics of an averaged network.
STATISTICS_IMAGES = 4096


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """A line of summary.csv, under timm's names; what was not measured is None."""

    epoch: int
    train_loss: float
    train_top1: float | None = None
    eval_loss: float | None = None
    eval_top1: float | None = None
    eval_top1_se: float | None = None
    eval_top5: float | None = None
    eval_psnr: float | None = None
    eval_ssim: float | None = None
    lr: float
    seconds: float

    @property
    def score(self) -> float | None:
        """By which epochs are compared: accuracy in percent, or PSNR in decibels; None without validation images."""
        return self.eval_top1 if self.eval_psnr is None else self.eval_psnr

    def __str__(self) -> str:
        text = f"epoch {self.epoch}: loss {self.train_loss:.4f}"
        if self.train_top1 is not None:
            text += f", training top-1 {self.train_top1:.2f} %"
        if self.score is not None:
            text += f", validation {self.describe_score()}"
        return text + f", lr {self.lr:.4g}, {self.seconds:.1f} s"

    def describe_score(self) -> str:
        if self.eval_psnr is None:
            return f"top-1 {self.eval_top1:.2f} ± {self.eval_top1_se:.2f} %"
        return f"PSNR {self.eval_psnr:.2f} dB, SSIM {self.eval_ssim:.4f}"


@dataclass
class Training:
    """A network, what trains it, and how far it has come.

    Attributes:
        model: The network itself, whose weights are saved.
        optimizer: Of its parameters.
        scheduler: Of the learning rate.
        scaler: timm's, of a loss in float16.
        ema: timm's moving average of the weights, which is validated and saved in the place of the model's own.
        network: What is called in training: the model, compiled or in DistributedDataParallel. None for the model.
        task: timm's, of a student, the model, and its teacher; called in training in the place of network and loss. Its
            trainable module's parameters are the optimizer's.
        step: Optimizer steps so far.
        history: The complete epochs.
    """

    model: nn.Module
    optimizer: Optimizer
    scheduler: Scheduler | None = None
    scaler: NativeScaler | None = None
    ema: ModelEmaV3 | None = None
    network: Any = None
    task: TrainingTask | None = None
    step: int = 0
    history: list[Epoch] = field(default_factory=list)

    @property
    def lr(self) -> float:
        """Of the parameters that have no rate of their own, as adder filters may."""
        groups = self.optimizer.param_groups
        return max(float(group["lr"]) for group in [g for g in groups if not g.get(LR_FACTOR)] or groups)

    @property
    def networks(self) -> list[nn.Module]:
        return [self.model, self.ema.module] if self.ema else [self.model]

    @property
    def best_network(self) -> nn.Module:
        """The averaged network if there is one."""
        return self.networks[-1]


@dataclass(frozen=True, kw_only=True)
class Recipe(Execution):
    """How a batch becomes a step, beside where and how the network runs.

    Attributes:
        loss: Of the network's output and the target: for a classifier of logits (N, classes) and class indices or,
            behind `mixup`, probabilities.
        accuracy: Count what is classified right; False where the targets are no classes.
        mixup: timm's, or None.
        mixup_off_epoch: The last epoch that it mixes; 0 for all.
        accumulate: Batches a step.
        clip_grad: Largest norm or value of the gradients, or None. Under the adaptive learning rate, that of adder
            filters is scaled in any case.
        clip_mode: timm's: "norm", "value" or "agc", which leaves out the network's classifier.
        seed: Of everything random in an epoch.
        precise_bn: Give the network BatchNorm statistics from some thousand training images after each epoch, as an
            averaged one always gets ("Rethinking 'Batch' in BatchNorm", 2021, section 3).
    """

    loss: nn.Module = field(default_factory=nn.CrossEntropyLoss)
    accuracy: bool = True
    mixup: Mixup | None = None
    mixup_off_epoch: int = 0
    accumulate: int = 1
    clip_grad: float | None = None
    clip_mode: str = "norm"
    seed: int = 0
    precise_bn: bool = False


def run_epochs(
    training: Training,
    loader: Any,
    epochs: int,
    validate: Callable[[nn.Module], Result | SuperResolutionResult] | None = None,
    recipe: Recipe | None = None,
    description: str = "",
) -> Iterator[Epoch]:
    """Train, epoch by epoch, with a progress bar; each is yielded when it is complete.

    In a process group (torchrun's), every process goes through its own batches and gets the common results.

    Args:
        training: Goes on after the epochs of its history.
        loader: Batches of images (N, C, H, W) and class indices (N,), of a known number.
        epochs: How many there are to be in the history.
        validate: What follows each epoch: measures the averaged network if there is one.
        recipe: How a batch becomes a step.
        description: Text before the progress bar.

    Raises:
        ValueError: if a loss or the network is not finite, or a label is none of the network's classes.
        ConnectionError: if another process of the group has failed.
    """
    recipe = recipe or Recipe()
    total, done = epochs * len(loader), len(training.history) * len(loader)
    # smoothing=0: the time left comes from the average, which has the validation in it. A log file wants few lines.
    every = 0.1 if sys.stderr.isatty() else 30
    with tqdm(
        desc=description,
        unit="batch",
        total=total,
        initial=done,
        smoothing=0,
        mininterval=every,
        disable=not is_first(),
    ) as progress:
        while len(training.history) < epochs:
            number, lr, started = len(training.history) + 1, training.lr, time.perf_counter()
            progress.set_description(f"{description} epoch {number}/{epochs}".strip(), refresh=False)
            _start_epoch(loader, recipe, number)
            mean_loss, top1 = train_epoch(training, loader, recipe, progress)
            for network in training.networks if recipe.precise_bn else training.networks[1:]:
                _measure_statistics(network, loader, recipe.device)
            if in_group():
                for network in (training.task or training.model, *training.networks[1:]):  # a teacher too
                    distribute_bn(network, dist.get_world_size(), reduce=True)
            result = validate(training.best_network) if validate else None
            _check_epoch(training, result)
            if training.scheduler:
                training.scheduler.step(number, result.score if result else -mean_loss)
            epoch = Epoch(
                epoch=number,
                train_loss=mean_loss,
                train_top1=top1,
                **(result.columns() if result else {}),
                lr=lr,
                seconds=time.perf_counter() - started,
            )
            training.history.append(epoch)
            yield epoch


def _measure_statistics(network: nn.Module, loader: Any, device: torch.device) -> None:
    """Give a network the BatchNorm statistics of its present weights, from some thousand training images.

    Running statistics are those of earlier weights, and an averaged network has only those of the networks that it is
    the average of: the outputs of adder layers are large and negative, with a mean that follows the filters, and a
    deviation that is small beside it.
    """

    def some() -> Iterator[Tensor]:
        count = 0
        for batch, _ in loader:
            yield batch
            count += len(batch)
            if count >= STATISTICS_IMAGES:
                break

    update_bn(some(), network, device)
    network.eval()


def _start_epoch(loader: Any, recipe: Recipe, number: int) -> None:
    """What is random in an epoch depends on seed, process and epoch alone, not on those before: it can be resumed."""
    rank = dist.get_rank() if in_group() else 0
    seed = np.random.SeedSequence((recipe.seed, number, rank)).generate_state(1).item()
    random_seed(seed)
    order: Any
    for order in (loader, getattr(loader, "sampler", None)):  # our own loader, or timm's in several processes
        if hasattr(order, "set_epoch"):
            order.set_epoch(number)
    if recipe.mixup:
        recipe.mixup.mixup_enabled = recipe.mixup_off_epoch == 0 or number <= recipe.mixup_off_epoch


def train_epoch(training: Training, loader: Any, recipe: Recipe, progress: tqdm) -> tuple[float, float | None]:
    """One pass over the data.

    Returns:
        Mean loss and, if it is counted, top-1 accuracy in percent, both of the network as it was at each batch.
    """
    device = recipe.device
    (training.task or training.model).train()
    training.optimizer.zero_grad()
    losses: list[Tensor] = []
    right: Tensor | int = 0
    images = 0
    for index, (batch, targets) in enumerate(loader):
        x, target = batch.to(device, non_blocking=True), targets.to(device, non_blocking=True)
        soft = target
        if recipe.mixup:
            x, soft = _mix(recipe.mixup, x, target)
        x = recipe.take(x)

        # The last batches of an epoch may be fewer than a step takes.
        first = index - index % recipe.accumulate
        together = min(recipe.accumulate, len(loader) - first)
        output, value = _step(training, recipe, x, soft, together, complete=index + 1 == first + together)

        losses.append(value)
        if recipe.accuracy:
            right = right + (output.argmax(1) == target).sum()
        images += len(x)
        if device.type == "cpu" or index % LOOK_EVERY == 0 or index + 1 == len(loader):
            _check_finite(losses, training)
            accuracy = f"top-1 {100 * int(right) / images:.2f} %, " if recipe.accuracy else ""
            progress.set_postfix_str(f"loss {losses[-1].item():.4f}, {accuracy}lr {training.lr:.4g}", refresh=False)
        progress.update()
    sums = sum_over_group([torch.stack(losses).sum().item(), len(losses), int(right), images], device)
    return sums[0] / sums[1], 100 * sums[2] / sums[3] if recipe.accuracy else None


def _step(
    training: Training, recipe: Recipe, x: Tensor, target: Tensor, together: int, complete: bool
) -> tuple[Tensor, Tensor]:
    """Forward, backward, and where a group of `together` batches is complete the optimizer's step.

    Returns:
        Output and loss of this batch.
    """
    # Not by `or`: a network may have a length, and a compiled one raises where it has none.
    network: Any = next(each for each in (training.task, training.network, training.model) if each is not None)
    optimizer = training.optimizer
    # Gradients of the group's processes are averaged once a step.
    apart = isinstance(network, DistributedDataParallel | TrainingTask) and not complete
    with network.no_sync() if apart else nullcontext():
        with recipe.autocast():
            if isinstance(network, TrainingTask):
                losses = network(x, target)
                output, value = losses["output"], losses["loss"]
            else:
                output = network(x).float()
                value = checked_loss(recipe.loss, output, target)
        parameters = _clipped_parameters(training.model, recipe.clip_mode)
        if training.scaler:
            training.scaler(
                value / together, optimizer, recipe.clip_grad, recipe.clip_mode, parameters, need_update=complete
            )
        else:
            (value / together).backward()
            if complete and recipe.clip_grad is not None:
                dispatch_clip_grad(parameters, recipe.clip_grad, recipe.clip_mode)
            if complete:
                optimizer.step()
    if complete:
        optimizer.zero_grad()
        training.step += 1
        if training.ema:
            training.ema.update(training.model, step=training.step)
        if training.scheduler:
            training.scheduler.step_update(training.step)
    return output.detach(), value.detach()


def _clipped_parameters(model: nn.Module, clip_mode: str) -> list[nn.Parameter]:
    """All, but for "agc" the classifier's, which its authors and timm's training script leave out."""
    left_out = classifier_prefixes(model) if clip_mode == "agc" else ()
    return [parameter for name, parameter in model.named_parameters() if not name.startswith(left_out)]


def _mix(mixup: Mixup, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    try:
        return mixup(x, target)
    except RuntimeError as error:  # it may be another one: there may be no memory left
        least, most = (int(label) for label in target.aminmax())
        if least >= 0 and most < mixup.num_classes:
            raise
        raise ValueError(
            f"labels must be among the network's {mixup.num_classes} classes, got {least} to {most}"
        ) from error


def checked_loss(loss: nn.Module, output: Tensor, target: Tensor) -> Tensor:
    """The loss, or a ValueError where a label is none of the network's classes."""
    try:
        return loss(output, target)
    except IndexError as error:
        raise ValueError(f"labels must be among the network's {output.shape[1]} classes: {error}") from error


def _check_finite(losses: list[Tensor], training: Training) -> None:
    finite = torch.stack(losses[-LOOK_EVERY:]).isfinite().tolist()
    if all(finite):
        return
    index = len(losses) - len(finite) + finite.index(False)
    raise _diverged(f"the loss is {losses[index].item()} at batch {index + 1} of epoch {len(training.history) + 1}")


def _check_epoch(training: Training, result: Result | SuperResolutionResult | None) -> None:
    """Refuse an epoch that no training could go on after: a step shows in no loss of the batches before it."""
    where = f"at the end of epoch {len(training.history) + 1}"
    for network in training.networks:
        for key, value in network.state_dict().items():
            if value.is_floating_point() and not value.isfinite().all():
                raise _diverged(f"{key} is not finite {where}")
    if isinstance(result, Result) and not math.isfinite(result.loss):
        raise _diverged(f"the evaluation loss is {result.loss} {where}")


def _diverged(what: str) -> ValueError:
    return ValueError(f"{what}: a lower learning rate may help; what earlier epochs have written is untouched")
