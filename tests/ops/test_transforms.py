"""The operator under everything that PyTorch does with a program: compiling, exporting, mapping, casting, counting."""

import copy
import io
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from samples import sample
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.flop_counter import FlopCounterMode

from adderzoo.ops import adder2d, adder2d_affine, adder2d_u8, pack_byte_filters, pack_filters


class Layer(torch.nn.Module):
    """As the library's own layers call the operator."""

    def __init__(self, weight_grad: str = "full") -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(6, 2, 3, 3, generator=generator))
        self.stride, self.padding, self.dilation, self.groups = [2, 1], [1, 1], [1, 1], 2
        self.input_grad, self.weight_grad = "hardtanh", weight_grad

    def forward(self, x: Tensor) -> Tensor:
        y = torch.ops.adderzoo.adder2d(
            x, self.weight, self.stride, self.padding, self.dilation, self.groups, self.input_grad, self.weight_grad
        )
        return torch.relu(y + 20)


def images(batch: int, device: torch.device) -> Tensor:
    return torch.randn(batch, 4, 7, 8, device=device)


def results(layer: Callable[[Tensor], Tensor], weight: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The output and both gradients."""
    x = x.clone().requires_grad_()
    y = layer(x)
    return y.detach(), *torch.autograd.grad(y.square().sum(), (x, weight))


def assert_same_results(one: Callable, another: Callable, weight: Tensor, x: Tensor) -> None:
    for actual, expected in zip(results(one, weight, x), results(another, weight, x), strict=True):
        torch.testing.assert_close(actual, expected)
        assert actual.stride() == expected.stride()


# ------------------------------------------------------------------------------------------------- compile and export


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("weight_grad", ["full", "sign"])
def test_compiled_training_step_serves_every_batch_size_with_one_recompilation(
    device: torch.device, weight_grad: str, memory_format: torch.memory_format
) -> None:
    torch.compiler.reset()
    layer = Layer(weight_grad).to(device)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    for batch in (2, 3, 5, 8):
        x = images(batch, device).contiguous(memory_format=memory_format)
        assert_same_results(compiled, layer, layer.weight, x)
    assert counter.frame_count <= 2  # the first batch, then any batch


def test_compiled_with_dynamic_shapes_from_the_start_never_recompiles(device: torch.device) -> None:
    torch.compiler.reset()
    layer = Layer().to(device)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter, dynamic=True)
    for batch in (2, 3, 5):
        assert_same_results(compiled, layer, layer.weight, images(batch, device))
    assert counter.frame_count == 1


def test_inductor_compiles_forward_and_backward(device: torch.device) -> None:
    torch.compiler.reset()
    layer = Layer("sign").to(device)
    compiled = torch.compile(layer, fullgraph=True)
    x = images(3, device).contiguous(memory_format=torch.channels_last)
    for actual, expected in zip(results(compiled, layer.weight, x), results(layer, layer.weight, x), strict=True):
        torch.testing.assert_close(actual, expected)


def test_cuda_graphs_play_what_they_have_recorded(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("CUDA graphs are of GPUs")
    torch.compiler.reset()
    layer = Layer().to(device)
    compiled = torch.compile(layer, mode="reduce-overhead")
    for _ in range(5):  # compiles, records, plays
        assert_same_results(compiled, layer, layer.weight, images(3, device))


def test_exported_program_survives_a_file_and_takes_any_batch(device: torch.device, tmp_path: Path) -> None:
    layer = Layer().to(device).eval()
    dynamic_shapes = {"x": {0: torch.export.Dim("batch", min=1)}}
    program = torch.export.export(layer, (images(2, device),), dynamic_shapes=dynamic_shapes)
    assert any("adderzoo.adder2d" in str(node.target) for node in program.graph.nodes)
    torch.export.save(program, tmp_path / "layer.pt2")
    loaded = torch.export.load(tmp_path / "layer.pt2").module()
    for batch in (1, 2, 7):
        x = images(batch, device)
        assert loaded(x).equal(layer(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("way", ["script", "trace"])
def test_torchscript_round_trip_keeps_output_and_gradients(device: torch.device, way: str) -> None:
    layer = Layer().to(device)
    program = torch.jit.script(layer) if way == "script" else torch.jit.trace(layer, images(2, device))
    file = io.BytesIO()
    torch.jit.save(program, file)
    file.seek(0)
    loaded = torch.jit.load(file)
    x = images(5, device)
    for actual, expected in zip(results(loaded, loaded.weight, x), results(layer, layer.weight, x), strict=True):
        torch.testing.assert_close(actual, expected)


def test_symbolic_trace_records_one_call_of_the_operator(device: torch.device) -> None:
    layer = Layer().to(device)
    traced = torch.fx.symbolic_trace(layer)
    assert [node.target for node in traced.graph.nodes].count(torch.ops.adderzoo.adder2d) == 1
    assert_same_results(traced, layer, layer.weight, images(3, device))


def test_deepcopy_and_pickle_of_a_module_keep_its_results(device: torch.device) -> None:
    layer = Layer().to(device)
    x = images(2, device)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    assert copy.deepcopy(layer)(x).equal(layer(x))
    assert torch.load(file, weights_only=False)(x).equal(layer(x))


# ----------------------------------------------------------------------------------------------------------- autocast


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_casts_the_input_and_keeps_output_and_gradients_in_float32(
    device: torch.device, dtype: torch.dtype
) -> None:
    x, w, geometry = sample("strided", device=device)
    x, w = x.requires_grad_(), w.requires_grad_()
    with torch.autocast(device.type, dtype):
        y = adder2d(x, w, *geometry)
    assert y.dtype == torch.float32
    expected = adder2d(x.to(dtype), w.to(dtype), *geometry)
    assert y.equal(expected)
    assert not y.equal(adder2d(x, w, *geometry))
    grad = torch.randn_like(y)
    gradients = torch.autograd.grad(y, (x, w), grad)
    for actual, wanted in zip(gradients, torch.autograd.grad(expected, (x, w), grad), strict=True):
        assert actual.dtype == torch.float32
        assert actual.equal(wanted)


def test_autocast_leaves_float64_alone(device: torch.device) -> None:
    x, w, geometry = sample("strided", torch.float64, device)
    with torch.autocast(device.type, torch.bfloat16):
        y = adder2d(x, w, *geometry)
    assert y.dtype == torch.float64
    assert y.equal(adder2d(x, w, *geometry))


def test_autocast_unites_an_input_in_half_precision_with_a_weight_in_float32(device: torch.device) -> None:
    x, w, geometry = sample("strided", device=device)
    with torch.autocast(device.type, torch.bfloat16):
        y = adder2d(x.bfloat16(), w, *geometry)
    assert y.equal(adder2d(x.bfloat16(), w.bfloat16(), *geometry))


# --------------------------------------------------------------------------------------------------------------- vmap


def mapped(tensor: Tensor, dim: int | None, size: int = 3) -> Tensor:
    """`size` different tensors like this one, stacked along `dim`."""
    if dim is None:
        return tensor
    return torch.stack([tensor + index for index in range(size)], dim)


def assert_vmap_is_a_loop(function: Callable[..., Tensor], in_dims: tuple[int | None, ...], *tensors: Tensor) -> None:
    tensors = tuple(mapped(tensor, dim) for tensor, dim in zip(tensors, in_dims, strict=True))
    loop = [
        function(*(t if dim is None else t.select(dim, index) for t, dim in zip(tensors, in_dims, strict=True)))
        for index in range(3)
    ]
    torch.testing.assert_close(torch.vmap(function, in_dims)(*tensors), torch.stack(loop))


@pytest.mark.parametrize("name", ["strided", "grouped", "depthwise"])
@pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (0, 0), (3, None), (None, 2), (1, 4), (4, 1)], ids=str)
def test_vmap_of_the_forward_is_a_loop(device: torch.device, name: str, in_dims: tuple[int | None, int | None]) -> None:
    x, w, geometry = sample(name, device=device)
    assert_vmap_is_a_loop(lambda x, w: adder2d(x, w, *geometry), in_dims, x, w)


def test_vmap_over_a_size_of_zero_has_results_of_the_right_shape(device: torch.device) -> None:
    x, w, geometry = sample("grouped", device=device)
    g = torch.randn_like(adder2d(x, w, *geometry))
    scale = torch.ones(w.shape[0], device=device)
    bytes_ = (x.to(torch.uint8), pack_byte_filters(w.to(torch.uint8), geometry[3]))
    operators = torch.ops.adderzoo
    for call, tensors in (
        (lambda x, w: adder2d(x, w, *geometry), (x, w)),
        (lambda g, x, w: operators._adder2d_backward_input(g, x, w, *geometry, "sign"), (g, x, w)),
        (lambda g, x, w: operators._adder2d_backward_weight(g, x, w, *geometry), (g, x, w)),
        (lambda x, w: adder2d_affine(x, w, scale, scale, None, *geometry), (x, pack_filters(w))),
        (lambda x, w: adder2d_u8(x, w, scale, scale, None, *geometry), bytes_),
    ):
        one = call(*tensors)
        for dims in ((0,) * len(tensors), (*[None] * (len(tensors) - 1), 0), (1, *[None] * (len(tensors) - 1))):
            none = [
                tensor if dim is None else tensor.unsqueeze(dim).narrow(dim, 0, 0)
                for tensor, dim in zip(tensors, dims, strict=True)
            ]
            result = torch.vmap(call, dims)(*none)
            assert (result.shape, result.dtype) == ((0, *one.shape), one.dtype)


def test_nested_vmap_is_two_loops(device: torch.device) -> None:
    x, w, geometry = sample("grouped", device=device)
    xs, ws = mapped(x, 2, 2), mapped(w, 0, 3)
    once = torch.vmap(lambda x, w: adder2d(x, w, *geometry), (None, 0))
    twice = torch.vmap(once, (2, None))(xs, ws)
    loop = [[adder2d(xs.select(2, i), ws[j], *geometry) for j in range(3)] for i in range(2)]
    torch.testing.assert_close(twice, torch.stack([torch.stack(row) for row in loop]))


@pytest.mark.parametrize("name", ["strided", "grouped", "depthwise"])
@pytest.mark.parametrize(
    "in_dims", [d for d in itertools.product((0, 2, None), repeat=3) if any(x is not None for x in d)]
)
def test_vmap_of_the_backward_operators_is_a_loop(
    device: torch.device, name: str, in_dims: tuple[int | None, ...]
) -> None:
    x, w, geometry = sample(name, device=device)
    grad = torch.randn_like(adder2d(x, w, *geometry))
    tensors = (grad, x, w)
    backward_input = torch.ops.adderzoo._adder2d_backward_input
    backward_weight = torch.ops.adderzoo._adder2d_backward_weight
    assert_vmap_is_a_loop(lambda g, x, w: backward_input(g, x, w, *geometry, "hardtanh"), in_dims, *tensors)
    assert_vmap_is_a_loop(lambda g, x, w: backward_weight(g, x, w, *geometry), in_dims, *tensors)


@pytest.mark.parametrize("weight_grad", ["full", "sign"])
def test_batched_gradients_are_a_loop(device: torch.device, weight_grad: str) -> None:
    x, w, geometry = sample("grouped", device=device)
    x, w = x.requires_grad_(), w.requires_grad_()
    y = adder2d(x, w, *geometry, "hardtanh", weight_grad)
    grads = torch.randn(3, *y.shape, device=device)
    together = torch.autograd.grad(y, (x, w), grads, is_grads_batched=True, retain_graph=True)
    for index, grad in enumerate(grads):
        for mapped_gradient, alone in zip(
            together, torch.autograd.grad(y, (x, w), grad, retain_graph=True), strict=True
        ):
            torch.testing.assert_close(mapped_gradient[index], alone)


# -------------------------------------------------------------------------------------------------------------- flops


@pytest.mark.parametrize("name", ["plain", "strided", "grouped", "depthwise"])
def test_flops_are_two_for_each_element_of_each_patch(device: torch.device, name: str) -> None:
    x, w, geometry = sample(name, device=device)
    with FlopCounterMode(display=False) as counter:
        y = adder2d(x, w, *geometry)
    batch, filters, height, width = y.shape
    channels_of_group, kernel_h, kernel_w = w.shape[1:]
    assert channels_of_group == x.shape[1] // geometry[3]
    assert counter.get_total_flops() == 2 * batch * filters * height * width * channels_of_group * kernel_h * kernel_w


@pytest.mark.parametrize("name", ["plain", "strided"])
@pytest.mark.parametrize("weight_grad", ["full", "sign"])
def test_backward_flops_are_twice_the_forward_ones(device: torch.device, name: str, weight_grad: str) -> None:
    """One forward pass' worth for each gradient; that of mode "full" is counted as the convolution that it is."""
    x, w, geometry = sample(name, device=device)
    x, w = x.requires_grad_(), w.requires_grad_()
    with FlopCounterMode(display=False) as counter:
        adder2d(x, w, *geometry, "hardtanh", weight_grad)
    forward = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        adder2d(x, w, *geometry, "hardtanh", weight_grad).sum().backward()
    assert counter.get_total_flops() == 3 * forward
    by_operator = counter.get_flop_counts()["Global"]
    of_sign = torch.ops.adderzoo._adder2d_backward_weight
    of_weight = torch.ops.aten.convolution_backward if weight_grad == "full" else of_sign
    assert by_operator[of_weight] == forward
    assert by_operator[torch.ops.adderzoo._adder2d_backward_input] == forward
