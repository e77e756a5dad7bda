"""Two processes of a group against one with the whole batch."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
from fork_server import CONTEXT, free_port
from timm.utils import ModelEmaV3, distribute_bn
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from adderzoo.data import Loading, MemoryLoader
from adderzoo.engine import Recipe, Training, create_optimizer, create_scheduler, run_epochs

PROCESSES = 2
EPOCHS = 2
BATCH = 16  # of the group


def lenet(name: str, evaluating: bool) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name)
    model(torch.randn(64, 1, 32, 32, generator=torch.Generator().manual_seed(1)))  # BatchNorm's statistics
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and evaluating:
            module.eval()
            module.train = lambda mode=True, module=module: module  # type: ignore[method-assign]
    return model


def trained(name: str, evaluating: bool, eta: float, accumulate: int, rank: int, processes: int) -> dict[str, Any]:
    """What a process has after training: gradients of each step as the optimizer takes them, weights, reports."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(256, (64, 1, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.randint(10, (64,), generator=generator)
    loader = MemoryLoader(
        images,
        labels,
        {"mean": (0.5,), "std": (0.3,)},
        Loading(batch_size=BATCH // processes // accumulate, seed=3, rank=rank, processes=processes),
        training=True,
    )
    model = lenet(name, evaluating)
    optimizer = create_optimizer(model, "sgd", lr=0.05, eta=eta)
    gradients: list[list[torch.Tensor]] = []
    optimizer.register_step_pre_hook(
        lambda *_: gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    )
    network = DistributedDataParallel(model, broadcast_buffers=False) if processes > 1 else model
    ema = ModelEmaV3(model, decay=0.5)
    training = Training(model, optimizer, create_scheduler(optimizer, "cosine", EPOCHS), ema=ema, network=network)
    own: list[dict[str, torch.Tensor]] = []  # BatchNorm's statistics of this process, as they are ahead of the mean

    def watched(network: nn.Module, *arguments: Any, **options: Any) -> None:
        own.append({key: value.clone() for key, value in network.state_dict().items() if "running" in key})
        distribute_bn(network, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adderzoo.engine.training.distribute_bn", watched)
        reports = list(run_epochs(training, loader, EPOCHS, recipe=Recipe(accumulate=accumulate)))
    return {
        "own statistics": dict(zip(("model", "ema"), own[-2:], strict=False)),
        "gradients": gradients,
        "model": model.state_dict(),
        "ema": ema.module.state_dict(),
        "reports": [(report.train_loss, report.train_top1) for report in reports],
    }


def _process(rank: int, port: int, path: Path, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=PROCESSES)
    torch.save(trained(*arguments, rank, PROCESSES), path)
    dist.destroy_process_group()


def group(folder: Path, *arguments: Any) -> list[dict[str, Any]]:
    port = free_port()
    paths = [folder / f"{rank}.pt" for rank in range(PROCESSES)]
    processes = [
        CONTEXT.Process(target=_process, args=(rank, port, path, arguments)) for rank, path in enumerate(paths)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        if process.is_alive():
            process.kill()
    return [torch.load(path, weights_only=True) for path in paths]


def assert_close(got: torch.Tensor, expected: torch.Tensor, what: object) -> None:
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * scale, msg=lambda text: f"{what}: {text}")


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("name", "eta", "accumulate"),
    [("adder_lenet5", 0.2, 1), ("adder_lenet5", 0.0, 1), ("adder_lenet5", 0.2, 2), ("cnn_lenet5", 0.2, 1)],
)
def test_two_processes_take_the_steps_of_one_with_the_whole_batch(
    tmp_path: Path, name: str, eta: float, accumulate: int
) -> None:
    """BatchNorm in evaluation mode: statistics of half a batch are others."""
    one = trained(name, True, eta, 1, 0, 1)
    assert len(one["gradients"]) == EPOCHS * (64 // BATCH)
    for rank, many in enumerate(group(tmp_path, name, True, eta, accumulate)):
        for step, (got, expected) in enumerate(zip(many["gradients"], one["gradients"], strict=True)):
            for index, (a, b) in enumerate(zip(got, expected, strict=True)):
                assert_close(a, b, f"gradient {index} of step {step} in process {rank}")
        for part in ("model", "ema"):
            for key, value in one[part].items():
                assert_close(many[part][key], value, f"{part} {key} in process {rank}")
        for got, expected in zip(many["reports"], one["reports"], strict=True):
            assert got == pytest.approx(expected, rel=1e-5)


@pytest.mark.usefixtures("one_thread")
def test_processes_end_with_the_same_network_whose_statistics_are_the_mean_of_theirs(tmp_path: Path) -> None:
    first, second = group(tmp_path, "adder_lenet5", False, 0.2, 1)
    for part in ("model", "ema"):
        for key, value in first[part].items():
            assert torch.equal(value, second[part][key]), key
        for key, value in first["own statistics"][part].items():
            other = second["own statistics"][part][key]
            assert not torch.equal(value, other), f"{part} {key}"
            torch.testing.assert_close(first[part][key], (value + other) / 2, rtol=1e-6, atol=1e-6, msg=key)
