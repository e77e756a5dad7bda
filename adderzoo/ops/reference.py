"""`adder2d` and its gradients in plain PyTorch: for devices and machines that the compiled library does not serve.

Memory is bounded: the filter's taps are taken one by one, and what a tap broadcasts is cut into pieces.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# Elements of the largest tensor that a gradient broadcasts: 64 MiB of float32.
_PIECE = 1 << 24


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything narrower.

    Adder outputs lie near -1000 with a spread of a few units: a half-precision output would round the spread away.
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def memory_format_like(input: Tensor) -> torch.memory_format:
    """channels_last for a tensor that is dense in this format alone, else contiguous."""
    if input.is_contiguous() or not input.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    return torch.channels_last


def output_size(input: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]) -> list[int]:
    """(OH, OW) of the output."""
    return [
        (input.shape[2 + d] + 2 * padding[d] - dilation[d] * (weight.shape[2 + d] - 1) - 1) // stride[d] + 1
        for d in (0, 1)
    ]


def check(
    input: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> None:
    """What csrc/cpu/adder2d_kernel.cpp checks, in the same words, and the devices."""
    x, w = tuple(input.shape), tuple(weight.shape)
    torch._check(input.dim() == 4, lambda: f"adder2d: input must have 4 dimensions (N, C, H, W), got shape {x}")
    torch._check(
        weight.dim() == 4, lambda: f"adder2d: weight must have 4 dimensions (O, C / groups, kH, kW), got shape {w}"
    )
    torch._check(
        input.dtype in DTYPES,
        lambda: f"adder2d: input must be float32, float64, bfloat16 or float16, got {_name(input.dtype)}",
    )
    torch._check(
        weight.dtype == input.dtype,
        lambda: f"adder2d: weight must have the dtype of input, {_name(input.dtype)}, got {_name(weight.dtype)}",
    )
    _check_device("weight", weight, input)
    _check_pair("stride", stride, 1)
    _check_pair("padding", padding, 0)
    _check_pair("dilation", dilation, 1)
    torch._check(
        groups >= 1 and w[0] % groups == 0 and x[1] == w[1] * groups,
        lambda: (
            "adder2d: groups must divide the filters, and input must have groups times the channels of weight, "
            f"got groups {groups}, input {x} and weight {w}"
        ),
    )
    torch._check(weight.numel() > 0, lambda: f"adder2d: weight must not be empty, got shape {w}")
    torch._check(
        all(x[2 + d] + 2 * padding[d] >= dilation[d] * (w[2 + d] - 1) + 1 for d in (0, 1)),
        lambda: (
            "adder2d: the dilated kernel must fit into the padded input, "
            f"got input {x}, weight {w}, padding {tuple(padding)} and dilation {tuple(dilation)}"
        ),
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_device(name: str, tensor: Tensor, input: Tensor) -> None:
    torch._check(
        tensor.device == input.device,
        lambda: f"adder2d: {name} must be on the device of input, {input.device}, got {tensor.device}",
    )


def _check_pair(name: str, pair: list[int], least: int) -> None:
    torch._check(
        len(pair) == 2 and pair[0] >= least and pair[1] >= least,
        lambda: f"adder2d: {name} must be two integers of at least {least}, got {tuple(pair)}",
    )


def check_modes(input_grad: str = "hardtanh", weight_grad: str = "full") -> None:
    torch._check(
        input_grad in ("hardtanh", "sign"),
        lambda: f"adder2d: input_grad must be 'hardtanh' or 'sign', got '{input_grad}'",
    )
    torch._check(
        weight_grad in ("full", "sign"), lambda: f"adder2d: weight_grad must be 'full' or 'sign', got '{weight_grad}'"
    )


class _Patches:
    """The input, padded, seen through one tap of the filter at a time: views of shape (N, G, C / G, OH, OW)."""

    def __init__(
        self,
        input: Tensor,
        weight: Tensor,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        groups: int,
    ) -> None:
        check(input, weight, stride, padding, dilation, groups)
        self.dtype = accumulation_dtype(input.dtype)
        self.padded = F.pad(input.to(self.dtype), (padding[1], padding[1], padding[0], padding[0]))
        self.stride, self.dilation, self.groups = stride, dilation, groups
        self.size = output_size(input, weight, stride, padding, dilation)
        self.output_shape = (input.shape[0], weight.shape[0], *self.size)
        self.kernel = tuple(weight.shape[2:])
        # (taps, G, O / G, C / G)
        filters = weight.to(self.dtype).permute(2, 3, 0, 1)
        self.filters = filters.reshape(-1, groups, weight.shape[0] // groups, weight.shape[1])

    def taps(self, padded: Tensor) -> list[Tensor]:
        views = []
        for i in range(self.kernel[0]):
            for j in range(self.kernel[1]):
                top, left = i * self.dilation[0], j * self.dilation[1]
                rows = slice(top, top + (self.size[0] - 1) * self.stride[0] + 1, self.stride[0])
                columns = slice(left, left + (self.size[1] - 1) * self.stride[1] + 1, self.stride[1])
                views.append(padded[:, :, rows, columns].unflatten(1, (self.groups, -1)))
        return views

    def pieces(self, grad: Tensor) -> Iterator[tuple[int, slice, Tensor, Tensor, Tensor]]:
        """Tap, some filters of each group, and x, w and g, which broadcast to (N, G, O / G, C / G, OH, OW)."""
        torch._check(
            tuple(grad.shape) == self.output_shape,
            lambda: f"adder2d: grad must have the shape of the output, {self.output_shape}, got {tuple(grad.shape)}",
        )
        _check_device("grad", grad, self.padded)
        g = grad.to(self.dtype).unflatten(1, (self.groups, -1)).unsqueeze(3)
        for tap, (x, w) in enumerate(zip(self.taps(self.padded), self.filters, strict=True)):
            step = max(1, _PIECE // max(1, x.numel()))
            for first in range(0, w.shape[1], step):
                some = slice(first, first + step)
                yield tap, some, x.unsqueeze(2), w[None, :, some, :, None, None], g[:, :, some]


def _sign(difference: Tensor) -> Tensor:
    """The sign, and NaN of a NaN, of which `torch.sign` makes 0."""
    return torch.where(difference.isnan(), difference, difference.sign())


def adder2d(
    input: Tensor,
    weight: Tensor,
    stride: list[int] = [1, 1],  # noqa: B006 - the operator's own defaults, never written
    padding: list[int] = [0, 0],  # noqa: B006
    dilation: list[int] = [1, 1],  # noqa: B006
    groups: int = 1,
    input_grad: str = "hardtanh",
    weight_grad: str = "full",
) -> Tensor:
    """Eq. 2, as L1 distances between the rows of two matrices, summed over the taps."""
    check_modes(input_grad, weight_grad)
    patches = _Patches(input, weight, stride, padding, dilation, groups)
    batch, filters = input.shape[0], weight.shape[0] // groups
    distance = input.new_zeros((groups, batch * patches.size[0] * patches.size[1], filters), dtype=patches.dtype)
    for x, w in zip(patches.taps(patches.padded), patches.filters, strict=True):
        rows = x.permute(1, 0, 3, 4, 2).flatten(1, 3)  # (G, N * OH * OW, C / G)
        distance += torch.cdist(rows, w, p=1.0)
    output = -distance.unflatten(1, (batch, *patches.size)).permute(1, 0, 4, 2, 3).flatten(1, 2)
    return output.contiguous(memory_format=memory_format_like(input))


def backward_input(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    input_grad: str,
) -> Tensor:
    """Eq. 6 and 7: sum of g * hardtanh(F - X), or of g * sign(F - X)."""
    check_modes(input_grad=input_grad)
    patches = _Patches(input, weight, stride, padding, dilation, groups)
    padded = torch.zeros_like(patches.padded)
    sums = patches.taps(padded)
    for tap, _, x, w, g in patches.pieces(grad):
        slope = _sign(w - x) if input_grad == "sign" else (w - x).clamp(-1, 1)
        sums[tap] += (g * slope).sum(2)
    height, width = input.shape[2:]
    inner = padded[:, :, padding[0] : padding[0] + height, padding[1] : padding[1] + width]
    return torch.empty_like(input, memory_format=memory_format_like(input)).copy_(inner)


def backward_weight(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """Eq. 4: sum of g * sign(X - F)."""
    patches = _Patches(input, weight, stride, padding, dilation, groups)
    sums = torch.empty_like(patches.filters, memory_format=torch.contiguous_format)  # (taps, G, O / G, C / G)
    for tap, some, x, w, g in patches.pieces(grad):
        sums[tap, :, some] = (g * _sign(x - w)).sum((0, 4, 5))
    gradient = sums.flatten(1, 2).movedim(0, -1).unflatten(-1, patches.kernel)
    return gradient.to(weight.dtype, memory_format=torch.contiguous_format)
