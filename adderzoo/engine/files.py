"""What a training leaves on disk.

Each file is replaced completely or not at all, and the state of the training comes last: a process that is killed at
any moment leaves files from which the training goes on to the same end.
"""

import csv
import math
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from timm.scheduler.scheduler import Scheduler
from torch.optim import Optimizer

from adderzoo.checkpoints import write_local_dir
from adderzoo.data.folders import some_of
from adderzoo.files.foreign import plain, shown, why
from adderzoo.files.output import in_memory, write_atomically
from adderzoo.files.weights import read_classes, save_weights

from .config import TrainConfig, train_options
from .group import from_first, is_first
from .options import dashed
from .training import Epoch, Training

STATE, OPTIONS, SUMMARY = "state.pt", "args.yaml", "summary.csv"


def read_config(folder: Path | str) -> TrainConfig:
    """The options of the training that wrote a folder.

    Raises:
        ValueError: if its args.yaml is damaged, or holds what is no option or value of one.
        OSError: if it cannot be read.
    """
    return TrainConfig.from_dict(_read_options(Path(folder) / OPTIONS))


def write_options(folder: Path, options: Mapping[str, Any]) -> None:
    """Write args.yaml.

    Args:
        folder: Where to.
        options: As :meth:`TrainConfig.as_dict` gives them, and the number of `processes`.

    Raises:
        OSError: if the file cannot be written.
    """
    text = yaml.safe_dump(dict(options), sort_keys=False)
    write_atomically(folder / OPTIONS, lambda path: path.write_text(text))


def check_folder(folder: Path, options: Mapping[str, Any], warn: Callable[[str], None]) -> None:
    """Refuse a folder with a training that this one would not go on with.

    Args:
        folder: Of this training; it need not be there.
        options: As for :func:`write_options`.
        warn: Gets a line for each other option that changes how the training goes on, or if nothing says what they
            were.

    Raises:
        ValueError: if there is a training that is not to be resumed, one with other options, or one without its state.
    """
    if not options["resume"]:
        if (folder / SUMMARY).exists():
            raise ValueError(f"{folder} has a training already: choose another --experiment, --resume it, or remove it")
    elif not (folder / STATE).exists():
        # A training may have been killed between the first line of its summary and its first state.
        lines = (folder / SUMMARY).read_text().splitlines() if (folder / SUMMARY).exists() else []
        if len(lines) > 2:
            raise ValueError(
                f"resume needs {folder / STATE}, which is missing, behind the {len(lines) - 1} epochs in "
                "summary.csv: choose another --experiment, or remove the folder"
            )
    elif (folder / OPTIONS).exists():
        _check_options(folder, options, warn)
    else:
        warn(f"{folder / OPTIONS} is missing: whether these are the options of the training there is not known")


def _check_options(folder: Path, options: Mapping[str, Any], warn: Callable[[str], None]) -> None:
    about = {each.name: each.about for each in train_options()}
    defaults = TrainConfig(model=options["model"]).as_dict()  # of options that were not there yet
    known = {**options, **defaults, **_read_options(folder / OPTIONS)}
    effects = {}
    for key in options:
        matters = about[key].matters if key in about else None
        if known[key] != options[key] and (not matters or matters(known) or matters(options)):
            effects[key] = about[key].on_resume if key in about else None
    for key, effect in effects.items():
        if effect is None:
            raise ValueError(
                f"resume needs the options of the training in {folder}: there {dashed(key)} is {plain(known[key])}, "
                f"got {options[key]}"
            )
    for key, effect in effects.items():
        if effect:
            warn(f"{dashed(key)} was {plain(known[key])} and is {options[key]}: {effect}")


def _read_options(path: Path) -> dict[str, Any]:
    """What is in an args.yaml."""
    try:
        options = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"resume needs the options in {path}, which is no YAML: {error}") from error
    if not isinstance(options, dict):
        raise ValueError(f"resume needs the options in {path}, which holds {shown(options)}")
    return options


def check_known_classes(folder: Path, classes: Sequence[str]) -> None:
    """Refuse to go on with other classes: those of a folder of images may have become others.

    Args:
        folder: Of the training.
        classes: Names of those of the images, in their order.

    Raises:
        ValueError: naming both.
    """
    last = folder / "last.safetensors"
    known = read_classes(last) if last.is_file() else None
    if known is not None and known != classes:
        theirs, ours = (f"{some_of(names)} ({len(names)})" for names in (known, classes))
        raise ValueError(f"resume needs the classes of the training in {folder}, {theirs}, got {ours}")


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
    write_atomically(folder / SUMMARY, lambda path: _write_summary(path, training.history))
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
