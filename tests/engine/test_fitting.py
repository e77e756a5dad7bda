"""Trainings from Python."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from example_data import write_digits
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import adderzoo
from adderzoo import TrainConfig
from adderzoo.cli import main
from adderzoo.engine import Epoch, Result, TrainResult, fit, group, read_config
from adderzoo.layers import Adder2d
from adderzoo.models import WEIGHTS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of scikit-learn's, 300 to train on and 150 others."""
    folder = tmp_path_factory.mktemp("images") / "digits"
    write_digits(folder)
    for split, count in (("train", 30), ("test", 15)):
        for images in (folder / split).iterdir():
            for image in sorted(images.iterdir())[count:]:
                image.unlink()
    return folder


# ------------------------------------------------------------------------------------------- a network of the package


def parts(file: bytes) -> tuple[Any, bytes]:
    """The header of a safetensors file, whose keys have no order, and the bytes of the weights."""
    end = 8 + int.from_bytes(file[:8], "little")
    return json.loads(file[8:end]), file[end:]


def contents(folder: Path) -> dict[str, Any]:
    """What a training has left, but for what a clock has measured."""
    found: dict[str, Any] = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name in ("best.safetensors", "last.safetensors", "model.safetensors"):
        found[name] = parts(found[name])
    lines = found["summary.csv"].decode().splitlines()
    assert lines[0].endswith(",seconds")
    found["summary.csv"] = [line.rpartition(",")[0] for line in lines]
    state = torch.load(folder / "state.pt", weights_only=True)
    found["state.pt"] = str(state["history"][0].pop("seconds") and state["model"])
    del found["curves.png"]  # its title and rates are there in summary.csv
    return found


OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "fine-tuned": (
        {"model": "adder_lenet5.digits", "pretrained": True, "lr": 0.02, "hflip": 0},
        "--model adder_lenet5.digits --pretrained --lr 0.02 --hflip 0",
    ),
    "everything": (
        {
            **{"model": "adder_lenet5", "kd": "pkkd", "mixup": 0.2, "model_ema": True, "amp": True, "opt": "adamw"},
            **{"amp_dtype": "float16", "grad_accum_steps": 3, "opt_kwargs": {"eps": 1e-3}, "in_memory": False},
        },
        "--model adder_lenet5 --kd pkkd --mixup 0.2 --model-ema --amp --opt adamw --amp-dtype float16 "
        "--grad-accum-steps 3 --opt-kwargs eps=1e-3 --no-in-memory",
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_python_trains_on_images_as_the_command_does_to_the_byte(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    options, words = OPTIONS[name]
    common = f"--data-dir {digits} --epochs 1 --batch-size 64 --workers 0 --output out --experiment run --seed 3"
    assert main(["train", *words.split(), *common.split()]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "out").rename(tmp_path / "command")

    config = TrainConfig(
        **options, data_dir=digits, epochs=1, batch_size=64, workers=0, output=Path("out"), experiment="run", seed=3
    )
    told: list[object] = []
    adderzoo.train(config, tell=told.append)
    assert capsys.readouterr().out == ""
    got, expected = (contents(tmp_path / folder / "run") for folder in ("out", "command"))
    assert got.keys() == expected.keys()
    for file, content in expected.items():
        assert got[file] == content, file

    assert [type(each) for each in told] == [str, Epoch, TrainResult]
    without_seconds = [re.sub(r"[\d.]+ s$", "", "\n".join(map(str, told)), flags=re.MULTILINE)]
    assert without_seconds == [re.sub(r"[\d.]+ s$", "", printed.rstrip("\n"), flags=re.MULTILINE)]
    assert read_config(Path("out/run")) == config.for_task(super_resolution=False).for_data(False, 898, 1)


def test_the_result_is_the_network_its_measures_and_its_files(digits: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        **{"model": "adder_lenet5.digits", "pretrained": True, "data_dir": digits, "lr": 0.01, "hflip": 0.0},
        **{"epochs": 2, "batch_size": 64, "workers": 0, "output": tmp_path},
    )
    result = adderzoo.train(config)
    assert result.folder is not None
    assert re.fullmatch(r"\d{8}-\d{6}-adder_lenet5.digits", result.folder.name)
    assert result.folder.parent == tmp_path
    assert result.weights == result.folder / "best.safetensors"
    assert [epoch.epoch for epoch in result.history] == [1, 2]
    assert result.best in result.history
    assert result.best is not None
    assert result.best.eval_top1 is not None
    assert result.best.eval_top1 == max(epoch.eval_top1 or 0 for epoch in result.history)
    assert result.best.eval_top1 > 95  # the published weights have 98.78 on these images
    assert not result.model.training
    last = load_file(result.folder / "last.safetensors")
    assert all(torch.equal(value, last[key]) for key, value in result.model.state_dict().items())


def test_a_training_goes_on_in_python_and_says_what_has_changed(digits: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": "adder_lenet5", "data_dir": digits, "batch_size": 64, "workers": 0}
    options |= {"output": tmp_path, "experiment": "run"}
    adderzoo.train(TrainConfig(**options, epochs=1))
    warned: list[str] = []
    result = adderzoo.train(TrainConfig(**options, epochs=2, resume=True), warn=warned.append)
    assert [line.partition(":")[0] for line in warned] == ["epochs was 1 and is 2"]
    assert [epoch.epoch for epoch in result.history] == [1, 2]
    with pytest.raises(ValueError, match="has a training already: choose another --experiment"):
        adderzoo.train(TrainConfig(**options, epochs=2))
    with pytest.raises(ValueError, match=r"there momentum is 0\.9, got 0\.5"):
        adderzoo.train(TrainConfig(**options, epochs=2, resume=True, momentum=0.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "lenet"}, "model must be a registered network, got 'lenet'"),
        ({"model": ""}, "model must be a registered network, got ''"),
        ({"data_dir": "nowhere"}, "data-dir must be a folder, got 'nowhere'"),
        ({"epoch_repeats": 3}, "epoch-repeats is for super-resolution, but adder_lenet5 is a classifier"),
        ({"batch_size": 5000}, "there are 300 training images, fewer than a batch"),
        ({"device": "abacus"}, "device 'abacus' cannot be used"),
        ({"opt": "magic"}, "opt 'magic' cannot be used"),
        ({"initial_checkpoint": "no.pth"}, "no.pth is not a file"),
    ],
    ids=str,
)
def test_what_cannot_be_trained_is_refused_ahead_of_the_first_file(
    digits: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    known: dict[str, Any] = {"model": "adder_lenet5", "data_dir": digits, "epochs": 1, "workers": 0}
    with pytest.raises(ValueError, match=re.escape(message)):
        adderzoo.train(TrainConfig(**known | {"output": tmp_path / "out"} | options))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["cache_dir", "checkpoint_path", "pretrained_cfg_overlay"])
def test_where_weights_were_read_is_in_no_file(digits: Path, tmp_path: Path, name: str) -> None:
    arguments = {
        "cache_dir": tmp_path / "cache",
        "checkpoint_path": WEIGHTS / "adder_lenet5.digits.safetensors",
        "pretrained_cfg_overlay": {"description": "other"},
    }
    kwargs = {name: arguments[name], "drop_rate": 0.125}
    result = adderzoo.train(
        TrainConfig(
            **{"model": "adder_lenet5", "data_dir": digits, "workers": 0, "batch_size": 150, "epochs": 1},
            **{"output": tmp_path, "experiment": "run", "model_kwargs": kwargs},
        )
    )
    assert result.folder is not None
    assert (result.folder / "state.pt").is_file()
    with safe_open(result.folder / "last.safetensors", "pt") as file:
        assert json.loads(file.metadata()["model_args"]) == {"drop_rate": 0.125}
    assert adderzoo.load(result.folder).drop_rate == 0.125


def test_what_a_file_may_not_say_is_refused_ahead_of_the_first(digits: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": "adder_lenet5", "data_dir": digits, "workers": 0, "epochs": 1, "batch_size": 99}
    with pytest.raises(ValueError, match="num_classes cannot be written, since no file may have it: it must be a num"):
        adderzoo.train(TrainConfig(**options, output=tmp_path / "out", num_classes=1_000_001))
    assert not (tmp_path / "out").exists()


def test_an_interrupt_says_how_far_it_came(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, calls = nn.CrossEntropyLoss.forward, []

    def interrupt(self: nn.CrossEntropyLoss, *inputs: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return forward(self, *inputs)

    monkeypatch.setattr(nn.CrossEntropyLoss, "forward", interrupt)
    options: dict[str, Any] = {"model": "adder_lenet5", "data_dir": digits, "workers": 0, "epochs": 3, "batch_size": 64}
    with pytest.raises(KeyboardInterrupt, match=r"^stopped after 0 of 3 epochs$"):
        adderzoo.train(TrainConfig(**options, output=tmp_path))


# ------------------------------------------------------------------------------------------------ a network of others


class Own(nn.Module):
    """Nothing of timm's."""

    def __init__(self, layer: Callable[..., nn.Module] = Adder2d) -> None:
        super().__init__()
        self.conv = layer(1, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))


def own(layer: Callable[..., nn.Module] = Adder2d) -> Own:
    torch.manual_seed(1)
    return Own(layer)


def stripes(count: int = 64, seed: int = 0) -> TensorDataset:
    """Across or down, in noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    images = 0.3 * torch.randn(count, 1, 8, 8, generator=generator)
    images[labels == 0] += torch.tensor([1.0, -1.0]).repeat(4)
    images[labels == 1] += torch.tensor([1.0, -1.0]).repeat(4)[:, None]
    return TensorDataset(images, labels)


def loader(count: int = 64, seed: int = 0) -> DataLoader:
    return DataLoader(stripes(count, seed), 8)


def test_a_network_of_ones_own_learns_from_batches_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, told = own(), []
    model.conv.weight_grad = "sign"
    result = fit(model, loader(), TrainConfig(epochs=8, lr=0.1), loader(100, seed=1), tell=told.append)
    assert result.model is model
    assert model.conv.weight_grad == "sign"  # a network is as its owner made it
    assert (result.folder, result.weights) == (None, None)
    assert not list(tmp_path.iterdir())
    assert result.best is not None
    assert result.best.eval_top1 == 100
    assert [type(each) for each in told] == [str] + [Epoch] * 8 + [TrainResult]


def test_a_fit_is_the_loop_that_anyone_would_write() -> None:
    model, reference = own(nn.Conv2d), own(nn.Conv2d)
    config = TrainConfig(epochs=3, opt="momentum", lr=0.05, momentum=0, weight_decay=0, sched="none", smoothing=0.1)
    result = fit(model, loader(), config)
    losses = []
    for _ in range(3):
        for images, labels in loader():
            loss = F.cross_entropy(reference(images), labels, label_smoothing=0.1)
            reference.zero_grad()
            loss.backward()
            with torch.no_grad():
                for parameter in reference.parameters():
                    parameter -= 0.05 * parameter.grad
            losses.append(loss.item())
    for key, value in reference.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-5, atol=1e-6, msg=key)
    means = [sum(losses[start : start + 8]) / 8 for start in (0, 8, 16)]
    assert [epoch.train_loss for epoch in result.history] == pytest.approx(means)
    assert result.best is None


def test_a_fit_takes_any_loss_and_any_measure() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 5)
    data = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), 16)
    measured = []

    def measure(network: nn.Module) -> Result:
        measured.append(network)
        score = -F.mse_loss(network(x), x.sum(1, keepdim=True)).item()
        return Result(score, 0.0, score, 0.0, -score, len(x), 1.0)

    model = nn.Linear(5, 1)
    result = fit(model, data, TrainConfig(epochs=20, lr=0.1), measure, nn.MSELoss())
    assert measured == [model] * 20
    assert result.history[-1].train_loss < 1e-2 < result.history[0].train_loss
    assert {epoch.train_top1 for epoch in result.history} == {None}
    assert result.best is not None


OPTIONS_OF_STEPS: dict[str, dict[str, Any]] = {
    "averaged": {"model_ema": True, "model_ema_decay": 0.5, "precise_bn": True},
    "mixed": {"mixup": 0.2, "num_classes": 2, "amp": True, "amp_dtype": "float16", "clip_grad": 1.0},
    "compiled": {"torchcompile": "eager", "channels_last": True, "clip_grad": 0.1, "clip_mode": "agc"},
}


@pytest.mark.parametrize("name", OPTIONS_OF_STEPS)
def test_a_fit_goes_on_where_it_was_interrupted(tmp_path: Path, name: str) -> None:
    def run(experiment: str, data: Any, resume: bool = False) -> TrainResult:
        options = OPTIONS_OF_STEPS[name] | {"epochs": 3, "lr": 0.05, "output": tmp_path, "experiment": experiment}
        return fit(own(), data, TrainConfig(**options, resume=resume), loader(16, seed=1))

    class Interrupted:
        """Up to the second epoch."""

        epoch = 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __len__(self) -> int:
            return 8

        def __iter__(self) -> Iterator[Any]:
            for index, batch in enumerate(loader()):
                if (self.epoch, index) == (3, 4):
                    raise KeyboardInterrupt
                yield batch

    with pytest.raises(KeyboardInterrupt, match="stopped after 2 of 3 epochs; their weights are in "):
        run("run", Interrupted())
    result = run("run", loader(), resume=True)
    run("whole", loader())
    assert result.folder == tmp_path / "run"
    assert [epoch.epoch for epoch in result.history] == [1, 2, 3]
    for file in ("last.safetensors", "best.safetensors"):
        got, expected = (parts((tmp_path / folder / file).read_bytes()) for folder in ("run", "whole"))
        assert got == expected
    options = yaml.safe_load((tmp_path / "run" / "args.yaml").read_text())
    assert (options["lr"], options["batch_size"], options["processes"]) == (0.05, None, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data_dir": "data"}, "data-dir is for adderzoo.train"),
        ({"batch_size": 4}, "batch-size is for adderzoo.train"),
        ({"pretrained": True}, "pretrained is for adderzoo.train"),
        ({"hflip": 0.0}, "hflip is for adderzoo.train"),
        ({"filter_grad": "sign"}, "filter-grad is for adderzoo.train"),
        ({"kd": "pkkd"}, "kd is for adderzoo.train"),
        ({"mixup": 0.5}, "num-classes must be given for mixup and CutMix, got None"),
        ({"output": "out"}, "output needs --experiment: without it, fit writes no files"),
        ({"log_tensorboard": True}, "log-tensorboard needs --experiment"),
        ({"opt": "magic"}, "opt 'magic' cannot be used"),
        ({"device": "meta"}, "device 'meta' cannot be used"),
    ],
    ids=str,
)
def test_options_without_meaning_for_a_fit_are_refused(options: dict[str, Any], message: str) -> None:
    model = own()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=re.escape(message)):
        fit(model, loader(), TrainConfig(epochs=1, **options))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("data", [iter(()), [], iter(loader())], ids=["no length", "no batches", "once"])
def test_batches_have_to_be_of_a_known_number(data: Any) -> None:
    expected = rf"^loader must have a length, the batches of an epoch, got {type(data).__name__}$"
    with pytest.raises(ValueError, match=expected):
        fit(own(), data, TrainConfig(epochs=1))


@pytest.mark.parametrize(
    ("data", "got"),
    [
        (iter(loader()), "_SingleProcessDataLoaderIter"),
        ((batch for batch in loader()), "generator"),
        (3, "int"),
        ([], "list"),
    ],
    ids=["iterator", "generator", "number", "empty"],
)
def test_validation_has_to_be_there_after_each_epoch(data: Any, got: str, tmp_path: Path) -> None:
    expected = f"^validation must be batches that can be gone through after each epoch, .+, or None, got {got}$"
    with pytest.raises(ValueError, match=expected):
        fit(own(), loader(), TrainConfig(epochs=2, output=tmp_path / "out", experiment="run"), data)
    assert not (tmp_path / "out").exists()


def test_a_fit_that_goes_on_with_another_number_of_batches_says_so(tmp_path: Path) -> None:
    options: dict[str, Any] = {"output": tmp_path, "experiment": "run", "grad_accum_steps": 3}
    fit(own(), loader(), TrainConfig(**options, epochs=2))
    with pytest.warns(UserWarning, match=r"the 2 epochs in .+ have 6 steps, with these batches they would have 2"):
        result = fit(own(), loader(16), TrainConfig(**options, epochs=3, resume=True))
    assert len(result.history) == 3


def test_another_loss_leaves_no_labels_to_smooth() -> None:
    with pytest.raises(ValueError, match="mixup, cutmix and smoothing are for the cross-entropy: loss must be None"):
        fit(own(), loader(), TrainConfig(epochs=1, smoothing=0.1), loss=nn.MSELoss())


PROCESS = """
import torch, torch.distributed as dist
from adderzoo import TrainConfig
from adderzoo.engine import fit
torch.manual_seed(1)
model = torch.nn.Linear(3, 2)
dist.init_process_group("gloo")
rank = dist.get_rank()
batch = torch.full((4, 3), float(rank)), torch.tensor([0, 1, 1, 0])
result = fit(model, [batch] * 2, TrainConfig(epochs=1, lr=0.1, weight_decay=0), tell=print)
weights = [torch.empty_like(model.weight) for _ in range(2)]
dist.all_gather(weights, model.weight.data)
print("same", torch.equal(*weights)) if rank == 0 else None
dist.destroy_process_group()  # which is still there
"""


def test_a_process_group_of_ones_own_is_used_and_stays(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROCESS)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "program.py"]
    done = subprocess.run(
        [sys.executable, *launcher],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(adderzoo.__file__).parent.parent)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["Linear", "epoch 1", "done", "same True"]


@pytest.mark.parametrize(
    ("place", "named", "expected"), [("1", "cuda", "cuda:1"), ("1", "cuda:0", "cuda:1"), (None, "cuda:3", "cuda:3")]
)
def test_the_gpu_of_a_process(monkeypatch: pytest.MonkeyPatch, place: str | None, named: str, expected: str) -> None:
    """torchrun says which, else the user: in a group of his own all processes would share the first."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(group, "in_group", lambda: True)
    monkeypatch.setattr(group.dist, "get_world_size", lambda: 4)
    monkeypatch.setattr(group.dist, "get_rank", lambda: 3)
    monkeypatch.setattr(torch, "zeros", lambda *_, device: torch.ones(1))  # there need not be a GPU
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    if place is None:
        monkeypatch.delenv("LOCAL_RANK", raising=False)
    else:
        monkeypatch.setenv("LOCAL_RANK", place)
    with group.open_group(named) as found:
        assert found == group.Group(torch.device(expected), 3, 4)
    assert chosen == [torch.device(expected)]
