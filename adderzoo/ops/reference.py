"""`adder2d` and its gradients in plain PyTorch: for devices and machines that the compiled library does not serve.

Memory is bounded: the filter's taps are taken one by one, and what a tap broadcasts is cut into pieces.
"""

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
    """What csrc/cpu/adder2d_kernel.cpp checks, in the same words."""
    x, w = tuple(input.shape), tuple(weight.shape)
    torch._check(input.dim() == 4, lambda: f"adder2d: input must have 4 dimensions (N, C, H, W), got shape {x}")
    torch._check(
        weight.dim() == 4, lambda: f"adder2d: weight must have 4 dimensions (O, C / groups, kH, kW), got shape {w}"
    )
    torch._check(input.dtype in DTYPES, lambda: "adder2d: input must be float32, float64, bfloat16 or float16")
    torch._check(weight.dtype == input.dtype, lambda: "adder2d: weight must have the dtype of input")
    torch._check(weight.device == input.device, lambda: "adder2d: weight must be on the device of input")
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
        lambda: f"adder2d: the dilated kernel must fit into the padded input, got input {x} and weight {w}",
    )


def _check_pair(name: str, pair: list[int], least: int) -> None:
    torch._check(
        len(pair) == 2 and pair[0] >= least and pair[1] >= least,
        lambda: f"adder2d: {name} must be two integers of at least {least}",
    )


def check_modes(input_grad: str, weight_grad: str) -> None:
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
        self.padded = F.pad(input, (padding[1], padding[1], padding[0], padding[0]))
        self.stride, self.dilation, self.groups = stride, dilation, groups
        self.size = output_size(input, weight, stride, padding, dilation)
        self.kernel = weight.shape[2:]
        # (taps, G, O / G, C / G)
        self.filters = weight.permute(2, 3, 0, 1).reshape(-1, groups, weight.shape[0] // groups, weight.shape[1])

    def taps(self, padded: Tensor) -> list[Tensor]:
        views = []
        for i in range(self.kernel[0]):
            for j in range(self.kernel[1]):
                top, left = i * self.dilation[0], j * self.dilation[1]
                rows = slice(top, top + (self.size[0] - 1) * self.stride[0] + 1, self.stride[0])
                columns = slice(left, left + (self.size[1] - 1) * self.stride[1] + 1, self.stride[1])
                views.append(padded[:, :, rows, columns].unflatten(1, (self.groups, -1)))
        return views


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
    check(input, weight, stride, padding, dilation, groups)
    dtype = accumulation_dtype(input.dtype)
    patches = _Patches(input.to(dtype), weight.to(dtype), stride, padding, dilation, groups)
    batch, filters = input.shape[0], weight.shape[0] // groups
    distance = input.new_zeros((groups, batch * patches.size[0] * patches.size[1], filters), dtype=dtype)
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
    dtype = accumulation_dtype(input.dtype)
    patches = _Patches(input.to(dtype), weight.to(dtype), stride, padding, dilation, groups)
    g = grad.to(dtype).unflatten(1, (groups, -1)).unsqueeze(3)  # (N, G, O / G, 1, OH, OW)
    padded = torch.zeros_like(patches.padded)
    for x, w, to in zip(patches.taps(patches.padded), patches.filters, patches.taps(padded), strict=True):
        for piece in torch.arange(w.shape[1]).split(max(1, _PIECE // max(1, x.numel()))):
            filters = slice(int(piece[0]), int(piece[-1]) + 1)
            slope = w[None, :, filters, :, None, None] - x.unsqueeze(2)
            slope = _sign(slope) if input_grad == "sign" else slope.clamp(-1, 1)
            to += (g[:, :, filters] * slope).sum(2)
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
    dtype = accumulation_dtype(input.dtype)
    patches = _Patches(input.to(dtype), weight.to(dtype), stride, padding, dilation, groups)
    g = grad.to(dtype).unflatten(1, (groups, -1)).unsqueeze(3)
    taps = []
    for x, w in zip(patches.taps(patches.padded), patches.filters, strict=True):
        pieces = []
        for piece in torch.arange(w.shape[1]).split(max(1, _PIECE // max(1, x.numel()))):
            filters = slice(int(piece[0]), int(piece[-1]) + 1)
            sign = _sign(x.unsqueeze(2) - w[None, :, filters, :, None, None])
            pieces.append((g[:, :, filters] * sign).sum((0, 4, 5)))
        taps.append(torch.cat(pieces, 1).flatten(0, 1))  # (O, C / G)
    return torch.stack(taps, -1).unflatten(-1, tuple(patches.kernel)).to(weight.dtype)
