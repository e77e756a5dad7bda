"""The operators in ONNX's own, run by ONNX Runtime, beside the compiled ones."""

import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adderzoo.ops import adder2d, adder2d_u8, onnx, pack_byte_filters

pytestmark = pytest.mark.usefixtures("one_thread")
onnxruntime = pytest.importorskip("onnxruntime")

# O, C / groups, kH, kW, and the geometry.
GEOMETRIES = {
    "3x3": ((7, 4, 3, 3), {"padding": (1, 1)}),
    "stride": ((5, 4, 3, 2), {"stride": (2, 3), "padding": (1, 0)}),
    "dilation": ((5, 4, 2, 3), {"dilation": (3, 2), "padding": (2, 2), "stride": (1, 2)}),
    "groups": ((6, 2, 3, 3), {"groups": 2, "padding": (0, 1)}),
    "1x1": ((20, 4, 1, 1), {}),
}


class Layer(nn.Module):
    def __init__(self, weight: Tensor, *others: Tensor, **geometry: Any) -> None:
        super().__init__()
        for index, tensor in enumerate((weight, *others)):
            self.register_buffer(f"tensor{index}", tensor)
        self.geometry = geometry

    def forward(self, x: Tensor, addend: Tensor | None = None) -> Tensor:
        tensors = [*self.buffers()]
        if len(tensors) == 1:
            return adder2d(x, *tensors, **self.geometry)
        return adder2d_u8(x, *tensors, addend, **self.geometry)


def run(layer: nn.Module, path: Path, *inputs: Tensor) -> Tensor:
    program = torch.onnx.export(
        torch.export.export(layer, inputs),
        dynamo=True,
        custom_translation_table=onnx.translations(),
        verbose=False,
    )
    assert {node.domain for node in program.model.graph.all_nodes()} == {""}
    assert not program.model.functions
    program.save(path, external_data=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options)
    names = [value.name for value in session.get_inputs()]
    return torch.from_numpy(session.run(None, {k: v.numpy() for k, v in zip(names, inputs, strict=True)})[0])


@pytest.mark.parametrize(("shape", "geometry"), GEOMETRIES.values(), ids=GEOMETRIES)
def test_distances_are_those_of_the_operator(shape: tuple[int, ...], geometry: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, layer = torch.randn(2, 4, 9, 8), Layer(torch.randn(shape), **geometry)
    torch.testing.assert_close(run(layer, tmp_path / "layer.onnx", x), layer(x))


@pytest.mark.parametrize("output", [None, 3], ids=["float", "bytes"])
@pytest.mark.parametrize("geometry", ["stride", "groups"])
def test_bytes_are_those_of_the_operator(geometry: str, output: int | None, tmp_path: Path) -> None:
    shape, arguments = GEOMETRIES[geometry]
    torch.manual_seed(0)
    x, weight = (torch.randint(256, size, dtype=torch.uint8) for size in ((2, 4, 9, 8), shape))
    scale, shift = -0.01 * torch.rand(shape[0]), 20 * torch.rand(shape[0])
    packed = pack_byte_filters(weight, arguments.get("groups", 1))
    numbers = {"zero_point": 120, "out_zero_point": output, "out_max": 15, "addend_scale": 0.1, "relu": output is None}
    layer = Layer(packed, scale, shift, **arguments, **numbers)
    inputs = [x]
    if output is not None:
        inputs.append(torch.randint(256, layer(x).shape, dtype=torch.uint8))
    expected = layer(*inputs)
    assert len(expected.unique()) > 8
    assert run(layer, tmp_path / "layer.onnx", *inputs).equal(expected)


def test_memory_is_bounded(tmp_path: Path) -> None:
    """All |x - w| at once would take 2 GiB."""
    x, layer = torch.randn(1, 64, 64, 64), Layer(torch.randn(2048, 64, 1, 1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(layer, tmp_path / "layer.onnx", x)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 19  # KiB
