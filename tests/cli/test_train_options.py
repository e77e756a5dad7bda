"""That the options of `adderzoo train` arrive where they act."""

import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm.data
import torch
import torch.nn.functional as F
import yaml
from commands import Done
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn.modules.module import register_module_forward_hook
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from trainings import rows, write_classes

import adderzoo.data
from adderzoo.layers import Adder2d
from adderzoo.models.adder_lenet import LeNet5

Train = Callable[..., Done]
PLAIN = ("--lr", 1, "--momentum", 0, "--weight-decay", 0, "--eta", 0)  # a step is the gradient


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight images to train on, five to validate."""
    write_classes(tmp_path / "data" / "train", {"a": 4, "b": 4})
    write_classes(tmp_path / "data" / "val", {"a": 2, "b": 3})
    return tmp_path / "data"


@pytest.fixture
def done(train: Train, folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """Trains in batches of four, and gives the folder of the training."""

    def run(*arguments: object, name: str = "run") -> Path:
        finished = train("--data-dir", folder, "--batch-size", 4, *arguments, "--experiment", name)
        assert finished.status == 0, finished
        return tmp_path / "out" / name

    return run


@pytest.fixture
def steps() -> Iterator[list[dict[str, Any]]]:
    """What each optimizer step finds: the options of the first group, and the gradients."""
    found: list[dict[str, Any]] = []

    def watch(optimizer: Optimizer, *_: object) -> None:
        group = optimizer.param_groups[0]
        grads = torch.cat([p.grad.flatten() for p in group["params"]])
        found.append(group | {"class": type(optimizer), "norm": grads.norm().item(), "most": grads.abs().max().item()})

    handle = register_optimizer_step_pre_hook(watch)
    yield found
    handle.remove()


class Call(NamedTuple):
    module: nn.Module
    training: bool
    args: tuple[Any, ...]


@pytest.fixture
def calls() -> Iterator[list[Call]]:
    """Every call of a module."""
    found: list[Call] = []
    handle = register_module_forward_hook(lambda module, args, _: found.append(Call(module, module.training, args)))
    yield found
    handle.remove()


def of_network(calls: list[Call]) -> list[Call]:
    """Those behind the trial with a black image that a training begins with."""
    return [call for call in calls if isinstance(call.module, LeNet5)][1:]


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "last.safetensors")


def same(a: Path, b: Path) -> bool:
    first, second = weights(a), weights(b)
    return all(torch.equal(first[key], second[key]) for key in first)


# ------------------------------------------------------------------------------------------------------------- the data


@pytest.mark.parametrize("where", ["--in-memory", "--no-in-memory"])
def test_digits_are_learned_from_memory_and_from_files(train: Train, digits: Path, tmp_path: Path, where: str) -> None:
    done = train("--data-dir", digits, "--epochs", 4, "--batch-size", 32, "--hflip", 0, where)
    assert done.status == 0, done
    assert max(float(row["eval_top1"]) for row in rows(tmp_path / "out" / "run")) > 80  # chance is 10


@pytest.mark.parametrize(("options", "sizes"), [((), {4, 1}), (("--validation-batch-size", 3), {3, 2})])
@pytest.mark.parametrize("where", ["--in-memory", "--no-in-memory"])
def test_validation_has_a_batch_size_of_its_own(
    done: Callable[..., Path], calls: list[Call], options: tuple[object, ...], sizes: set[int], where: str
) -> None:
    done("--epochs", 1, where, *options)
    seen = {(call.training, len(call.args[0])) for call in of_network(calls)}
    assert seen == {(True, 4)} | {(False, size) for size in sizes}


def test_options_of_augmentation_reach_timms_transforms(
    done: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []
    opening = adderzoo.data.open_training_loader

    def watch(*args: Any, **options: Any) -> Any:
        opened.append(opening(*args, **options))
        return opened[-1]

    monkeypatch.setattr("adderzoo.data.open_training_loader", watch)
    areas = ("--train-crop-mode", "rrc", "--scale", 0.3, 0.7, "--ratio", 0.5, 2)
    done("--epochs", 1, *areas, "--hflip", 0.3, "--vflip", 0.4, "--color-jitter", 0.25, name="jitter")
    erasing = ("--reprob", 0.6, "--remode", "const", "--recount", 3)
    done("--epochs", 1, "--aa", "rand-m5-n3", *erasing, name="policy")
    jitter, policy = ({type(step).__name__: step for step in loader.dataset.transform.transforms} for loader in opened)
    assert jitter["RandomResizedCropAndInterpolation"].scale == (0.3, 0.7)
    assert jitter["RandomResizedCropAndInterpolation"].ratio == (0.5, 2)
    assert jitter["RandomHorizontalFlip"].p == 0.3
    assert jitter["RandomVerticalFlip"].p == 0.4
    assert jitter["ColorJitter"].brightness == (0.75, 1.25)
    assert policy["RandAugment"].num_layers == 3
    assert {operation.magnitude for operation in policy["RandAugment"].ops} == {5}
    erasing_step = policy["RandomErasing"]
    assert (erasing_step.probability, erasing_step.mode, erasing_step.max_count) == (0.6, "const", 3)
    assert "RandomErasing" not in jitter
    assert "RandAugment" not in jitter


@pytest.mark.parametrize("where", ["--in-memory", "--no-in-memory"])
def test_images_come_upside_down(done: Callable[..., Path], folder: Path, calls: list[Call], where: str) -> None:
    """Brighter below on disk, above in the network, whatever the shift of four pixels."""
    ramp = Image.fromarray(np.repeat(np.arange(0, 256, 8, dtype=np.uint8)[:, None], 32, 1))
    for path in folder.rglob("*.png"):
        ramp.save(path)
    done("--epochs", 1, "--hflip", 0, "--vflip", 1, where)
    for call in of_network(calls):
        middle = call.args[0][:, 0, :, 16]
        assert ((middle[:, 24] < middle[:, 8]) == call.training).all()


def test_mixing_is_timms_with_the_options_given_and_ends_when_told(
    done: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[tuple[Any, bool]] = []

    class Watched(timm.data.Mixup):
        def __call__(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
            used.append((self, self.mixup_enabled))
            return super().__call__(x, target)

    monkeypatch.setattr("adderzoo.engine.fitting.Mixup", Watched)
    options = ("--mixup", 0.3, "--cutmix", 0.7, "--mixup-prob", 0.9, "--mixup-switch-prob", 0.2, "--mixup-mode", "elem")
    done("--epochs", 3, *options, "--mixup-off-epoch", 2, "--smoothing", 0.15)
    mixing = used[0][0]
    assert (mixing.mixup_alpha, mixing.cutmix_alpha, mixing.mix_prob, mixing.switch_prob) == (0.3, 0.7, 0.9, 0.2)
    assert (mixing.mode, mixing.label_smoothing, mixing.num_classes) == ("elem", 0.15, 2)
    assert [enabled for _, enabled in used] == [True] * 4 + [False] * 2


@pytest.mark.parametrize("smoothing", [0, 0.3])
def test_the_loss_is_that_of_smoothed_labels(done: Callable[..., Path], calls: list[Call], smoothing: float) -> None:
    made = done("--epochs", 1, "--smoothing", smoothing)
    losses = []
    for call in calls:
        if isinstance(call.module, nn.CrossEntropyLoss):
            logits, labels = call.args[0].detach().double(), call.args[1]
            wanted = (1 - smoothing) * F.one_hot(labels, 2) + smoothing / 2
            losses.append(-(wanted * (logits - logits.exp().sum(1, keepdim=True).log())).sum(1).mean().item())
    assert len(losses) == 2
    assert float(rows(made)[0]["train_loss"]) == pytest.approx(sum(losses) / 2, rel=1e-5)


# ------------------------------------------------------------------------------------------------------------ the steps


@pytest.mark.parametrize(("mode", "clip"), [("norm", 0.01), ("value", 0.001)])
def test_gradients_are_clipped(done: Callable[..., Path], steps: list[dict[str, Any]], mode: str, clip: float) -> None:
    what = {"norm": "norm", "value": "most"}[mode]
    done("--model", "cnn_lenet5", "--epochs", 1, *PLAIN, name="free")
    assert all(step[what] > 2 * clip for step in steps)
    steps.clear()
    done("--model", "cnn_lenet5", "--epochs", 1, *PLAIN, "--clip-grad", clip, "--clip-mode", mode, name="clipped")
    assert [step[what] for step in steps] == pytest.approx([clip, clip], rel=1e-3)


def test_batches_are_accumulated(done: Callable[..., Path], steps: list[dict[str, Any]]) -> None:
    done("--epochs", 3, "--grad-accum-steps", 2)
    assert len(steps) == 3
    steps.clear()
    done("--epochs", 3, name="each")
    assert len(steps) == 6


def test_further_arguments_reach_optimizer_and_network(
    done: Callable[..., Path], steps: list[dict[str, Any]], calls: list[Call]
) -> None:
    made = done("--epochs", 1, "--opt", "adamw", "--opt-kwargs", "betas=(0.5,0.75)", "eps=1e-3", "amsgrad=True")
    assert steps[0]["class"].__name__ == "AdamW"
    assert (steps[0]["betas"], steps[0]["eps"], steps[0]["amsgrad"]) == ((0.5, 0.75), 1e-3, True)
    assert yaml.safe_load((made / "args.yaml").read_text())["opt_kwargs"]["eps"] == 1e-3
    calls.clear()
    done("--epochs", 1, "--model-kwargs", "drop_rate=0.25", "conv_layer=conv", name="network")
    (network,) = {call.module for call in of_network(calls)}
    assert network.drop_rate == 0.25
    assert not any(isinstance(module, Adder2d) for module in network.modules())


@pytest.mark.parametrize("filter_grad", ["full", "sign"])
@pytest.mark.parametrize("input_grad", ["hardtanh", "sign"])
def test_filters_and_inputs_get_the_gradients_that_were_chosen(
    done: Callable[..., Path], calls: list[Call], filter_grad: str, input_grad: str
) -> None:
    inputs, of_output, of_input, before = {}, {}, {}, {}

    def watch(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, Adder2d) and output.requires_grad:
            inputs[module], before[module] = args[0].detach().double(), module.weight.detach().double()
            output.register_hook(lambda grad: of_output.__setitem__(module, grad.double()))
            if args[0].requires_grad:
                args[0].register_hook(lambda grad: of_input.__setitem__(module, grad.double()))

    handle = register_module_forward_hook(watch)
    modes = ("--filter-grad", filter_grad, "--input-grad", input_grad)
    made = done("--epochs", 1, "--batch-size", 8, *PLAIN, *modes)
    handle.remove()
    (network,) = {call.module for call in of_network(calls)}
    learned, layers = weights(made), {name: m for name, m in network.named_modules() if isinstance(m, Adder2d)}
    assert len(layers) >= 3
    assert len(of_input) >= 2
    for name, layer in layers.items():
        geometry = {"kernel_size": layer.kernel_size, "padding": layer.padding, "stride": layer.stride}
        patches = F.unfold(inputs[layer], **geometry)
        difference = patches[:, None] - before[layer].flatten(1)[:, :, None]  # (N, O, K, L)
        grad = of_output[layer].flatten(2)
        slope = difference.sign() if filter_grad == "sign" else difference
        expected = torch.einsum("nol,nokl->ok", grad, slope).view_as(layer.weight)
        step = before[layer] - learned[f"{name}.weight"].double()
        torch.testing.assert_close(step, expected, rtol=1e-3, atol=1e-5, msg=name)
        if layer in of_input:
            slope = -(difference.sign() if input_grad == "sign" else difference.clamp(-1, 1))
            columns = torch.einsum("nol,nokl->nkl", grad, slope)
            expected = F.fold(columns, inputs[layer].shape[2:], **geometry)
            torch.testing.assert_close(of_input[layer], expected, rtol=1e-3, atol=1e-5, msg=name)


def test_filters_go_at_a_multiple_of_the_rate(done: Callable[..., Path]) -> None:
    """The filters go as far as at the full rate, and what is none hardly moves."""
    whole = done("--epochs", 1, "--batch-size", 8, *PLAIN, name="whole")
    plain = (*PLAIN[:-2], "--lr", 1e-4, "--filter-lr-scale", 1e4)
    scaled = done("--epochs", 1, "--batch-size", 8, *plain, name="scaled")
    still = done("--epochs", 1, "--batch-size", 8, *plain[:-2], "--lr", 1e-30, "--eta", 0, name="still")
    start = weights(still)
    for key in ("conv1.weight", "conv2.weight"):
        step = weights(whole)[key] - start[key]
        assert step.abs().max() > 1e-4
        torch.testing.assert_close(weights(scaled)[key] - start[key], step, rtol=1e-3, atol=1e-5)
    assert (weights(scaled)["bn1.bias"] - start["bn1.bias"]).abs().max() < 1e-3
    assert float(rows(scaled)[0]["lr"]) == 1e-4


@pytest.mark.parametrize("decay", [0, 1])
def test_averaged_weights_are_saved(done: Callable[..., Path], decay: int) -> None:
    """The average begins with the first step: a decay of 1 keeps its weights, one of 0 has the last ones."""
    averaged = done("--epochs", 2, "--batch-size", 8, "--model-ema", "--model-ema-decay", decay, name="averaged")
    expected = done("--epochs", 1 if decay else 2, "--batch-size", 8, name="plain")
    statistics = ("running_mean", "running_var", "num_batches_tracked")  # the average has its own
    learned = {key: value for key, value in weights(expected).items() if not key.endswith(statistics)}
    assert all(torch.equal(weights(averaged)[key], value) for key, value in learned.items())


def test_a_compiled_network_learns_what_any_other_does(done: Callable[..., Path]) -> None:
    torch._dynamo.reset()
    counters.clear()
    plain = done("--epochs", 2, name="plain")
    assert not counters["stats"]["unique_graphs"]
    compiled = done("--epochs", 2, "--torchcompile", "eager")
    assert counters["stats"]["unique_graphs"]
    assert same(compiled, plain)
    for row, other in zip(rows(compiled), rows(plain), strict=True):
        assert row | {"seconds": ""} == other | {"seconds": ""}


# ------------------------------------------------------------------------------------------------------------- the rate


def cosine(step: int, steps: int, least: float = 0.0) -> float:
    return least + (0.1 - least) * (1 + math.cos(math.pi * step / steps)) / 2


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ((), [cosine(epoch, 4) for epoch in range(4) for _ in range(2)]),
        (("--min-lr", 0.02), [cosine(epoch, 4, 0.02) for epoch in range(4) for _ in range(2)]),
        (("--sched-on-updates",), [cosine(step, 8) for step in range(8)]),
        (("--sched-on-updates", "--grad-accum-steps", 2), [cosine(step, 4) for step in range(4)]),
        (
            ("--warmup-epochs", 2, "--warmup-lr", 0.02),
            [rate for rate in (0.02, 0.06, cosine(2, 4), cosine(3, 4)) for _ in range(2)],
        ),
        (
            ("--sched-on-updates", "--warmup-epochs", 1, "--warmup-lr", 0.02),
            [0.02, 0.06, *(cosine(step, 8) for step in range(2, 8))],
        ),
        (
            ("--sched", "multistep", "--decay-milestones", 2, 4, "--decay-rate", 0.5),
            [rate for rate in (0.1, 0.05, 0.05, 0.025) for _ in range(2)],
        ),
        (
            ("--sched", "step", "--decay-epochs", 2, "--decay-rate", 0.2),
            [rate for rate in (0.1, 0.1, 0.02, 0.02) for _ in range(2)],
        ),
        (  # the last fifth
            ("--epochs", 10, "--sched", "wsd"),
            [rate for rate in (*[0.1] * 9, 0.1 * (1 - math.sqrt(0.5))) for _ in range(2)],
        ),
        (("--sched", "poly", "--decay-rate", 2), [0.1 * (1 - epoch / 4) ** 2 for epoch in range(4) for _ in range(2)]),
        (("--sched", "none"), [0.1] * 8),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_the_rate_of_every_step_is_that_of_the_schedule(
    done: Callable[..., Path], steps: list[dict[str, Any]], options: tuple[object, ...], rates: list[float]
) -> None:
    made = done("--epochs", 4, *options)
    assert [step["lr"] for step in steps] == pytest.approx(rates)
    table = rows(made)
    assert [float(row["lr"]) for row in table] == pytest.approx(rates[:: len(rates) // len(table)])


# ----------------------------------------------------------------------------------------------------- what it leaves


def test_tensorboards_events_are_the_lines_of_the_summary(done: Callable[..., Path]) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    made = done("--epochs", 3, "--log-tensorboard")
    content = events.EventAccumulator(str(made)).Reload()
    names = {
        **{"train/loss": "train_loss", "train/top1": "train_top1", "eval/loss": "eval_loss", "eval/top1": "eval_top1"},
        **{"eval/top1_se": "eval_top1_se", "eval/top5": "eval_top5", "lr": "lr", "seconds": "seconds"},
    }
    assert set(content.Tags()["scalars"]) == names.keys()
    table = rows(made)
    for name, column in names.items():
        events_of = content.Scalars(name)
        assert [event.step for event in events_of] == [1, 2, 3]
        assert [event.value for event in events_of] == pytest.approx([float(row[column]) for row in table], rel=1e-6)


def test_the_curves_are_a_picture(done: Callable[..., Path]) -> None:
    with Image.open(done("--epochs", 2) / "curves.png") as image:
        assert image.format == "PNG"
        assert image.width > image.height > 300
        assert len(set(image.convert("L").tobytes())) > 10


def test_without_matplotlib_a_training_has_no_curves_and_says_so(
    train: Train, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = train("--data-dir", folder, "--epochs", 1, "--batch-size", 4)
    assert done.status == 0
    assert "no curves.png without matplotlib" in done.err
    assert not (tmp_path / "out" / "run" / "curves.png").exists()


def test_arguments_with_several_values_are_those_of_the_training_that_is_resumed(done: Callable[..., Path]) -> None:
    options = ("--epochs", 1, "--opt", "adamw", "--opt-kwargs", "betas=(0.5,0.75)")
    made = done(*options)
    before = weights(made)
    assert done(*options, "--resume") == made
    assert all(torch.equal(value, before[key]) for key, value in weights(made).items())


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--aa", "magic"), "aa 'magic' cannot be used: Unknown AA policy magic"),
        (("--in-memory", "--aa", "rand-m9"), "in-memory images are only shifted and flipped"),
        (("--train-crop-mode", "rrc", "--scale", 0.5, 0.1), "scale must be two numbers above 0, the smaller first"),
        (("--train-crop-mode", "rrc", "--ratio", 0, 1), "ratio must be two numbers above 0, the smaller first"),
        (("--scale", 0.5, 1), "scale and ratio are for areas: train-crop-mode must be rrc, rkrc or rkrr, got pad"),
        (("--ratio", 0.5, 1), "scale and ratio are for areas: train-crop-mode must be rrc, rkrc or rkrr, got pad"),
        (("--vflip", -0.1), "vflip must be from 0 to 1, got -0.1"),
        (("--reprob", 2), "reprob must be from 0 to 1, got 2.0"),
        (("--recount", 0), "recount must be at least 1, got 0"),
        (("--color-jitter", -1), "color-jitter must be a finite number from 0, got -1.0"),
        (("--mixup", -1), "mixup must be a finite number from 0, got -1.0"),
        (("--cutmix", "inf"), "cutmix must be a finite number from 0, got inf"),
        (("--mixup", 1, "--mixup-prob", 2), "mixup-prob must be from 0 to 1, got 2.0"),
        (("--mixup", 1, "--batch-size", 3), "batch-size must be even for mixup and CutMix, got 3"),
        (("--mixup-off-epoch", -1), "mixup-off-epoch must be at least 0, got -1"),
        (("--smoothing", 1.5), "smoothing must be from 0 to 1, got 1.5"),
        (("--clip-grad", 0), "clip-grad must be a finite number above 0, got 0.0"),
        (("--grad-accum-steps", 0), "grad-accum-steps must be at least 1, got 0"),
        (("--model-ema-decay", 1.1), "model-ema-decay must be from 0 to 1, got 1.1"),
        (("--filter-lr-scale", 0), "filter-lr-scale must be a finite number above 0, got 0.0"),
        (("--lr", "nan"), "lr must be a finite number, got nan"),
        (("--momentum", "nan"), "momentum must be a finite number from 0, got nan"),
        (("--weight-decay", "inf"), "weight-decay must be a finite number from 0, got inf"),
        (("--min-lr", -1), "min-lr must be a finite number from 0, got -1.0"),
        (("--warmup-lr", "nan"), "warmup-lr must be a finite number from 0, got nan"),
        (("--decay-milestones", 3, 1), "decay-milestones must be rising epochs from 1, got [3, 1]"),
        (("--decay-milestones", 0), "decay-milestones must be rising epochs from 1, got [0]"),
        (("--decay-epochs", 0), "decay-epochs must be a finite number above 0, got 0.0"),
        (("--decay-rate", 0), "decay-rate must be a finite number above 0, got 0.0"),
        (("--sched", "plateau", "--sched-on-updates"), "sched 'plateau' cannot be used"),
        (("--opt-kwargs", "nonsense=1"), "opt 'momentum' cannot be used: "),
        (("--opt", "adamw", "--opt-kwargs", "betas=(0.9,)"), "opt 'adamw' cannot be used: "),
        (("--opt-kwargs", "weight_decay=1"), "opt-kwargs must not have weight_decay: there is --weight-decay"),
        (("--model-kwargs", "nonsense=1"), "model-kwargs cannot be used: "),
        (("--model-kwargs", "drop_rate=abc"), "model-kwargs cannot be used: "),
        (
            ("--model-kwargs", "key=1j"),
            "model-kwargs key must be a finite number, a text, True, False, None or a list",
        ),
        (("--opt-kwargs", "key=[1j]"), "opt-kwargs key must be a finite number, a text, True, False, None or a list"),
        (("--model-kwargs", "num_classes=3"), "model-kwargs must not have num_classes: there is --num-classes"),
        (("--model-kwargs", "in_chans=3"), "model-kwargs must not have in_chans: there is --in-chans"),
        (("--validation-batch-size", 0), "validation-batch-size must be at least 1, got 0"),
        (("--img-size", 3), "img-size 3 cannot be used: "),
        (("--torchcompile", "magic"), "torchcompile cannot be used: Invalid backend: 'magic'"),
        (("--resume", "--experiment", ""), "resume needs --experiment"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_bad_values_are_one_line_and_nothing_is_written(
    train: Train, folder: Path, tmp_path: Path, arguments: tuple[object, ...], message: str
) -> None:
    done = train("--data-dir", folder, "--epochs", 1, "--batch-size", 4, *arguments)
    assert done.error.startswith(f"adderzoo train: error: {message}")
    assert not (tmp_path / "out").exists()


def test_a_log_without_tensorboard_is_one_line_and_nothing_is_written(
    train: Train, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    done = train("--data-dir", folder, "--epochs", 1, "--batch-size", 4, "--log-tensorboard")
    assert "log-tensorboard needs tensorboard: pip install 'adderzoo[log]'" in done.error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--opt-kwargs", "--model-kwargs"])
@pytest.mark.parametrize("text", ["key", "=1"])
def test_further_arguments_have_a_key_and_a_value(
    train: Train, folder: Path, tmp_path: Path, option: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        train("--data-dir", folder, option, text)
    assert f"must be KEY=VALUE, got {text!r}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
