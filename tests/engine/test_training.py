import re

import pytest
import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from timm.data import Mixup
from timm.utils import ModelEmaV3, NativeScaler
from torch import Tensor, nn

from adderzoo.engine import Recipe, Result, Training, create_optimizer, create_scheduler, run_epochs
from adderzoo.optim import adaptive_lr

Batch = tuple[Tensor, Tensor]


def batches(count: int = 3, size: int = 8, seed: int = 0) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, 1, 32, 32, generator=generator),
            torch.randint(10, (size,), generator=generator),
        )
        for _ in range(count)
    ]


def lenet(name: str = "adder_lenet5") -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name)


def training(model: nn.Module, epochs: int = 2, sched: str = "cosine", **options: object) -> Training:
    optimizer = create_optimizer(model, **options)  # type: ignore[arg-type]
    return Training(model, optimizer, create_scheduler(optimizer, sched, epochs))


def result(top1: float, loss: float = 1.0) -> Result:
    return Result(top1, 1.0, 100.0, 0.0, loss, 100, 1.0)


# ------------------------------------------------------------------------------------------------------------ the steps


@pytest.mark.parametrize(("opt", "nesterov"), [("momentum", False), ("sgd", True), ("addersgd", True)])
def test_the_steps_are_those_of_a_loop_by_hand(opt: str, nesterov: bool) -> None:
    data = batches()
    trained = lenet()
    list(run_epochs(training(trained, opt=opt), data, epochs=2))

    model = lenet().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=nesterov, weight_decay=5e-4)
    adaptive_lr(optimizer, eta=0.2)
    for lr in (0.1, 0.05):  # a cosine over two epochs
        optimizer.param_groups[0]["lr"] = lr
        for x, target in data:
            optimizer.zero_grad()
            F.cross_entropy(model(x), target).backward()
            optimizer.step()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[key], value, rtol=1e-5, atol=1e-5, msg=key)


@pytest.mark.parametrize("eta", [0.5, 0.2])
def test_eta_is_the_size_of_a_filters_step(eta: float) -> None:
    model = lenet()
    before = model.conv2.weight.detach().clone()
    list(run_epochs(training(model, epochs=1, eta=eta, weight_decay=0.0, lr=0.1), batches(1), epochs=1))
    rms = (model.conv2.weight.detach() - before).square().mean().sqrt().item()
    assert rms == pytest.approx(0.1 * eta, rel=1e-3)


def test_eta_0_leaves_the_gradient_as_it_is() -> None:
    model, (x, target) = lenet(), batches(1)[0]
    loss = F.cross_entropy(model.train()(x), target)
    (grad,) = torch.autograd.grad(loss, model.conv2.weight)
    before = model.conv2.weight.detach().clone()
    fresh = lenet()
    list(run_epochs(training(fresh, epochs=1, eta=0.0, weight_decay=0.0, lr=0.1), [(x, target)], epochs=1))
    torch.testing.assert_close(before - 0.1 * grad, fresh.conv2.weight.detach(), rtol=1e-4, atol=1e-6)


def test_every_parameter_decays_batchnorms_too() -> None:
    optimizer = create_optimizer(lenet(), weight_decay=5e-4)
    parameters = [p for group in optimizer.param_groups if group["weight_decay"] == 5e-4 for p in group["params"]]
    assert len(parameters) == len(list(lenet().parameters()))


@pytest.mark.parametrize("name", ["shift_resnet20", "shiftadd_resnet20"])
def test_shifts_and_signs_do_not_decay(name: str) -> None:
    model = timm.create_model(name)
    spared = {id(p) for key, p in model.named_parameters() if key.endswith((".shift", ".sign"))}
    groups = create_optimizer(model, weight_decay=5e-4).param_groups
    assert {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]} == spared
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


@pytest.mark.parametrize("conv_layer", ["binary", "xnor", "shift", "shiftadd"])
def test_networks_of_other_kinds_of_layers_learn_digits(conv_layer: str) -> None:
    """On one half of scikit-learn's; chance is 10 %."""
    digits = load_digits()
    images = torch.tensor(digits.images[:, None] / 8 - 1, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    torch.manual_seed(0)
    model = timm.create_model("adder_resnet20", conv_layer=conv_layer, layers=(1, 1, 1), widths=(8, 16, 32), in_chans=1)
    data = list(zip(images[:896].split(64), labels[:896].split(64), strict=True))
    list(run_epochs(training(model, epochs=6), data, epochs=6))
    with torch.no_grad():
        right = model.eval()(images[896:]).argmax(1) == labels[896:]
    assert right.float().mean() > 0.6


def test_the_adaptive_rate_is_left_out_where_there_are_no_adder_filters() -> None:
    assert "adder_eta" in create_optimizer(lenet()).defaults
    assert "adder_eta" not in create_optimizer(lenet("cnn_lenet5")).defaults


def test_adam_has_its_own_rule_and_its_own_default_rate() -> None:
    groups = create_optimizer(lenet(), "adamw", eta=0.2).param_groups
    assert sorted({group["lr"] for group in groups}) == pytest.approx([2e-4, 1e-3])


@pytest.mark.parametrize("opt", ["sgd", "nesterov", "sgdc", "sgdp", "sgdw", "nesterovw", "csgdw", "lookahead_sgd"])
def test_sgd_has_the_same_default_rate_in_all_its_variants(opt: str) -> None:
    assert {group["lr"] for group in create_optimizer(lenet(), opt).param_groups} == {0.1}


@pytest.mark.parametrize("opt", ["lars", "madgrad", "lookahead_lars"])
def test_an_optimizer_without_a_rule_for_filters_is_used_where_it_needs_none(opt: str) -> None:
    with pytest.raises(ValueError, match=f"opt '{opt}' has no rule for adder filters: eta must be 0 or"):
        create_optimizer(lenet(), opt)
    create_optimizer(lenet("cnn_lenet5"), opt)
    for options in ({"eta": 0.0}, {"filter_lr_scale": 10.0}):
        list(run_epochs(training(lenet(), epochs=1, opt=opt, **options), batches(1), epochs=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opt": "magic"}, "opt 'magic' cannot be used: .*not found"),
        ({"opt": "adahessian"}, "opt 'adahessian' cannot be used: it needs second derivatives"),
        ({"opt": "adahessian", "eta": 0.0}, "opt 'adahessian' cannot be used: it needs second derivatives"),
        ({"opt": "lookahead_adahessian"}, "opt 'lookahead_adahessian' cannot be used: it needs second derivatives"),
        ({"opt": "adafactor"}, "lr must be given for opt 'adafactor', which has no default, got None"),
        ({"opt": "adafactor", "eta": 0.0}, "lr must be given for opt 'adafactor', which has no default, got None"),
        ({"lr": -1.0}, "opt 'momentum' cannot be used: Invalid learning rate: -1.0"),
        ({"eta": -1.0}, "eta must be a finite number above 0, got -1.0"),
    ],
)
def test_an_optimizer_that_cannot_be_had_is_a_value_error(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_optimizer(lenet(), **options)  # type: ignore[arg-type]


def test_a_scheduler_that_cannot_be_had_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="sched 'magic' cannot be used: Unknown scheduler"):
        create_scheduler(create_optimizer(lenet()), "magic", 2)


# ------------------------------------------------------------------------------------------------------------- the loop


def test_an_epoch_reports_the_mean_loss_and_accuracy_of_its_batches() -> None:
    class Fixed(nn.Module):
        """Its images are the logits, whatever is learned."""

        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) + 0 * self.unused

    logits = torch.tensor([[4.0, 0, 0], [0, 4, 0], [0, 0, 4], [4, 0, 0]])[:, :, None, None]
    labels = torch.tensor([0, 1, 2, 2])
    data = [(logits[:2], labels[:2]), (logits[2:], labels[2:])]
    (report,) = run_epochs(training(Fixed(), epochs=1), data, epochs=1)
    assert report.train_top1 == 75
    assert report.train_loss == pytest.approx(F.cross_entropy(logits.flatten(1), labels).item(), rel=1e-6)


def test_each_epoch_has_the_rate_of_the_schedule_and_what_validation_found() -> None:
    state = training(lenet(), epochs=4)
    reports = list(run_epochs(state, batches(1), epochs=4, validate=lambda model: result(len(state.history))))
    assert [report.lr for report in reports] == pytest.approx([0.1, 0.0853553, 0.05, 0.0146447], rel=1e-5)
    assert [report.eval_top1 for report in reports] == [0, 1, 2, 3]
    assert [report.epoch for report in reports] == [1, 2, 3, 4]
    assert state.step == 4


@pytest.mark.filterwarnings("ignore:PlateauLRScheduler is deprecated")
def test_a_schedule_that_goes_by_validation_accuracy_sees_it() -> None:
    state = training(lenet(), epochs=14, sched="plateau")
    reports = list(run_epochs(state, batches(1, 2), epochs=14, validate=lambda model: result(50.0)))
    assert reports[0].lr == 0.1
    assert reports[-1].lr == pytest.approx(0.01)


def test_no_schedule_leaves_the_rate_alone() -> None:
    reports = list(run_epochs(training(lenet(), sched="none"), batches(1), epochs=2))
    assert [report.lr for report in reports] == [0.1, 0.1]


def test_training_goes_on_in_training_mode_after_a_validation() -> None:
    modes = []

    class Watched(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            modes.append(self.training)
            return super().forward(x)

    model = nn.Sequential(Watched(1), nn.Flatten(), nn.Linear(1024, 10))

    def validate(model: nn.Module) -> Result:
        model.eval()
        return result(0)

    list(run_epochs(training(model), batches(1), 2, validate))
    assert modes == [True, True]


def test_a_training_with_a_history_goes_on_behind_it() -> None:
    state = training(lenet(), epochs=3)
    data = batches(1)
    list(run_epochs(state, data, epochs=1))
    assert [report.epoch for report in run_epochs(state, data, epochs=3)] == [2, 3]
    whole = training(lenet(), epochs=3)
    list(run_epochs(whole, data, epochs=3))
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, state.model.state_dict()[key]), key


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_loss_that_is_not_finite_ends_the_training_and_names_the_batch(bad: float, step: int) -> None:
    class Loss(nn.Module):
        calls = 0

        def forward(self, logits: Tensor, target: Tensor) -> Tensor:
            self.calls += 1
            return F.cross_entropy(logits, target) + (bad if self.calls == step else 0)

    where = f"the loss is {bad} at batch {(step - 1) % 3 + 1} of epoch {(step - 1) // 3 + 1}:"
    reports = []
    with pytest.raises(ValueError, match=where):
        reports += run_epochs(training(lenet()), batches(3), 2, recipe=Recipe(loss=Loss()))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["conv2.weight", "bn1.running_var"])
@pytest.mark.parametrize("averaged", [False, True])
def test_a_network_that_dies_in_the_last_step_of_an_epoch_ends_the_training(
    bad: float, key: str, averaged: bool
) -> None:
    """Every loss of the epoch comes before that step."""
    state, steps = training(lenet(), epochs=3), []
    # A decay of 1 keeps the weights of the first step: the average does not see the last one.
    state.ema = ModelEmaV3(state.model, decay=1.0) if averaged else None

    def die(*_: object) -> None:
        steps.append(1)
        if len(steps) == 6:
            state.model.state_dict()[key].view(-1)[0] = bad

    state.optimizer.register_step_post_hook(die)
    with pytest.raises(ValueError, match=f"^{key} is not finite at the end of epoch 2: a lower learning rate may help"):
        list(run_epochs(state, batches(3), 3, validate=lambda model: result(50.0)))
    assert len(state.history) == 1


def test_an_average_that_dies_ends_the_training_too() -> None:
    state = training(lenet())
    state.ema = ModelEmaV3(state.model)
    state.ema.module.conv2.weight.data[0] = float("nan")
    state.ema.update = lambda *_, **__: None  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="not finite at the end of epoch 1"):
        list(run_epochs(state, batches(1), 2))
    assert state.history == []


def test_an_evaluation_loss_that_is_not_finite_ends_the_training() -> None:
    """The weights may be finite and the logits too large."""
    state, found = training(lenet(), epochs=3), iter((1.0, float("nan")))
    with pytest.raises(ValueError, match=r"^the evaluation loss is nan at the end of epoch 2: a lower learning rate"):
        list(run_epochs(state, batches(1), 3, validate=lambda model: result(50.0, next(found))))
    assert len(state.history) == 1


@pytest.mark.parametrize("mixup", [None, Mixup(num_classes=10)], ids=["", "mixup"])
def test_a_label_that_the_network_does_not_know_is_a_value_error(mixup: Mixup | None) -> None:
    data = [(torch.zeros(2, 1, 32, 32), torch.tensor([0, 10]))]
    with pytest.raises(ValueError, match="among the network's 10 classes"):
        list(run_epochs(training(lenet()), data, epochs=1, recipe=Recipe(mixup=mixup)))


def test_an_error_of_mixup_that_is_not_about_labels_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(Mixup, "__call__", fail)
    with pytest.raises(torch.OutOfMemoryError, match="no memory left"):
        list(run_epochs(training(lenet()), batches(1), epochs=1, recipe=Recipe(mixup=Mixup(num_classes=10))))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_amp_trains_under_autocast(dtype: torch.dtype) -> None:
    seen = []

    class Linear(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x.flatten(1))
            seen.append(y.dtype)
            return y

    torch.manual_seed(0)
    state = training(Linear(1024, 10), epochs=20, lr=0.01)
    state.scaler = NativeScaler("cpu") if dtype == torch.float16 else None
    reports = list(run_epochs(state, batches(1), 20, recipe=Recipe(amp_dtype=dtype)))
    assert set(seen) == {dtype}
    assert state.model.weight.dtype == torch.float32
    assert reports[-1].train_loss < 0.5 * reports[0].train_loss


def test_channels_last_feeds_the_images_in_that_format() -> None:
    formats = []

    class Formats(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            formats.append(x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous())
            return super().forward(x.flatten(1))

    data = [(torch.randn(4, 3, 4, 4), torch.arange(4))]
    for channels_last in (False, True):
        list(run_epochs(training(Formats(48, 10)), data, 1, recipe=Recipe(channels_last=channels_last)))
    assert formats == [False, True]


def test_the_progress_bar_shows_time_loss_rate_and_accuracy(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in run_epochs(training(lenet()), batches(2), epochs=2, description="some network"):
        pass
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "some network epoch 2/2" in captured.err
    assert "lr 0.05" in captured.err
    assert "top-1 " in captured.err
    assert re.search(r"4/4 \[\d+:\d+<\d+:\d+, .*loss \d", captured.err)


def test_an_averaged_network_has_the_statistics_of_its_own_outputs() -> None:
    data = batches(4, 16)
    model = lenet()
    state = training(model, epochs=2)
    state.ema = ModelEmaV3(model, decay=0.9)
    list(run_epochs(state, data, epochs=2))
    averaged, images = state.ema.module, torch.cat([x for x, _ in data])
    with torch.no_grad():
        outputs = averaged.conv1(images).double()
    torch.testing.assert_close(averaged.bn1.running_mean.double(), outputs.mean((0, 2, 3)), rtol=1e-5, atol=0)
    assert not averaged.training
    # Those of the network in training are averages over its steps, far off by the spread of an output.
    assert (model.bn1.running_mean - averaged.bn1.running_mean).abs().max() > outputs.std((0, 2, 3)).max()


def test_precise_statistics_are_those_of_the_present_weights_and_change_no_step() -> None:
    """What is validated has them; training goes on as without them."""
    data = batches(4, 16)
    images = torch.cat([x for x, _ in data])
    plain, precise = lenet(), lenet()
    list(run_epochs(training(plain), data, epochs=2))

    def validate(network: nn.Module) -> Result:
        assert not network.training
        with torch.no_grad():
            outputs = network.conv1(images).double()  # type: ignore[operator]
        mean = network.bn1.running_mean.double()  # type: ignore[union-attr, operator]
        torch.testing.assert_close(mean, outputs.mean((0, 2, 3)), rtol=1e-5, atol=0)
        return result(50.0)

    list(run_epochs(training(precise), data, epochs=2, validate=validate, recipe=Recipe(precise_bn=True)))
    assert (plain.bn1.running_mean - precise.bn1.running_mean).abs().max() > 1  # type: ignore[operator]
    for (key, value), other in zip(plain.named_parameters(), precise.parameters(), strict=True):
        assert torch.equal(value, other), key
