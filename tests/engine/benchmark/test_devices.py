"""What is said of GPUs, as far as there need be none."""

import pytest

from adderzoo.engine.benchmark.devices import Gpu, float32_floor, is_gpu, runner
from adderzoo.engine.benchmark.timing import Local, Queued


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
