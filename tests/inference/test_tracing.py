"""What a graph must not change: the order of changes in place, hooks, and what torch.fx cannot look into."""

import copy
import itertools
import operator
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fused_networks import CHANNELS, Function, NotTraced, adder, assert_same, calls, images, kinds, settled
from timm.layers import BatchNormAct2d
from torch import Tensor, fx, nn
from torch.nn.utils import prune

import adderzoo

pytestmark = pytest.mark.usefixtures("one_thread")


# ----------------------------------------------------------------------------------------------------- changes in place


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


# ---------------------------------------------------------------------------------------------- what cannot be traced


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
