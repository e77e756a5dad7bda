"""The registered networks: their architecture, timm's contract, and their weights."""

import copy
import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import timm.models._builder
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from timm.models import group_modules, group_parameters
from timm.models._hub import save_for_hf
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import adderzoo.models
from adderzoo.checkpoints import read_state_dict
from adderzoo.layers import Adder2d
from adderzoo.models import _builder

MODULES = sorted({str(module) for module in timm.list_modules() if str(module).startswith("adder_")})
NAMES = sorted(name for module in MODULES for name in timm.list_models(module=module))
TAGS = sorted(tag for module in MODULES for tag in timm.list_models(module=module, pretrained=True))
ADDERS = [name for name in NAMES if name.startswith("adder_")]
LENETS = [name for name in NAMES if "lenet" in name]
RESNETS = [name for name in NAMES if "resnet" in name]

SHARED = Path(__file__).resolve().parents[3] / "shared"


def twin(name: str) -> str:
    return name.replace("adder_", "cnn_")


def make(name: str, **kwargs: Any) -> nn.Module:
    """In evaluation mode, with BatchNorm statistics that fit, so that the logits have a spread of 1."""
    torch.manual_seed(0)
    network = timm.create_model(name, **kwargs).train()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        network(images(network, 16))
    for norm in norms:
        norm.momentum = 0.1
    return network.eval()


def images(network: nn.Module, batch: int = 2, size: int | None = None, channels: int | None = None) -> Tensor:
    """As small as the network takes them."""
    size = size or (32 if network.feature_info[-1]["num_chs"] == 120 else 16)
    shape = (batch, channels or network.in_chans, size, size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def logits_norm(network: nn.Module) -> nn.BatchNorm2d:
    """The last BatchNorm that the network registers."""
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)][-1]


def logits_norm_name(network: nn.Module) -> str:
    return next(name for name, module in network.named_modules() if module is logits_norm(network))


# Architecture


def test_the_registry_holds_what_the_package_exports() -> None:
    assert len(NAMES) >= 6
    assert set(NAMES) == {name for name in adderzoo.models.__all__ if timm.is_model(name)}
    assert {twin(name) for name in ADDERS} == set(NAMES) - set(ADDERS)


@pytest.mark.parametrize("name", ADDERS)
def test_adder_network_and_cnn_twin_differ_in_the_kind_of_layers_alone(name: str) -> None:
    adder, cnn = timm.create_model(name), timm.create_model(twin(name))
    shapes = [{key: value.shape for key, value in network.state_dict().items()} for network in (adder, cnn)]
    assert shapes[0] == shapes[1]
    assert sum(p.numel() for p in adder.parameters()) == sum(p.numel() for p in cnn.parameters())
    assert not any(isinstance(module, Adder2d) for module in cnn.modules())
    for key, layer in cnn.named_modules():
        other = adder.get_submodule(key)
        if isinstance(layer, nn.Conv2d):
            assert isinstance(other, nn.Conv2d | Adder2d)
            assert (other.stride, other.padding, other.dilation) == (layer.stride, layer.padding, layer.dilation)
        else:
            assert type(other) is type(layer)


def multiply_accumulates(network: nn.Module) -> tuple[int, int]:
    """Of the adder layers and of the convolutions, for one image."""
    counts = {Adder2d: 0, nn.Conv2d: 0}

    def count(module: Any, inputs: Any, output: Tensor) -> None:
        counts[type(module)] += output[0].numel() * module.weight[0].numel()

    for module in network.modules():
        if isinstance(module, Adder2d | nn.Conv2d):
            module.register_forward_hook(count)
        assert not isinstance(module, nn.Linear)
    with torch.no_grad():
        network.eval()(images(network, 1, 32))
    return counts[Adder2d], counts[nn.Conv2d]


@pytest.mark.parametrize(
    ("name", "adder", "conv"),
    [
        ("adder_lenet5", 416_520, 0),
        ("adder_resnet20", 40_370_176, 443_008),
        ("adder_resnet32", 69_124_736 - 443_008, 443_008),
    ],
)
def test_multiply_accumulates_are_the_papers(name: str, adder: int, conv: int) -> None:
    assert multiply_accumulates(timm.create_model(name)) == (adder, conv)
    assert multiply_accumulates(timm.create_model(twin(name))) == (0, adder + conv)
    network = timm.create_model(name).eval()
    with FlopCounterMode(display=False) as counter:
        network(images(network, 1, 32))
    assert counter.get_total_flops() == 2 * (adder + conv)


def test_lenet_has_the_papers_widths_and_no_bias() -> None:
    weights = 6 * 25 + 16 * 6 * 25 + 120 * 16 * 25 + 84 * 120 + 10 * 84
    norms = 2 * (6 + 16 + 120 + 84 + 10)
    assert sum(p.numel() for p in timm.create_model("adder_lenet5").parameters()) == weights + norms


@pytest.mark.parametrize("name", ADDERS)
def test_first_and_last_layer_of_a_resnet_are_convolutions_and_none_of_a_lenet(name: str) -> None:
    network = timm.create_model(name)
    convolutions = {key for key, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    assert convolutions == (set() if name in LENETS else {"conv1", "fc"})


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_a_classifier_without_bias_behind_which_a_batch_norm_follows(name: str) -> None:
    network = make(name, num_classes=7)
    classifier, norm = network.get_classifier(), logits_norm(network)
    assert classifier.bias is None
    assert norm.num_features == 7
    x = images(network, 3)
    features = network.forward_head(network.forward_features(x), pre_logits=True)
    assert features.shape == (3, network.head_hidden_size)
    rows, filters = features.double(), classifier.weight.detach().double().flatten(1)
    scores = -(rows[:, None] - filters).abs().sum(-1) if isinstance(classifier, Adder2d) else rows @ filters.T
    expected = (scores - norm.running_mean) / (norm.running_var.double() + norm.eps).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(network(x).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_has_its_batch_norm(name: str) -> None:
    network = timm.create_model(name)
    layers = [module for module in network.modules() if isinstance(module, Adder2d | nn.Conv2d)]
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert [layer.out_channels for layer in layers] == [norm.num_features for norm in norms]
    assert all(layer.bias is None for layer in layers)


def test_shortcuts_of_a_resnet_add_up_what_the_definition_says() -> None:
    """The first block of the second stage, step by step: stride 2, and a 1x1 layer with BatchNorm as the shortcut."""
    network = make("adder_resnet20")
    block = network.layer2[0]
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
    assert network.layer1[0].downsample is None


@pytest.mark.parametrize("name", NAMES)
def test_unknown_conv_layer_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match="conv_layer must be one of 'adder', 'conv', got 'shift'"):
        timm.create_model(name, conv_layer="shift")


@pytest.mark.parametrize("name", LENETS)
def test_lenet_takes_images_of_32_pixels_and_more(name: str) -> None:
    network = timm.create_model(name).eval()
    assert network(images(network, size=32)).shape == network(images(network, size=47)).shape == (2, 10)
    with pytest.raises(RuntimeError):
        network(images(network, size=31))


# timm's contract


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("in_chans", [1, 2, 3, 5])
def test_in_chans_and_num_classes_are_what_the_network_takes_and_gives(name: str, in_chans: int) -> None:
    network = timm.create_model(name, in_chans=in_chans, num_classes=in_chans + 2).eval()
    assert network(images(network, channels=in_chans)).shape == (2, in_chans + 2)
    assert network.num_classes == in_chans + 2


@pytest.mark.parametrize("name", NAMES)
def test_forward_is_features_then_head(name: str) -> None:
    network = make(name)
    x = images(network)
    features = network.forward_features(x)
    assert features.shape == (2, network.num_features, *((1, 1) if name in LENETS else (4, 4)))
    assert torch.equal(network(x), network.forward_head(features))
    assert network.forward_head(features, pre_logits=True).shape == (2, network.head_hidden_size)


@pytest.mark.parametrize("name", NAMES)
def test_network_without_classes_gives_the_features_before_the_classifier(name: str) -> None:
    network = make(name)
    x = images(network)
    expected = network.forward_head(network.forward_features(x), pre_logits=True)
    bare = timm.create_model(name, num_classes=0).eval()
    assert bare.load_state_dict(network.state_dict(), strict=False).missing_keys == []
    assert torch.equal(bare(x), expected)
    network.reset_classifier(0)
    assert torch.equal(network(x), expected)
    assert isinstance(network.get_classifier(), nn.Identity)


@pytest.mark.parametrize("name", NAMES)
def test_reset_classifier_replaces_the_head_alone(name: str) -> None:
    network = make(name)
    x = images(network)
    features = network.forward_features(x)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    head = {key for key in before if before[key].shape[:1] == (10,)} | {
        f"{logits_norm_name(network)}.num_batches_tracked"
    }
    network.reset_classifier(4)
    assert network.num_classes == 4
    assert network(x).shape == (2, 4)
    assert torch.equal(network.forward_features(x), features)
    after = network.state_dict()
    assert {key for key in before if not torch.equal(before[key], after[key])} == head
    assert len(head) == 6  # the classifier's filters; weight, bias, mean, variance and count of the BatchNorm
    assert network.get_classifier().out_channels == 4


@pytest.mark.parametrize("name", NAMES)
def test_reset_classifier_keeps_dtype_device_mode_and_pooling(name: str) -> None:
    network = timm.create_model(name, global_pool="max").double().eval()
    network.reset_classifier(4)
    assert network.global_pool.pool_type == "max"
    assert network(images(network).double()).dtype == torch.float64
    assert not any(module.training for module in network.modules())
    network = timm.create_model(name).to("meta")
    network.reset_classifier(4)
    assert network(images(network).to("meta")).shape == (2, 4)


@pytest.mark.parametrize("name", RESNETS)
def test_reset_classifier_can_change_the_pooling_of_a_resnet(name: str) -> None:
    network = timm.create_model(name).eval()
    network.reset_classifier(4, global_pool="catavgmax")
    assert network.head_hidden_size == 128
    assert network(images(network)).shape == (2, 4)


@pytest.mark.parametrize("name", LENETS)
def test_pooling_of_a_lenet_on_which_a_layer_depends_does_not_change_unnoticed(name: str) -> None:
    network = timm.create_model(name)
    with pytest.raises(ValueError, match="global_pool cannot change, fc1 depends on it: got 'max'"):
        network.reset_classifier(4, global_pool="max")
    network.reset_classifier(4, global_pool="avg")
    assert network.num_classes == 4


POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "avg": lambda x: x.mean((2, 3)),
    "max": lambda x: x.amax((2, 3)),
    "avgmax": lambda x: (x.mean((2, 3)) + x.amax((2, 3))) / 2,
    "catavgmax": lambda x: torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1),
}


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("name", NAMES)
def test_pooling_is_what_its_name_says(name: str, pooling: str) -> None:
    network = make(name, global_pool=pooling)
    features = torch.rand(2, network.num_features, 3, 4)
    pooled = POOLINGS[pooling](features)
    logits = network.forward_head(features)
    assert logits.shape == (2, 10)
    network.global_pool = nn.Identity()
    network.global_pool.pool_type = "none"  # what the head flattens by
    torch.testing.assert_close(network.forward_head(pooled[:, :, None, None]), logits)


@pytest.mark.parametrize("name", NAMES)
def test_without_pooling_the_head_runs_on_every_pixel(name: str) -> None:
    network = make(name)
    x = images(network, size=64)
    maps = timm.create_model(name, global_pool="").eval()
    maps.load_state_dict(network.state_dict())
    scores = maps(x)
    features = network.forward_features(x)
    assert scores.shape == (2, 10, *features.shape[2:])
    assert features.shape[2] > 2
    torch.testing.assert_close(scores[:, :, 1, 2], network.forward_head(features[:, :, 1:2, 2:3]))


@pytest.mark.parametrize("name", NAMES)
def test_dropout_before_the_classifier_acts_in_training_alone(name: str) -> None:
    network = make(name, drop_rate=0.5)
    features = network.forward_features(images(network, 32)).detach()
    plain = network.forward_head(features, pre_logits=True)
    assert torch.equal(network.forward_head(features, pre_logits=True), plain)
    for module in network.modules():  # BatchNorm by its statistics, so that dropout is all that training changes
        module.training = module is network
    dropped = network.forward_head(features, pre_logits=True)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], 2 * plain[kept])
    assert plain.count_nonzero() > 500
    assert 0.4 < kept[plain != 0].float().mean() < 0.6


@pytest.mark.parametrize("feature_cls", ["list", "dict", "hook", "fx"])
@pytest.mark.parametrize("name", NAMES)
def test_features_only_gives_what_the_network_computes_on_the_way(name: str, feature_cls: str, tmp_path: Path) -> None:
    network, overlay = generated(name, tmp_path / "weights.safetensors")
    backbone = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=overlay, features_only=True, feature_cls=feature_cls
    ).eval()
    seen: dict[str, Tensor] = {}
    for info in network.feature_info:
        module = network.get_submodule(info["module"])
        module.register_forward_hook(lambda m, i, output, key=info["module"]: seen.update({key: output.clone()}))
    x = images(network)
    with torch.no_grad():
        network(x)
        outputs = backbone(x)
    features = list(outputs.values()) if isinstance(outputs, dict) else outputs
    assert len(features) == len(network.feature_info) == len(seen)
    for feature, info in zip(features, network.feature_info, strict=True):
        torch.testing.assert_close(feature, seen[info["module"]])
        assert feature.shape[1] == info["num_chs"]
        if name in RESNETS:
            assert feature.shape[2] == x.shape[2] // info["reduction"]
    assert backbone.feature_info.channels() == [info["num_chs"] for info in network.feature_info]


@pytest.mark.parametrize("name", RESNETS)
def test_out_indices_choose_the_features(name: str) -> None:
    backbone = timm.create_model(name, features_only=True, out_indices=(1, 3)).eval()
    assert [tuple(feature.shape) for feature in backbone(torch.randn(1, 3, 32, 32))] == [(1, 16, 32, 32), (1, 64, 8, 8)]


@pytest.mark.parametrize("name", RESNETS)
def test_gradient_checkpointing_recomputes_and_changes_no_result(name: str) -> None:
    network = make(name).train()
    other = copy.deepcopy(network)
    other.set_grad_checkpointing()
    runs = {id(network): 0, id(other): 0}
    x = images(network, 4)
    results = []
    for module in (network, other):

        def count(*_: Any, key: int = id(module)) -> None:
            runs[key] += 1

        module.layer2[1].register_forward_hook(count)
        output = module(x)
        output.square().sum().backward()
        results.append((output.detach(), [p.grad for p in module.parameters()]))
    torch.testing.assert_close(*results)
    assert (runs[id(network)], runs[id(other)]) == (1, 2)
    other.set_grad_checkpointing(False)
    other(x).sum().backward()
    assert runs[id(other)] == 3


@pytest.mark.parametrize("name", LENETS)
def test_gradient_checkpointing_of_a_lenet_is_refused(name: str) -> None:
    network = timm.create_model(name)
    with pytest.raises(ValueError, match="too small for gradient checkpointing, got enable=True"):
        network.set_grad_checkpointing()
    network.set_grad_checkpointing(False)


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_groups_for_layer_wise_rates_cover_all_parameters_in_the_order_of_depth(name: str, coarse: bool) -> None:
    network = timm.create_model(name)
    matcher = network.group_matcher(coarse=coarse)
    group = group_parameters(network, matcher, reverse=True)
    keys = [key for key, _ in network.named_parameters()]  # registered in the order of depth
    assert set(group) == set(keys)
    order = [group[key] for key in keys]
    assert order == sorted(order)
    classifier = {key for key in keys if dict(network.named_parameters())[key].shape[0] == 10}
    assert len(classifier) == 3
    assert {
        key for key in keys if group[key] == max(order)
    } == classifier  # nothing else fell through to the last group
    assert {key for key in keys if group[key] == 0} == {"conv1.weight", "bn1.weight", "bn1.bias"}
    blocks = 3 if name in LENETS or coarse else (15 if "32" in name else 9)
    assert max(order) + 1 == blocks + 2
    modules = group_modules(network, matcher, reverse=True)
    assert all(modules[key.rpartition(".")[0]] == group[key] for key in keys)


@pytest.mark.parametrize("name", NAMES)
def test_timms_layer_decay_gives_deeper_layers_larger_rates(name: str) -> None:
    network = timm.create_model(name)
    scales = {
        id(parameter): group["lr_scale"]
        for group in param_groups_layer_decay(network, layer_decay=0.5)
        for parameter in group["params"]
    }
    rates = [scales[id(parameter)] for parameter in network.parameters()]
    assert rates == sorted(rates)
    assert rates[-1] == 1.0
    assert rates[0] < 0.1


@pytest.mark.parametrize("way", [torch.jit.script, torch.fx.symbolic_trace], ids=["script", "fx"])
@pytest.mark.parametrize("name", NAMES)
def test_scripted_and_traced_networks_give_the_same_logits(name: str, way: Callable[[nn.Module], nn.Module]) -> None:
    network = make(name, num_classes=5)
    other = way(network)
    with torch.no_grad():
        for batch in (1, 3):
            x = images(network, batch)
            torch.testing.assert_close(other(x), network(x))


@pytest.mark.parametrize("name", NAMES)
def test_channels_last_gives_the_same_logits(name: str) -> None:
    network = make(name)
    x = images(network, 4)
    other = copy.deepcopy(network).to(memory_format=torch.channels_last)
    torch.testing.assert_close(other(x.contiguous(memory_format=torch.channels_last)), network(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_network_is_built_without_memory_and_filled_from_a_state_dict(name: str) -> None:
    network = make(name)
    with torch.device("meta"):
        other = timm.create_model(name).eval()
        assert other(torch.empty(2, other.in_chans, 32, 32)).shape == (2, 10)
    assert {tensor.device.type for tensor in other.state_dict().values()} == {"meta"}
    other.load_state_dict(network.state_dict(), assign=True)
    x = images(network)
    assert torch.equal(other(x), network(x))


@pytest.mark.parametrize("name", NAMES)
def test_network_saved_for_the_hub_comes_back_from_its_folder(name: str, tmp_path: Path) -> None:
    network = make(name, num_classes=7, in_chans=2, global_pool="max")
    save_for_hf(network, str(tmp_path), model_args={"global_pool": "max", "in_chans": 2}, safe_serialization=True)
    other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = images(network)
    assert torch.equal(other(x), network(x))
    assert type(other) is type(network)
    fine_tuned = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3).eval()
    assert fine_tuned(x).shape == (2, 3)
    assert torch.equal(fine_tuned.forward_features(x), network.forward_features(x))


def test_kind_of_layers_survives_the_hub(tmp_path: Path) -> None:
    network = make("adder_resnet20", conv_layer="conv")
    save_for_hf(network, str(tmp_path), model_args={"conv_layer": "conv"})
    other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert not any(isinstance(module, Adder2d) for module in other.modules())
    assert torch.equal(other(images(network)), network(images(network)))


# Weights


def source(tag: str) -> Path:
    """The file of a tag: in the package, or for a URL the same file in ../shared."""
    cfg = timm.get_pretrained_cfg(tag)
    if cfg.file:
        return Path(cfg.file)
    path = SHARED / "checkpoints" / cfg.url.rpartition("/")[2]
    if not path.exists():
        pytest.skip(f"../shared/checkpoints/{path.name}, which stands for a download, is absent")
    return path


def pretrained(tag: str, **kwargs: Any) -> nn.Module:
    overlay = None if timm.get_pretrained_cfg(tag).file else {"file": str(source(tag))}
    return timm.create_model(tag, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs).eval()


def generated(name: str, path: Path) -> tuple[nn.Module, dict[str, str]]:
    """A network, and the overlay by which its weights are the pretrained ones."""
    network = make(name)
    save_file(network.state_dict(), path)
    return network, {"file": str(path)}


def test_every_published_weight_has_a_tag() -> None:
    assert {"adder_lenet5.digits", "cnn_lenet5.digits", "adder_resnet20.huawei_cifar10"} <= set(TAGS)


@pytest.mark.parametrize("tag", TAGS)
def test_pretrained_network_has_the_tensors_of_its_file(tag: str) -> None:
    stored = read_state_dict(source(tag))
    stored = {re.sub(r"\.adder$", ".weight", key.removeprefix("module.")): value for key, value in stored.items()}
    loaded = pretrained(tag).state_dict()
    assert stored.keys() == loaded.keys()
    assert all(torch.equal(stored[key], loaded[key]) for key in stored)


def assert_other_head(network: nn.Module, whole: nn.Module) -> None:
    """5 classes: a new head, of which the BatchNorm knows nothing of the old one, on the same features."""
    x = images(whole, 8)
    assert network(x).shape == (8, 5)
    assert torch.equal(network.forward_features(x), whole.forward_features(x))
    before, after = ({k: p.shape for k, p in n.state_dict().items()} for n in (whole, network))
    assert {key for key in before if before[key] != after[key]} == {key for key in before if before[key][:1] == (10,)}
    norm = logits_norm(network)
    assert norm.num_batches_tracked == 0
    assert torch.equal(norm.running_mean, torch.zeros(5))
    assert torch.equal(norm.running_var, torch.ones(5))
    assert torch.equal(norm.weight, torch.ones(5))


def assert_other_channels(network: nn.Module, whole: nn.Module) -> None:
    """Both see the same in images whose channels are all alike."""
    grey = images(whole, 8, channels=1)
    logits, expected = (n(grey.expand(-1, n.in_chans, -1, -1)) for n in (network, whole))
    assert expected.std(0).mean() > 0.2
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("tag", TAGS)
def test_pretrained_weights_adapt_to_other_classes(tag: str) -> None:
    assert_other_head(pretrained(tag, num_classes=5), pretrained(tag))


@pytest.mark.parametrize("tag", TAGS)
def test_pretrained_weights_adapt_to_other_channels(tag: str) -> None:
    whole = pretrained(tag)
    # timm repeats three filters that differ: no network of 2 or 4 channels sees just the same.
    for in_chans in (1,) if whole.in_chans == 3 else (2, 3, 4):
        network = pretrained(tag, in_chans=in_chans)
        assert network.in_chans == in_chans
        assert_other_channels(network, whole)


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_any_file_adapt_to_other_classes_and_channels(name: str, tmp_path: Path) -> None:
    whole, overlay = generated(name, tmp_path / "weights.safetensors")
    kwargs: dict[str, Any] = {"pretrained": True, "pretrained_cfg_overlay": overlay}
    assert torch.equal(timm.create_model(name, **kwargs).eval()(images(whole)), whole(images(whole)))
    assert_other_head(timm.create_model(name, num_classes=5, **kwargs).eval(), whole)
    other = 1 if whole.in_chans == 3 else 3
    assert_other_channels(timm.create_model(name, in_chans=other, **kwargs).eval(), whole)
    bare = timm.create_model(name, num_classes=0, **kwargs).eval()
    assert torch.equal(bare(images(whole)), whole.forward_head(whole.forward_features(images(whole)), pre_logits=True))
    backbone = timm.create_model(name, features_only=True, **kwargs).eval()
    torch.testing.assert_close(backbone(images(whole))[-1], whole.forward_features(images(whole)))


def test_the_authors_file_comes_from_their_repository_at_a_fixed_commit() -> None:
    """They removed it later: the URL must name a commit that has it, not a branch."""
    url = timm.get_pretrained_cfg("adder_resnet20.huawei_cifar10").url
    assert re.fullmatch(
        r"https://(github\.com/huawei-noah/AdderNet/raw|raw\.githubusercontent\.com/huawei-noah/AdderNet)"
        r"/[0-9a-f]{40}/models/ResNet20-AdderNet\.pth",
        url,
    )


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A weights folder of a package, with one published file."""
    generated("adder_lenet5", tmp_path / "adder_lenet5.digits.safetensors")
    digest = hashlib.sha256((tmp_path / "adder_lenet5.digits.safetensors").read_bytes()).hexdigest()
    (tmp_path / "SHA256SUMS").write_text(f"{digest}  adder_lenet5.digits.safetensors\n")
    monkeypatch.setattr(_builder, "WEIGHTS", tmp_path)
    return tmp_path


def load_packaged(weights: Path) -> nn.Module:
    overlay = {"file": str(weights / "adder_lenet5.digits.safetensors")}
    return timm.create_model("adder_lenet5", pretrained=True, pretrained_cfg_overlay=overlay)


def test_packaged_weights_that_are_the_published_ones_load(weights: Path) -> None:
    stored = load_file(weights / "adder_lenet5.digits.safetensors")
    assert torch.equal(load_packaged(weights).conv1.weight, stored["conv1.weight"])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def replace_by_another(path: Path) -> None:
    tensors = load_file(path)
    save_file({key: value + 1 for key, value in tensors.items()}, path)


@pytest.mark.parametrize("damage", [flip_a_bit, cut_short, replace_by_another])
def test_damaged_packaged_weights_are_refused_before_they_are_read(
    damage: Callable[[Path], None], weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = weights / "adder_lenet5.digits.safetensors"
    damage(path)

    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("the damaged file was read")

    monkeypatch.setattr(timm.models._builder, "load_state_dict", read)
    with pytest.raises(RuntimeError, match=rf"{re.escape(str(path))} is damaged: its SHA-256 is [0-9a-f]{{64}}"):
        load_packaged(weights)


def test_missing_packaged_weights_are_named(weights: Path) -> None:
    path = weights / "adder_lenet5.digits.safetensors"
    path.unlink()
    with pytest.raises(RuntimeError, match=rf"{re.escape(str(path))} is missing: install adderzoo again"):
        load_packaged(weights)


def test_file_of_ones_own_needs_no_published_sum(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("own") / "adder_lenet5.digits.safetensors"
    shutil.copy(weights / path.name, path)
    replace_by_another(path)
    network = timm.create_model("adder_lenet5", pretrained=True, pretrained_cfg_overlay={"file": str(path)})
    assert torch.equal(network.conv1.weight, load_file(path)["conv1.weight"])


def test_download_that_is_not_the_published_file_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "served" / "ResNet20-AdderNet.pth"
    path.parent.mkdir()
    torch.save(timm.create_model("adder_resnet20").state_dict(), path)

    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("the file was read")

    monkeypatch.setattr(timm.models._builder, "load_state_dict", read)
    with pytest.raises(RuntimeError, match=r"ResNet20-AdderNet.pth is damaged.*published is fe3ad7c1"):
        load_huawei(path, tmp_path / "cache")


def test_download_of_the_published_file_is_loaded(tmp_path: Path) -> None:
    path = SHARED / "checkpoints" / "ResNet20-AdderNet.pth"
    if not path.is_file():
        pytest.skip("the authors' checkpoint is not in ../shared/checkpoints")
    network = load_huawei(path, tmp_path)
    original = torch.load(path, map_location="cpu", weights_only=True)
    assert torch.equal(network.layer3[2].conv2.weight, original["module.layer3.2.conv2.adder"])


def load_huawei(path: Path, cache: Path) -> Any:
    overlay = {"url": path.resolve().as_uri()}
    name = "adder_resnet20.huawei_cifar10"
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, cache_dir=cache)


def test_packaged_files_are_those_of_the_sums_and_of_the_tags() -> None:
    lines = (adderzoo.models.WEIGHTS / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split() for line in lines)}
    files = {path.name: path for path in adderzoo.models.WEIGHTS.glob("*.safetensors")}
    assert sums == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    assert set(files) == {f"{tag}.safetensors" for tag in TAGS if timm.get_pretrained_cfg(tag).file}
