"""adderzoo.fuse: what it makes one of, and what it must not; every result against the network as it was."""

import copy
import io
import itertools
import operator
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from copies import ways
from timm.data import resolve_data_config
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d
from timm.layers.norm_act import SyncBatchNormAct
from torch import Tensor, fx, nn
from torch.nn.utils import prune
from torchvision.ops import StochasticDepth
from torchvision.ops.misc import FrozenBatchNorm2d

import adderzoo
from adderzoo.layers import Adder2d, AdderAffine2d, AdderAffineLinear, AdderLinear, BatchNorm2d, replace_conv
from adderzoo.layers.affine import AdderAffine2dSame
from adderzoo.layers.replace import Adder2dSame

pytestmark = pytest.mark.usefixtures("one_thread")

CHANNELS = 4


def settled(network: nn.Module, *shape: int) -> nn.Module:
    """In float64 and evaluation mode, with BatchNorm statistics that fit, so that results have both signs."""
    torch.manual_seed(0)
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
    network = network.double().train()
    with torch.no_grad():
        network(torch.randn(8, *(shape or (CHANNELS, 9, 9)), dtype=torch.float64))
    for norm in norms:
        norm.momentum = 0.1
    return network.eval()


def images(batch: int = 2, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    shape = shape or (CHANNELS, 9, 9)
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


@torch.no_grad()
def assert_same(fused: nn.Module, network: nn.Module, *shape: int) -> None:
    """In float64, where all that rounds is far below what a mistake would change."""
    x = images(2, *shape)
    expected = network(x.clone())  # which a ReLU in place may change
    assert expected.std() > 1e-3
    torch.testing.assert_close(fused(x), expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def kinds(network: nn.Module) -> dict[str, int]:
    """How often a network has each kind of module that is called."""
    names = [type(module).__name__ for module in network.modules() if not list(module.children())]
    return {name: names.count(name) for name in sorted(set(names))}


def calls(network: nn.Module) -> list[str]:
    """What a fused network calls, in order: modules by their class, functions and methods by their name."""
    assert isinstance(network, fx.GraphModule)
    called = []
    for node in network.graph.nodes:
        if node.op == "call_module":
            called.append(type(network.get_submodule(node.target)).__name__)
        elif node.op in ("call_function", "call_method"):
            called.append(getattr(node.target, "__name__", node.target))
    return called


def adder(**kwargs: Any) -> Adder2d:
    return Adder2d(CHANNELS, CHANNELS, 3, padding=1, **{"bias": False} | kwargs)


# --------------------------------------------------------------------------------------------- BatchNorm and what it is


def with_affine_of_its_own(norm: nn.Module) -> nn.Module:
    for name in ("weight", "running_var"):
        nn.init.uniform_(getattr(norm, name), 0.5, 1.5)
    nn.init.uniform_(norm.bias, -0.5, 0.5)
    nn.init.uniform_(norm.running_mean, -41.0, -39.0)
    return norm


NORMS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "torch's": (lambda: nn.BatchNorm2d(CHANNELS), []),
    "ours": (lambda: BatchNorm2d(CHANNELS), []),
    "without weight and bias": (lambda: nn.BatchNorm2d(CHANNELS, affine=False), []),
    "eps": (lambda: nn.BatchNorm2d(CHANNELS, eps=0.5), []),
    "frozen": (lambda: with_affine_of_its_own(FrozenBatchNorm2d(CHANNELS)), []),
    "timm's with ReLU": (lambda: BatchNormAct2d(CHANNELS), []),
    "timm's without": (lambda: BatchNormAct2d(CHANNELS, apply_act=False), []),
    "timm's with another": (lambda: BatchNormAct2d(CHANNELS, act_layer=nn.SiLU), ["SiLU"]),
    "timm's with dropout": (lambda: BatchNormAct2d(CHANNELS, drop_layer=nn.Dropout), []),
    "timm's frozen": (lambda: with_affine_of_its_own(FrozenBatchNormAct2d(CHANNELS)), []),
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", NORMS)
def test_batch_norm_of_every_kind_becomes_part_of_the_layer(name: str, bias: bool) -> None:
    make, left = NORMS[name]
    network = nn.Sequential(adder(bias=bias), make())
    if bias:
        nn.init.normal_(network[0].bias)
    network = settled(network)
    fused = adderzoo.fuse(network)
    assert calls(fused) == ["AdderAffine2d", *left]
    assert_same(fused, network)
    has_relu = name in ("timm's with ReLU", "timm's with dropout", "timm's frozen")
    assert fused.get_submodule("0").relu == has_relu


def test_synchronized_batch_norm_becomes_part_of_the_layer() -> None:
    """It runs on the CPU in evaluation mode alone."""
    plain = settled(nn.Sequential(adder(), nn.BatchNorm2d(CHANNELS)))
    for kind in (nn.SyncBatchNorm, SyncBatchNormAct):
        network = copy.deepcopy(plain)
        network[1] = kind(CHANNELS).double().eval()
        if kind is SyncBatchNormAct:
            network[1].drop, network[1].act = nn.Identity(), nn.ReLU()
        network[1].load_state_dict(plain[1].state_dict())
        fused = adderzoo.fuse(network)
        assert calls(fused) == ["AdderAffine2d"]
        expected = plain(images())
        result = fused(images())
        torch.testing.assert_close(result, expected.relu() if kind is SyncBatchNormAct else expected)


class OtherBatchNorm(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).tanh()


@pytest.mark.parametrize(
    ("make", "called"),
    [
        (lambda: nn.BatchNorm2d(CHANNELS, track_running_stats=False), ["BatchNorm2d"]),  # takes those of the batch
        (lambda: OtherBatchNorm(CHANNELS), ["OtherBatchNorm"]),
        (lambda: nn.GroupNorm(2, CHANNELS), ["GroupNorm"]),
        (lambda: nn.InstanceNorm2d(CHANNELS), ["InstanceNorm2d"]),
        (lambda: nn.Sequential(nn.MaxPool2d(2), nn.BatchNorm2d(CHANNELS)), ["MaxPool2d", "BatchNorm2d"]),
    ],
    ids=["no statistics", "another", "group", "instance", "behind pooling"],
)
def test_what_is_no_affine_map_of_the_layers_output_stays(make: Callable[[], nn.Module], called: list[str]) -> None:
    network = settled(nn.Sequential(adder(), make(), nn.ReLU()))
    fused = adderzoo.fuse(network)
    assert calls(fused) == ["AdderAffine2d", *called, "ReLU"]
    assert_same(fused, network)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: Adder2d(CHANNELS, 5, (4, 3), padding="same"), AdderAffine2d),
        (lambda: Adder2d(CHANNELS, 5, 3, padding=2, padding_mode="circular"), AdderAffine2d),
        (lambda: Adder2d(CHANNELS, 5, (3, 2), stride=(1, 2), padding=(2, 0), dilation=(2, 1)), AdderAffine2d),
        (lambda: Adder2d(CHANNELS, 8, 3, groups=CHANNELS), AdderAffine2d),
        (lambda: Adder2dSame(CHANNELS, 5, 3, stride=2), AdderAffine2dSame),
    ],
    ids=["unequal sides", "circular", "strided", "depthwise", "same"],
)
def test_layer_of_every_geometry(make: Callable[[], Adder2d], kind: type[AdderAffine2d]) -> None:
    layer = make()
    nn.init.normal_(layer.bias)
    network = settled(nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels), nn.ReLU()))
    fused = adderzoo.fuse(network)
    assert type(fused.get_submodule("0")) is kind
    assert calls(fused) == [kind.__name__]
    assert_same(fused, network)


def test_layer_without_batch_norm_has_scale_1_and_its_bias_as_shift() -> None:
    network = nn.Sequential(adder(bias=True), nn.ReLU(), adder()).double().eval()
    nn.init.normal_(network[0].bias, 40.0)
    fused = adderzoo.fuse(network)
    assert calls(fused) == ["AdderAffine2d", "AdderAffine2d"]
    first, second = fused.get_submodule("0"), fused.get_submodule("2")
    assert first.scale.equal(torch.ones(CHANNELS).double())
    assert first.shift.equal(network[0].bias)
    assert second.scale.equal(torch.ones(CHANNELS).double())
    assert not second.shift.any()
    assert_same(fused, network)


def test_linear_layers_are_packed_and_leave_batch_norm_alone() -> None:
    """BatchNorm1d's channels are the second dimension: of three, not the one that the layer makes."""
    network = nn.Sequential(AdderLinear(9, 6), nn.BatchNorm1d(CHANNELS), nn.ReLU(), AdderLinear(6, 5), nn.ReLU())
    nn.init.normal_(network[3].bias, 9.0)
    network = settled(network, CHANNELS, 9)
    fused = adderzoo.fuse(network)
    assert calls(fused) == ["AdderAffineLinear", "BatchNorm1d", "ReLU", "AdderAffineLinear"]
    assert_same(fused, network, CHANNELS, 9)


@pytest.mark.parametrize("make", [lambda: adder(bias=True), lambda: AdderLinear(9, 5), lambda: Adder2dSame(4, 4, 3)])
@torch.no_grad()
def test_single_layer_becomes_its_module(make: Callable[[], nn.Module]) -> None:
    layer = make()
    nn.init.normal_(layer.bias)
    fused = adderzoo.fuse(layer)
    assert isinstance(fused, AdderAffine2d | AdderAffineLinear)
    assert not fused.training
    assert layer.training
    x = images(dtype=torch.float32)
    torch.testing.assert_close(fused(x), layer(x))


# --------------------------------------------------------------------------------------------------------------- ReLUs


class Function(nn.Module):
    """Adder layer, BatchNorm and a function of both and of the input."""

    def __init__(self, function: Callable[..., Tensor], layer: nn.Module | None = None, **kwargs: Any) -> None:
        super().__init__()
        self.layer, self.norm, self.function = layer or adder(**kwargs), nn.BatchNorm2d(CHANNELS), function
        self.relu, self.relu_in_place, self.relu6 = nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x, self.norm(self.layer(x)))


RELUS: dict[str, Callable[..., Tensor]] = {
    "module": lambda self, x, y: self.relu(y),
    "module in place": lambda self, x, y: self.relu_in_place(y),
    "F.relu": lambda self, x, y: F.relu(y),
    "F.relu in place": lambda self, x, y: F.relu(y, inplace=True),
    "F.relu_": lambda self, x, y: F.relu_(y),
    "torch.relu": lambda self, x, y: torch.relu(y),
    "torch.relu_": lambda self, x, y: torch.relu_(y),
    "method": lambda self, x, y: y.relu(),
    "method in place": lambda self, x, y: y.relu_(),
    "behind dropout": lambda self, x, y: self.relu(F.dropout(y, 0.5, self.training)),
}


@pytest.mark.parametrize("name", RELUS)
def test_relu_of_every_form_becomes_part_of_the_layer(name: str) -> None:
    network = settled(Function(RELUS[name]))
    fused = adderzoo.fuse(network)
    assert calls(fused) == ["AdderAffine2d"]
    assert fused.layer.relu
    assert_same(fused, network)


@pytest.mark.parametrize(
    "function",
    [
        lambda self, x, y: self.relu6(y),
        lambda self, x, y: F.leaky_relu(y),
        lambda self, x, y: self.relu(y) + 2 * y,
        lambda self, x, y: torch.cat([self.relu(y), y]),
        lambda self, x, y: self.relu(F.max_pool2d(y, 2)),
        lambda self, x, y: self.relu(F.dropout(y, 0.0)),  # of training, whatever the mode of the network
    ],
    ids=["ReLU6", "leaky", "seen by two", "seen by the output", "behind pooling", "behind dropout"],
)
def test_what_is_no_relu_of_the_output_alone_stays(function: Callable[..., Tensor]) -> None:
    network = settled(Function(function))
    fused = adderzoo.fuse(network)
    assert calls(fused)[0] == "AdderAffine2d"
    assert len(calls(fused)) > 1
    assert not fused.layer.relu
    assert_same(fused, network)


# ----------------------------------------------------------------------------------------------------------- additions

ADDITIONS: dict[str, Callable[..., Tensor]] = {
    "+": lambda self, x, y: y + x,
    "+, the other way round": lambda self, x, y: x + y,
    "+=": lambda self, x, y: operator.iadd(y, x),
    "torch.add": lambda self, x, y: torch.add(y, x),
    "torch.add by name": lambda self, x, y: torch.add(x, other=y),
    "add": lambda self, x, y: y.add(x),
    "add, the other way round": lambda self, x, y: x.add(y),
    "add_": lambda self, x, y: y.add_(x),
    "with dropout": lambda self, x, y: x + F.dropout(y, 0.1, self.training),
    "broadcast": lambda self, x, y: y + x.mean((2, 3), keepdim=True),
    "of a computed value": lambda self, x, y: y + torch.sigmoid(x),
}


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("name", ADDITIONS)
def test_addition_of_every_form_becomes_part_of_the_layer(name: str, relu: bool) -> None:
    addition = ADDITIONS[name]
    network = settled(Function(lambda self, x, y: self.relu(addition(self, x, y)) if relu else addition(self, x, y)))
    fused = adderzoo.fuse(network)
    assert calls(fused)[-1] == "AdderAffine2d"
    assert not {"add", "add_", "iadd", "ReLU"} & set(calls(fused))
    assert fused.layer.relu == relu
    assert_same(fused, network)


@pytest.mark.parametrize(
    "function",
    [
        lambda self, x, y: y + 1.5,
        lambda self, x, y: y + y,
        lambda self, x, y: y - x,
        lambda self, x, y: torch.add(y, x, alpha=2),
        lambda self, x, y: y.add(x, alpha=2),
        lambda self, x, y: self.relu(y + x) * y,
        lambda self, x, y: operator.iadd(x.abs(), y),
        lambda self, x, y: self.relu(y) + x,
    ],
    ids=[
        "number",
        "itself",
        "subtraction",
        "alpha",
        "alpha of a method",
        "seen by two",
        "into the other",
        "after ReLU",
    ],
)
def test_what_is_no_addition_to_the_output_alone_stays(function: Callable[..., Tensor]) -> None:
    network = settled(Function(function))
    fused = adderzoo.fuse(network)
    assert set(calls(fused)) & {"add", "sub", "iadd"}
    assert "BatchNorm2d" not in calls(fused)
    assert_same(fused, network)


class Both(nn.Module):
    """Two adder layers with BatchNorm of which the sum is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(adder(), nn.BatchNorm2d(CHANNELS))
        self.other = nn.Sequential(adder(), nn.BatchNorm2d(CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        one = self.one(x)
        return (one + self.other(x)).relu()


def test_of_two_layers_whose_sum_is_taken_the_later_one_adds() -> None:
    network = settled(Both())
    fused = adderzoo.fuse(network)
    assert calls(fused) == ["AdderAffine2d", "AdderAffine2d"]
    assert not fused.get_submodule("one.0").relu
    assert fused.get_submodule("other.0").relu
    assert_same(fused, network)


class AddedInPlace(nn.Module):
    """`x += y` changes every name of `x`."""

    def __init__(self, swapped: bool) -> None:
        super().__init__()
        self.layer, self.norm, self.swapped = adder(), nn.BatchNorm2d(CHANNELS), swapped

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1
        y = self.norm(self.layer(x))
        same = x
        if self.swapped:
            y += x
            x = y
        else:
            x += y
        return x.relu() * same


@pytest.mark.parametrize("swapped", [False, True])
def test_addition_in_place_changes_every_name_of_what_is_added_to(swapped: bool) -> None:
    network = settled(AddedInPlace(swapped))
    fused = adderzoo.fuse(network)
    assert calls(fused)[1:] == (["AdderAffine2d", "mul"] if swapped else ["AdderAffine2d", "iadd", "relu", "mul"])
    assert_same(fused, network)
    assert_same(pickle.loads(pickle.dumps(fused)), network)
    assert_same(copy.deepcopy(fused), network)
    assert_same(torch.jit.script(fused), network)
    assert_same(adderzoo.fuse(fused), network)


@fx.wrap
def foreign(x: Tensor) -> Tensor:
    return x.relu_()


@pytest.mark.parametrize(
    "function",
    [
        lambda self, x, y: y + self.relu_in_place(x),
        lambda self, x, y: y + x.relu_(),
        lambda self, x, y: y + self.relu_in_place(x.view_as(x)),
        lambda self, x, y: y + F.relu(x.flatten(1), inplace=True).view_as(x),
        lambda self, x, y: y + F.relu(x, True),
        lambda self, x, y: y + operator.imul(x, 3),
        lambda self, x, y: y + torch.mul(x, 3, out=x),
        lambda self, x, y: y + foreign(x),
    ],
    ids=["module", "method", "view", "function of a view", "function", "operator", "out", "another's"],
)
def test_layer_sees_its_input_as_it_was_before_something_changed_it_in_place(function: Callable[..., Tensor]) -> None:
    """An addition that the layer did would have to wait for its other operand, which is made after the layer."""
    network = settled(Function(function))
    fused = adderzoo.fuse(network)
    x = images()
    expected = network(x.clone())
    torch.testing.assert_close(fused(x.clone()), expected, rtol=1e-9, atol=1e-9)
    other = copy.deepcopy(network)  # it matters
    assert not torch.allclose(other(x.clone().relu()), expected)


class Activated(nn.Module):
    """A block that begins with a ReLU in place of what it adds to, as pre-activation ResNets have it."""

    def __init__(self) -> None:
        super().__init__()
        self.relu, self.layer, self.norm = nn.ReLU(inplace=True), adder(), nn.BatchNorm2d(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1
        y = self.norm(self.layer(self.relu(x)))
        return y + x


def test_change_in_place_before_the_layer_stays_before_it() -> None:
    network = settled(Activated())
    fused = adderzoo.fuse(network)
    assert calls(fused) == ["mul", "ReLU", "AdderAffine2d"]
    assert_same(fused, network)


# ------------------------------------------------------------------------------------------- modules called repeatedly


class Repeated(nn.Module):
    def __init__(self, function: Callable[..., Tensor], layer: Callable[[], nn.Module] = adder) -> None:
        super().__init__()
        self.layer, self.function = layer(), function
        self.norm, self.norm2, self.relu = nn.BatchNorm2d(CHANNELS), nn.BatchNorm2d(CHANNELS), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def seen_by_two(self: Repeated, x: Tensor) -> Tensor:
    y = self.layer(x)
    return self.norm(y) * self.relu(y + 30)


def with_two_norms(self: Repeated, x: Tensor) -> Tensor:
    return self.norm2(self.layer(self.norm(self.layer(x)))) + self.norm2(x)


# what it calls at the end: {kind: (calls, modules)}
REPEATED: dict[str, tuple[Callable[..., Tensor], int, int]] = {
    "all twice": (lambda self, x: self.relu(self.norm(self.layer(self.relu(self.norm(self.layer(x)))))), 2, 1),
    "with and without ReLU": (lambda self, x: self.norm(self.layer(self.relu(self.norm(self.layer(x))))), 2, 2),
    "with and without addend": (lambda self, x: self.norm(self.layer(self.norm(self.layer(x)))) + x, 2, 1),
    "with two norms": (with_two_norms, 2, 2),
    "with and without norm": (lambda self, x: self.layer(self.norm(self.layer(x))), 2, 2),
    "output seen by two": (seen_by_two, 1, 1),
}


@pytest.mark.parametrize("name", REPEATED)
def test_layer_that_is_called_twice_is_right_in_both_places(name: str) -> None:
    function, times, modules = REPEATED[name]
    network = settled(Repeated(function))
    fused = adderzoo.fuse(network)
    assert calls(fused).count("AdderAffine2d") == times
    assert kinds(fused)["AdderAffine2d"] == modules
    assert "Adder2d" not in kinds(fused)
    assert_same(fused, network)
    again = adderzoo.fuse(settled(Repeated(function)))
    assert again.state_dict().keys() == fused.state_dict().keys()


@pytest.mark.parametrize("name", [name for name in REPEATED if name != "output seen by two"])
def test_convolution_that_is_called_twice_is_right_in_both_places(name: str) -> None:
    network = settled(Repeated(REPEATED[name][0], lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)))
    fused = adderzoo.fuse(network)
    assert calls(fused).count("Conv2d") == 2
    assert_same(fused, network)


def test_layer_under_two_names_is_one() -> None:
    layer, norm = adder(), nn.BatchNorm2d(CHANNELS)
    network = settled(nn.Sequential(layer, norm, layer, norm))
    fused = adderzoo.fuse(network)
    assert kinds(fused) == {"AdderAffine2d": 1}
    assert_same(fused, network)


# -------------------------------------------------------------------------------------------------------- convolutions


@pytest.mark.parametrize("bias", [False, True])
def test_batch_norm_behind_a_convolution_is_folded_into_it(bias: bool) -> None:
    network = nn.Sequential(
        nn.Conv2d(CHANNELS, 6, 3, stride=2, padding=1, bias=bias, padding_mode="reflect"),
        BatchNormAct2d(6, act_layer=nn.Hardswish),
        nn.Conv2d(6, 6, 3, groups=3, bias=bias),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 2, 1),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(2),
    )
    network = settled(network)
    fused = adderzoo.fuse(network)
    assert calls(fused) == ["Conv2d", "Hardswish", "Conv2d", "ReLU", "Conv2d", "MaxPool2d", "BatchNorm2d"]
    assert_same(fused, network)


def test_other_convolutions_keep_their_batch_norm() -> None:
    class Other(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).tanh()

    network = settled(nn.Sequential(Other(CHANNELS, 6, 3), nn.BatchNorm2d(6)))
    assert calls(adderzoo.fuse(network)) == ["Other", "BatchNorm2d"]
    assert_same(adderzoo.fuse(network), network)


# ------------------------------------------------------------------------------------------------------ whole networks


class Residual(nn.Module):
    """A network with all that matters: convolutions, residual additions, a pooled layer, logits with BatchNorm."""

    def __init__(self, layer: type[nn.Module] = Adder2d) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(CHANNELS, 8, 3, padding=1, bias=False), BatchNorm2d(8)
        self.relu, self.drop = nn.ReLU(inplace=True), nn.Dropout(0.2)
        self.layer1, self.norm1 = layer(8, 8, 3, padding=1, bias=False), BatchNorm2d(8)
        self.layer2, self.norm2 = layer(8, 8, 3, padding=1), BatchNorm2d(8)
        self.layer3, self.norm3, self.depth = layer(8, 8, 3, bias=False), BatchNorm2d(8), StochasticDepth(0.2, "row")
        self.fc, self.norm4 = nn.Conv2d(8, 5, 1), BatchNorm2d(5)
        self.num_classes = 5

    def forward(self, x: Tensor, features: bool = False, mask: Tensor | None = None) -> Tensor:
        x = self.relu(self.norm(self.conv(x)))
        y = self.relu(self.norm1(self.layer1(x)))
        x = self.relu(self.depth(self.norm2(self.layer2(y))) + x)
        x = self.relu(self.norm3(F.max_pool2d(self.layer3(x), 2)))
        if mask is not None:
            x = x * mask
        if features:
            return x
        return self.norm4(self.fc(self.drop(x.mean((2, 3), keepdim=True)))).flatten(1)


@pytest.fixture
def network() -> nn.Module:
    return settled(Residual())


def test_network_is_fused_as_far_as_it_goes(network: nn.Module) -> None:
    fused = adderzoo.fuse(network)
    assert [call for call in calls(fused) if call[0].isupper()] == [
        *("Conv2d", "ReLU", "AdderAffine2d", "AdderAffine2d", "AdderAffine2d"),
        *("BatchNorm2d", "ReLU", "Conv2d"),  # behind the pooling
    ]
    assert not {"add", "dropout", "stochastic_depth"} & set(calls(fused))
    assert_same(fused, network)


def test_filters_are_there_once_and_packed(network: nn.Module) -> None:
    fused = adderzoo.fuse(network)
    state = fused.state_dict()
    for name in ("layer1", "layer2", "layer3"):
        assert state[f"{name}.weight"].shape == (1, 3, 3, 8, 16)
        assert {key for key in state if key.startswith(name)} == {
            f"{name}.{part}" for part in ("weight", "scale", "shift")
        }
    assert [name for name, _ in fused.named_parameters()] == [
        *("conv.weight", "conv.bias", "norm3.weight", "norm3.bias", "fc.weight", "fc.bias")
    ]


@pytest.mark.parametrize("training", [False, True])
def test_network_is_left_as_it_was(network: nn.Module, training: bool) -> None:
    network.train(training)
    before, printed, x = copy.deepcopy(network.state_dict()), repr(network), images()
    fused = adderzoo.fuse(network)
    assert all(module.training == training for module in network.modules())
    assert not any(module.training for module in fused.modules())
    assert repr(network) == printed
    assert all(parameter.requires_grad for parameter in network.parameters())
    for key, value in network.state_dict().items():
        assert value.equal(before[key])
    result = fused(x)
    for value in network.state_dict().values():
        value.zero_()
    assert fused(x).equal(result)


def test_training_mode_does_not_change_the_result(network: nn.Module) -> None:
    expected = adderzoo.fuse(network)(images())
    assert adderzoo.fuse(network.train())(images()).equal(expected)


def test_arguments_keep_their_defaults(network: nn.Module) -> None:
    fused = adderzoo.fuse(network)
    assert [node.name for node in fused.graph.nodes if node.op == "placeholder"] == ["x"]
    with pytest.raises(TypeError, match="takes 2 positional arguments but 3 were given"):
        fused(images(), True)


class Auxiliary(nn.Module):
    """In training it has a second output, as torchvision's GoogLeNet has."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = adder(), nn.BatchNorm2d(CHANNELS)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.norm(self.layer(x))
        return (y, x) if self.training else y


def test_annotation_that_holds_in_training_alone_is_dropped() -> None:
    network = settled(Auxiliary())
    assert_same(torch.jit.script(adderzoo.fuse(network)), network)


def test_it_has_no_gradients_and_asks_for_none(network: nn.Module) -> None:
    fused = adderzoo.fuse(network)
    assert not fused(images()).requires_grad
    x = images().requires_grad_()
    with pytest.raises(RuntimeError, match="adder2d_affine: a gradient is not defined, because it is for inference"):
        fused(x).sum().backward()


def test_fused_network_stays_what_it_is(network: nn.Module) -> None:
    fused = adderzoo.fuse(network)
    again = adderzoo.fuse(fused)
    assert type(again).__name__ == type(fused).__name__ == "FusedResidual"
    assert calls(again) == calls(fused)
    assert again.num_classes == 5
    assert again(images()).equal(fused(images()))


def test_convolutional_twin_and_networks_without_anything_to_fuse() -> None:
    twin = settled(Residual(nn.Conv2d))
    fused = adderzoo.fuse(twin)
    assert kinds(fused) == {"BatchNorm2d": 1, "Conv2d": 5, "ReLU": 1}
    assert calls(fused).count("add") == 1
    assert_same(fused, twin)
    mlp = nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 2)).double().eval()
    assert_same(adderzoo.fuse(mlp), mlp)


# ------------------------------------------------------------------------------------------------------ half precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("before", [False, True], ids=["fused, then half", "half, then fused"])
@torch.no_grad()
def test_half_precision_network_keeps_filters_and_statistics_in_float32(dtype: torch.dtype, before: bool) -> None:
    """Outputs of the layer before the pooling lie near -80 and nothing centers them before BatchNorm does."""
    network = settled(Residual())
    expected = network(images(32))
    half = adderzoo.fuse(network.to(dtype)) if before else adderzoo.fuse(network).to(dtype)
    for module in half.modules():
        if isinstance(module, AdderAffine2d):
            assert {buffer.dtype for buffer in module.buffers()} == {torch.float32}
    for name, output in (("layer2", dtype), ("layer3", torch.float32)):
        assert half.get_submodule(name)(images(1, 8, 7, 7, dtype=dtype)).dtype == output
    result = half(images(32, dtype=dtype))
    assert result.dtype == dtype
    unfused = settled(Residual()).to(dtype)(images(32, dtype=dtype))
    error = (result.double() - expected).square().mean().sqrt()
    assert error < 1.2 * (unfused.double() - expected).square().mean().sqrt() + 1e-3
    assert error < 16 * torch.finfo(dtype).eps * expected.std()


@torch.no_grad()
def test_autocast_works_like_that_of_the_network(network: nn.Module) -> None:
    network = network.float()
    fused = adderzoo.fuse(network)
    x = images(32, dtype=torch.float32)
    expected = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        error, error_of_network = ((module(x) - expected).square().mean().sqrt() for module in (fused, network))
        assert fused(x).dtype == torch.bfloat16
    assert error > 0
    assert error < 1.5 * error_of_network + 1e-3


WIDTHS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# What is added to the output of BatchNorm, in place or not: its dtype.
ADDENDS = [(None, False), *((width, False) for width in WIDTHS), (torch.float32, True), (torch.bfloat16, True)]


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, BatchNorm2d, BatchNormAct2d, FrozenBatchNorm2d])
@pytest.mark.parametrize("layer", [Adder2d, nn.Conv2d])
@torch.no_grad()
def test_fused_network_has_the_dtype_of_the_network_whatever_those_of_its_parts(
    layer: type[nn.Module], kind: type[nn.Module]
) -> None:
    compared = 0
    addends = ADDENDS if layer is Adder2d else ADDENDS[:1]
    for of_layer, of_norm, (of_addend, in_place) in itertools.product(WIDTHS, WIDTHS, addends):
        network = Function(lambda self, x, y: y, layer=layer(CHANNELS, CHANNELS, 3, dtype=of_layer))
        network.norm = with_affine_of_its_own(kind(CHANNELS)).eval().to(of_norm)
        if of_addend is not None:
            network.register_buffer("addend", images(2, CHANNELS, 7, 7, dtype=of_addend))
            network.function = ADDITIONS_TO_BUFFERS[in_place]
        x = images(dtype=of_layer)
        try:
            expected = network(x)
        except RuntimeError:  # PyTorch's BatchNorm refuses most mixtures
            continue
        result = adderzoo.fuse(network)(x)
        names = f"{of_layer}, {of_norm} and {of_addend}, in place: {in_place}"
        assert result.dtype == expected.dtype, names
        eps = max(torch.finfo(dtype).eps for dtype in (of_layer, of_norm, expected.dtype))
        tolerance = 32 * float(expected.abs().max()) * eps
        torch.testing.assert_close(result.double(), expected.double(), rtol=0, atol=tolerance)
        compared += 1
    assert compared >= (4 if layer is nn.Conv2d else 20)


ADDITIONS_TO_BUFFERS = {
    False: lambda self, x, y: (y + self.addend).relu(),
    True: lambda self, x, y: y.add_(self.addend).relu(),
}


# --------------------------------------------------------------------------------------------------------------- hooks


class Block(nn.Module):
    """What hooks are put on: a convolution, adder layers, BatchNorm, ReLU, dropout, and modules that hold them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm0 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.BatchNorm2d(CHANNELS)
        self.layer, self.norm, self.relu = adder(bias=True), nn.BatchNorm2d(CHANNELS), nn.ReLU()
        self.act, end = BatchNormAct2d(CHANNELS), nn.Sequential(adder(), nn.BatchNorm2d(CHANNELS))
        self.rest = nn.Sequential(adder(), self.act, nn.Dropout(0.0), nn.Identity(), end)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm0(self.conv(x)))
        return self.rest(self.relu(self.norm(self.layer(x)) + x))


def changed(x: Tensor) -> Tensor:
    return x * 0.97 + 0.1


HOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "forward": lambda module: module.register_forward_hook(lambda mod, args, output: changed(output)),
    "forward with arguments": lambda module: module.register_forward_hook(
        lambda mod, args, kwargs, output: changed(output) + args[0].mean(), with_kwargs=True
    ),
    "forward, in place": lambda module: module.register_forward_hook(
        lambda mod, args, output: output.mul_(0.97).add_(0.1), always_call=True
    ),
    "before forward": lambda module: module.register_forward_pre_hook(lambda mod, args: changed(args[0])),
    "before forward with arguments": lambda module: module.register_forward_pre_hook(
        lambda mod, args, kwargs: ((changed(args[0]),), kwargs), with_kwargs=True
    ),
    "that depends on values": lambda module: module.register_forward_hook(
        lambda mod, args, output: output if float(args[0].detach().sum()) == 0.125 else changed(output)
    ),
    "of parameters": lambda module: module.register_forward_hook(
        lambda mod, args, output: (
            changed(output) + sum(float(value.double().mean()) for value in mod.state_dict().values()) / 99
        )
    ),
    "own forward": lambda module: setattr(module, "forward", lambda x, inner=module.forward: changed(inner(x))),
}
PLACES = ["conv", "norm0", "layer", "norm", "relu", "act", "act.act", "rest", "rest.0", "rest.2", "rest.3", "rest.4"]


@pytest.mark.parametrize(
    ("name", "place"),
    [
        *(("forward", place) for place in PLACES),
        *itertools.product(list(HOOKS)[1:], ["conv", "norm", "layer", "relu", "rest"]),
    ],
)
def test_hook_of_every_kind_and_place_acts_as_in_the_network(name: str, place: str) -> None:
    plain = settled(Block())
    network = copy.deepcopy(plain)
    HOOKS[name](network.get_submodule(place))
    assert not torch.allclose(network(images()), plain(images()))
    fused = adderzoo.fuse(network)
    assert "AdderAffine2d" in kinds(fused)  # where no hook is
    assert_same(fused, network)
    assert_same(copy.deepcopy(fused), network)
    assert_same(adderzoo.fuse(fused), network)


def test_hooks_see_tensors_in_every_call_and_none_of_the_tracing() -> None:
    network = settled(Block())
    seen: list[Any] = []
    for place in PLACES:
        network.get_submodule(place).register_forward_hook(lambda mod, args, output: seen.append(output))
    fused = adderzoo.fuse(network)
    assert not seen
    network(images())
    expected = seen.copy()
    seen.clear()
    fused(images())
    assert len(seen) == len(expected) == len(PLACES) + 1  # one ReLU twice
    for one, other in zip(seen, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", HOOKS)
def test_hooks_of_the_network_itself_are_refused(name: str) -> None:
    for network in (settled(Block()), adder(), adderzoo.fuse(settled(Block()))):
        HOOKS[name](network)
        with pytest.raises(ValueError, match=r"^model must have no hooks of its own, got a .* with a (hook|forward\()"):
            adderzoo.fuse(network)
    inner = settled(Block())
    HOOKS[name](inner)
    assert_same(adderzoo.fuse(nn.Sequential(inner)), inner)


@pytest.mark.parametrize(
    "register",
    [
        torch.nn.modules.module.register_module_forward_hook,
        torch.nn.modules.module.register_module_forward_pre_hook,
        torch.nn.modules.module.register_module_full_backward_hook,
        torch.nn.modules.module.register_module_full_backward_pre_hook,
    ],
)
def test_hooks_of_all_modules_are_refused(register: Callable[..., Any]) -> None:
    network = settled(Block())
    handle = register(lambda *arguments: None)
    try:
        for model in (network, network.layer):
            with pytest.raises(ValueError, match=r"^all modules have a hook .*: remove it first"):
                adderzoo.fuse(model)
    finally:
        handle.remove()
    assert "AdderAffine2d" in kinds(adderzoo.fuse(network))


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated", "ignore:.*spectral_norm. is deprecated")
@pytest.mark.parametrize(
    "change",
    [
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        lambda layer: prune.random_structured(layer, "weight", 0.5, dim=0),
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
    ],
    ids=["prune", "prune filters", "old weight_norm", "old spectral_norm", "weight_norm", "spectral_norm"],
)
@pytest.mark.parametrize("place", ["layer", "conv"])
def test_weights_that_hooks_compute_are_those_of_the_moment(change: Callable[[nn.Module], Any], place: str) -> None:
    network = settled(Block())
    change(network.get_submodule(place))
    network(images())  # with gradients, which leaves a weight that copy.deepcopy refuses
    with torch.no_grad():
        for parameter in network.get_submodule(place).parameters():  # as a step or a checkpoint does
            parameter.mul_(1.5).add_(0.1)
    fused = adderzoo.fuse(network)
    assert "AdderAffine2d" in kinds(fused)
    assert_same(fused, network)


# -------------------------------------------------------------------------------------------------------------- copies


def through_state_dict(network: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    torch.manual_seed(5)
    other = adderzoo.fuse(Residual().double())
    assert not other(images()).equal(network(images()))
    other.load_state_dict(torch.load(file))
    return other


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {"state dict": through_state_dict, **ways(images)}


@pytest.mark.parametrize("way", WAYS)
def test_every_copy_gives_the_same_output(network: nn.Module, way: str) -> None:
    torch.compiler.reset()
    fused = adderzoo.fuse(network)
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        other = WAYS[way](fused)
    for batch in (2, 3):
        torch.testing.assert_close(other(images(batch)), fused(images(batch)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_what_timm_asks_a_network_for_is_kept(way: str) -> None:
    network = timm.create_model("adder_lenet5.digits", pretrained=True, num_classes=10)
    fused = adderzoo.fuse(network)
    for module in (fused, WAYS[way](fused)):
        assert module.num_classes == 10
        assert module.num_features == network.num_features
        assert resolve_data_config(model=module) == resolve_data_config(model=network)
        assert module.pretrained_cfg["label_names"] == network.pretrained_cfg["label_names"]


# ------------------------------------------------------------------------------------------------------ other networks


def without_drops(network: nn.Module) -> nn.Module:
    """Their random numbers would make BatchNorm's statistics depend on chance."""
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return network


OTHERS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "timm resnet18": (lambda: timm.create_model("resnet18"), set()),
    "timm mobilenetv2": (lambda: timm.create_model("mobilenetv2_050", drop_path_rate=0.1), set()),
    "timm tf_mobilenetv3": (lambda: timm.create_model("tf_mobilenetv3_small_minimal_100"), set()),
    "torchvision mobilenet_v3": (lambda: torchvision.models.mobilenet_v3_small(), set()),
    "torchvision shufflenet": (lambda: torchvision.models.shufflenet_v2_x0_5(), set()),
    "timm repvgg": (lambda: timm.create_model("repvgg_a0"), {"BatchNormAct2d"}),  # as a shortcut, behind no layer
}


@pytest.mark.parametrize("name", OTHERS)
def test_networks_of_replace_conv(name: str) -> None:
    make, norms_left = OTHERS[name]
    network = settled(replace_conv(without_drops(make())), 3, 32, 32)
    fused = adderzoo.fuse(network)
    adders = [module for module in network.modules() if isinstance(module, Adder2d)]
    affine = [module for module in fused.modules() if isinstance(module, AdderAffine2d)]
    assert len(affine) == len(adders) > 10
    assert {call for call in calls(fused) if "Norm" in call} == norms_left
    assert not {"Adder2d", "Adder2dSame"} & kinds(fused).keys()
    with torch.no_grad():
        x = images(2, 3, 32, 32)
        torch.testing.assert_close(fused(x), network(x), rtol=1e-7, atol=1e-9)


def test_network_of_features_gives_a_list() -> None:
    network = timm.create_model("adder_resnet20", features_only=True).double().eval()
    fused = adderzoo.fuse(network)
    assert kinds(fused)["AdderAffine2d"] == 20
    assert fused.feature_info.channels() == network.feature_info.channels()
    for result, expected in zip(fused(images(1, 3, 16, 16)), network(images(1, 3, 16, 16)), strict=True):
        torch.testing.assert_close(result, expected)


def test_gradient_checkpointing_is_for_training() -> None:
    network = timm.create_model("adder_resnet20").double().eval()
    network.set_grad_checkpointing()
    fused = adderzoo.fuse(network)
    assert network.grad_checkpointing
    torch.testing.assert_close(fused(images(1, 3, 16, 16)), network(images(1, 3, 16, 16)))


@timm.models.register_notrace_module
class NotTraced(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = adder(), nn.BatchNorm2d(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x)) if x.sum() < 1e9 else x


def test_layers_where_timm_traces_nothing_are_packed_where_they_are() -> None:
    network = settled(nn.Sequential(NotTraced(), adder(), nn.BatchNorm2d(CHANNELS)))
    fused = adderzoo.fuse(network)
    assert kinds(fused) == {"AdderAffine2d": 2, "BatchNorm2d": 1}
    assert_same(fused, network)


class Untraceable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_network_that_cannot_be_traced_is_refused_by_the_name_of_its_module() -> None:
    network = nn.Sequential(adder(), nn.Sequential(nn.ReLU(), Untraceable()))
    with pytest.raises(
        ValueError, match=r"^model must be a network that torch.fx can trace, but 1.1 \(Untraceable\) is"
    ):
        adderzoo.fuse(network)
    with pytest.raises(
        ValueError, match=r"but the network itself \(Untraceable\) is not: symbolically traced variables"
    ):
        adderzoo.fuse(Untraceable())
