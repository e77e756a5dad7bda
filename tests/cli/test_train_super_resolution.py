"""Training of networks for super-resolution, as a user runs it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import timm
import torch
from commands import Done, run_group
from pictures import random_images
from safetensors.torch import load_file
from torch.optim import Adam, Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from trainings import metadata, rows

Command = Callable[..., Done]

pytestmark = pytest.mark.usefixtures("one_thread")

NETWORK = ("--model", "adder_edsr_baseline_x2", "--model-kwargs", "blocks=1", "width=4")
PATCHES = ("--img-size", 8, "--batch-size", 4, "--epoch-repeats", 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images to train on and two to validate, of different sizes."""
    for split, count in (("train", 4), ("val", 2)):
        (tmp_path / "data" / split).mkdir(parents=True)
        for index in range(count):
            image = random_images(1, (40 + 2 * index, 36), seed=index + 10 * count)[0]
            image.save(tmp_path / "data" / split / f"{index}.png")
    return tmp_path / "data"


@pytest.fixture
def steps() -> Iterator[list[tuple[Optimizer, list[float]]]]:
    """The optimizer and its learning rates at each step."""
    found: list[tuple[Optimizer, list[float]]] = []

    def watch(optimizer: Optimizer, *_: object) -> None:
        found.append((optimizer, [group["lr"] for group in optimizer.param_groups]))

    handle = register_optimizer_step_pre_hook(watch)
    yield found
    handle.remove()


def test_the_best_epochs_weights_have_the_quality_that_validate_measures(
    train: Command, adderzoo: Command, folder: Path, tmp_path: Path
) -> None:
    done = train(*NETWORK, *PATCHES, "--data-dir", folder, "--epochs", 30)
    assert done.status == 0, done
    assert "4 training images, 2 validation images, 16 patches an epoch, x2" in done.out
    epochs = rows(tmp_path / "out" / "run")
    assert float(epochs[-1]["train_loss"]) < 0.7 * float(epochs[0]["train_loss"])
    best = max(epochs, key=lambda row: float(row["eval_psnr"]))
    assert float(best["eval_psnr"]) > float(epochs[0]["eval_psnr"]) + 2
    assert f"best: epoch {best['epoch']}, PSNR {float(best['eval_psnr']):.2f} dB" in done.out

    file = tmp_path / "out" / "run" / "best.safetensors"
    said = metadata(file)
    assert said["psnr"] == f"{float(best['eval_psnr']):.2f}"
    assert json.loads(said["model_args"]) == {"blocks": 1, "width": 4}
    result = tmp_path / "result.json"
    command = ("validate", "--model", "adder_edsr_baseline_x2", "--checkpoint", file, "--data-dir", folder / "val")
    assert adderzoo(*command, "--json", result).status == 0
    # The fused network rounds otherwise: a color of a pixel may become its neighbor.
    assert json.loads(result.read_text())["psnr"] == pytest.approx(float(best["eval_psnr"]), abs=1e-3)


def test_adder_filters_have_a_rate_of_their_own_under_adam(
    train: Command, folder: Path, steps: list[tuple[Optimizer, list[float]]]
) -> None:
    sched = ("--sched", "none", "--epochs", 1)
    assert train(*NETWORK, *PATCHES, "--data-dir", folder, *sched, "--lr", 1e-3, "--eta", 20).status == 0
    optimizer, rates = steps[0]
    assert isinstance(optimizer, Adam)
    assert rates == [pytest.approx(1e-3), pytest.approx(2e-2)]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0, 0]
    assert len(steps) == 4
    model = timm.create_model("adder_edsr_baseline_x2", blocks=1, width=4)
    filters = [parameter.shape for name, parameter in model.named_parameters() if name.endswith("unit.conv.weight")]
    assert [parameter.shape for parameter in optimizer.param_groups[1]["params"]].count(filters[0]) == 3


def test_a_resumed_training_ends_as_an_uninterrupted_one(train: Command, folder: Path, tmp_path: Path) -> None:
    command = (*NETWORK, *PATCHES, "--data-dir", folder, "--epochs", 3)
    assert train(*command).status == 0
    expected = {key: value.clone() for key, value in load_file(tmp_path / "out" / "run" / "last.safetensors").items()}

    class Killed(BaseException):
        pass

    def die(optimizer: Optimizer, *_: object) -> None:
        calls.append(optimizer)
        if len(calls) == 7:  # in the second epoch
            raise Killed

    calls: list[Optimizer] = []
    handle = register_optimizer_step_pre_hook(die)
    with pytest.raises(Killed):
        train(*command, "--experiment", "killed")
    handle.remove()
    assert train(*command, "--experiment", "killed", "--resume").status == 0
    content = load_file(tmp_path / "out" / "killed" / "last.safetensors")
    assert all(torch.equal(content[key], value) for key, value in expected.items())
    losses = [[row["train_loss"] for row in rows(tmp_path / "out" / name)] for name in ("run", "killed")]
    assert losses[0] == losses[1]


def test_processes_train_together(train: Command, folder: Path, tmp_path: Path) -> None:
    """As one process with the whole batch, where BatchNorm does not tell the shares apart."""
    network = ("--model", "adder_edsr_baseline_x2", "--model-kwargs", "blocks=1", "width=4", "norm=False")
    rest = ("--data-dir", folder, "--img-size", 8, "--epoch-repeats", 4, "--epochs", 2, "--workers", 0)
    output = ("--output", tmp_path / "out", "--experiment")
    for done in run_group([["train", *network, *rest, "-b", 2, *output, "two"]] * 2, tmp_path):
        assert done.status == 0, done
    assert train(*network, *rest, "-b", 4, "--experiment", "one").status == 0
    one, two = (rows(tmp_path / "out" / name) for name in ("one", "two"))
    for alone, together in zip(one, two, strict=True):
        assert float(together["train_loss"]) == pytest.approx(float(alone["train_loss"]), rel=1e-3)
        assert float(together["eval_psnr"]) == pytest.approx(float(alone["eval_psnr"]), abs=0.02)


def test_options_of_the_other_task_are_refused(train: Command, folder: Path) -> None:
    for option, name in (
        (("--mixup", 0.2), "mixup"),
        (("--hflip", 0), "hflip"),
        (("--num-classes", 3), "num-classes"),
        (("--quantize-bits", 8), "quantize-bits"),
        (("--dataset", "torch/cifar10"), "dataset"),
    ):
        done = train(*NETWORK, "--data-dir", folder, *option)
        expected = f"{name} is for classifiers, but adder_edsr_baseline_x2 is for super-resolution"
        assert done.error == f"adderzoo train: error: {expected}"
    done = train("--data-dir", folder, "--epoch-repeats", 2)
    assert done.error.endswith("epoch-repeats is for super-resolution, but adder_lenet5 is a classifier")
    assert train(*NETWORK).error.endswith("data-dir must be a folder, got None")
    large = train(*NETWORK, *PATCHES, "--data-dir", folder, "--img-size", 40)
    assert large.error.endswith("must have at least img-size 40 times 2 pixels a side, got 40x36")
