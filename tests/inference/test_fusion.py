"""adderzoo.fuse: what it makes one of, and what it must not; every result against the network as it was."""

import copy
import io
import itertools
import operator
import warnings
from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from copies import ways
from fused_networks import CHANNELS, Function, adder, assert_same, calls, images, kinds, settled
from timm.data import resolve_data_config
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d
from timm.layers.norm_act import SyncBatchNormAct
from torch import Tensor, nn
from torchvision.ops import StochasticDepth
from torchvision.ops.misc import FrozenBatchNorm2d

import adderzoo
from adderzoo.inference.fusion import fuse_if_possible
from adderzoo.layers import Adder2d, AdderAffine2d, AdderAffineLinear, AdderLinear, BatchNorm2d, replace_conv
from adderzoo.layers.affine import AdderAffine2dSame
from adderzoo.layers.replace import Adder2dSame

pytestmark = pytest.mark.usefixtures("one_thread")

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


class _Untraceable(nn.Module):
    """Its path depends on what it computes."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_where_it_is_refused_the_network_can_stay_as_it_is(network: nn.Module) -> None:
    fused = fuse_if_possible(network)
    assert isinstance(fused, torch.fx.GraphModule)
    assert any(isinstance(module, AdderAffine2d) for module in fused.modules())
    hooked, untraceable = copy.deepcopy(network), _Untraceable()
    hooked.register_forward_hook(lambda module, inputs, output: output + 1)
    for same in (fused, hooked, untraceable):
        assert fuse_if_possible(same) is same


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
