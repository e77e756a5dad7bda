import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import Done, run_group
from pictures import random_images
from safetensors.torch import load_file

import adderzoo as package

Command = Callable[..., Done]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for seed, name in enumerate(("train/a", "train/b", "val/a", "val/b")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index, image in enumerate(random_images(9, (32, 32), mode="L", seed=seed)):
            image.save(tmp_path / "data" / name / f"{index}.png")
    return tmp_path / "data"


def arguments(data: Path, output: Path, *options: object) -> list[object]:
    return [
        *("train", "--model", "adder_lenet5", "--data-dir", data, "--epochs", 2, "--batch-size", 4, "-j", 0),
        *("--output", output, "--experiment", "run", *options),
    ]


@pytest.mark.parametrize("options", [(), ("--no-in-memory", "--model-ema", "--grad-accum-steps", 2)])
def test_a_group_speaks_once_and_goes_on_where_it_was_killed(
    tmp_path: Path, data: Path, options: tuple[object, ...]
) -> None:
    """The first process alone has the folder, as on several machines."""
    whole = arguments(data, tmp_path / "whole", *options)
    first, second = run_group([whole] * 2, tmp_path)
    assert (first.status, second.status) == (0, 0), (first, second)
    assert "18 training images, 18 validation images" in first.out
    assert first.out.count("validation top-1") == 2
    assert (second.out, second.err) == ("", "")

    commands = [arguments(data, tmp_path / f"out{rank}", *options) for rank in range(2)]
    folder, foreign = tmp_path / "out0" / "run", tmp_path / "out1" / "run" / ".adderzoo-being-written"
    foreign.mkdir(parents=True)
    done = run_group(commands, tmp_path, before=die_in_the_last_batch)
    assert done[0].status != 0
    assert len(torch.load(folder / "state.pt", weights_only=True)["history"]) == 1
    done = run_group([[*command, "--resume"] for command in commands], tmp_path)
    assert [one.status for one in done] == [0, 0], done
    assert "behind epoch 1" in done[0].out
    assert list((tmp_path / "out1").rglob("*")) == [foreign.parent, foreign]
    for name in ("last.safetensors", "best.safetensors"):
        got, expected = load_file(folder / name), load_file(tmp_path / "whole" / "run" / name)
        assert all(torch.equal(got[key], value) for key, value in expected.items())

    (alone,) = run_group([[*commands[0], "--resume"]], tmp_path)
    assert alone.error.endswith(f"the training in {folder}: there processes is 2, got 1")


def die_in_the_last_batch() -> None:
    """Gives this process a loss that ends it in the second batch of the second epoch."""
    forward, calls = torch.nn.CrossEntropyLoss.forward, []

    def call(self: torch.nn.CrossEntropyLoss, *inputs: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return forward(self, *inputs)

    torch.nn.CrossEntropyLoss.forward = call  # type: ignore[method-assign]


def test_torchrun_trains(tmp_path: Path, data: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m", "adderzoo.cli"]
    done = subprocess.run(
        [sys.executable, *map(str, launcher), *map(str, arguments(data, tmp_path / "out"))],
        env=os.environ | {"PYTHONPATH": str(Path(package.__file__).parent.parent)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    assert (tmp_path / "out" / "run" / "last.safetensors").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--sync-bn",), "sync-bn is for GPUs, got device cpu"),
        (("--batch-size", 10), "fewer than a batch in each of 2 processes: batch-size must be at most 9, got 10"),
        (("--dataset-download",), "dataset-download is for one process"),
        (("--quantize-bits", 8, "--pretrained"), "quantize-bits is for one process"),
    ],
)
def test_what_a_group_cannot_do_is_one_line(
    tmp_path: Path, data: Path, options: tuple[object, ...], message: str
) -> None:
    for done in run_group([arguments(data, tmp_path / "out", *options)] * 2, tmp_path):
        assert done.status == 1
        assert message in done.err.splitlines()[-1]
        assert "Traceback" not in done.err
    assert not (tmp_path / "out").exists()


def test_a_group_needs_a_common_name(tmp_path: Path, data: Path) -> None:
    command = ["train", "--model", "adder_lenet5", "--data-dir", data, "--output", tmp_path / "out"]
    for done in run_group([command] * 2, tmp_path):
        assert "several processes need --experiment" in done.error


@pytest.mark.parametrize("options", [("--in-memory",), ("--no-in-memory",)])
def test_a_damaged_image_in_one_process_ends_all_of_them(
    tmp_path: Path, data: Path, options: tuple[object, ...]
) -> None:
    """In memory, ahead of the first step; from files, in the middle of the training."""
    other = tmp_path / "other"
    shutil.copytree(data, other)
    (other / "train" / "a" / "3.png").write_bytes(b"no image")
    commands = [arguments(folder, tmp_path / "out", "--batch-size", 9, *options) for folder in (data, other)]
    first, second = run_group(commands, tmp_path)
    assert (first.status, second.status) == (1, 1), (first, second)
    assert "a/3.png cannot be read: " in second.err.splitlines()[-1]
    assert first.err.splitlines()[-1] == "adderzoo train: error: another process of the group has failed"
    assert "Traceback" not in first.err + second.err
