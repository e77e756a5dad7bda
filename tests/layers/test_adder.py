"""Adder2d and AdderLinear, against the definition in float64 and against torch.nn.Conv2d and Linear."""

import copy
import inspect
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn.utils import parametrizations, prune

from adderzoo.layers import Adder2d, AdderLinear, AdderTranspose2d

pytestmark = pytest.mark.usefixtures("one_thread")


def adder2d64(layer: Adder2d, input: Tensor, sides: list[int], mode: str = "constant") -> Tensor:
    """Eq. 2 with the parameters of a layer: `sides` are (left, right, top, bottom), everything in float64."""
    x = F.pad(input.double(), sides, mode=mode)
    w = layer.weight.detach().double()
    kernel, channels = w.shape[2:], w.shape[1]
    size = [(x.shape[2 + d] - layer.dilation[d] * (kernel[d] - 1) - 1) // layer.stride[d] + 1 for d in (0, 1)]
    outputs = []
    for group, filters in enumerate(w.chunk(layer.groups)):
        part = x[:, group * channels : (group + 1) * channels]
        patches = F.unfold(part, kernel, layer.dilation, 0, layer.stride)  # (N, K, L)
        outputs.append(-(patches[:, None] - filters.flatten(1)[None, :, :, None]).abs().sum(2).unflatten(-1, size))
    output = torch.cat(outputs, 1)
    return output if layer.bias is None else output + layer.bias.detach().double()[:, None, None]


def sides_of_same(kernel: tuple[int, int], dilation: tuple[int, int]) -> list[int]:
    """As PyTorch documents "same": the output has the size of the input; an odd pixel goes right and below."""
    height, width = (dilation[d] * (kernel[d] - 1) for d in (0, 1))
    return [width // 2, width - width // 2, height // 2, height - height // 2]


def assert_close64(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got.double().cpu(), expected.cpu(), rtol=1e-5, atol=1e-4)


def randomized(layer: Adder2d) -> Adder2d:
    """With a bias that is not zero, of which one could not tell whether it is added."""
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    return layer


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=pairs,
    padding=st.sampled_from(["same", "valid"]) | st.tuples(st.integers(0, 3), st.integers(0, 2)),
    dilation=pairs,
    groups=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
    size=st.tuples(st.integers(10, 13), st.integers(10, 13)),
)
def test_every_geometry_has_the_shape_of_conv2d_and_the_values_of_the_definition(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: str | tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    bias: bool,
    size: tuple[int, int],
) -> None:
    if padding == "same":
        stride = (1, 1)
    arguments: tuple[Any, ...] = (4, 8, kernel, stride, padding, dilation, groups, bias)
    layer, conv = randomized(Adder2d(*arguments)), nn.Conv2d(*arguments)
    x = torch.randn(2, 4, *size)
    output = layer(x)
    assert output.shape == conv(x).shape
    if padding == "same":
        sides = sides_of_same(kernel, dilation)
    elif padding == "valid":
        sides = [0, 0, 0, 0]
    else:
        sides = [int(padding[1])] * 2 + [int(padding[0])] * 2
    assert_close64(output, adder2d64(layer, x, sides))


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [2, (1, 3), "same"])
def test_padding_modes_pad_with_what_they_name(device: torch.device, mode: str, padding: Any) -> None:
    layer = randomized(Adder2d(3, 4, (4, 3), padding=padding, dilation=(1, 2), padding_mode=mode)).to(device)
    x = torch.randn(2, 3, 9, 8, device=device)
    if padding == "same":
        sides = sides_of_same((4, 3), (1, 2))
        assert layer(x).shape == (2, 4, 9, 8)
    else:
        height, width = (padding, padding) if isinstance(padding, int) else padding
        sides = [width, width, height, height]
    assert_close64(layer(x), adder2d64(layer, x, sides, "constant" if mode == "zeros" else mode))


def test_integers_mean_pairs() -> None:
    layer, same = Adder2d(2, 3, 3, 2, 1, 2), Adder2d(2, 3, (3, 3), (2, 2), (1, 1), (2, 2))
    same.load_state_dict(layer.state_dict())
    x = torch.randn(1, 2, 9, 9)
    assert torch.equal(layer(x), same(x))
    assert repr(layer) == repr(same)


def test_constructor_is_that_of_conv2d_and_more_by_name_only() -> None:
    mine = list(inspect.signature(Adder2d).parameters.values())
    theirs = list(inspect.signature(nn.Conv2d).parameters.values())
    assert theirs[-1].name == "dtype"
    assert [(p.name, p.default, p.kind) for p in mine[: len(theirs)]] == [(p.name, p.default, p.kind) for p in theirs]
    assert {(p.name, p.kind) for p in mine[len(theirs) :]} == {
        ("input_grad", inspect.Parameter.KEYWORD_ONLY),
        ("weight_grad", inspect.Parameter.KEYWORD_ONLY),
    }


def test_linear_constructor_is_that_of_linear() -> None:
    mine, theirs = (inspect.signature(kind).parameters.values() for kind in (AdderLinear, nn.Linear))
    assert [(p.name, p.default, p.kind) for p in mine] == [(p.name, p.default, p.kind) for p in theirs]


@pytest.mark.parametrize("make", [lambda: Adder2d(64, 64, 5), lambda: AdderLinear(320, 320)], ids=["2d", "linear"])
@pytest.mark.parametrize("again", [False, True], ids=["new", "reset"])
def test_filters_start_from_a_standard_normal_and_biases_from_zero(make: Callable[[], nn.Module], again: bool) -> None:
    torch.manual_seed(0)
    layer = make()
    if again:
        nn.init.constant_(layer.weight, 3.0)
        nn.init.constant_(layer.bias, 3.0)
        layer.reset_parameters()
    w = layer.weight.detach().double()
    assert w.numel() > 100_000  # so that a standard error is below 0.0033
    assert abs(w.mean()) < 0.015
    assert abs(w.std() - 1) < 0.015
    for sigmas in (0.5, 1, 2, 3):  # a normal distribution, and not another of the same mean and deviation
        assert abs((w.abs() < sigmas).double().mean() - math.erf(sigmas / math.sqrt(2))) < 0.01
    assert torch.equal(layer.bias, torch.zeros_like(layer.bias))


def test_gradients_are_the_papers_unless_signs_are_asked_for() -> None:
    """At F - X = 0.25: dY/dX = 0.25 or its sign, dY/dF = -0.25 or its sign; at F - X = -3: -1 and 3, or signs."""
    for modes, expected in {
        ("hardtanh", "full"): ([0.25, -1.0], [-0.25, 3.0]),
        ("sign", "full"): ([1.0, -1.0], [-0.25, 3.0]),
        ("hardtanh", "sign"): ([0.25, -1.0], [-1.0, 1.0]),
        ("sign", "sign"): ([1.0, -1.0], [-1.0, 1.0]),
    }.items():
        layer = Adder2d(2, 1, 1, bias=False, input_grad=modes[0], weight_grad=modes[1])
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([0.75, -1.0]).view(1, 2, 1, 1))
        x = torch.tensor([0.5, 2.0]).view(1, 2, 1, 1).requires_grad_()
        y = layer(x)
        assert y.item() == -3.25
        y.sum().backward()
        assert (x.grad.flatten().tolist(), layer.weight.grad.flatten().tolist()) == expected


def test_bias_gets_the_gradient_of_an_addition() -> None:
    layer = Adder2d(3, 4, 3)
    gradient = torch.randn(2, 4, 5, 5)
    layer(torch.randn(2, 3, 7, 7)).backward(gradient)
    torch.testing.assert_close(layer.bias.grad, gradient.sum((0, 2, 3)))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"input_grad": "tanh"}, "input_grad must be one of 'hardtanh', 'sign', got 'tanh'"),
        ({"weight_grad": "half"}, "weight_grad must be one of 'full', 'sign', got 'half'"),
        ({"padding": "full"}, "padding"),
        ({"padding": "same", "stride": 2}, "padding='same'"),
        ({"padding_mode": "mirror"}, "padding_mode='mirror'"),
        ({"groups": 2}, "groups"),
        ({"stride": 0}, "stride must be one or two integers of at least 1, got 0"),
        ({"stride": (1, 2, 1)}, r"stride must be one or two integers of at least 1, got \(1, 2, 1\)"),
        ({"dilation": (1, 0)}, r"dilation must be one or two integers of at least 1, got \(1, 0\)"),
        ({"padding": -1}, "padding must be one or two integers of at least 0, got -1"),
        ({"kernel_size": 1.5}, "kernel_size must be one or two integers of at least 1, got 1.5"),
    ],
    ids=str,
)
def test_unknown_modes_and_bad_geometry_are_refused_by_name(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Adder2d(3, 4, **({"kernel_size": 3} | arguments))


@pytest.mark.parametrize(
    "arguments",
    [
        {"kernel_size": 3},
        {"kernel_size": (3, 2), "stride": 2, "padding": 1, "dilation": (1, 2), "groups": 2, "bias": False},
        {"kernel_size": 4, "padding": "same", "padding_mode": "reflect"},
    ],
    ids=["plain", "everything", "same"],
)
def test_printed_form_is_that_of_conv2d(arguments: dict[str, Any]) -> None:
    printed = repr(nn.Conv2d(4, 6, **arguments)).removeprefix("Conv2d")
    assert repr(Adder2d(4, 6, **arguments)) == "Adder2d" + printed
    signs = Adder2d(4, 6, **arguments, input_grad="sign", weight_grad="sign")
    assert repr(signs) == "Adder2d" + printed[:-1] + ", input_grad=sign, weight_grad=sign)"


def test_printed_form_of_linear_is_that_of_linear() -> None:
    for bias in (True, False):
        assert repr(AdderLinear(4, 6, bias)) == "Adder" + repr(nn.Linear(4, 6, bias))


def network(bias: bool = True, device: str = "cpu") -> nn.Sequential:
    """Adder and other layers; an even kernel and "same", so that the padding is unequal."""
    with torch.device(device):
        return nn.Sequential(
            Adder2d(3, 4, 4, padding="same", bias=bias),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            Adder2d(4, 6, 3, stride=2, padding=1, bias=bias),
            nn.BatchNorm2d(6),
            nn.Conv2d(6, 5, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            AdderLinear(5, 2, bias=bias),
        )


def marked(module: nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if getattr(parameter, "is_adder_filter", False)}


def through_pickle(module: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(module))


def through_torch_save(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


def from_meta(module: nn.Module) -> nn.Module:
    return network(device="meta").to_empty(device="cpu")


def with_assigned_state_dict(module: nn.Module) -> nn.Module:
    other = network(device="meta")
    other.load_state_dict(module.state_dict(), assign=True)
    return other


def with_new_parameters(module: nn.Module) -> nn.Module:
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            setattr(part, name, nn.Parameter(parameter.detach().clone()))
    return module


def with_swapped_tensors(module: nn.Module) -> nn.Module:
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return module.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


@pytest.mark.parametrize(
    "change",
    [
        lambda module: module,
        copy.deepcopy,
        through_pickle,
        through_torch_save,
        lambda module: module.to(torch.float64),
        lambda module: module.to(torch.bfloat16).requires_grad_(False),
        lambda module: module.to(memory_format=torch.channels_last),
        lambda module: module.to("meta"),
        from_meta,
        with_assigned_state_dict,
        with_new_parameters,
        with_swapped_tensors,
    ],
    ids=[
        "new",
        "deepcopy",
        "pickle",
        "torch.save",
        "float64",
        "bfloat16",
        "channels_last",
        "to meta",
        "to_empty",
        "assign",
        "new parameters",
        "swapped",
    ],
)
def test_mark_of_the_filters_survives(change: Callable[[nn.Module], nn.Module]) -> None:
    assert marked(change(network())) == {"0.weight", "3.weight", "8.weight"}


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated", "ignore:.*spectral_norm. is deprecated")
@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), {"weight_orig"}),
        (nn.utils.weight_norm, {"weight_g", "weight_v"}),
        (nn.utils.spectral_norm, {"weight_orig"}),
        (parametrizations.weight_norm, {f"parametrizations.weight.original{index}" for index in (0, 1)}),
        (parametrizations.spectral_norm, {"parametrizations.weight.original"}),
    ],
    ids=["prune", "old weight_norm", "old spectral_norm", "weight_norm", "spectral_norm"],
)
@pytest.mark.parametrize("then", [lambda layer: layer, lambda layer: layer.to("meta"), copy.deepcopy])
@torch.no_grad()  # with gradients, copy.deepcopy refuses what hooks have computed
def test_parameters_that_make_the_filters_are_marked(
    change: Callable[[nn.Module], nn.Module], names: set[str], then: Callable[[nn.Module], nn.Module]
) -> None:
    for layer in (Adder2d(3, 4, 3), AdderLinear(3, 4)):
        change(layer)
        layer = then(layer)
        assert marked(layer) == names
        for parameter in layer.parameters():
            parameter.is_adder_filter = False  # as new ones are, that something puts into the module's dictionary
        assert marked(nn.Sequential(layer)) == {f"0.{name}" for name in names}


def test_filters_are_loaded_by_the_authors_name() -> None:
    net = nn.Sequential(
        Adder2d(3, 4, 3), nn.Conv2d(4, 5, 3), AdderTranspose2d(5, 2, 3), nn.Flatten(), AdderLinear(8, 2)
    )
    state = {
        name if name.startswith("1.") else name.replace("weight", "adder"): torch.randn_like(value)
        for name, value in net.state_dict().items()
    }
    names = list(state)
    assert {"0.adder", "1.weight", "2.adder", "4.adder"} < set(names)
    net.load_state_dict(state)
    assert list(state) == names
    for name, value in net.state_dict().items():
        assert value.equal(state.get(name, state.get(name.replace("weight", "adder"))))
    for change, named in (
        ({"0.weight": state["0.adder"]}, r"Unexpected key\(s\) in state_dict: \"0.adder\""),
        ({"1.adder": state["1.weight"]}, r"Unexpected key\(s\) in state_dict: \"1.adder\""),
        ({"0.adder": state["4.adder"]}, "size mismatch for 0.weight"),
    ):
        with pytest.raises(RuntimeError, match=named):
            net.load_state_dict(state | change)
    del state["2.adder"]
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"2.weight\""):
        net.load_state_dict(state)


def test_third_party_fusion_with_batch_norm_does_not_touch_an_adder_layer() -> None:
    """-|X - F| does not scale with F: what folds BatchNorm into a convolution would ruin an adder layer."""
    assert not issubclass(Adder2d, nn.Conv2d)
    net = trained(nn.Sequential(Adder2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5))).eval()
    fused = fuse(net)
    x = torch.randn(2, 3, 9, 9)
    assert [type(m) for m in fused.modules() if isinstance(m, nn.BatchNorm2d)] == [nn.BatchNorm2d]  # it did fuse one
    torch.testing.assert_close(fused(x), net(x))


def trained(net: nn.Sequential) -> nn.Sequential:
    """With BatchNorm statistics of its own."""
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(4, 3, 12, 12))
    return net


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("way", ["script", "trace", "fx"])
def test_scripted_and_traced_networks_give_the_same_output_and_gradients(way: str, bias: bool) -> None:
    net = trained(network(bias)).eval()
    x = torch.randn(2, 3, 12, 12)
    make: dict[str, Callable[[], nn.Module]] = {
        "script": lambda: torch.jit.script(net),
        "trace": lambda: torch.jit.trace(net, x),
        "fx": lambda: torch.fx.symbolic_trace(net),
    }
    other = make[way]()
    for batch in (2, 3):
        x = torch.randn(batch, 3, 12, 12, requires_grad=True)
        expected = net(x)
        got = other(x)
        torch.testing.assert_close(got, expected)
        gradients = [torch.autograd.grad(y.square().sum(), [x, *net.parameters()]) for y in (expected, got)]
        torch.testing.assert_close(*gradients)


def test_scripted_network_survives_a_file() -> None:
    net = trained(network()).eval()
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(net), file)
    x = torch.randn(2, 3, 12, 12)
    torch.testing.assert_close(torch.jit.load(io.BytesIO(file.getvalue()))(x), net(x))


def test_exported_network_takes_any_batch() -> None:
    net = trained(network()).eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(net, (torch.randn(2, 3, 12, 12),), dynamic_shapes=({0: batch},))
    calls = [node for node in program.graph.nodes if node.target is torch.ops.adderzoo.adder2d.default]
    assert len(calls) == 3
    x = torch.randn(5, 3, 12, 12)
    torch.testing.assert_close(program.module()(x), net(x))


def test_compiles_into_one_graph_that_trains() -> None:
    torch._dynamo.reset()
    net = trained(network())
    compiled = torch.compile(copy.deepcopy(net), backend="aot_eager", fullgraph=True)
    x = torch.randn(4, 3, 12, 12)
    for module in (net, compiled):
        module(x).square().sum().backward()
    torch.testing.assert_close(
        [p.grad for p in compiled.parameters()], [p.grad for p in net.parameters()], rtol=1e-4, atol=1e-3
    )


def linear64(layer: AdderLinear, input: Tensor) -> Tensor:
    x, w = input.detach().double(), layer.weight.detach().double()
    output = -(x.unsqueeze(-2) - w).abs().sum(-1)
    return output if layer.bias is None else output + layer.bias.detach().double()


@pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 3, 7), (2, 1, 3, 7), (0, 7)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scripted", [False, True])
def test_linear_is_the_distance_to_every_filter(
    device: torch.device, shape: tuple[int, ...], bias: bool, scripted: bool
) -> None:
    layer = AdderLinear(7, 4, bias, device=device)
    if bias:
        nn.init.normal_(layer.bias)
    x = torch.randn(shape, device=device)
    output = torch.jit.script(layer)(x) if scripted else layer(x)
    assert output.shape == nn.Linear(7, 4, device=device)(x).shape
    assert_close64(output, linear64(layer, x))


def test_linear_has_the_papers_gradients(device: torch.device) -> None:
    layer = AdderLinear(7, 4, device=device)
    x = torch.randn(2, 3, 7, device=device, requires_grad=True)
    g = torch.randn(2, 3, 4, device=device)
    layer(x).backward(g)
    difference = x.detach().double().unsqueeze(-2) - layer.weight.detach().double()  # X - F, (2, 3, 4, 7)
    g64 = g.double().unsqueeze(-1)
    assert_close64(x.grad, (g64 * (-difference).clamp(-1, 1)).sum(-2))
    assert_close64(layer.weight.grad, (g64 * difference).sum((0, 1)))
    assert_close64(layer.bias.grad, g.double().sum((0, 1)))


@pytest.mark.parametrize("make", [lambda: Adder2d(64, 4, 1), lambda: AdderLinear(64, 4)], ids=["2d", "linear"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_output_of_half_precision_layers_is_not_rounded_to_half_precision(
    make: Callable[[], nn.Module], dtype: torch.dtype
) -> None:
    """Adder outputs lie near -1000 with a spread of a few units."""
    layer = make()
    nn.init.normal_(layer.bias)
    pixels = (1, 1) if isinstance(layer, Adder2d) else ()
    x = torch.randn(2, 64, *pixels)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.float32
    layer, x = layer.to(dtype), x.to(dtype)
    output = layer(x)
    assert output.dtype == torch.float32
    rows, filters, bias = x.double().flatten(1), layer.weight.detach().double().flatten(1), layer.bias.detach().double()
    assert_close64(output.flatten(1), -(rows[:, None] - filters).abs().sum(-1) + bias)
