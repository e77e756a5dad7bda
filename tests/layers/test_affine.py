"""AdderAffine2d and AdderAffineLinear, against the adder layers that they are made of."""

import copy
import io
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from adderzoo.layers import Adder2d, AdderAffine2d, AdderAffineLinear, AdderLinear
from adderzoo.layers.affine import AdderAffine2dSame
from adderzoo.layers.replace import Adder2dSame

pytestmark = pytest.mark.usefixtures("one_thread")

LAYERS: dict[str, Callable[[], Adder2d]] = {
    "plain": lambda: Adder2d(4, 6, 3),
    "no bias": lambda: Adder2d(4, 6, 3, padding=1, bias=False),
    "everything": lambda: Adder2d(4, 20, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2),
    "depthwise": lambda: Adder2d(4, 4, 3, padding=1, groups=4),
    "unequal sides": lambda: Adder2d(4, 6, (4, 3), padding="same"),
    "reflected": lambda: Adder2d(4, 6, 3, padding=2, padding_mode="reflect"),
    "same": lambda: Adder2dSame(4, 6, 3, stride=2),
}


def make(name: str = "plain", seed: int = 0) -> Adder2d:
    torch.manual_seed(seed)
    layer = LAYERS[name]()
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    return layer


def kind(layer: Adder2d) -> type[AdderAffine2d]:
    return AdderAffine2dSame if isinstance(layer, Adder2dSame) else AdderAffine2d


def images(batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, 4, 9, 8, generator=torch.Generator().manual_seed(1)).to(dtype)


def affine_map(layer: Adder2d) -> tuple[Tensor, Tensor]:
    """With which results lie on both sides of 0."""
    generator = torch.Generator().manual_seed(2)
    scale = torch.rand(layer.out_channels, generator=generator).to(layer.weight) + 0.5
    mean = layer(images().to(layer.weight)).detach().mean((0, 2, 3))
    return scale, -mean * scale


def without_bias(layer: Adder2d, x: Tensor) -> Tensor:
    y = layer(x)
    return y if layer.bias is None else y - layer.bias[:, None, None]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_it_is_the_layer_and_what_follows_it(name: str, relu: bool) -> None:
    layer = make(name).double()
    scale, shift = affine_map(layer)
    affine, x = kind(layer)(layer, scale, shift, relu), images(dtype=torch.float64)
    y = without_bias(layer, x) * scale[:, None, None] + shift[:, None, None]
    addend = torch.randn_like(y)
    for result, expected in ((affine(x), y), (affine(x, addend), y + addend)):
        assert (expected < -0.1).any()
        assert (expected > 0.1).any()
        torch.testing.assert_close(result, expected.relu() if relu else expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_without_scale_and_shift_it_is_the_layer_with_its_bias(name: str) -> None:
    layer = make(name)
    torch.testing.assert_close(kind(layer)(layer)(images()), layer(images()))
    doubled = kind(layer)(layer, 2 * torch.ones(layer.out_channels))
    torch.testing.assert_close(doubled(images()), 2 * layer(images()))


def test_it_is_of_buffers_alone_and_shares_no_memory_with_the_layer() -> None:
    layer = make("everything")
    affine = AdderAffine2d(layer)
    assert list(affine.parameters()) == []
    assert {name: tuple(value.shape) for name, value in affine.state_dict().items()} == {
        "weight": (2, 3, 2, 2, 16),
        "scale": (20,),
        "shift": (20,),
    }
    in_order = Adder2d(1, 16, 1)  # of whose filters packing changes the shape alone
    for original, x in ((layer, images()), (in_order, images()[:, :1])):
        affine = AdderAffine2d(original)
        before = affine(x)
        assert not before.requires_grad
        nn.init.ones_(original.weight)
        nn.init.ones_(original.bias)
        assert affine(x).equal(before)


def test_printed_form_says_what_it_is() -> None:
    assert repr(AdderAffine2d(make(), relu=True)) == (
        "AdderAffine2d(4, 6, kernel_size=(3, 3), stride=(1, 1), relu=True)"
    )
    printed = repr(AdderAffine2d(make("no bias"), float_output=True))
    assert printed == "AdderAffine2d(4, 6, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), float_output=True)"
    linear = AdderAffineLinear(AdderLinear(3, 4), relu=True)
    assert repr(linear) == "AdderAffineLinear(in_features=3, out_features=4, relu=True)"


# ------------------------------------------------------------------------------------------------------------- addends


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(1, 6, 1, 1), (6, 1, 1), (2, 1, 7, 6), (1,), (3, 2, 6, 7, 6)], ids=str)
@torch.no_grad()
def test_addend_of_another_shape_is_broadcast(shape: tuple[int, ...], relu: bool) -> None:
    layer = make()
    affine = AdderAffine2d(layer, *affine_map(layer), relu)
    plain = AdderAffine2d(layer, *affine_map(layer))
    addend = torch.randn(shape)
    expected = plain(images()) + addend
    for module in (affine, torch.jit.script(affine)):
        torch.testing.assert_close(module(images(), addend), expected.relu() if relu else expected)


@torch.no_grad()
def test_addend_of_another_type_is_added_as_pytorch_adds() -> None:
    layer = make()
    affine, x = AdderAffine2d(layer, *affine_map(layer)), images()
    addend = torch.randn_like(affine(x))
    for input_dtype, addend_dtype in ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.float16)):
        result = affine(x.to(input_dtype), addend.to(addend_dtype))
        assert result.dtype == torch.float32
        assert result.equal(affine(x.to(input_dtype)) + addend.to(addend_dtype))
    narrow = x.bfloat16()
    assert affine(narrow, addend).equal(affine(narrow.float(), addend))
    in_place = AdderAffine2d(layer, *affine_map(layer), in_place=True)
    for term in (addend, addend[0, 0, 0]):
        result = in_place(narrow, term)
        assert result.dtype == torch.bfloat16
        torch.testing.assert_close(result, affine(narrow).add_(term), rtol=0.02, atol=0.1)


# --------------------------------------------------------------------------------------------------------------- types


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_half_precision_rounds_no_buffer(dtype: torch.dtype) -> None:
    layer = make()
    affine = AdderAffine2d(layer, *affine_map(layer))
    for change in (lambda m: m.to(dtype), lambda m: m.to("cpu", dtype), lambda m: m.double().to(dtype)):
        half = change(copy.deepcopy(affine))
        for name, value in affine.state_dict().items():
            assert half.state_dict()[name].dtype == torch.float32
            assert half.state_dict()[name].equal(value)
        x = images(dtype=dtype)
        assert half(x).dtype == dtype
        assert half(x).equal(affine(x.float()).to(dtype))


@torch.no_grad()
def test_double_precision_is_one() -> None:
    layer = make()
    affine = AdderAffine2d(layer, *affine_map(layer)).double()
    assert {value.dtype for value in affine.state_dict().values()} == {torch.float64}
    assert affine(images(dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("autocast", [False, True])
@torch.no_grad()
def test_output_that_nothing_centers_is_of_float32(autocast: bool) -> None:
    layer = make().bfloat16()
    affine, x = AdderAffine2d(layer, float_output=True), images(dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert affine(x).dtype == torch.float32
        torch.testing.assert_close(affine(x), layer(x))


# -------------------------------------------------------------------------------------------------------------- linear


@pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 3, 7), (0, 7)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("relu", [True, False])
@torch.no_grad()
def test_linear_is_the_layer(shape: tuple[int, ...], bias: bool, relu: bool) -> None:
    layer = AdderLinear(7, 20, bias)
    if bias:
        nn.init.normal_(layer.bias, 8.0)
    affine, x = AdderAffineLinear(layer, relu), torch.randn(shape)
    expected = layer(x).relu() if relu else layer(x)
    for module in (affine, torch.jit.script(affine), torch.fx.symbolic_trace(affine)):
        torch.testing.assert_close(module(x), expected)
    half = affine.bfloat16()
    assert half(x.bfloat16()).dtype == torch.float32
    torch.testing.assert_close(half(x.bfloat16()), affine(x.bfloat16().float()))


# ------------------------------------------------------------------------------------------------------------ programs


class Network(nn.Module):
    """One with an addend and one without."""

    def __init__(self, layer: Adder2d) -> None:
        super().__init__()
        self.first = kind(layer)(layer, *affine_map(layer), relu=True)
        self.second = kind(layer)(layer, *affine_map(layer))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(x, self.first(x))


def through_file(program: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    file = io.BytesIO()
    torch.jit.save(program, file)
    file.seek(0)
    return torch.jit.load(file)


def through_export(network: nn.Module) -> nn.Module:
    batch = torch.export.Dim("batch")
    return torch.export.export(network, (images(),), dynamic_shapes=({0: batch},)).module()


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda network: pickle.loads(pickle.dumps(network)),
    "script": lambda network: through_file(torch.jit.script(network)),
    "trace": lambda network: through_file(torch.jit.trace(network, images())),
    "fx": torch.fx.symbolic_trace,
    "export": through_export,
    "compile": lambda network: torch.compile(network, backend="aot_eager", fullgraph=True),
}


@pytest.mark.parametrize("name", ["everything", "unequal sides", "same"])
@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_every_copy_gives_the_same_output(name: str, way: str) -> None:
    torch.compiler.reset()
    network = Network(make(name)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        other = WAYS[way](network)
    for batch in (2, 3):
        torch.testing.assert_close(other(images(batch)), network(images(batch)), rtol=0, atol=0)


@torch.no_grad()
def test_trace_broadcasts_the_addends_that_it_gets_later() -> None:
    affine, x = AdderAffine2d(make()), images()
    traced = torch.jit.trace(affine, (x, torch.randn_like(affine(x))))
    addend = torch.randn(6, 1, 1)
    assert traced(x, addend).equal(affine(x, addend))


@torch.no_grad()
def test_state_dict_of_one_is_that_of_another() -> None:
    layer = make("everything")
    affine = AdderAffine2d(layer, *affine_map(layer))
    other = AdderAffine2d(make("everything", seed=3))
    assert not other(images()).equal(affine(images()))
    other.load_state_dict(affine.state_dict())
    assert other(images()).equal(affine(images()))
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        AdderAffine2d(make("plain")).load_state_dict(affine.state_dict())


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_a_memory_format_is_the_images_and_not_the_packed_filters(memory_format: torch.memory_format) -> None:
    layer = make()
    fused = AdderAffine2d(layer)
    moved = copy.deepcopy(fused).to(memory_format=memory_format)
    assert moved.weight.is_contiguous()
    x = images().to(memory_format=memory_format)
    assert moved(x).is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(moved(x), layer(x), rtol=1e-5, atol=1e-4)
