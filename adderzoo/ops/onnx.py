"""The operators in ONNX's standard ones, for `torch.onnx.export(custom_translation_table=onnx.translations())`.

A `Scan` takes the filters one by one, and its body their taps: all |x - w| of a layer are C kH kW times as large as its
output, those of one tap of one filter as large as its input.
"""

from collections.abc import Callable, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

import torch

from .packing import LANES

if TYPE_CHECKING:
    from onnx_ir import Value


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """A translation for the operators of a network that is not fused, float or quantized.

    Raises:
        ImportError: if onnxscript, which PyTorch's exporter needs, is not installed.
    """
    import onnxscript  # noqa: F401

    return {
        torch.ops.adderzoo.adder2d.default: _adder2d,
        torch.ops.adderzoo.adder2d_u8.default: _adder2d_u8,
        torch.ops.adderzoo.quantize_u8.default: _quantize_u8,
    }


# Of the bodies: a value of one may not have the name of any value around it, and PyTorch gives names to those alone.
_NUMBERS = count()

# PyTorch reads the annotations of the two: a tensor's is Any, a number is not one.


def _adder2d(
    input: Any,
    weight: Any,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    input_grad: str = "hardtanh",
    weight_grad: str = "full",
) -> Any:
    """As :func:`adderzoo.ops.adder2d`, of float32 or float64; the modes are those of gradients."""
    from onnxscript import opset18 as op

    size = [_size(weight, axis) for axis in range(4)]
    return op.Neg(_distance(_padded(input, padding, 0.0), weight, size, stride, dilation, groups))


def _adder2d_u8(
    input: Any,
    weight: Any,
    scale: Any,
    shift: Any,
    addend: Any = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    relu: bool = False,
    zero_point: int = 0,
    out_zero_point: int | None = None,
    out_max: int = 255,
    addend_scale: float = 1.0,
) -> Any:
    """As :func:`adderzoo.ops.adder2d_u8`. Distances are float32, which holds integers up to 2^24: 65,793 bytes'."""
    import onnx_ir as ir
    from onnxscript import opset18 as op

    filters, channels = _size(scale, 0), _size(input, 1) // groups
    panels, height, width, lanes_of_channels, _, lane = (_size(weight, axis) for axis in range(6))
    flat = op.Reshape(
        op.Transpose(weight, perm=[0, 4, 3, 5, 1, 2]),
        _integers([panels * LANES, lanes_of_channels * lane, height, width]),
    )
    bytes_ = op.Slice(flat, _integers([0, 0]), _integers([filters, channels]), _integers([0, 1]))
    floats = op.Cast(input, to=ir.DataType.FLOAT)
    padded = _padded(floats, padding, float(zero_point))
    distance = _distance(padded, bytes_, [filters, channels, height, width], stride, dilation, groups)

    def of_channels(values: "Value") -> "Value":
        return op.Unsqueeze(values, _integers([1, 2]))

    result = op.Add(op.Mul(distance, of_channels(scale)), of_channels(shift))
    if addend is not None:
        floats = op.Cast(addend, to=ir.DataType.FLOAT)
        result = op.Add(result, op.Mul(floats, _float(addend_scale)))
    if relu:
        result = op.Relu(result)
    if out_zero_point is None:
        return result
    return _quantize_u8(result, 1.0, out_zero_point, out_max)


def _quantize_u8(input: Any, inverse: float, zero_point: int, top: int) -> Any:
    """As :func:`adderzoo.ops.quantize_u8`. ONNX's own QuantizeLinear divides by the scale, and rounds otherwise."""
    import onnx_ir as ir
    from onnxscript import opset18 as op

    steps = op.Add(op.Round(op.Mul(input, _float(inverse))), _float(float(zero_point)))
    return op.Cast(op.Clip(steps, _float(0.0), _float(float(top))), to=ir.DataType.UINT8)


def _padded(input: "Value", padding: Sequence[int], value: float) -> "Value":
    """(N, C, H, W) with pixels of this value around it."""
    from onnxscript import opset18 as op

    if not any(padding):
        return input
    sides = [0, 0, *padding] * 2  # those before all axes, then those behind
    return op.Pad(input, _integers(sides), op.CastLike(_float(value), input))


def _distance(
    padded: "Value", weight: "Value", size: Sequence[int], stride: Sequence[int], dilation: Sequence[int], groups: int
) -> "Value":
    """L1 distances of patches, (N, C, H, W), and filters, whose size is (O, C / groups, kH, kW): (N, O, H', W')."""
    from onnxscript import opset18 as op

    if groups == 1:
        return _scan(padded, weight, size[2:], stride, dilation)
    filters, channels = size[0] // groups, size[1]
    parts = []
    for group in range(groups):
        x = op.Slice(padded, _integers([group * channels]), _integers([(group + 1) * channels]), _integers([1]))
        w = op.Slice(weight, _integers([group * filters]), _integers([(group + 1) * filters]), _integers([0]))
        parts.append(_scan(x, w, size[2:], stride, dilation))
    return op.Concat(*parts, axis=1)


def _scan(
    padded: "Value", weight: "Value", kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> "Value":
    """The same of one group, whose `kernel` is (kH, kW)."""
    import onnx_ir as ir
    from onnxscript import opset18 as op

    nodes: list[Any] = []
    name = f"adder2d_{next(_NUMBERS)}"

    def add(kind: str, *inputs: "Value", **attributes: Any) -> "Value":
        nodes.append(ir.node(kind, inputs, attributes, outputs=[ir.Value(name=f"{name}_{len(nodes)}")]))
        return nodes[-1].outputs[0]

    def constant(*numbers: int) -> "Value":
        return add("Constant", value=ir.tensor(list(numbers), ir.DataType.INT64))

    def part(x: "Value", start: Sequence[int], end: Sequence[int], step: Sequence[int]) -> "Value":
        """Of the last two axes."""
        return add("Slice", x, constant(*start), constant(*end), constant(-2, -1), constant(*step))

    filter = ir.Value(name=f"{name}_filter")
    widened = add("CastLike", filter, padded)  # of bytes, so that the file has them as such
    distance = None
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            start = (i * dilation[0], j * dilation[1])
            # Up to the last pixel that this tap meets. Ends are counted from behind, but for the last tap's own.
            left = ((kernel[0] - 1 - i) * dilation[0], (kernel[1] - 1 - j) * dilation[1])
            x = part(padded, start, [-pixels if pixels else _END for pixels in left], stride)
            w = part(widened, (i, j), (i + 1, j + 1), (1, 1))
            tap = add("ReduceL1", add("Sub", x, w), constant(1), keepdims=0)
            distance = tap if distance is None else add("Add", distance, tap)
    assert distance is not None
    body = ir.Graph([filter], [distance], nodes=nodes, name=name)
    return op.Scan(weight, body=body, num_scan_inputs=1, scan_output_axes=[1])


_END = 2**63 - 1  # what ONNX takes for the end of an axis, whatever its size


def _size(value: "Value", axis: int) -> int:
    assert value.shape is not None
    size = value.shape[axis]
    assert isinstance(size, int)
    return size


def _integers(numbers: Sequence[int]) -> "Value":
    import onnx_ir as ir
    from onnxscript import opset18 as op

    return op.Constant(value=ir.tensor(list(numbers), ir.DataType.INT64))


def _float(number: float) -> "Value":
    import onnx_ir as ir
    from onnxscript import opset18 as op

    return op.Constant(value=ir.tensor(number, ir.DataType.FLOAT))
