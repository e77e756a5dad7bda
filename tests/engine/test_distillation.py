"""Losses and gradients of a student's steps, against formulas in float64, timm's own task and networks on their own."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
from fork_server import CONTEXT, free_port
from test_training import batches, lenet
from torch import Tensor, nn

from adderzoo import fuse
from adderzoo.engine import (
    EnsembleTeacher,
    KernelDistillationTask,
    LogitDistillationTask,
    Recipe,
    Training,
    create_optimizer,
    create_scheduler,
    run_epochs,
)
from adderzoo.layers import Adder2d

LAYERS = ("conv1", "conv2", "conv3", "conv4", "fc")


def teacher() -> nn.Module:
    torch.manual_seed(1)
    return timm.create_model("cnn_lenet5")


def kernel_task(**options: Any) -> KernelDistillationTask:
    defaults: dict[str, Any] = {"criterion": nn.CrossEntropyLoss(), "verbose": False}
    return KernelDistillationTask(lenet(), teacher(), **(defaults | options))  # type: ignore[arg-type]


def divergence(output: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """Sum over classes of q log(q / p), the mean of the images, times the square of the temperature."""
    p, q = (
        (logits / temperature).exp() / (logits / temperature).exp().sum(1, keepdim=True) for logits in (output, taught)
    )
    return temperature**2 * (q * (q / p).log()).sum(1).mean()


# --------------------------------------------------------------------------------------------------------------- logits


@pytest.mark.parametrize("weights", [{}, {"task_loss_weight": 0.3}, {"distill_loss_weight": 2.0}])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_logits_are_distilled_as_by_timm(temperature: float, weights: dict[str, float]) -> None:
    """By a teacher that sees images with another mean and deviation."""
    (x, target), found = batches(1)[0], []
    other = teacher()
    other.pretrained_cfg = other.pretrained_cfg | {"mean": (0.3,), "std": (0.7,)}  # type: ignore[operator,assignment]
    for kind in (timm.task.LogitDistillationTask, LogitDistillationTask):
        student = lenet()
        task = kind(
            student,
            copy.deepcopy(other),
            criterion=nn.CrossEntropyLoss(),
            temperature=temperature,
            verbose=False,
            **weights,
        ).train()
        assert not task.teacher.training
        losses = task(x, target)
        losses["loss"].backward()
        found.append((losses, [parameter.grad for parameter in student.parameters()]))
        assert all(parameter.grad is None for parameter in task.teacher.parameters())
    (losses, grads), (ours, our_grads) = found
    assert ours.keys() == losses.keys()
    for key, value in losses.items():
        torch.testing.assert_close(ours[key], value, msg=key)
    torch.testing.assert_close(our_grads, grads)
    mean, std = (lenet().pretrained_cfg[key][0] for key in ("mean", "std"))  # type: ignore[index]
    expected = divergence(losses["output"].double(), other.eval()((x * std + mean - 0.3) / 0.7).double(), temperature)
    torch.testing.assert_close(ours["kd_loss"].double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [LogitDistillationTask, KernelDistillationTask])
def test_losses_are_in_float32_under_autocast_too(kind: Callable[..., Any]) -> None:
    x, target = batches(1)[0]
    student = nn.Sequential(Adder2d(1, 10, 5, stride=9, bias=False), nn.Flatten(), nn.Linear(160, 10))
    student.num_classes, student.in_chans = 10, 1  # type: ignore[assignment]
    other = nn.Sequential(nn.Conv2d(1, 10, 5, stride=9, bias=False), nn.Flatten(), nn.Linear(160, 10))
    student.pretrained_cfg = other.pretrained_cfg = {"mean": (0.5,), "std": (0.5,)}  # type: ignore[assignment]
    task = kind(student, other, criterion=nn.CrossEntropyLoss(), verbose=False)
    with torch.autocast("cpu", torch.bfloat16):
        assert student(x).dtype == torch.bfloat16
        losses = task(x, target)
    assert {key: value.dtype for key, value in losses.items()} == dict.fromkeys(losses, torch.float32)
    torch.testing.assert_close(losses["task_loss"], F.cross_entropy(losses["output"], target))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_an_ensemble_says_the_mean_of_its_members_probabilities(temperature: float) -> None:
    """Each sees the images as it was trained to; one of them is fused, as a command gives them."""
    members = [lenet("cnn_lenet5"), fuse(lenet()), teacher()]
    members[1].pretrained_cfg = members[1].pretrained_cfg | {"mean": (0.3,), "std": (0.7,)}  # type: ignore[operator,assignment]
    student, (x, target) = lenet(), batches(1)[0]
    task = LogitDistillationTask(
        student,
        EnsembleTeacher(members, temperature),
        criterion=nn.CrossEntropyLoss(),
        temperature=temperature,
        task_loss_weight=0.0,
        verbose=False,
    ).train()
    assert not any(module.training for module in task.teacher.modules())
    losses = task(x, target)

    mean, std = (lenet().pretrained_cfg[key][0] for key in ("mean", "std"))  # type: ignore[index]
    pixels = x * std + mean
    q = torch.zeros(len(x), 10, dtype=torch.float64)
    for member, seen in zip(members, (x, (pixels - 0.3) / 0.7, x), strict=True):
        powers = (member.eval()(seen).double() / temperature).exp()
        q += powers / powers.sum(1, keepdim=True) / 3
    powers = (losses["output"].double() / temperature).exp()
    p = powers / powers.sum(1, keepdim=True)
    expected = temperature**2 * (q * (q / p).log()).sum(1).mean()
    torch.testing.assert_close(losses["loss"].double(), expected, rtol=1e-4, atol=1e-6)


# -------------------------------------------------------------------------------------------------------------- kernels


def outputs(network: nn.Module, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Of each layer, and of the network."""
    found: dict[str, Tensor] = {}
    for name in LAYERS:
        network.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: found.__setitem__(name, output)
        )
    return found, network(x)


def kernel(y: Tensor, width: float) -> Tensor:
    mean, variance = (y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), correction=0, keepdim=True))
    return width * (torch.exp((y - mean) / (width * (variance + 1e-5).sqrt())) - 1)


def losses64(task: KernelDistillationTask, x: Tensor, target: Tensor, width: float) -> dict[str, Tensor]:
    networks = copy.deepcopy(task.get_trainable_module()).double().train()
    given, output = outputs(networks.student, x.double())
    wanted, taught = outputs(networks.teacher, x.double())
    squares = []
    for name, projection in zip(LAYERS, networks.projections, strict=True):
        mapped = torch.einsum("oi,nihw->nohw", projection.weight[:, :, 0, 0], kernel(given[name], width))
        mapped = mapped + projection.bias[:, None, None]
        squares.append((mapped - kernel(wanted[name], width)).square().mean())
    return {
        "task_loss": F.cross_entropy(output, target),
        "kd_loss": divergence(output, taught.detach(), task.temperature),
        "feature_loss": sum(squares) / len(LAYERS),  # type: ignore[dict-item]
        "teacher_loss": F.cross_entropy(taught, target),
        "student": networks.student,
    }


@pytest.mark.parametrize("width", [1.5, 4.0])
def test_losses_of_kernels_are_those_of_the_formulas(width: float) -> None:
    x, target = batches(1, 32)[0]
    task = kernel_task(
        task_loss_weight=0.4, distill_loss_weight=0.7, feature_loss_weight=0.2, temperature=3.0, width=width
    ).train()
    expected = losses64(task, x, target, width)
    losses = task(x, target)
    for key in ("task_loss", "kd_loss", "feature_loss", "teacher_loss"):
        torch.testing.assert_close(losses[key].double(), expected[key], rtol=1e-3, atol=1e-6, msg=key)
    parts = ((0.4, "task_loss"), (0.7, "kd_loss"), (0.2, "feature_loss"), (1.0, "teacher_loss"))
    assert losses["loss"].item() == pytest.approx(sum(weight * losses[key].item() for weight, key in parts))

    losses["feature_loss"].backward()
    expected["feature_loss"].backward()
    grads = dict(expected["student"].named_parameters())
    for name, parameter in task.get_eval_model().named_parameters():
        if (grad := grads[name].grad) is not None:  # what lies behind the last layer has none
            assert parameter.grad is not None
            torch.testing.assert_close(
                parameter.grad.double(), grad, rtol=0, atol=1e-2 * grad.abs().max().item(), msg=name
            )


def test_the_teacher_gets_the_gradient_of_its_own_loss_alone() -> None:
    x, target = batches(1)[0]
    alone = teacher().train()
    F.cross_entropy(alone(x), target).backward()
    task = kernel_task().train()
    task(x, target)["loss"].backward()
    for (name, parameter), other in zip(alone.named_parameters(), task.teacher.model.parameters(), strict=True):
        assert torch.equal(parameter.grad, other.grad), name  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options", [{}, {"opt": "adamw", "lr": 1e-3, "eta": 5.0}, {"lr": 0.01, "filter_lr_scale": 30.0}]
)
def test_the_teacher_is_what_it_would_be_alone(options: dict[str, Any]) -> None:
    data = batches(4)
    alone, task = teacher(), kernel_task()
    ended = []
    for model, distillation in ((alone, None), (task.get_eval_model(), task)):
        optimizer = create_optimizer(task.get_trainable_module() if distillation else model, **options)  # type: ignore[arg-type]
        state = Training(model, optimizer, create_scheduler(optimizer, "cosine", 3), task=distillation)
        ended.append(list(run_epochs(state, data, 3, recipe=Recipe(accumulate=2))))
    for key, value in alone.state_dict().items():
        assert torch.equal(task.teacher.model.state_dict()[key], value), key
    assert any(not torch.equal(a, b) for a, b in zip(alone.parameters(), teacher().parameters(), strict=True))
    assert ended[1][-1].train_loss > ended[0][-1].train_loss  # with the student's on top


@pytest.mark.parametrize("student_learns", [True, False])
def test_the_student_comes_to_give_the_layers_of_the_teacher(student_learns: bool) -> None:
    """With weight on nothing else; the 1x1 convolutions alone do not get there."""
    task = kernel_task(task_loss_weight=0.0, distill_loss_weight=0.0)
    networks = task.get_trainable_module()
    for parameter in networks.teacher.parameters():
        parameter.requires_grad_(False)
    optimizer = create_optimizer(networks, lr=0.02, weight_decay=0.0, eta=0.2 if student_learns else 0.0)
    if not student_learns:
        for parameter in networks.student.parameters():
            parameter.requires_grad_(False)
    losses = []
    x, target = batches(1, 16)[0]
    for _ in range(150):
        feature_loss = task(x, target)["feature_loss"]
        optimizer.zero_grad()
        feature_loss.backward()
        optimizer.step()
        losses.append(feature_loss.item())
    assert (losses[-1] < 0.25 * losses[0]) == student_learns


def test_what_the_task_knows_beside_the_student_comes_back() -> None:
    one, other = kernel_task(), kernel_task()
    list(
        run_epochs(
            Training(one.get_eval_model(), create_optimizer(one.get_trainable_module()), task=one), batches(2), 1
        )
    )
    other.load_task_state(one.get_task_state())
    other.get_eval_model().load_state_dict(one.get_eval_model().state_dict())
    for key, value in one.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key
    LogitDistillationTask(lenet(), teacher(), criterion=nn.CrossEntropyLoss()).load_task_state({})


def test_nothing_stays_on_the_networks() -> None:
    task, (x, target) = kernel_task(), batches(1)[0]
    task(x, target)
    with pytest.raises(RuntimeError, match=r"input must be \(N, C, H, W\)"):
        task(x[0, 0, 0], target)
    assert not any(module._forward_hooks for module in task.modules())


def test_labels_beyond_the_classes_are_one_error() -> None:
    x, target = batches(1)[0]
    with pytest.raises(ValueError, match="labels must be among the network's 10 classes"):
        kernel_task()(x, target + 10)


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ("cnn_lenet5", "cnn_lenet5", "student_model must have adder layers, LeNet5 has none"),
        ("adder_lenet5", "adder_lenet5", "LeNet5 has none for 5: conv1, conv2, conv3, conv4"),
        ("adder_resnet32", "cnn_resnet20", "ResNet has none for 12: layer1.3.conv1, "),
    ],
)
def test_networks_that_do_not_fit_are_refused(student: str, teacher: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KernelDistillationTask(
            timm.create_model(student), timm.create_model(teacher), criterion=nn.CrossEntropyLoss(), verbose=False
        )


def test_compilation_is_refused() -> None:
    with pytest.raises(RuntimeError, match="cannot be compiled: its loss reads the outputs of their layers"):
        kernel_task().compile()


# ---------------------------------------------------------------------------------------------------- several processes


def _process(rank: int, port: int, path: Path, data: list[tuple[Tensor, Tensor]]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    task = kernel_task().train()
    task.prepare_distributed(broadcast_buffers=False)
    losses = task(*data[rank])
    losses["loss"].backward()
    grads = {name: p.grad.clone() for name, p in task.get_trainable_module().module.named_parameters()}  # type: ignore[union-attr]
    networks = task.get_trainable_module().module
    state = Training(task.get_eval_model(), create_optimizer(networks), task=task)
    list(run_epochs(state, data[rank : rank + 1], 1))
    torch.save({"grads": grads, "networks": networks.state_dict()}, path)
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_thread")
def test_processes_average_the_gradients_of_all_that_is_trained_and_end_alike(tmp_path: Path) -> None:
    data = batches(2)
    port = free_port()
    paths = [tmp_path / f"{rank}.pt" for rank in range(2)]
    processes = [CONTEXT.Process(target=_process, args=(rank, port, path, data)) for rank, path in enumerate(paths)]
    for process in processes:
        process.start()
    halves: list[dict[str, Tensor]] = []
    for batch in data:
        task = kernel_task().train()
        task(*batch)["loss"].backward()
        halves.append({name: p.grad for name, p in task.get_trainable_module().named_parameters()})  # type: ignore[misc]
    for process in processes:
        process.join(120)
        if process.is_alive():
            process.kill()
    ends = [torch.load(path, weights_only=True) for path in paths]
    for key, value in ends[0]["networks"].items():  # statistics of BatchNorm too, of student and teacher
        assert torch.equal(ends[1]["networks"][key], value), key
    for end in ends:
        assert end["grads"].keys() == halves[0].keys()
        for name, grad in end["grads"].items():
            expected = (halves[0][name] + halves[1][name]) / 2
            torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-5, msg=name)
