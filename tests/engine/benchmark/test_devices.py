"""What a GPU changes: what is said of one, and on one (`--device cuda`) what is measured."""

from dataclasses import replace

import pytest
import torch

from adderzoo.engine.benchmark.devices import Gpu, describe_gpu, float32_floor, is_gpu, peak_rise, runner
from adderzoo.engine.benchmark.networks import Contender, Remote
from adderzoo.engine.benchmark.timing import Local, Queued
from adderzoo.ops._library import load_ceilings


@pytest.mark.parametrize(("device", "expected"), [("cpu", False), ("cuda", True), ("cuda:1", True)])
def test_gpus_are_timed_by_when_their_work_is_done(device: str, expected: bool) -> None:
    assert is_gpu(device) == expected
    assert type(runner(lambda: None, device)) is (Queued if expected else Local)


# Half of the peak of float32 additions, which is half of the multiply-adds' that data sheets have: in TFLOP/s, 19.5 for
# an A100 SXM (108 multiprocessors, 1410 MHz) and 66.9 for an H100 SXM (132, 1980 MHz).
@pytest.mark.parametrize(
    ("capability", "multiprocessors", "clock", "teraflops"), [((8, 0), 108, 1.41e9, 19.5), ((9, 0), 132, 1.98e9, 66.9)]
)
def test_the_floor_is_a_quarter_of_the_data_sheets_figure(
    capability: tuple[int, int], multiprocessors: int, clock: float, teraflops: float
) -> None:
    assert float32_floor(capability, multiprocessors, clock) == pytest.approx(teraflops * 1e12 / 4, rel=2e-3)


def test_a_gpu_says_what_it_is() -> None:
    gpu = Gpu("NVIDIA X", "9.0", 132, 1.98e9, 80 << 30, "13.0", "91002", "compiled on first use", 16.7e12)
    assert str(gpu) == (
        "NVIDIA X, 132 multiprocessors at up to 1980 MHz (16700 G float32 elements/s of two instructions), CUDA 13.0, "
        "cuDNN 91002; adder operator: compiled on first use"
    )


# ------------------------------------------------------------------------------------------------------------ on a GPU


@pytest.fixture
def gpu(device: torch.device) -> str:
    if device.type != "cuda":
        pytest.skip("for GPUs: pytest --device cuda")
    return str(device)


def test_peak_memory_is_what_is_in_use_at_a_time(gpu: str) -> None:
    def in_turn() -> None:
        for _ in range(3):
            torch.ones(20 << 18, device=gpu)

    held = torch.ones(50 << 18, device=gpu)
    assert peak_rise(in_turn, gpu) == 20 << 20
    assert peak_rise(lambda: [torch.ones(20 << 18, device=gpu) for _ in range(3)], gpu) == 60 << 20
    assert held.sum() > 0


def test_a_time_is_that_of_the_work_not_of_its_launch(gpu: str) -> None:
    matrices = [torch.randn(size, size, device=gpu) for size in (2048, 4096)]
    seconds = []
    for matrix in matrices:
        timed = runner(lambda matrix=matrix: matrix @ matrix, gpu)
        timed.warm_up()
        seconds.append(min(timed.visit(0.2)))
    assert 5 < seconds[1] / seconds[0] < 12  # eight times as much


def test_no_loop_of_an_elements_instructions_is_faster_than_their_floor(gpu: str) -> None:
    described = describe_gpu(gpu)
    assert load_ceilings("cuda") is None
    ceiling = torch.ops.adderzoo_benchmark.cuda_ceiling
    like = torch.empty(0, device=gpu)
    for form, instructions in (("multiply_add", 1), ("distance", 2), ("slope", 2)):
        timed = runner(lambda form=form: ceiling(like, form, 1 << 14), gpu)
        timed.warm_up()
        rate = ceiling(like, form, 1 << 14) / min(timed.visit(0.2))
        assert 0.5 < rate / (described.float32_floor * 2 / instructions) < 1.01, form


@pytest.mark.parametrize("training", [False, True])
def test_cuda_graphs_are_timed_and_their_memory_is_not(gpu: str, training: bool) -> None:
    contender = Contender("adder_lenet5", 4, training=training, compiled="reduce-overhead", device=gpu)
    remotes = [Remote(contender), Remote(replace(contender, compiled=""))]
    try:
        for remote in remotes:
            remote.build()
            remote.warm_up()
        graphs, eager = (min(remote.visit(0.2)) for remote in remotes)
        assert graphs < eager  # so small a network waits for launches
        assert remotes[0].memory() is None
        assert (remotes[1].memory() or 0) > 4 * 60_000  # its parameters
    finally:
        for remote in remotes:
            remote.hang_up()
        for remote in remotes:
            remote.kill()
