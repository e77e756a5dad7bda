"""torch.library.opcheck: schema, fake kernels (strides too), autograd registration, AOTAutograd with dynamic shapes."""

import pytest
import torch
from samples import DTYPES, FORMATS, GEOMETRIES, in_format, sample

MODES = [("hardtanh", "full"), ("sign", "sign"), ("hardtanh", "sign"), ("sign", "full")]
GRADIENTS = [(True, True), (True, False), (False, True), (False, False)]  # of the input, of the weight


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward_in_every_dtype_and_memory_format(device: torch.device, dtype: torch.dtype, memory_format: str) -> None:
    x, w, geometry = sample("plain", dtype, device, memory_format)
    torch.library.opcheck(torch.ops.adderzoo.adder2d.default, (x.requires_grad_(), w.requires_grad_(), *geometry))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_forward_in_every_geometry(device: torch.device, name: str, memory_format: str) -> None:
    x, w, geometry = sample(name, torch.float32, device, memory_format)
    torch.library.opcheck(torch.ops.adderzoo.adder2d.default, (x.requires_grad_(), w.requires_grad_(), *geometry))


@pytest.mark.parametrize("modes", MODES, ids=str)
@pytest.mark.parametrize("requires_grad", GRADIENTS, ids=["both", "input", "weight", "none"])
def test_every_mix_of_gradients(device: torch.device, requires_grad: tuple[bool, bool], modes: tuple[str, str]) -> None:
    x, w, geometry = sample("grouped", device=device)
    x.requires_grad_(requires_grad[0])
    w.requires_grad_(requires_grad[1])
    torch.library.opcheck(torch.ops.adderzoo.adder2d.default, (x, w, *geometry, *modes))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(
    ("dtype", "name"),
    [(dtype, "strided") for dtype in DTYPES] + [(torch.float32, name) for name in GEOMETRIES],
    ids=str,
)
def test_backward_operators(device: torch.device, dtype: torch.dtype, name: str, memory_format: str) -> None:
    x, w, geometry = sample(name, dtype, device, memory_format)
    grad = in_format(torch.randn_like(torch.ops.adderzoo.adder2d(x, w, *geometry)), memory_format)
    torch.library.opcheck(torch.ops.adderzoo._adder2d_backward_input.default, (grad, x, w, *geometry, "hardtanh"))
    torch.library.opcheck(torch.ops.adderzoo._adder2d_backward_weight.default, (grad, x, w, *geometry))
