"""What a training leaves on disk.

Each file is replaced completely or not at all, and the state of the training comes last: a process that is killed at
any moment leaves files from which the training goes on to the same end.
"""

import csv
import math
import operator
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from timm.scheduler.scheduler import Scheduler
from torch.optim import Optimizer

from adderzoo.checkpoints import write_local_dir
from adderzoo.files.foreign import why
from adderzoo.files.output import in_memory, write_atomically
from adderzoo.files.weights import save_weights

from .group import from_first, is_first
from .training import Epoch, Training

STATE = "state.pt"


def write_epoch(folder: Path, training: Training, metadata: Mapping[str, str]) -> None:
    """Write what the last epoch leaves: last.safetensors, best.safetensors, summary.csv and state.pt.

    model.safetensors is a link to the best or, without validation, the last, and config.json what timm's `local-dir:`
    wants beside it.

    The best epoch has the highest top-1 accuracy on the validation images and among equals the lowest loss, or in
    super-resolution the highest PSNR; without validation there is none. Weights are the averaged ones where there is
    an average; state.pt has both, and all else that :func:`read_state` needs.

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
    if epoch.eval_psnr is not None:
        metadata |= {"psnr": f"{epoch.eval_psnr:.2f}", "ssim": f"{epoch.eval_ssim:.4f}"}
    save_weights(training.best_network, folder / "last.safetensors", metadata)
    if best_epoch(training.history) is epoch:
        save_weights(training.best_network, folder / "best.safetensors", metadata)
    write_local_dir(folder, folder / ("best.safetensors" if best_epoch(training.history) else "last.safetensors"))
    write_atomically(folder / "summary.csv", lambda path: _write_summary(path, training.history))
    write_atomically(folder / STATE, in_memory(lambda file: torch.save(_state(training), file)))


def best_epoch(history: list[Epoch]) -> Epoch | None:
    """The first epoch of highest validation score, and among those of lowest loss; None without validation."""

    def quality(epoch: Epoch) -> tuple[float, float]:
        assert epoch.score is not None
        known = epoch.eval_loss is not None and math.isfinite(epoch.eval_loss)
        return epoch.score, -epoch.eval_loss if known else -math.inf  # type: ignore[operator]

    return max((epoch for epoch in history if epoch.score is not None), key=quality, default=None)


def _write_summary(path: Path, history: list[Epoch]) -> None:
    rows = [asdict(epoch) for epoch in history]
    columns = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def _state(training: Training) -> dict[str, Any]:
    # timm's schedulers are functions of epoch and step, but for "plateau"; random numbers start anew in each epoch.
    plateau = getattr(training.scheduler, "lr_scheduler", None)
    return {
        "model": training.model.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "scheduler": plateau.state_dict() if plateau else None,
        "scaler": training.scaler.state_dict() if training.scaler else None,
        "ema": training.ema.module.state_dict() if training.ema else None,
        "task": training.task.get_task_state() if training.task else None,
        "step": training.step,
        "history": [asdict(epoch) for epoch in training.history],
    }


def read_state(folder: Path, training: Training) -> bool:
    """Bring a training to where the one that wrote a folder was after its last complete epoch.

    In a process group the first process alone looks into the folder, and all get what it finds. The learning rate is
    that of the new training's schedule behind as many epochs, which may be longer than it was.

    Args:
        folder: Of the training.
        training: A new one, made with the same arguments; it is changed in place.

    Returns:
        Whether there was a complete epoch.

    Raises:
        ValueError: if the file is damaged, or of a training made with other arguments.
        ConnectionError: if another process of the group has failed.
    """
    path = folder / STATE
    state = from_first(_read(path) if is_first() else None)
    if state is None:
        return False
    try:
        training.model.load_state_dict(state["model"])
        training.optimizer.load_state_dict(state["optimizer"])
        if training.scheduler:
            _check_rates(training.optimizer, training.scheduler)
        if training.scaler:
            training.scaler.load_state_dict(state["scaler"])
        if training.ema:
            training.ema.module.load_state_dict(state["ema"])
        if training.task:
            training.task.load_task_state(state["task"])
        if state["scheduler"]:
            training.scheduler.lr_scheduler.load_state_dict(state["scheduler"])  # type: ignore[union-attr]
        training.step = operator.index(state["step"])
        training.history[:] = [Epoch(**epoch) for epoch in state["history"]]
        if [epoch.epoch for epoch in training.history] != list(range(1, len(training.history) + 1)):
            raise ValueError("its history must have the epochs 1, 2 ...")
        if training.scheduler and not state["scheduler"]:  # a longer one may be at another rate by now
            training.scheduler.step(len(training.history))
            training.scheduler.step_update(training.step)
    except Exception as error:  # what does not fit raises nearly anything
        raise _unusable(path, error) from error
    return True


def _read(path: Path) -> Any:
    """The state in a file; None if there is no file."""
    if not path.exists():
        return None
    try:
        with warnings.catch_warnings(action="ignore"):  # about the pickle's version: the error says enough
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling bytes that are no checkpoint raises nearly anything
        raise _unusable(path, why(error)) from error


def _check_rates(optimizer: Optimizer, scheduler: Scheduler) -> None:
    """A schedule multiplies the rates that it was made with, whatever the optimizer has loaded since."""
    rates = [group.get("initial_lr") for group in optimizer.param_groups]
    if rates != scheduler.base_values:
        raise ValueError(f"its learning rates begin at {rates}, those of this training at {scheduler.base_values}")


def _unusable(path: Path, reason: object) -> ValueError:
    return ValueError(f"{path} is damaged, or of another training: {reason}")
