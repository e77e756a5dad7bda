"""replace_conv on timm's and torchvision's networks, held to what the networks were before."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from timm.layers import CondConv2d, Conv2dSame, StdConv2d
from torch import Tensor, nn
from torchvision.ops import DeformConv2d

from adderzoo.layers import Adder2d, AdderLinear, replace_conv

pytestmark = pytest.mark.usefixtures("one_thread")

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "timm resnet18": lambda: timm.create_model("resnet18", num_classes=10),
    "timm mobilenetv2_050": lambda: timm.create_model("mobilenetv2_050", num_classes=10),
    "timm efficientnet_lite0": lambda: timm.create_model("efficientnet_lite0", num_classes=10),
    "timm tf_efficientnet_b0": lambda: timm.create_model("tf_efficientnet_b0", num_classes=10),
    "timm regnetx_002": lambda: timm.create_model("regnetx_002", num_classes=10),
    "torchvision resnet18": lambda: torchvision.models.resnet18(num_classes=10),
    "torchvision mobilenet_v3_small": lambda: torchvision.models.mobilenet_v3_small(num_classes=10),
    "torchvision vgg11_bn": lambda: torchvision.models.vgg11_bn(num_classes=10, init_weights=False),
}


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(0))


class Call(NamedTuple):
    name: str
    module: nn.Module
    output_shape: torch.Size


@torch.no_grad()
def calls(model: nn.Module) -> list[Call]:
    """The convolutions, adder and linear layers in the order in which a forward runs them."""
    seen: list[Call] = []

    def record(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: seen.append(Call(name, module, output.shape))

    kinds = nn.Conv2d | nn.Linear | Adder2d | AdderLinear
    handles = [
        module.register_forward_hook(record(name))
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    ]
    model.eval()(images())
    for handle in handles:
        handle.remove()
    return seen


def geometry(layer: Any) -> tuple[Any, ...]:
    fields = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    return (*(getattr(layer, field) for field in fields), layer.weight.shape, layer.bias is None)


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_every_convolution_but_the_first_last_and_gates_becomes_an_adder_layer_of_its_geometry(name: str) -> None:
    model = NETWORKS[name]()
    parameters = sum(p.numel() for p in model.parameters())
    before = calls(model)
    assert replace_conv(model) is model
    after = calls(model)
    assert model(images()).shape == (2, 10)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len([call for call in before if type(call.module) is not nn.Linear]) > 7
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        assert (new.name, new.output_shape) == (old.name, old.output_shape)
        # The layers of squeeze-and-excitation gates are those that see one pixel.
        gate = isinstance(old.module, nn.Conv2d) and old.output_shape[2:] == (1, 1)
        if index in (0, len(before) - 1) or isinstance(old.module, nn.Linear) or gate:
            assert new.module is old.module
        else:
            assert isinstance(new.module, Adder2d), old.name
            assert geometry(new.module) == geometry(old.module)


@pytest.mark.parametrize(("keep_first", "keep_last"), [(False, True), (True, False), (False, False)])
def test_first_and_last_layer_are_replaced_on_request(keep_first: bool, keep_last: bool) -> None:
    model = NETWORKS["timm resnet18"]()
    bias = model.fc.bias is not None
    replace_conv(model, keep_first=keep_first, keep_last=keep_last)
    assert type(model.conv1) is (nn.Conv2d if keep_first else Adder2d)
    assert type(model.fc) is (nn.Linear if keep_last else AdderLinear)
    assert (tuple(model.fc.weight.shape), model.fc.bias is not None) == ((10, 512), bias)
    assert model.eval()(images()).shape == (2, 10)


def test_last_layer_that_is_a_convolution_is_kept_or_replaced_as_such() -> None:
    def make() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), nn.Conv2d(5, 6, 1, bias=False))

    assert [type(m) for m in replace_conv(make())] == [nn.Conv2d, Adder2d, nn.Conv2d]
    assert [type(m) for m in replace_conv(make(), keep_last=False)] == [nn.Conv2d, Adder2d, Adder2d]


@pytest.mark.parametrize("keep", [["layer1", "layer2.0"], "layer1"], ids=["names", "name"])
def test_what_is_kept_is_named_by_anything_that_gives_names(keep: Any) -> None:
    """An iterator too, which can be gone through but once."""
    for names in (keep, iter([keep] if isinstance(keep, str) else keep)):
        model: Any = replace_conv(timm.create_model("resnet18", num_classes=10), keep=names)
        kinds = {name: type(module) for name, module in model.named_modules() if name.endswith("conv2")}
        kept = [name for name, kind in kinds.items() if kind is nn.Conv2d]
        assert kept == ["layer1.0.conv2", "layer1.1.conv2"] + ([] if keep == "layer1" else ["layer2.0.conv2"])


def test_linear_layers_before_the_last_are_never_replaced() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 8), nn.Linear(8, 2))
    replace_conv(model, keep_first=False, keep_last=False)
    assert [type(m) for m in model] == [Adder2d, nn.Flatten, nn.Linear, AdderLinear]


def test_filters_are_new_and_standard_normal() -> None:
    model = replace_conv(NETWORKS["timm resnet18"]())
    filters = torch.cat([m.weight.detach().flatten() for m in model.modules() if isinstance(m, Adder2d)])
    assert filters.numel() > 10_000_000
    assert abs(filters.mean()) < 0.01
    assert abs(filters.std() - 1) < 0.01


@pytest.mark.parametrize("keep_last", [True, False])
def test_mode_dtype_and_device_of_every_layer_are_kept(device: torch.device, keep_last: bool) -> None:
    for place in (device, torch.device("meta")):
        model = NETWORKS["timm resnet18"]().to(place, torch.float64).train()
        model.layer2.eval()
        modes = {name: module.training for name, module in model.named_modules()}
        replace_conv(model, keep_last=keep_last)
        assert {name: module.training for name, module in model.named_modules()} == modes
        assert {(p.device.type, p.dtype) for p in model.parameters()} == {(place.type, torch.float64)}
        model(images().to(place, torch.float64))


def total_same_padding(size: int, kernel: int, stride: int, dilation: int) -> int:
    """TensorFlow's "SAME": as many zeros as ceil(size / stride) patches need."""
    return max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)


@pytest.mark.parametrize("scripted", [False, True])
@pytest.mark.parametrize("size", [(9, 12), (10, 7), (5, 6)], ids=str)
@pytest.mark.parametrize("stride", [1, 2, (3, 1)], ids=str)
@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (4, 1), ((5, 2), (1, 2))], ids=str)
def test_conv2d_same_becomes_a_layer_that_pads_as_timms_for_each_input(
    kernel: Any, stride: Any, dilation: Any, size: tuple[int, int], scripted: bool
) -> None:
    conv = Conv2dSame(2, 3, kernel, stride, 0, dilation)
    model = replace_conv(nn.Sequential(nn.Identity(), copy.deepcopy(conv)), keep_first=False, keep_last=False)
    layer = model[1]
    nn.init.normal_(layer.bias)
    run = torch.jit.script(layer) if scripted else layer
    x = torch.randn(2, 2, *size)
    assert run(x).shape == conv(x).shape

    # Distances to nothing are sums of |x|, which timm's own layer takes too.
    ones = copy.deepcopy(conv).requires_grad_(False)
    ones.weight.fill_(1.0)
    ones.bias.zero_()
    expected = layer.bias[:, None, None] - ones(x.abs())
    zero = copy.deepcopy(layer).requires_grad_(False)
    zero.weight.zero_()
    run_zero = torch.jit.script(zero) if scripted else zero
    torch.testing.assert_close(run_zero(x), expected)

    # And with filters, where a padded zero counts |w|.
    height, width = (total_same_padding(size[d], conv.kernel_size[d], conv.stride[d], conv.dilation[d]) for d in (0, 1))
    padded = F.pad(x.double(), [width // 2, width - width // 2, height // 2, height - height // 2])
    patches = F.unfold(padded, conv.kernel_size, conv.dilation, 0, conv.stride)  # (N, K, L)
    filters = layer.weight.detach().double().flatten(1)[:, :, None]
    distances = (patches[:, None] - filters).abs().sum(2).unflatten(-1, run(x).shape[2:])
    torch.testing.assert_close(run(x).double(), layer.bias[:, None, None].double() - distances, rtol=1e-5, atol=1e-4)


def test_weight_standardized_convolutions_are_refused_and_the_network_is_left_as_it_was() -> None:
    with torch.device("meta"):
        model = timm.create_model("resnetv2_50x1_bit")
    assert any(isinstance(module, StdConv2d) for module in model.modules())
    before = dict(model.named_modules())
    with pytest.raises(TypeError, match=r"built from torch.nn.Conv2d, but stages\.\S+ is a StdConv2d"):
        replace_conv(model)
    after = dict(model.named_modules())
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)


def test_network_is_left_as_it_was_when_only_a_late_layer_cannot_be_replaced() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), StdConv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    before = list(model)
    with pytest.raises(TypeError, match="2 is a StdConv2d"):
        replace_conv(model)
    assert all(a is b for a, b in zip(model, before, strict=True))


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()),
        nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 5)),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 5)),
    ],
    ids=["neither", "linear layers", "first and last alone"],
)
def test_network_with_nothing_to_replace_is_refused(model: nn.Sequential) -> None:
    with pytest.raises(ValueError, match="model must have a convolution to replace, got Sequential"):
        replace_conv(model)


def test_network_that_was_replaced_before_has_nothing_left_to_replace() -> None:
    model = replace_conv(NETWORKS["timm resnet18"]())
    with pytest.raises(ValueError, match="model must have a convolution to replace, got ResNet"):
        replace_conv(model)


@pytest.mark.parametrize("name", NETWORKS)
def test_training_step_reaches_and_moves_every_filter(name: str) -> None:
    torch.manual_seed(0)
    model = replace_conv(NETWORKS[name]()).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # timm starts those at the ends of residual branches from zero
            nn.init.ones_(module.weight)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = F.cross_entropy(model(images(4)), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    optimizer.step()
    filters = [key for key, parameter in model.named_parameters() if getattr(parameter, "is_adder_filter", False)]
    assert len(filters) == sum(isinstance(module, Adder2d) for module in model.modules())
    parameters = dict(model.named_parameters())
    for key in filters:
        gradient = parameters[key].grad
        assert gradient is not None, key
        assert gradient.isfinite().all(), key
        assert gradient.count_nonzero() > 0, key
        assert not torch.equal(parameters[key].detach(), before[key]), key


def test_the_last_layer_is_the_last_that_is_registered_and_others_are_kept_by_name() -> None:
    """torchvision registers a segmentation network's auxiliary head behind the main one, and runs it last as well."""

    def make() -> nn.Module:
        return torchvision.models.segmentation.fcn_resnet50(weights_backbone=None, num_classes=3, aux_loss=True)

    with torch.device("meta"):
        model, other = make(), make()
    replace_conv(model)
    assert (type(model.classifier[4]), type(model.aux_classifier[4])) == (Adder2d, nn.Conv2d)
    replace_conv(other, keep=["classifier.4"])
    assert (type(other.classifier[4]), type(other.aux_classifier[4])) == (nn.Conv2d, nn.Conv2d)
    kinds = [{name: type(module) for name, module in m.named_modules()} for m in (model, other)]
    assert {name for name in kinds[0] if kinds[0][name] is not kinds[1][name]} == {"classifier.4"}


def test_kept_names_are_of_layers_or_of_what_holds_them() -> None:
    model = NETWORKS["timm resnet18"]()
    kept = {name: m for name, m in model.named_modules() if name.startswith(("layer1.", "layer2.0.conv1", "conv1"))}
    replace_conv(model, keep=("layer1", "layer2.0.conv1", "conv1"))
    assert all(model.get_submodule(name) is module for name, module in kept.items())
    convolutions = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    assert convolutions == ["conv1", *(f"layer1.{b}.conv{c}" for b in (0, 1) for c in (1, 2)), "layer2.0.conv1"]
    # A kept layer is still the first: no other takes its place.
    model = replace_conv(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 5)), keep=["0", "2"])
    assert [type(m) for m in model] == [nn.Conv2d, Adder2d, nn.Linear]


def test_kept_name_that_is_none_of_the_network_is_refused() -> None:
    model = NETWORKS["timm resnet18"]()
    before = list(model.modules())
    with pytest.raises(ValueError, match="keep must name modules of the network, got 'layer5'"):
        replace_conv(model, keep=["layer1", "layer5"])
    assert list(model.modules()) == before


class Twice(nn.Module):
    """One convolution under two names, one of them in a container."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.middle = nn.Conv2d(4, 4, 3, padding=1)
        self.body = nn.Sequential(nn.BatchNorm2d(4), self.middle)
        self.same_body = self.body
        self.last = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.same_body(self.body(self.middle(self.first(x)))).mean((2, 3)))


def test_layer_under_several_names_becomes_one_adder_layer_under_all_of_them() -> None:
    model = replace_conv(Twice())
    assert type(model.middle) is Adder2d
    assert model.middle is model.body[1] is model.same_body[1]
    assert model.body is model.same_body
    assert model(torch.randn(2, 3, 9, 9)).shape == (2, 5)
    for name in ("middle", "body.1", "same_body"):  # kept under one name, kept under all
        kept = Twice()
        with pytest.raises(ValueError, match="model must have a convolution to replace"):
            replace_conv(kept, keep=[name])
        assert type(kept.middle) is type(kept.body[1]) is nn.Conv2d


@pytest.mark.parametrize(
    "special", [lambda: CondConv2d(4, 4, 3), lambda: DeformConv2d(4, 4, 3)], ids=["CondConv2d", "DeformConv2d"]
)
def test_convolutions_that_are_no_conv2d_are_refused_unless_they_are_kept(special: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), special(), nn.Linear(4, 5))
    before = list(model)
    with pytest.raises(TypeError, match=f"built from torch.nn.Conv2d, but 2 is a {type(before[2]).__name__}"):
        replace_conv(model)
    assert all(a is b for a, b in zip(model, before, strict=True))
    replace_conv(model, keep=["2"])
    assert model[2] is before[2]
    assert type(model[1]) is Adder2d


def test_timms_conditional_convolutions_are_refused() -> None:
    with torch.device("meta"):
        model = timm.create_model("tf_efficientnet_cc_b0_4e")
    with pytest.raises(TypeError, match=r"but blocks\.\S+ is a CondConv2d"):
        replace_conv(model)
