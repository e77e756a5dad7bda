"""Adder layers, of networks and of many kinds, and what is made of their times."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from definition import adder2d64, adder2d64_gradients
from hypothesis import given, settings
from hypothesis import strategies as st

import adderzoo
from adderzoo import ops
from adderzoo.engine.benchmark.layers import (
    CEILINGS,
    FORMATS,
    KINDS,
    Layer,
    _Data,
    _summary,
    adder_layers,
    image_size,
    measure_operator,
)
from adderzoo.engine.benchmark.timing import Timing

pytestmark = pytest.mark.usefixtures("one_thread")

DIRECTIONS = ("forward", "input gradient", "weight gradient")

NETWORKS = {network.name: network for network in adderzoo.catalogue.networks("adder_*")}

LAYERS = [
    Layer((2, 3, 7, 6), (4, 3, 3, 3), (1, 1), (1, 1)),
    Layer((1, 4, 6, 6), (5, 4, 1, 1), (2, 2)),
    Layer((2, 4, 9, 8), (2, 4, 3, 2), (2, 1), (1, 0), (2, 1)),
]


@pytest.mark.parametrize("name", NETWORKS)
def test_elements_are_those_of_list_models(name: str) -> None:
    for batch in (1, 3):
        layers = adder_layers(name, batch)
        assert sum(count * layer.elements for layer, count in layers.items()) == batch * NETWORKS[name].adder_elements


@pytest.mark.parametrize(
    ("name", "distinct", "layers", "elements"),
    # Of VGG-small and the ResNets by the definitions of their papers; all convolutions but the first, and shortcuts.
    [
        ("adder_vgg_small", 5, 5, 603_979_776),
        ("adder_resnet20", 7, 20, 40_370_176),
        ("adder_resnet32", 7, 32, 68_681_728),
        ("adder_resnet18", 10, 19, 1_695_547_392),
        ("adder_resnet50", 22, 52, 3_969_122_304),
    ],
)
def test_layers_are_counted_as_often_as_the_network_has_them(
    name: str, distinct: int, layers: int, elements: int
) -> None:
    found = adder_layers(name, 1)
    assert (len(found), found.total()) == (distinct, layers)
    assert sum(count * layer.elements for layer, count in found.items()) == elements


def test_a_layer_says_what_it_is() -> None:
    layers = {str(layer): count for layer, count in adder_layers("adder_resnet20", 8).items()}
    assert layers["16 to 16, 3x3, on 32x32"] == 6
    assert layers["32 to 64, 1x1, on 16x16, stride 2"] == 1
    assert str(Layer((1, 8, 5, 5), (8, 1, 3, 3), groups=8)) == "8 to 8, 3x3, on 5x5, 8 groups"
    assert str(Layer((1, 3, 5, 5), (2, 3, 1, 1), offset=30.0)) == "3 to 2, 1x1, on 5x5, numbers near 30"


@pytest.mark.parametrize(
    "kind",
    [
        # What a kernel for 3x3 layers of many channels does not serve.
        lambda layer: layer.groups == layer.weight[0] and layer.weight[2:] == (3, 3),
        lambda layer: layer.groups == layer.weight[0] and layer.weight[2:] == (5, 5),
        lambda layer: layer.groups > 1 and layer.weight[1] == 8,
        lambda layer: layer.weight[1:] == (3, 7, 7) and layer.stride == (2, 2),
        lambda layer: layer.weight == (6, 1, 5, 5),
        lambda layer: layer.weight[2:] == (1, 1) and layer.stride == (1, 1),
        lambda layer: layer.weight[2:] == (1, 1) and layer.stride == (2, 2),
        lambda layer: layer.input[3] > 1000 * layer.input[2],
        lambda layer: layer.offset == 30 and layer.weight[1:] == (16, 1, 1),
        lambda layer: layer.offset == 1000 and layer.weight[2:] == (3, 3),
    ],
)
def test_there_is_a_layer_of_every_kind_which_a_convolution_takes(kind: Callable[[Layer], bool]) -> None:
    found = [layer for layer in KINDS if kind(layer)]
    assert found
    for layer in found:
        x, w = torch.empty(layer.input, device="meta"), torch.empty(layer.weight, device="meta")
        assert F.conv2d(x, w, None, *layer.geometry).shape == layer.output
        same = replace(layer, offset=0.0)
        assert same in KINDS  # what an offset costs shows beside the same layer without one


def test_images_of_super_resolution_are_parts_of_those_that_operations_are_counted_on() -> None:
    assert image_size("adder_resnet20") is None
    assert image_size("adder_edsr_small_x2") == (3, 90, 160)  # 360x640 becomes 1280x720
    config = adderzoo.TrainConfig(model="adder_edsr_small_x2").for_task(super_resolution=True)
    assert image_size("adder_edsr_small_x2", training=True) == (3, config.img_size, config.img_size)


@given(
    size=st.tuples(st.integers(5, 12), st.integers(5, 12)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    groups=st.integers(1, 3),
)
@settings(max_examples=30, deadline=None)
def test_output_and_elements_are_a_convolutions(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> None:
    layer = Layer((2, 2 * groups, *size), (3 * groups, 2, *kernel), stride, padding, dilation, groups)
    x, w = torch.empty(layer.input, device="meta"), torch.empty(layer.weight, device="meta")
    output = F.conv2d(x, w, None, stride, padding, dilation, groups)
    assert layer.output == output.shape
    assert layer.elements == output.numel() * w[0].numel()


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_what_is_timed_is_the_operator(device: torch.device, layer: Layer, memory_format: str) -> None:
    data = _Data(Counter(LAYERS), "float32", str(device))
    x, w = data.get(layer, "input", memory_format), data.get(layer, "weight")
    g = data.get(layer, "output", memory_format)
    assert x.is_contiguous(memory_format=FORMATS[memory_format])
    assert (x.shape, w.shape, g.shape) == (layer.input, layer.weight, layer.output)
    of_input, of_weight = adder2d64_gradients(x, w, g, *layer.geometry[:3])
    expected = [adder2d64(x, w, *layer.geometry[:3]), of_input, of_weight]
    for direction, values in zip(DIRECTIONS, expected, strict=True):
        torch.testing.assert_close(
            data.call(layer, memory_format, direction)().double(), values, rtol=1e-5, atol=1e-4, msg=direction
        )


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("layer", [*LAYERS, Layer((1, 4, 5, 5), (6, 2, 3, 3), groups=2)], ids=str)
def test_what_it_is_timed_beside_is_the_convolution(device: torch.device, layer: Layer, memory_format: str) -> None:
    data = _Data(Counter([layer]), "float32", str(device))
    x = data.get(layer, "input", memory_format).double().requires_grad_()
    w = data.get(layer, "weight").double().requires_grad_()
    g = data.get(layer, "output", memory_format)
    output = F.conv2d(x, w, None, *layer.geometry)
    expected = [output, *torch.autograd.grad(output, (x, w), g.double())]
    for direction, values in zip(DIRECTIONS, expected, strict=True):
        found = data.convolution(layer, memory_format, direction)().double()
        torch.testing.assert_close(found, values.detach(), rtol=1e-2, atol=1e-2, msg=direction)  # TF32 on a GPU


def test_offset_numbers_lie_around_the_offset() -> None:
    layer = Layer((1, 4, 9, 9), (5, 4, 1, 1), offset=1000.0)
    data = _Data(Counter([layer]), "float32")
    for kind in ("input", "weight"):
        numbers = data.get(layer, kind, "channels_last")
        assert numbers.shape == getattr(layer, kind)
        assert numbers.std() == pytest.approx(1, rel=0.5)
        assert numbers.mean() == pytest.approx(1000, abs=1)
    assert data.get(layer, "output").mean() == pytest.approx(0, abs=1)  # the gradient


@pytest.mark.parametrize("layer", [*LAYERS, Layer((1, 4, 5, 5), (6, 2, 3, 3), groups=2)], ids=str)
def test_what_is_timed_in_bytes_is_the_operator_and_its_bytes_are_mean_distances(
    device: torch.device, layer: Layer
) -> None:
    data = _Data(Counter([layer]), "u8", str(device))
    x, w = data.get(layer, "input", "channels_last"), data.get(layer, "weight")
    output = data.call(layer, "channels_last", "forward")()
    assert (x.dtype, output.dtype, output.shape) == (torch.uint8, torch.uint8, layer.output)
    parts = zip(x.chunk(layer.groups, 1), w.chunk(layer.groups), strict=True)
    distances = torch.cat([-adder2d64(*part, *layer.geometry[:3]) for part in parts], 1)
    torch.testing.assert_close(output.double(), distances / w[0].numel(), rtol=0, atol=0.5 + 1e-4)
    assert output.double().std() > 1


def test_the_share_of_the_whole_is_the_mean_over_the_layers_weighted_by_time() -> None:
    layers = Counter({LAYERS[0]: 3, LAYERS[1]: 1})
    seconds = {LAYERS[0]: 4e-6, LAYERS[1]: 2e-6}
    clock = (1.0, 1.5, 0.8)  # which the machine runs at in three rounds
    timings = {layer: Timing(tuple(seconds[layer] * c for c in clock), 3) for layer in layers}
    ceiling = Timing(tuple(1e-9 * c for c in clock), 3)
    convolutions = {LAYERS[0]: timings[LAYERS[0]] / 2, LAYERS[1]: timings[LAYERS[1]] / 4}
    result = _summary("net", 2, ("contiguous", "forward"), "float32", layers, timings, convolutions, ceiling)
    assert (result.form, result.ceiling) == ("distance", pytest.approx(1e9))
    shares = {layer: layer.elements / seconds[layer] / 1e9 for layer in layers}
    assert {row.layer: row.share for row in result.layers} == pytest.approx(shares)
    weights = {layer: count * seconds[layer] for layer, count in layers.items()}
    mean = sum(shares[layer] * weights[layer] for layer in layers) / sum(weights.values())
    assert result.share == pytest.approx(mean)
    assert result.rate == pytest.approx(mean * 1e9)
    assert result.worst.layer == min(shares, key=lambda layer: shares[layer])
    assert {row.layer: row.convolution for row in result.layers} == pytest.approx({LAYERS[0]: 1 / 2, LAYERS[1]: 1 / 4})
    assert result.convolution == pytest.approx((3 * 4 / 2 + 2 / 4) / (3 * 4 + 2))


def test_without_compiled_loops_there_is_no_share() -> None:
    timings = {LAYERS[0]: Timing((1e-6,), 1)}
    layers = Counter(timings.keys())
    result = _summary("net", 2, ("contiguous", "forward"), "float32", layers, timings, timings, None)
    assert (result.ceiling, result.share, result.layers[0].share) == (None, None, None)


def test_a_package_without_sources_is_measured_and_says_why_there_is_no_ceiling(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("adderzoo.engine.benchmark.layers.load_ceilings", lambda device: f"no loops for {device}")
    results = measure_operator("adder_lenet5", 2, 0.001)
    if ops.backend() != "PyTorch reference":
        assert {result.no_ceiling for result in results} == {"no loops for cpu"}
    assert all(result.rate > 0 and result.ceiling is result.share is None for result in results)


@pytest.mark.parametrize("precision", CEILINGS)
def test_measurement_has_every_layer_direction_and_format(device: torch.device, precision: str) -> None:
    notes: list[str] = []
    results = measure_operator("adder_lenet5", 2, 0.001, notes.append, [precision], str(device))
    kinds = [(memory_format, direction) for memory_format in FORMATS for direction in DIRECTIONS]
    found = [(result.memory_format, result.direction) for result in results]
    assert found == (kinds if precision == "float32" else [("channels_last", "forward")])
    title = {"float32": "adder layers of adder_lenet5, batch 2", "u8": "adder layers of adder_lenet5 in u8, batch 2"}
    assert {result.title for result in results} == {title[precision]}
    assert results[0].form == {"float32": "distance", "u8": "byte_distance"}[precision]
    layers = adder_layers("adder_lenet5", 2)
    for result in results:
        assert {row.layer: row.count for row in result.layers} == layers
        numbers = [result.rate, result.ceiling, result.share, result.convolution]
        numbers += [number for row in result.layers for number in (row.share, row.convolution)]
        assert all(number is not None and 0 < number < math.inf for number in numbers)
    assert notes[0] == "adder_lenet5, batch 2: forward, channels_last"


def test_precisions_are_measured_in_turns() -> None:
    notes: list[str] = []
    results = measure_operator("adder_lenet5", 2, 0.001, notes.append, ["float32", "u8"])
    assert [result.precision for result in results] == ["float32"] * 6 + ["u8"]
    layers = len(adder_layers("adder_lenet5", 2))
    turn = 1 + 2 * layers  # the ceiling, and every layer beside its convolution
    first_round = notes[: 7 * turn - layers]
    assert first_round.count("adder_lenet5, batch 2: forward, channels_last") == 2 * turn - layers  # one for both
    assert first_round.count("adder_lenet5, batch 2: weight gradient, contiguous") == turn


def test_layers_of_many_kinds_are_measured_without_a_network(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = (Layer((1, 4, 9, 9), (5, 4, 1, 1)), Layer((1, 4, 9, 9), (5, 4, 1, 1), offset=30.0))
    monkeypatch.setattr("adderzoo.engine.benchmark.layers.KINDS", kinds)
    results = measure_operator(None, 3, 0.001, precisions=["float32", "u8"], device=str(device))
    assert [result.precision for result in results] == ["float32"] * 6 + ["u8"]
    assert results[0].title == "adder layers of many kinds, batch 3"
    for result in results:
        layers = [row.layer for row in result.layers]
        # Bytes have no offset, and every layer is there once.
        assert layers == [
            replace(kind, input=(3, 4, 9, 9)) for kind in kinds[: 2 if result.precision == "float32" else 1]
        ]
        assert {row.count for row in result.layers} == {1}


def test_layers_of_super_resolution_are_those_on_a_part_of_the_image() -> None:
    (result, *_) = measure_operator("adder_edsr_small_x2", 1, 0.001)
    assert {row.layer.input for row in result.layers} == {(1, 32, 90, 160)}
