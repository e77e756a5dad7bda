"""What timm asks of a network."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.fx
from networks import (
    ADDERS,
    BINARY,
    CIFAR_RESNETS,
    CONTRACT,
    IMAGENET_RESNETS,
    LENETS,
    RESNETS,
    VGGS,
    build,
    head_keys,
    image_size,
    images,
    logits_norm_name,
    make,
    small,
)
from safetensors.torch import save_file
from timm.layers import SelectAdaptivePool2d
from timm.models import group_modules, group_parameters
from timm.models._hub import save_for_hf
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn

from adderzoo.layers import Adder2d

pytestmark = pytest.mark.usefixtures("one_thread")


def taps(network: nn.Module, x: Tensor) -> list[Tensor]:
    """What the modules of `feature_info` give in a forward."""
    seen: dict[str, Tensor] = {}
    handles = [
        network.get_submodule(info["module"]).register_forward_hook(
            lambda m, i, output, key=info["module"]: seen.update({key: output.clone()})
        )
        for info in network.feature_info
    ]
    with torch.no_grad():
        network(x)
    for handle in handles:
        handle.remove()
    return [seen[info["module"]] for info in network.feature_info]


def runs(network: nn.Module, x: Tensor) -> set[str]:
    """Names of the convolutions and adder layers that a call of the network runs."""
    seen: set[str] = set()
    for name, module in network.named_modules():
        if isinstance(module, Adder2d | nn.Conv2d):
            module.register_forward_hook(lambda *_, name=name: seen.add(name))
    with torch.no_grad():
        network(x)
    return seen


# Arguments


@pytest.mark.parametrize("name", CONTRACT)
def test_in_chans_and_num_classes_are_what_the_network_takes_and_gives(name: str) -> None:
    for in_chans in (1, 2, 3, 5):
        network = build(name, in_chans=in_chans, num_classes=in_chans + 2).eval()
        assert network(images(network, channels=in_chans)).shape == (2, in_chans + 2)
        assert (network.in_chans, network.num_classes) == (in_chans, in_chans + 2)


@pytest.mark.parametrize("name", CONTRACT)
def test_device_and_dtype_are_those_of_every_parameter(name: str) -> None:
    network = build(name, device="meta", dtype=torch.float64).eval()
    assert {(p.device.type, p.dtype) for p in network.parameters()} == {("meta", torch.float64)}
    x = images(network).double()
    assert network(x.to("meta")).dtype == torch.float64
    assert build(name, dtype=torch.float64).eval()(x).dtype == torch.float64


@pytest.mark.parametrize("name", CONTRACT)
def test_forward_is_features_then_head(name: str) -> None:
    network = make(name)
    x = images(network)
    features = network.forward_features(x)
    assert features.shape[:2] == (2, network.num_features)
    assert torch.equal(network(x), network.forward_head(features))
    assert network(x).shape == (2, 10)
    assert network.forward_head(features, pre_logits=True).shape == (2, network.head_hidden_size)


@pytest.mark.parametrize("name", CONTRACT)
def test_network_without_classes_gives_the_features_before_the_classifier(name: str) -> None:
    network = make(name)
    x = images(network)
    expected = network.forward_head(network.forward_features(x), pre_logits=True)
    assert expected.shape == (2, network.head_hidden_size)
    bare = build(name, num_classes=0).eval()
    assert bare.load_state_dict(network.state_dict(), strict=False).missing_keys == []
    assert torch.equal(bare(x), expected)
    network.reset_classifier(0)
    assert torch.equal(network(x), expected)
    assert isinstance(network.get_classifier(), nn.Identity)


POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "avg": lambda x: x.mean((2, 3)),
    "max": lambda x: x.amax((2, 3)),
    "avgmax": lambda x: (x.mean((2, 3)) + x.amax((2, 3))) / 2,
    "catavgmax": lambda x: torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1),
}


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("name", CONTRACT)
def test_pooling_is_what_its_name_says(name: str, pooling: str) -> None:
    """To one pixel, in VGG-small to 4x4."""
    network = make(name, global_pool=pooling)
    side = 4 if name in VGGS else 1
    features = torch.rand(2, network.num_features, 3 * side, 2 * side)
    cells = features.unflatten(3, (side, 2)).unflatten(2, (side, 3)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
    pooled = POOLINGS[pooling](cells).unflatten(0, (2, side * side)).transpose(1, 2).flatten(1)
    torch.testing.assert_close(network.forward_head(features, pre_logits=True), pooled)
    assert network.head_hidden_size == pooled.shape[1]
    assert network.forward_head(features).shape == (2, 10)


@pytest.mark.parametrize("name", LENETS + RESNETS)
def test_without_pooling_the_head_runs_on_every_pixel(name: str) -> None:
    network = make(name)
    x = images(network, size=2 * image_size(network) + 8)
    maps = build(name, global_pool="").eval()
    maps.load_state_dict(network.state_dict())
    scores = maps(x)
    features = network.forward_features(x)
    assert scores.shape == (2, 10, *features.shape[2:])
    assert features.shape[2] > 2
    torch.testing.assert_close(scores[:, :, 1, 2], network.forward_head(features[:, :, 1:2, 2:3]))


@pytest.mark.parametrize("name", CONTRACT)
def test_without_pooling_and_classes_the_network_gives_its_feature_maps(name: str) -> None:
    network = make(name)
    x = images(network)
    features = network.forward_features(x)
    network.reset_classifier(0, "")
    assert torch.equal(network(x), features)


@pytest.mark.parametrize("name", CONTRACT)
def test_dropout_before_the_classifier_acts_in_training_alone(name: str) -> None:
    network = make(name, drop_rate=0.5)
    features = network.forward_features(images(network)).detach().abs()[:1].expand(300, -1, -1, -1) + 1
    plain = network.forward_head(features, pre_logits=True)
    assert torch.equal(network.forward_head(features, pre_logits=True), plain)
    for module in network.modules():  # BatchNorm by its statistics, so that dropout is all that training changes
        module.training = module is network
    dropped = network.forward_head(features, pre_logits=True)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], 2 * plain[kept])
    assert plain.numel() >= 600
    assert 0.4 < kept.float().mean() < 0.6
    assert network.forward_head(features).shape == (300, 10)


# Classifier


@pytest.mark.parametrize("name", CONTRACT)
def test_reset_classifier_replaces_the_head_alone(name: str) -> None:
    network = make(name)
    x = images(network)
    features = network.forward_features(x)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    head = head_keys(network)
    assert len(head) == (2 if name in VGGS else 7 if name in IMAGENET_RESNETS else 6)
    network.reset_classifier(4)
    assert network.num_classes == 4
    assert network(x).shape == (2, 4)
    assert torch.equal(network.forward_features(x), features)
    after = network.state_dict()
    assert {key for key in before if not torch.equal(before[key], after[key])} == head
    assert network.get_classifier().weight.shape[0] == 4


@pytest.mark.parametrize("name", CONTRACT)
def test_reset_classifier_keeps_dtype_device_mode_and_pooling(name: str) -> None:
    network = build(name, global_pool="max").double().eval()
    network.reset_classifier(4)
    assert network.global_pool.pool_type == "max"
    assert network(images(network).double()).dtype == torch.float64
    assert not any(module.training for module in network.modules())
    network = build(name).train().to("meta")
    network.reset_classifier(4)
    assert network(images(network).to("meta")).shape == (2, 4)
    assert all(module.training for module in network.modules())


@pytest.mark.parametrize("name", CONTRACT)
def test_reset_classifier_can_change_the_pooling(name: str) -> None:
    network = build(name).eval()
    before = network.head_hidden_size
    network.reset_classifier(4, global_pool="catavgmax")
    assert network.head_hidden_size == 2 * before
    assert network(images(network)).shape == (2, 4)
    assert not network.global_pool.training
    network.reset_classifier(4, global_pool="max")
    assert (network.head_hidden_size, network.global_pool.pool_type) == (before, "max")
    assert network(images(network)).shape == (2, 4)


@pytest.mark.parametrize("name", CONTRACT)
def test_classifier_is_found_by_name(name: str) -> None:
    network = build(name)
    assert network.get_classifier(name_only=True) == network.pretrained_cfg["classifier"]
    assert network.get_submodule(network.get_classifier(name_only=True)) is network.get_classifier()
    assert network.get_classifier().weight.shape[0] == 10
    first = network.get_submodule(network.pretrained_cfg["first_conv"])
    assert first is next(module for module in network.modules() if isinstance(module, Adder2d | nn.Conv2d))


# Features


@pytest.mark.parametrize("name", CONTRACT)
def test_features_only_gives_every_level_of_the_network(name: str, tmp_path: Path) -> None:
    network = make(name)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    overlay = {"file": str(tmp_path / "weights.safetensors")}
    x = images(network)
    expected = taps(network, x)
    for feature_cls in (None, "list", "dict", "hook", "fx", "getter"):
        chosen = {"feature_cls": feature_cls} if feature_cls else {}
        kwargs = {"pretrained": True, "pretrained_cfg_overlay": overlay, "features_only": True, **small(name), **chosen}
        backbone = timm.create_model(name, **kwargs).eval()
        with torch.no_grad():
            outputs = backbone(x)
        features = list(outputs.values()) if isinstance(outputs, dict) else outputs
        torch.testing.assert_close(features, expected, msg=lambda text, kind=feature_cls: f"{kind}: {text}")
        assert backbone.feature_info.channels() == [feature.shape[1] for feature in features]
        assert backbone.feature_info.reduction() == [info["reduction"] for info in network.feature_info]
        if name not in LENETS:  # whose layers without padding leave a little less
            assert [x.shape[2] // feature.shape[2] for feature in features] == backbone.feature_info.reduction()


@pytest.mark.parametrize("name", CONTRACT)
def test_out_indices_choose_the_features(name: str) -> None:
    network = build(name).eval()
    x = images(network)
    expected = [feature.shape for feature in taps(network, x)]
    backbone = build(name, features_only=True, out_indices=(0, 2)).eval()
    assert [feature.shape for feature in backbone(x)] == [expected[0], expected[2]]
    last = build(name, features_only=True, out_indices=(-1,)).eval()
    assert [feature.shape for feature in last(x)] == [expected[-1]]


@pytest.mark.parametrize("name", RESNETS)
def test_features_of_a_dilated_network_say_how_much_smaller_they_are(name: str) -> None:
    for output_stride in (8, 16):
        backbone = build(name, features_only=True, output_stride=output_stride).eval()
        x = torch.randn(1, 3, 64, 64)
        reductions = backbone.feature_info.reduction()
        assert [feature.shape[2] for feature in backbone(x)] == [64 // reduction for reduction in reductions]
        assert max(reductions) == (4 if name in CIFAR_RESNETS else output_stride)


@torch.no_grad()
@pytest.mark.parametrize("name", CONTRACT)
def test_forward_intermediates_gives_what_a_forward_computes(name: str) -> None:
    network = make(name)
    x = images(network)
    expected = taps(network, x)
    last, all_of_them = network.forward_intermediates(x)
    torch.testing.assert_close(all_of_them, expected)
    assert torch.equal(last, network.forward_features(x))
    for indices, taken in {(0,): [0], (1, 2): [1, 2], (0, -1): [0, -1]}.items():
        for stop_early in (False, True):
            some = network.forward_intermediates(x, list(indices), stop_early=stop_early, intermediates_only=True)
            torch.testing.assert_close(some, [expected[index] for index in taken])
    torch.testing.assert_close(network.forward_intermediates(x, 2, intermediates_only=True), expected[-2:])
    with pytest.raises(ValueError, match="output_fmt must be 'NCHW', got 'NLC'"):
        network.forward_intermediates(x, output_fmt="NLC")


@pytest.mark.parametrize("name", CONTRACT)
def test_stopping_early_and_pruning_run_no_layer_behind_the_level(name: str) -> None:
    network = make(name)
    x = images(network)
    everything = [key for key, module in network.named_modules() if isinstance(module, Adder2d | nn.Conv2d)]
    for level in range(len(network.feature_info)):
        pruned = copy.deepcopy(network)
        assert pruned.prune_intermediate_layers([level]) == [level]
        needed = runs(pruned, x)
        assert needed == {
            key for key, module in pruned.named_modules() if isinstance(module, Adder2d | nn.Conv2d)
        }  # nothing that remains is superfluous
        assert needed == set(everything[: len(needed)])
        with torch.no_grad():
            torch.testing.assert_close(pruned(x), taps(network, x)[level])
        early = copy.deepcopy(network)
        early.forward = lambda x, early=early, level=level: early.forward_intermediates(x, [level], stop_early=True)
        assert runs(early, x) == needed
    assert needed == {key for key in everything if key != "fc"}


@pytest.mark.parametrize("name", CONTRACT)
def test_pruning_behind_the_last_level_can_leave_the_head(name: str) -> None:
    network = make(name)
    x = images(network)
    expected = network(x)
    levels = len(network.feature_info)
    assert network.prune_intermediate_layers(levels, prune_head=False) == list(range(levels))
    assert torch.equal(network(x), expected)
    network.prune_intermediate_layers([1], prune_head=False)
    assert (network.num_classes, network.num_features) == (0, network.feature_info[1]["num_chs"])
    network.reset_classifier(3, "avg")
    assert network(x).shape == (2, 3)


# Training


@pytest.mark.parametrize("name", RESNETS)
def test_gradient_checkpointing_recomputes_and_changes_no_result(name: str) -> None:
    network = make(name).train()
    other = copy.deepcopy(network)
    other.set_grad_checkpointing()
    counts = {id(network): 0, id(other): 0}
    x = images(network, 4)
    results = []
    for module in (network, other):

        def count(*_: Any, key: int = id(module)) -> None:
            counts[key] += 1

        module.layer2[-1].register_forward_pre_hook(count)
        output = module(x)
        output.square().sum().backward()
        results.append((output.detach(), [p.grad for p in module.parameters()]))
    torch.testing.assert_close(*results)
    assert (counts[id(network)], counts[id(other)]) == (1, 2)
    other.forward_intermediates(x)[0].sum().backward()
    assert counts[id(other)] == 4
    other.set_grad_checkpointing(False)
    other(x).sum().backward()
    assert counts[id(other)] == 5


@pytest.mark.parametrize("name", LENETS)
def test_gradient_checkpointing_of_a_lenet_is_refused(name: str) -> None:
    network = build(name)
    with pytest.raises(ValueError, match="too small for gradient checkpointing, got enable=True"):
        network.set_grad_checkpointing()
    network.set_grad_checkpointing(False)


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("name", CONTRACT)
def test_groups_for_layer_wise_rates_cover_all_parameters_in_the_order_of_depth(name: str, coarse: bool) -> None:
    network = build(name)
    matcher = network.group_matcher(coarse=coarse)
    group = group_parameters(network, matcher, reverse=True)
    keys = [key for key, _ in network.named_parameters()]  # registered in the order of depth
    assert set(group) == set(keys)
    order = [group[key] for key in keys]
    assert order == sorted(order)
    head = {key for key in keys if key in head_keys(network)}
    assert {key for key in keys if group[key] == max(order)} == head  # nothing else fell through to the last group
    assert {key for key in keys if group[key] == 0} == {"conv1.weight", "bn1.weight", "bn1.bias"}
    if name in RESNETS:
        stages = [stage for stage in (network.layer1, network.layer2, network.layer3, network.layer4) if len(stage)]
        blocks = len(stages) if coarse else sum(len(stage) for stage in stages)
    else:
        blocks = len({key.partition(".")[0] for key in keys if key.startswith("conv")}) - 1
    assert max(order) + 1 == blocks + 2
    modules = group_modules(network, matcher, reverse=True)
    assert all(modules[key.rpartition(".")[0]] == group[key] for key in keys)


@pytest.mark.parametrize("name", CONTRACT)
def test_timms_layer_decay_gives_deeper_layers_larger_rates(name: str) -> None:
    network = build(name)
    scales = {
        id(parameter): group["lr_scale"]
        for group in param_groups_layer_decay(network, layer_decay=0.5)
        for parameter in group["params"]
    }
    rates = [scales[id(parameter)] for parameter in network.parameters()]
    assert rates == sorted(rates)
    assert rates[-1] == 1.0
    assert rates[0] < 0.1


@pytest.mark.parametrize("name", CONTRACT)
def test_no_parameter_but_shifts_and_signs_is_spared_weight_decay_by_name(name: str) -> None:
    network = build(name)
    spared = {key for key, _ in network.named_parameters() if key.endswith((".shift", ".sign"))}
    assert network.no_weight_decay() == spared
    assert bool(spared) == name.startswith("shift")
    groups = param_groups_weight_decay(network, 0.1, no_weight_decay_list=network.no_weight_decay())
    filters = {id(p) for key, p in network.named_parameters() if p.ndim > 1 and key not in spared}
    assert {id(p) for group in groups if group["weight_decay"] for p in group["params"]} == filters


@pytest.mark.parametrize("name", CONTRACT)
def test_init_weights_fills_a_network_that_was_built_without_memory(name: str) -> None:
    torch.manual_seed(0)
    network = timm.create_model(name, device="meta") if name in VGGS + LENETS else build(name, device="meta")
    network.to_empty(device="cpu")
    for tensor in network.state_dict().values():
        tensor.fill_(77)
    network.init_weights()
    fresh = build(name).state_dict()
    for key, tensor in network.state_dict().items():
        if tensor.ndim > 1:
            assert tensor.isfinite().all()
            assert tensor.abs().max() < 77
        else:
            assert torch.equal(tensor, fresh[key]) or key == "fc.bias", key
    adders = [module.weight.detach().flatten() for module in network.modules() if isinstance(module, Adder2d)]
    if name in ADDERS:
        filters = torch.cat(adders)
        tolerance = 5 / len(filters) ** 0.5  # standard errors
        assert abs(filters.mean()) < tolerance
        assert abs(filters.std() - 1) < tolerance
    assert network.train()(images(network, 4)).isfinite().all()


@pytest.mark.parametrize("name", CONTRACT)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    network = make(name).train()
    network(images(network, 4)).square().sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all(), key
        if key != "fc.bias" or name in VGGS:  # BatchNorm on the logits takes a bias away again
            assert parameter.grad.count_nonzero() > 0, key


# Other forms of the network


@pytest.mark.parametrize("way", [torch.jit.script, torch.fx.symbolic_trace], ids=["script", "fx"])
@pytest.mark.parametrize("name", CONTRACT)
def test_scripted_and_traced_networks_give_the_same_logits(name: str, way: Callable[[nn.Module], nn.Module]) -> None:
    network = make(name, num_classes=5)
    other = way(network)
    with torch.no_grad():
        for batch in (1, 3):
            x = images(network, batch)
            torch.testing.assert_close(other(x), network(x))


@pytest.mark.parametrize("way", [torch.jit.script, torch.fx.symbolic_trace], ids=["script", "fx"])
@pytest.mark.parametrize("name", ["adder_lenet5", "adder_lenet_plus_plus", "adder_vgg_small", "adder_resnet20"])
def test_scripted_and_traced_networks_train_as_the_network_does(
    name: str, way: Callable[[nn.Module], nn.Module]
) -> None:
    network = make(name).train()
    other = way(copy.deepcopy(network))
    for module in (network, other):
        for _ in range(2):
            module(images(network, 4)).square().sum().backward()
    torch.testing.assert_close(dict(other.state_dict()), dict(network.state_dict()))
    theirs, mine = ({key: p.grad for key, p in module.named_parameters()} for module in (network, other))
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("name", CONTRACT)
def test_channels_last_gives_the_same_logits(name: str) -> None:
    network = make(name)
    x = images(network, 4)
    if name in BINARY:  # where a rounding error that crosses 0.5 is a 1 for a 0
        network, x = network.double(), x.double()
    other = copy.deepcopy(network).to(memory_format=torch.channels_last)
    torch.testing.assert_close(other(x.contiguous(memory_format=torch.channels_last)), network(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", CONTRACT)
def test_network_is_built_without_memory_and_filled_from_a_state_dict(name: str) -> None:
    network = make(name)
    with torch.device("meta"):
        other = build(name).eval()
        assert other(torch.empty_like(images(network), device="meta")).shape == (2, 10)
    assert {tensor.device.type for tensor in other.state_dict().values()} == {"meta"}
    other.load_state_dict(network.state_dict(), assign=True)
    x = images(network)
    assert torch.equal(other(x), network(x))


def error(got: Tensor, expected: Tensor) -> float:
    """Relative to the spread."""
    return float((got.float() - expected).square().mean().sqrt() / expected.std())


@pytest.mark.parametrize("name", CONTRACT)
def test_bfloat16_network_is_as_near_to_float32_as_rounded_parameters_can_be(name: str) -> None:
    network = make(name)
    x = images(network, 8)
    half = copy.deepcopy(network).to(torch.bfloat16)
    rounded = copy.deepcopy(network)
    rounded.load_state_dict(half.state_dict())
    with torch.no_grad():
        logits, expected, possible = half(x.bfloat16()), network(x), rounded(x.bfloat16().float())
        levels = half.forward_intermediates(x.bfloat16(), intermediates_only=True)
        expected_levels = network.forward_intermediates(x, intermediates_only=True)
        possible_levels = rounded.forward_intermediates(x.bfloat16().float(), intermediates_only=True)
    assert logits.dtype == torch.bfloat16
    assert all(level.dtype == torch.bfloat16 for level in levels)
    assert error(logits, expected) < 0.05 + 2 * error(possible, expected)
    for level in (0, 1):  # random networks of a hundred layers make noise of any rounding, in float32 too
        assert error(levels[level], expected_levels[level]) < 0.05 + 2 * error(
            possible_levels[level], expected_levels[level]
        )
    half.train()(x.bfloat16()).float().square().sum().backward()
    assert all(parameter.grad.dtype == torch.bfloat16 for parameter in half.parameters())


@pytest.mark.parametrize("name", CONTRACT)
def test_bfloat16_network_keeps_running_statistics_in_training(name: str) -> None:
    network = make(name).train()
    half = copy.deepcopy(network).to(torch.bfloat16)
    x = images(network, 8) * 1.5 + 0.5
    before = {key: value.clone() for key, value in half.state_dict().items()}
    for module in (network, half):
        module(x.to(next(module.parameters()).dtype))
    for key, value in half.state_dict().items():
        if key.endswith("num_batches_tracked"):
            assert value == before[key] + 1
        elif "running" in key:
            assert value.dtype == torch.float32
            assert not torch.equal(value, before[key]), key
    # The first layer sees the same images but for their rounding.
    mine, theirs = (module.bn1.running_mean for module in (half, network))
    spread = network.bn1.running_var.sqrt()
    assert ((mine - theirs).abs() < 0.02 * spread).all()


@pytest.mark.parametrize("name", CONTRACT)
def test_network_saved_for_the_hub_comes_back_from_its_folder_with_all_its_arguments(name: str, tmp_path: Path) -> None:
    conv = "conv" if name in ADDERS else "adder"  # the other kind
    args = {"global_pool": "max", "in_chans": 2, "conv_layer": conv, "drop_rate": 0.25}
    if name in RESNETS:
        args |= {"output_stride": 8, "widths": [4, 6, 8]}
    if name in IMAGENET_RESNETS:
        args |= {"layers": [1, 2, 1, 2], "widths": [4, 6, 8, 10]}
    network = make(name, num_classes=7, **args)
    save_for_hf(network, str(tmp_path), model_args=args, safe_serialization=True)
    other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = images(network)
    assert torch.equal(other(x), network(x))
    assert repr(other) == repr(network)
    assert (other.drop_rate, other.num_classes) == (0.25, 7)
    fine_tuned = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3).eval()
    assert fine_tuned(x).shape == (2, 3)
    assert torch.equal(fine_tuned.forward_features(x), network.forward_features(x))


@pytest.mark.parametrize("name", CONTRACT)
def test_pooling_is_a_module_that_timms_tools_know(name: str) -> None:
    network = build(name)
    assert isinstance(network.global_pool, SelectAdaptivePool2d)
    assert isinstance(network.get_submodule(logits_norm_name(network) or "bn1"), nn.BatchNorm2d)
