"""Bytes of a float tensor, beside those that NumPy rounds in float32."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from adderzoo.ops import onnx, quantize_u8, reference

NUMBERS = [(1.0, 0, 255), (1.0, 3, 255), (37.5, 128, 255), (0.1, 0, 15), (1e30, 15, 15), (2.0**-90, 7, 200)]

# What rounding, clipping and conversion to integers may get wrong, and what lies in steps of a tenth between.
EXTREMES = [math.inf, -math.inf, 0.5, 1.5, 2.5, -0.5, -1.5, 0.49999997, 8388609.0, -8388609.0, 1e30, -1e30, 1e-40, -0.0]


def images(*shape: int) -> Tensor:
    x = torch.arange(math.prod(shape), dtype=torch.float32).sub_(math.prod(shape) // 2).div_(10)
    x[: len(EXTREMES)] = torch.tensor(EXTREMES)
    return x.view(shape)


TENSORS = {
    "contiguous": lambda: images(2, 5, 7, 9),
    "channels_last": lambda: images(2, 5, 7, 9).contiguous(memory_format=torch.channels_last),
    "neither": lambda: images(2, 5, 7, 9)[:, 1:, ::2],
    "gray": lambda: images(2, 1, 7, 9),
    "features": lambda: images(3, 70),
    "one number": lambda: images(20)[3],
    "none": lambda: images(2, 5, 7, 9)[:0],
}


def defined(x: Tensor, inverse: float, zero_point: int, top: int) -> np.ndarray:
    with np.errstate(over="ignore"):
        steps = np.rint(x.numpy() * np.float32(inverse)) + np.float32(zero_point)
    return np.clip(steps, 0, top).astype(np.uint8)


@pytest.mark.parametrize("numbers", NUMBERS, ids=str)
@pytest.mark.parametrize("tensor", TENSORS)
def test_operator_and_reference_give_the_nearest_bytes(tensor: str, numbers: tuple[float, int, int]) -> None:
    x = TENSORS[tensor]()
    expected = defined(x, *numbers)
    for quantize in (quantize_u8, reference.quantize_u8):
        result = quantize(x, *numbers)
        assert result.dtype == torch.uint8
        np.testing.assert_array_equal(result.numpy(), expected)
        assert result.is_contiguous(memory_format=reference.memory_format_like(x))


def test_threads_share_a_large_tensor() -> None:
    x = torch.randn(300_001, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        result = quantize_u8(x, 40.0, 100)
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(result.numpy(), defined(x, 40.0, 100, 255))


def test_a_nan_is_a_byte_up_to_the_largest() -> None:
    assert quantize_u8(torch.full((100,), math.nan), 1.0, 3, 15).max() <= 15


@pytest.mark.parametrize("tensor", TENSORS)
def test_opcheck(tensor: str) -> None:
    torch.library.opcheck(torch.ops.adderzoo.quantize_u8.default, (TENSORS[tensor](), 37.5, 128, 255))


@pytest.mark.parametrize("dim", range(5))
def test_vmap_is_a_loop(dim: int) -> None:
    x = images(3, 2, 4, 5, 6).movedim(0, dim)
    expected = torch.stack([quantize_u8(one, 37.5, 128) for one in x.unbind(dim)])
    assert torch.vmap(lambda one: quantize_u8(one, 37.5, 128), dim)(x).equal(expected)


@pytest.mark.parametrize(
    ("x", "numbers", "message"),
    [
        (torch.zeros(2, dtype=torch.float64), (0, 255), "input must be float32, got float64"),
        (torch.zeros(2), (0, 256), "top must be from 0 to 255, got 256"),
        (torch.zeros(2), (16, 15), "zero_point must be from 0 to 15, got 16"),
        (torch.zeros(2), (-1, 15), "zero_point must be from 0 to 15, got -1"),
    ],
)
def test_what_it_does_not_take_is_refused_in_the_same_words(x: Tensor, numbers: Any, message: str) -> None:
    for tensor in (x, x.to("meta")):
        with pytest.raises(RuntimeError, match=f"^quantize_u8: {message}"):
            torch.ops.adderzoo.quantize_u8(tensor, 1.0, *numbers)
    with pytest.raises(RuntimeError, match=f"^quantize_u8: {message}"):
        reference.quantize_u8(x, 1.0, *numbers)


class Layer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return quantize_u8(x, 37.5, 128)


def test_onnx_runtime_gives_the_same_bytes(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    x = images(2, 5, 7, 9)
    program = torch.export.export(Layer(), (x,))
    table = onnx.translations()
    onnx_program = torch.onnx.export(program, dynamo=True, custom_translation_table=table, verbose=False)
    assert onnx_program is not None
    onnx_program.save(tmp_path / "layer.onnx", external_data=False)
    session = onnxruntime.InferenceSession(tmp_path / "layer.onnx")
    (result,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_array_equal(result, defined(x, 37.5, 128, 255))
