"""The PyTorch reference, and its service to devices that the compiled library does not know."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_python
from reference64 import Geometry, adder2d64_with_gradients, magnitude
from samples import FORMATS, GEOMETRIES, sample
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from adderzoo.ops import _library, adder2d, reference


def run_reference(
    input: Tensor, weight: Tensor, grad: Tensor, geometry: Geometry, input_grad: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, gradient of the input and sign gradient of the weight."""
    return (
        reference.adder2d(input, weight, *geometry),
        reference.backward_input(grad, input, weight, *geometry, input_grad),
        reference.backward_weight(grad, input, weight, *geometry),
    )


def assert_reference_matches_the_definition(
    x: Tensor, w: Tensor, geometry: Geometry, input_grad: str, epsilon: float
) -> None:
    g = torch.randn_like(reference.adder2d(x, w, *geometry))
    expected = adder2d64_with_gradients(x, w, g, geometry, input_grad, "sign")
    results = run_reference(x, w, g, geometry, input_grad)
    for actual, wanted, scale in zip(results, expected, magnitude(x, w, g, geometry), strict=True):
        assert actual.shape == wanted.shape
        rounding = torch.finfo(actual.dtype).eps * wanted.abs()  # of a gradient in half precision
        assert ((actual.double() - wanted).abs() <= epsilon * scale + rounding).all()


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("input_grad", ["hardtanh", "sign"])
def test_reference_matches_the_definition(device: torch.device, name: str, dtype: torch.dtype, input_grad: str) -> None:
    x, w, geometry = sample(name, dtype, device)
    epsilon = 1e-14 if dtype == torch.float64 else 1e-6
    assert_reference_matches_the_definition(x, w, Geometry(*geometry), input_grad, epsilon)


@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_reference_has_types_and_strides_of_the_compiled_kernels(
    device: torch.device, name: str, memory_format: str, batch: int
) -> None:
    x, w, geometry = sample(name, torch.bfloat16, device, memory_format, batch=batch)
    y = adder2d(x, w, *geometry)
    g = torch.randn_like(y)
    kernels = (
        y,
        torch.ops.adderzoo._adder2d_backward_input(g, x, w, *geometry, "hardtanh"),
        torch.ops.adderzoo._adder2d_backward_weight(g, x, w, *geometry),
    )
    for actual, expected in zip(run_reference(x, w, g, geometry, "hardtanh"), kernels, strict=True):
        assert (actual.dtype, actual.shape, actual.stride()) == (expected.dtype, expected.shape, expected.stride())


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that an operator makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize("name", GEOMETRIES)
def test_reference_makes_no_tensor_larger_than_its_piece_or_its_arguments(
    device: torch.device, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not all patches times all filters, which are many times as large."""
    monkeypatch.setattr(reference, "_PIECE", 4096)
    geometry, in_channels, out_channels, kernel = GEOMETRIES[name]
    x = torch.randn(2, 8 * in_channels, 24, 24, device=device)
    w = torch.randn(8 * out_channels, 8 * in_channels // geometry[3], *kernel, device=device)
    y = adder2d(x, w, *geometry)
    (padding_h, padding_w) = geometry[1]
    padded = x.shape[0] * x.shape[1] * (24 + 2 * padding_h) * (24 + 2 * padding_w)
    bound = max(4096, padded, x[:, :, :: geometry[0][0], :: geometry[0][1]].numel(), w.numel(), y.numel())
    assert 4 * bound < w[0].numel() * y.numel()
    with LargestTensor() as largest:
        run_reference(x, w, torch.ones_like(y), geometry, "hardtanh")
    assert 0 < largest.elements <= bound
    assert_reference_matches_the_definition(x, w, Geometry(*geometry), "hardtanh", 1e-6)


# ------------------------------------------------------------------------------------------------------- other devices


@pytest.mark.parametrize("key", ["CUDA", "XPU", "MPS", "PrivateUse1"])
@pytest.mark.parametrize("schema", _library.SCHEMAS[:4], ids=lambda schema: schema.partition("(")[0])
def test_every_device_has_a_kernel(schema: str, key: str) -> None:
    name = "adderzoo::" + schema.partition("(")[0]
    assert torch._C._dispatch_has_computed_kernel_for_dispatch_key(name, key)


@pytest.mark.parametrize("key", ["CPU", "CUDA", "XPU", "MPS", "PrivateUse1"])
def test_every_device_has_autocast(key: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key("adderzoo::adder2d", f"Autocast{key}")


def test_each_type_of_device_is_warned_about_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_library, "_warned_devices", set())
    monkeypatch.setattr(_library, "BACKEND", "compiled at installation")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for device in ("mps", "xpu:0", "xpu:1", "mps"):
            _library._warn_about_device(torch.device(device))
    assert [str(warning.message).partition(" tensors")[0] for warning in caught] == [
        "adderzoo has no compiled operator for mps",
        "adderzoo has no compiled operator for xpu",
    ]
    assert all(warning.category is RuntimeWarning for warning in caught)


# A device whose tensors are CPU tensors in a shell: adderzoo's operators run the kernel that the dispatcher has for the
# device, PyTorch's run on the CPU tensors.
TOY_DEVICE = """
import os, sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[1])
import torch
from torch.utils._pytree import tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("toy")
TOY = torch.device("toy", 0)


class ToyTensor(torch.Tensor):
    @staticmethod
    def __new__(cls, inside):
        return torch.Tensor._make_wrapper_subclass(
            cls, inside.shape, inside.stride(), inside.storage_offset(), dtype=inside.dtype, device=TOY
        )

    def __init__(self, inside):
        self.inside = inside

    @classmethod
    def __torch_dispatch__(cls, op, types, args=(), kwargs=None):
        if op.namespace == "adderzoo":
            kernel = torch.library.get_kernel(op, "PrivateUse1")  # the dispatcher's choice for the device
            return kernel.call_boxed(torch._C.DispatchKeySet(torch._C.DispatchKey.PrivateUse1), *args)
        shells = {}

        def unwrap(tensor):
            shells[id(tensor.inside)] = tensor
            return tensor.inside

        args, kwargs = tree_map_only(cls, unwrap, (args, kwargs or {}))
        args, kwargs = tree_map_only(torch.device, lambda device: torch.device("cpu"), (args, kwargs))
        result = op(*args, **kwargs)
        return tree_map_only(
            torch.Tensor, lambda tensor: shells[id(tensor)] if id(tensor) in shells else cls(tensor), result
        )


import adderzoo.ops
from reference64 import Geometry, adder2d64_with_gradients
from samples import FORMATS, GEOMETRIES, sample

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for name in GEOMETRIES:
        for memory_format in FORMATS:
            x, w, geometry = sample(name, torch.float64, "cpu", memory_format)
            ones = torch.ones_like(adderzoo.ops.adder2d(x, w, *geometry))
            expected = adder2d64_with_gradients(x, w, ones, Geometry(*geometry), "hardtanh", "sign")
            shells = [ToyTensor(x).requires_grad_(), ToyTensor(w).requires_grad_()]
            y = adderzoo.ops.adder2d(*shells, *geometry, "hardtanh", "sign")
            assert y.device == TOY, y.device
            gradients = torch.autograd.grad(y, shells, ToyTensor(ones))
            for actual, wanted in zip((y.detach(), *gradients), expected, strict=True):
                torch.testing.assert_close(actual.inside, wanted)
print([str(warning.message) for warning in caught if "adderzoo" in str(warning.message)], flush=True)
os._exit(0)  # PyTorch's backward thread for such a device does not always survive the end of Python
"""


def test_reference_serves_a_device_that_nobody_knows(tmp_path: Path) -> None:
    printed = run_python(TOY_DEVICE, Path(__file__).parent, cwd=tmp_path)
    assert printed.count("no compiled operator for toy tensors") == 1
