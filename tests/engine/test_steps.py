"""What the options of a recipe do to a step, against arithmetic by hand."""

import copy
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from test_training import Batch, batches, lenet, result, training
from timm.data import Mixup
from timm.utils import ModelEmaV3, NativeScaler
from torch import Tensor, nn

from adderzoo.engine import Recipe, Training, create_optimizer, create_scheduler, run_epochs, write_epoch
from adderzoo.layers import Adder2d


class FrozenNorm(nn.BatchNorm2d):
    """In evaluation mode whatever happens: a batch in two halves is the whole batch."""

    def train(self, mode: bool = True) -> "FrozenNorm":
        return super().train(False)


def tiny(layer: type[nn.Module] = Adder2d) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        layer(1, 4, 3, stride=4, bias=False), FrozenNorm(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8 * 8, 10)
    )
    nn.init.constant_(model[1].running_mean, -10.0 if layer is Adder2d else 0.0)
    return model


def gradients(model: nn.Module, x: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Of the mean loss, in float64."""
    model = copy.deepcopy(model).double().train()
    loss = F.cross_entropy(model(x.double()), target)
    return dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, [*model.parameters()]), strict=True))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in model.named_parameters()}


def steps(model: nn.Module, data: list[Batch], recipe: Recipe, scaled: bool = False, **options: object) -> Training:
    """An epoch of plain SGD with a learning rate of 1."""
    optimizer = create_optimizer(model, lr=1.0, momentum=0.0, weight_decay=0.0, **options)  # type: ignore[arg-type]
    state = Training(model, optimizer, scaler=NativeScaler("cpu") if scaled else None)
    list(run_epochs(state, data, 1, recipe=recipe))
    return state


# ------------------------------------------------------------------------------------------------------------- clipping


def norm_of(grads: dict[str, Tensor]) -> float:
    return math.sqrt(sum(grad.square().sum().item() for grad in grads.values()))


def clipped_unit(grad: Tensor, weight: Tensor, clip: float) -> Tensor:
    """Of a filter at most `clip` times the filter's own norm (adaptive gradient clipping)."""
    dims = tuple(range(1, grad.ndim)) if grad.ndim > 1 else (0,)
    limit = clip * weight.double().square().sum(dims, keepdim=True).sqrt().clamp(min=1e-3)
    norm = grad.square().sum(dims, keepdim=True).sqrt()
    return torch.where(norm > limit, grad * limit / norm, grad)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("mode", ["norm", "value", "agc"])
def test_a_step_is_bounded_by_clip_grad(mode: str, accumulate: int, scaled: bool) -> None:
    model, data = tiny(nn.Conv2d), batches(accumulate, 8)
    model.pretrained_cfg = {"classifier": "4"}
    before = weights(model)
    x, target = torch.cat([images for images, _ in data]), torch.cat([labels for _, labels in data])
    grads = gradients(model, x, target)
    clip = {"norm": norm_of(grads) / 3, "value": grads["4.weight"].abs().max().item() / 3, "agc": 0.02}[mode]
    steps(model, data, Recipe(clip_grad=clip, clip_mode=mode, accumulate=accumulate), scaled)
    expected = {
        "norm": {key: grad / 3 for key, grad in grads.items()},
        "value": {key: grad.clamp(-clip, clip) for key, grad in grads.items()},
        "agc": {
            key: grad if key.startswith("4.") else clipped_unit(grad, before[key], clip) for key, grad in grads.items()
        },
    }[mode]
    assert any(not torch.equal(expected[key], grad) for key, grad in grads.items())
    assert not torch.equal(clipped_unit(grads["4.weight"], before["4.weight"], 0.02), grads["4.weight"])
    for key, weight in weights(model).items():
        torch.testing.assert_close((before[key] - weight).double(), expected[key], rtol=1e-3, atol=1e-6, msg=key)


@pytest.mark.parametrize("scaled", [False, True])
def test_a_gradient_within_clip_grad_is_left_alone(scaled: bool) -> None:
    model, ((x, target),) = tiny(nn.Conv2d), batches(1)
    before, grads = weights(model), gradients(model, x, target)
    steps(model, [(x, target)], Recipe(clip_grad=1.5 * norm_of(grads)), scaled)
    for key, weight in weights(model).items():
        torch.testing.assert_close((before[key] - weight).double(), grads[key], rtol=1e-3, atol=1e-6, msg=key)


# --------------------------------------------------------------------------------------------------------- accumulation


@pytest.mark.parametrize("layer", [Adder2d, nn.Conv2d])
@pytest.mark.parametrize(("count", "together"), [(4, (2, 2)), (3, (2, 1)), (5, (5,))])
def test_accumulated_batches_are_a_step_of_all_their_images(
    layer: type[nn.Module], count: int, together: tuple[int, ...]
) -> None:
    data = batches(count, 6)
    whole = [
        (torch.cat(x), torch.cat(target)) for x, target in (zip(*part, strict=True) for part in _cut(data, together))
    ]
    models = {accumulate: tiny(layer) for accumulate in (1, together[0])}
    state = steps(models[together[0]], data, Recipe(accumulate=together[0]))
    other = steps(models[1], whole, Recipe())
    assert state.step == other.step == len(together)
    expected = weights(other.model)
    for key, weight in weights(state.model).items():
        torch.testing.assert_close(weight, expected[key], rtol=1e-4, atol=1e-5, msg=key)


def _cut(data: list[Batch], sizes: tuple[int, ...]) -> Iterator[list[Batch]]:
    left = iter(data)
    for size in sizes:
        yield [next(left) for _ in range(size)]


# -------------------------------------------------------------------------------------------------------------- average


def average(history: list[dict[str, Tensor]], decay: float, warmup: bool) -> dict[str, Tensor]:
    """By hand: the weights after the first step, then `decay` of the average and the rest of each step's weights."""
    mean = {key: value.double() for key, value in history[0].items()}
    for step, now in enumerate(history[1:], start=1):
        share = min(decay, 1 - (1 + step) ** (-2 / 3)) if warmup else decay
        mean = {key: share * mean[key] + (1 - share) * now[key].double() for key in mean}
    return mean


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("decay", "warmup"), [(0.7, False), (0.55, True)])
def test_what_is_saved_and_validated_is_the_average_of_the_weights(
    tmp_path: Path, decay: float, warmup: bool, accumulate: int
) -> None:
    state = training(lenet(), epochs=2)
    state.ema = ModelEmaV3(state.model, decay, use_warmup=warmup)
    history: list[dict[str, Tensor]] = []

    def floats() -> dict[str, Tensor]:
        return {key: value.clone() for key, value in state.model.state_dict().items() if value.is_floating_point()}

    state.optimizer.register_step_post_hook(lambda *_: history.append(floats()))
    validated = []

    def validate(model: nn.Module) -> object:
        validated.append({key: value.clone() for key, value in model.state_dict().items()})
        return result(50.0)

    for _ in run_epochs(state, batches(4), 2, validate, Recipe(accumulate=accumulate)):  # type: ignore[arg-type]
        write_epoch(tmp_path, state, {})
    assert len(history) == 8 // accumulate
    expected = average(history, decay, warmup)
    saved = load_file(tmp_path / "last.safetensors")
    for key, value in expected.items():
        if "running" in key:  # the average has BatchNorm statistics of its own
            continue
        torch.testing.assert_close(saved[key].double(), value, rtol=1e-5, atol=1e-5, msg=key)
    assert all(torch.equal(validated[-1][key], value) for key, value in saved.items())
    assert not torch.allclose(saved["conv2.weight"], state.model.state_dict()["conv2.weight"], atol=1e-3)


# ---------------------------------------------------------------------------------------------------------- the filters


@pytest.mark.parametrize("scale", [0.25, 30.0])
def test_filters_step_at_filter_lr_scale_times_the_rate_along_their_gradient(scale: float) -> None:
    model, ((x, target),) = tiny(), batches(1)
    before, grads = weights(model), gradients(model, x, target)
    state = steps(model, [(x, target)], Recipe(), filter_lr_scale=scale)
    for key, weight in weights(model).items():
        expected = grads[key] * (scale if key == "0.weight" else 1)
        torch.testing.assert_close((before[key] - weight).double(), expected, rtol=1e-3, atol=1e-5, msg=key)
    assert grads["0.weight"].abs().max() > 1e-3
    assert state.model is model


# ----------------------------------------------------------------------------------------------------- mixup and CutMix


class Planes:
    """Images of one channel a class, that of their own class at 1 and the others at 0; anew in each epoch."""

    def __len__(self) -> int:
        return 8

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(8):
            labels = torch.randint(4, (6,))
            yield F.one_hot(labels, 4)[:, :, None, None].float().repeat(1, 1, 8, 8), labels


class Mean(nn.Module):
    """What part of a picture is of which class."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) + 0 * self.unused


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 0.8), (0.8, 0.8)])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_labels_are_mixed_as_their_pictures_are(mixup: float, cutmix: float, mode: str, smoothing: float) -> None:
    mixed: list[int] = []

    class Loss(nn.Module):
        def forward(self, pictured: Tensor, target: Tensor) -> Tensor:
            expected = (1 - smoothing) * pictured + smoothing / 4
            torch.testing.assert_close(target, expected, rtol=0, atol=1e-5)
            mixed.append(int(((pictured > 0.01) & (pictured < 0.99)).any(1).sum()))
            return pictured.sum()

    mixing = Mixup(mixup, cutmix, mode=mode, label_smoothing=smoothing, num_classes=4)
    recipe = Recipe(loss=Loss(), mixup=mixing, mixup_off_epoch=2)
    list(run_epochs(training(Mean(), epochs=3), Planes(), 3, recipe=recipe))
    assert [any(mixed[8 * epoch : 8 * epoch + 8]) for epoch in range(3)] == [True, True, False]
    mixed.clear()
    list(run_epochs(training(Mean(), epochs=3), Planes(), 3, recipe=Recipe(loss=Loss(), mixup=mixing)))
    assert all(any(mixed[8 * epoch : 8 * epoch + 8]) for epoch in range(3))


def test_accuracy_in_training_is_that_of_the_images_own_labels() -> None:
    pictures: list[Tensor] = []

    class Loss(nn.Module):
        def forward(self, pictured: Tensor, target: Tensor) -> Tensor:
            pictures.append(pictured.detach())
            return pictured.sum()

    own: list[Tensor] = []

    class Watched(Planes):
        def __iter__(self) -> Iterator[Batch]:
            for x, labels in super().__iter__():
                own.append(labels)
                yield x, labels

    mixing = Mixup(1.0, mode="elem", num_classes=4)
    (report,) = run_epochs(training(Mean(), epochs=1), Watched(), 1, recipe=Recipe(loss=Loss(), mixup=mixing))
    right = (torch.cat(pictures).argmax(1) == torch.cat(own)).float().mean().item()
    assert 0.2 < right < 0.95
    assert report.train_top1 == pytest.approx(100 * right)


# ------------------------------------------------------------------------------------------------------------- the rate


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_schedule_on_updates_changes_the_rate_after_every_step(accumulate: int) -> None:
    model, updates = lenet(), math.ceil(5 / accumulate)
    optimizer = create_optimizer(model, lr=0.1)
    scheduler = create_scheduler(optimizer, "cosine", 3, updates, min_lr=0.01)
    rates: list[float] = []
    optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    list(run_epochs(Training(model, optimizer, scheduler), batches(5, 2), 3, recipe=Recipe(accumulate=accumulate)))
    total = 3 * updates
    assert rates == pytest.approx([0.01 + 0.045 * (1 + math.cos(math.pi * t / total)) for t in range(total)])


def rates_of_parameters(sched: str, epochs: int, eta: float, **options: object) -> list[dict[str, float]]:
    """In each epoch, the rate of each parameter."""
    model, found = lenet(), []
    optimizer = create_optimizer(model, "adamw", lr=1e-3, eta=eta, layer_decay=options.pop("layer_decay", None))
    scheduler = create_scheduler(optimizer, sched, epochs, **options)  # type: ignore[arg-type]
    names = {parameter: name for name, parameter in model.named_parameters()}
    optimizer.register_step_pre_hook(
        lambda optimizer, *_: found.append({names[p]: g["lr"] for g in optimizer.param_groups for p in g["params"]})
    )
    list(run_epochs(Training(model, optimizer, scheduler), batches(1, 2), epochs))
    return found


@pytest.mark.parametrize("layer_decay", [None, 0.5])
@pytest.mark.parametrize(
    ("sched", "options"),
    [
        ("cosine", {"min_lr": 5e-4}),
        ("poly", {"min_lr": 5e-4, "warmup_epochs": 2, "warmup_lr": 4e-4}),
        ("step", {"decay_epochs": 2, "warmup_epochs": 1, "warmup_lr": 4e-4}),
        ("none", {}),
    ],
)
def test_the_rate_of_filters_is_their_multiple_of_the_whole_schedule(
    sched: str, options: dict[str, float], layer_decay: float | None
) -> None:
    """Of its least rate and of its warm-up too."""
    plain, scaled = (rates_of_parameters(sched, 5, eta, layer_decay=layer_decay, **options) for eta in (0.0, 0.2))
    filters = {name for name, p in lenet().named_parameters() if getattr(p, "is_adder_filter", False)}
    assert len(filters) >= 3
    assert max(plain[0].values()) == pytest.approx(options.get("warmup_lr", 1e-3))
    for got, expected in zip(scaled, plain, strict=True):
        assert got == pytest.approx({name: lr * (0.2 if name in filters else 1) for name, lr in expected.items()})


@pytest.mark.parametrize("options", [{"filter_lr_scale": 40.0}, {"opt": "adamw", "eta": 5.0}])
def test_the_rate_that_is_reported_is_not_that_of_the_filters(options: dict[str, object]) -> None:
    state = training(lenet(), epochs=2, lr=0.1, **options)
    assert [report.lr for report in run_epochs(state, batches(1), epochs=2)] == pytest.approx([0.1, 0.05])


@pytest.mark.parametrize("scale", [0.1, 100.0])
def test_filter_lr_scale_multiplies_the_gradient_and_leaves_weight_decay_alone(scale: float) -> None:
    """The paper's "increased learning rate": with a hundred times the weight decay too, its networks do not learn."""
    (x, target), lr, decay = batches(1)[0], 0.01, 0.1
    model = lenet()
    before = model.conv2.weight.detach().clone()
    (grad,) = torch.autograd.grad(F.cross_entropy(model.train()(x), target), model.conv2.weight)
    fresh = lenet()
    optimizer = create_optimizer(fresh, lr=lr, weight_decay=decay, filter_lr_scale=scale)
    list(run_epochs(Training(fresh, optimizer), [(x, target)], 1))
    expected = before.double() - lr * (scale * grad.double() + decay * before.double())
    torch.testing.assert_close(fresh.conv2.weight.detach().double(), expected, rtol=1e-5, atol=1e-6)
