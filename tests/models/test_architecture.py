"""The networks are those of the paper: layers, shapes, multiply-accumulates."""

import copy
import functools
from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from networks import (
    ADDERS,
    CIFAR_RESNETS,
    IMAGENET_RESNETS,
    KINDS,
    LENETS,
    NAMES,
    RESNETS,
    SUPER_RESOLUTION,
    VGGS,
    build,
    images,
    is_layer,
    kind,
    logits_norm_name,
    make,
    twin,
)
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import adderzoo.models
from adderzoo.layers import Adder2d, ShiftAdd2d

pytestmark = pytest.mark.usefixtures("one_thread")

BASELINES = [name for name in NAMES if kind(name) not in ("adder", "cnn")]


@functools.cache
def bare(name: str) -> nn.Module:
    """Of full size, without memory for its parameters."""
    return timm.create_model(name, device="meta").eval()


def image_of(network: nn.Module) -> Tensor:
    return torch.empty(1, *network.pretrained_cfg["input_size"], device="meta")


def test_the_registry_holds_what_the_package_exports() -> None:
    every_name = {*NAMES, *SUPER_RESOLUTION, "bicubic"}
    assert every_name == {name for name in vars(adderzoo.models) if timm.is_model(name)}
    assert {name for name in NAMES if kind(name) == "cnn"} == {twin(name) for name in ADDERS}
    binary = {"bnn_resnet20", "bnn_resnet32", "bnn_vgg_small", "bnn_resnet18", "bnn_resnet50"}
    assert set(BASELINES) == binary | {"shift_resnet20", "shiftadd_resnet20", "shiftadd_vgg_small"}
    families = ("lenet5", "lenet_plus_plus", "vgg_small", "resnet20", "resnet32", "resnet8")
    imagenet = ("resnet18", "resnet34", "resnet50", "resnet101")
    assert {f"adder_{family}" for family in families + imagenet} <= set(ADDERS)


@pytest.mark.parametrize("name", ADDERS)
def test_adder_network_and_cnn_twin_differ_in_the_kind_of_layers_alone(name: str) -> None:
    adder, cnn = bare(name), bare(twin(name))
    shapes = [{key: value.shape for key, value in network.state_dict().items()} for network in (adder, cnn)]
    assert shapes[0] == shapes[1]
    assert any(isinstance(module, Adder2d) for module in adder.modules())
    assert not any(isinstance(module, Adder2d) for module in cnn.modules())
    for key, layer in cnn.named_modules():
        other = adder.get_submodule(key)
        if isinstance(layer, nn.Conv2d):
            assert isinstance(other, nn.Conv2d | Adder2d)
            assert (other.stride, other.padding, other.dilation) == (layer.stride, layer.padding, layer.dilation)
        else:
            assert type(other) is type(layer)


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_differ_from_the_cnn_in_the_kind_of_layers_but_the_first_and_last(name: str) -> None:
    network, cnn = bare(name), bare(twin(name))
    for key, layer in cnn.named_modules():
        other = network.get_submodule(key)
        if not isinstance(layer, nn.Conv2d) or key in ("conv1", "fc"):
            assert type(other) is type(layer)
            continue
        assert type(other) is KINDS[kind(name)]
        parts = [other.shift, other.adder] if isinstance(other, ShiftAdd2d) else [other]
        assert parts[0].extra_repr() == layer.extra_repr()
        for part in parts:
            assert (part.kernel_size, part.dilation, part.groups) == (layer.kernel_size, layer.dilation, layer.groups)


def executed(network: nn.Module, kinds: type | tuple[type, ...] = nn.Module) -> dict[str, torch.Size]:
    """The modules without children, in the order in which a forward runs them, and the shapes that they give."""
    order: dict[str, torch.Size] = {}
    handles = [
        module.register_forward_hook(lambda m, i, output, name=name: order.update({name: output.shape}))
        for name, module in network.named_modules()
        if not list(module.children()) and isinstance(module, kinds)
    ]
    network(image_of(network))
    for handle in handles:
        handle.remove()
    return order


def multiply_accumulates(network: nn.Module) -> dict[str, int]:
    """Of every adder layer, convolution and linear layer, for one image."""
    layers = {name: module for name, module in network.named_modules() if is_layer(module)}
    shapes = executed(network, (Adder2d, nn.Conv2d, nn.Linear))
    assert shapes.keys() == layers.keys()
    return {name: shape.numel() * layers[name].weight[0].numel() for name, shape in shapes.items()}


def adder_and_other(network: nn.Module) -> tuple[int, int]:
    counts = multiply_accumulates(network)
    adder = sum(count for name, count in counts.items() if isinstance(network.get_submodule(name), Adder2d))
    return adder, sum(counts.values()) - adder


@pytest.mark.parametrize(
    ("name", "adder", "conv"),
    [
        ("adder_lenet5", 416_520, 0),
        ("adder_vgg_small", 603_979_776, 1024 * 27 * 128 + 81_920),
        ("adder_resnet20", 40_370_176, 443_008),
        ("adder_resnet32", 69_124_736 - 443_008, 443_008),
        ("adder_resnet8", 12_501_632 - 443_008, 443_008),
    ],
)
def test_multiply_accumulates_are_those_of_the_definitions(name: str, adder: int, conv: int) -> None:
    assert adder_and_other(bare(name)) == (adder, conv)
    assert adder_and_other(bare(twin(name))) == (0, adder + conv)


def test_multiply_accumulates_of_resnet20_are_forty_million() -> None:
    assert sum(adder_and_other(bare("adder_resnet20"))) == 40_813_184


def test_multiply_accumulates_of_resnet18_are_the_papers() -> None:
    adder, conv = adder_and_other(bare("adder_resnet18"))
    assert (f"{adder / 1e9:.4f}", f"{(adder + conv) / 1e9:.3f}") == ("1.6955", "1.814")


def test_multiply_accumulates_of_resnet50_are_the_papers_where_the_stride_is_on_the_1x1_layers() -> None:
    network = bare("adder_resnet50")
    counts = multiply_accumulates(network)
    total = sum(counts.values())
    assert f"{total / 1e9:.3f}" == "4.089"
    # With its stride on the first 1x1 layer, a block computes a quarter of the pixels of that layer.
    strided = [name for name in counts if name.endswith(".conv2") and network.get_submodule(name).stride == (2, 2)]
    assert strided == ["layer2.0.conv2", "layer3.0.conv2", "layer4.0.conv2"]
    saved = sum(counts[name.replace("conv2", "conv1")] * 3 // 4 for name in strided)
    assert f"{(total - saved) / 1e9:.3f}" == "3.858"


def test_the_papers_435_thousand_for_lenet5_are_with_biases_and_batch_norm() -> None:
    network = bare("adder_lenet5")
    outputs = [shape.numel() for shape in executed(network, Adder2d).values()]
    assert sum(multiply_accumulates(network).values()) + sum(outputs) + 2 * sum(outputs[:3]) == 435_886


@pytest.mark.parametrize("name", NAMES)
def test_pytorchs_counter_finds_two_operations_for_every_multiply_accumulate(name: str) -> None:
    network = bare(name)
    with FlopCounterMode(display=False) as counter:
        network(image_of(network))
    assert counter.get_total_flops() == 2 * sum(multiply_accumulates(network).values())


@pytest.mark.parametrize("name", ADDERS)
def test_first_and_last_layer_stay_what_they_are_but_in_lenets(name: str) -> None:
    network = bare(name)
    others = {key for key, module in network.named_modules() if is_layer(module) and not isinstance(module, Adder2d)}
    assert others == (set() if name in LENETS else {"conv1", "fc"})


@pytest.mark.parametrize("name", NAMES)
def test_no_layer_has_a_bias_but_the_classifiers_of_imagenet_resnets_and_of_vgg_small(name: str) -> None:
    network = bare(name)
    biases = {key for key, module in network.named_modules() if is_layer(module) and module.bias is not None}
    assert biases == ({"fc"} if name in IMAGENET_RESNETS + VGGS else set())


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_has_its_batch_norm_but_the_classifier_of_vgg_small(name: str) -> None:
    network = bare(name)
    # The shift layer of a pair has none: it is behind the adder layer.
    pairs = {module.shift for module in network.modules() if isinstance(module, ShiftAdd2d)}
    layers = [module.weight.shape[0] for module in network.modules() if is_layer(module) and module not in pairs]
    norms = [module.num_features for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms == layers[: -1 if name in VGGS else None]
    assert (logits_norm_name(network) is None) == (name in VGGS)


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_the_classifier_behind_batch_norm(name: str) -> None:
    network = make(name, num_classes=7)
    classifier = network.get_classifier()
    if classifier.bias is not None:
        nn.init.normal_(classifier.bias)
    x = images(network, 3)
    features = network.forward_head(network.forward_features(x), pre_logits=True)
    assert features.shape == (3, network.head_hidden_size)
    rows, filters = features.double(), classifier.weight.detach().double().flatten(1)
    expected = -(rows[:, None] - filters).abs().sum(-1) if isinstance(classifier, Adder2d) else rows @ filters.T
    if classifier.bias is not None:
        expected = expected + classifier.bias.double()
    if name not in VGGS:
        norm = network.get_submodule(logits_norm_name(network))
        deviation = (norm.running_var.double() + norm.eps).sqrt()
        expected = (expected - norm.running_mean) / deviation * norm.weight + norm.bias
    torch.testing.assert_close(network(x).double(), expected, rtol=1e-4, atol=1e-4)


def test_lenet5_is_the_papers() -> None:
    network = bare("adder_lenet5")
    assert executed(network, (Adder2d, nn.MaxPool2d)) == {
        "conv1": (1, 6, 28, 28),
        "pool1": (1, 6, 14, 14),
        "conv2": (1, 16, 10, 10),
        "pool2": (1, 16, 5, 5),
        "conv3": (1, 120, 1, 1),
        "conv4": (1, 84, 1, 1),
        "fc": (1, 10, 1, 1),
    }
    assert [network.get_submodule(f"conv{i}").kernel_size[0] for i in (1, 2, 3, 4)] == [5, 5, 5, 1]


def test_lenet_plus_plus_is_the_papers() -> None:
    network = bare("adder_lenet_plus_plus")
    assert executed(network, (Adder2d, nn.MaxPool2d)) == {
        "conv1": (1, 32, 28, 28),
        "conv2": (1, 32, 28, 28),
        "pool2": (1, 32, 14, 14),
        "conv3": (1, 64, 14, 14),
        "conv4": (1, 64, 14, 14),
        "pool4": (1, 64, 7, 7),
        "conv5": (1, 128, 7, 7),
        "conv6": (1, 128, 7, 7),
        "pool6": (1, 128, 3, 3),
        "conv7": (1, 2, 1, 1),
        "fc": (1, 10, 1, 1),
    }
    assert all(network.get_submodule(f"conv{i}").kernel_size == (5, 5) for i in range(1, 7))
    assert [network.get_submodule(name).weight[0].numel() for name in ("conv7", "fc")] == [1152, 2]
    assert not any(name.startswith("act7") for name in executed(network))  # the features are to fill the plane


def test_vgg_small_is_the_papers_with_pooling_before_batch_norm() -> None:
    network = bare("adder_vgg_small")
    order = executed(network)
    rows = ["conv{0} bn{0} act{0}", "conv{0} pool{0} bn{0} act{0}"]
    body = " ".join(rows[i % 2].format(i + 1) for i in range(6)).split()
    assert [name for name in order if name in body] == body
    assert [order[f"conv{i}"] for i in range(1, 7)] == [
        (1, 128, 32, 32),
        (1, 128, 32, 32),
        (1, 256, 16, 16),
        (1, 256, 16, 16),
        (1, 512, 8, 8),
        (1, 512, 8, 8),
    ]
    assert all(network.get_submodule(f"conv{i}").kernel_size == (3, 3) for i in range(1, 7))
    assert (type(network.fc), network.fc.in_features, network.fc.out_features) == (nn.Linear, 8192, 10)


@pytest.mark.parametrize("name", CIFAR_RESNETS)
def test_cifar_resnets_have_three_stages_for_images_of_32_pixels(name: str) -> None:
    network = bare(name)
    shapes = executed(network)
    blocks = (int(name.partition("resnet")[2]) - 2) // 6
    assert shapes["conv1"] == (1, 16, 32, 32)
    for stage, (width, size) in enumerate([(16, 32), (32, 16), (64, 8)], start=1):
        assert len(network.get_submodule(f"layer{stage}")) == blocks
        last = f"layer{stage}.{blocks - 1}.conv2" + (".adder" if kind(name) == "shiftadd" else "")
        assert shapes[last] == (1, width, size, size)
    assert len(network.layer4) == 0


@pytest.mark.parametrize("name", RESNETS)
def test_shortcuts_of_resnets_are_1x1_layers_with_batch_norm_where_the_shape_changes(name: str) -> None:
    network = bare(name)
    blocks = {key: module for key, module in network.named_modules() if hasattr(module, "downsample")}
    changing = [key for key, block in blocks.items() if not isinstance(block.downsample, nn.Identity)]
    bottleneck = any(hasattr(block, "conv3") for block in blocks.values())
    assert changing == [key for key in blocks if key.endswith(".0") and (bottleneck or key != "layer1.0")]
    for key in changing:
        layer, norm = blocks[key].downsample
        assert type(layer) is KINDS[kind(name)]
        layer = layer.shift if isinstance(layer, ShiftAdd2d) else layer
        assert (layer.kernel_size, layer.stride) == ((1, 1), (1, 1) if key == "layer1.0" else (2, 2))
        assert isinstance(norm, nn.BatchNorm2d)


@pytest.mark.parametrize("name", [name for name in IMAGENET_RESNETS if name.endswith(("50", "101"))])
def test_stride_of_a_bottleneck_is_on_its_3x3_layer(name: str) -> None:
    layers = {key: module for key, module in bare(name).named_modules() if is_layer(module) and "layer" in key}
    strided = {key for key, layer in layers.items() if layer.stride != (1, 1)}
    assert strided == {f"layer{stage}.0.{layer}" for stage in (2, 3, 4) for layer in ("conv2", "downsample.0")}
    assert all(layers[key].kernel_size == (3, 3) for key in strided if key.endswith("conv2"))


def test_block_of_an_adder_resnet_is_its_definition() -> None:
    """The first one of the second stage, step by step: stride 2, and a 1x1 layer with BatchNorm as the shortcut."""
    block = make("adder_resnet20").layer2[0]
    x = torch.rand(2, 16, 8, 8)

    def distance(layer: Adder2d, input: Tensor, stride: int, padding: int) -> Tensor:
        patches = F.unfold(input.double(), layer.weight.shape[2:], 1, padding, stride)
        filters = layer.weight.detach().double().flatten(1)[:, :, None]
        return -(patches[:, None] - filters).abs().sum(2).unflatten(-1, (4, 4))

    def norm(layer: nn.BatchNorm2d, input: Tensor) -> Tensor:
        return copy.deepcopy(layer).double()(input)

    y = norm(block.bn1, distance(block.conv1, x, 2, 1)).relu()
    y = norm(block.bn2, distance(block.conv2, y, 1, 1))
    y = (y + norm(block.downsample[1], distance(block.downsample[0], x, 2, 0))).relu()
    torch.testing.assert_close(block(x).double(), y, rtol=1e-4, atol=1e-4)


def with_weights_of(network: nn.Module, theirs: nn.Module) -> nn.Module:
    """By name; the classifier as a 1x1 convolution, and a BatchNorm on the logits that does nothing."""
    state = theirs.state_dict()
    state["fc.weight"] = state["fc.weight"][:, :, None, None]
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert all(key.startswith("bn2.") for key in missing)
    assert not unexpected
    network.bn2.eps = 0.0
    return network.eval()


def settle(network: nn.Module, x: Tensor) -> nn.Module:
    """With BatchNorm statistics of `x`."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(x)
    return network.eval()


TORCHVISION: dict[str, Callable[..., nn.Module]] = {
    "resnet18": torchvision.models.resnet18,
    "resnet34": torchvision.models.resnet34,
    "resnet50": torchvision.models.resnet50,
    "resnet101": torchvision.models.resnet101,
}


@torch.no_grad()
@pytest.mark.parametrize("name", TORCHVISION)
def test_cnn_resnets_are_torchvisions(name: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 64, 64)
    theirs = settle(TORCHVISION[name](), x)
    ours = with_weights_of(timm.create_model(f"cnn_{name}"), theirs)
    assert theirs(x).std() > 0.1
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilated_cnn_resnet_is_torchvisions(output_stride: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64, 64)
    dilate = [False, output_stride == 8, True]
    theirs = settle(torchvision.models.resnet50(replace_stride_with_dilation=dilate), x)
    ours = with_weights_of(timm.create_model("cnn_resnet50", output_stride=output_stride), theirs)
    assert ours.forward_features(x).shape[2] == 64 // output_stride
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilated_cnn_resnet_of_basic_blocks_is_timms(output_stride: int) -> None:
    """torchvision has none."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64, 64)
    theirs = settle(timm.create_model("resnet18", output_stride=output_stride), x)
    ours = with_weights_of(timm.create_model("cnn_resnet18", output_stride=output_stride), theirs)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", RESNETS)
def test_output_stride_dilates_in_place_of_shrinking(name: str) -> None:
    network = build(name, output_stride=8)
    size = 64
    features = network.forward_features(images(network, size=size))
    assert features.shape[2:] == (size // min(8, build(name).feature_info[-1]["reduction"]),) * 2
    with pytest.raises(ValueError, match="output_stride must be 8, 16 or 32, got 4"):
        build(name, output_stride=4)


@pytest.mark.parametrize("name", NAMES)
def test_unknown_conv_layer_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=r"conv_layer must be one of 'adder', 'conv', .*, got 'ternary'"):
        build(name, conv_layer="ternary")


@pytest.mark.parametrize(("name", "smallest", "larger"), [("lenet5", 32, 47), ("lenet_plus_plus", 24, 39)])
def test_lenets_take_images_of_a_smallest_size_and_more(name: str, smallest: int, larger: int) -> None:
    for first in ("adder", "cnn"):
        network = build(f"{first}_{name}").eval()
        assert network(images(network, size=smallest)).shape == network(images(network, size=larger)).shape == (2, 10)
        with pytest.raises(RuntimeError):
            network(images(network, size=smallest - 1))
