"""Integers to the end, in Python: held to the definition in NumPy, and to the network of bytes."""

import statistics
from typing import Any

import numpy as np
import pytest
import timm
import torch
from quantized_networks import quantized
from random_networks import closeness, random_quantized
from sklearn.datasets import load_digits

from adderzoo.inference import quantization
from adderzoo.microcontroller import IntegerNetwork, integer_network, observe
from adderzoo.microcontroller.integer import AveragePool, Image, Layer, MaxPool

pytestmark = pytest.mark.usefixtures("one_thread")


def defined(network: IntegerNetwork, image: np.ndarray) -> np.ndarray:
    """Logits of an image (C, H, W), number by number, in integers of Python."""
    made: dict[Any, np.ndarray] = {}
    for step in network.steps:
        if isinstance(step, Image):
            table = None if step.table is None else step.table.numpy()
            y = image if table is None else np.stack([table[c][image[c]] for c in range(len(image))])
        elif isinstance(step, Layer):
            y = _layer(step, *(made[plane] for plane in step.inputs))
        else:
            assert isinstance(step, MaxPool | AveragePool)
            y = _pool(step, made[step.inputs[0]])
        assert y.shape == step.output.shape
        made[step.output] = y
    return y.reshape(-1)


def _affine(affine: Any, channel: int, accumulator: int, addend: int) -> int:
    y = int(affine.bias[channel]) + (accumulator >> affine.drop) * int(affine.multiplier[channel])
    y += addend * affine.addend_multiplier
    assert -(2**31) <= y < 2**31
    return y if affine.top is None else min(max(y >> affine.shift, affine.low), affine.top)


def _layer(step: Layer, x: np.ndarray, addend: np.ndarray | None = None) -> np.ndarray:
    top, left, _, _ = step.padding
    weight = step.weight.numpy().astype(int)
    y = np.zeros(step.output.shape, int)
    seen = weight.shape[1]
    for o, i, j in np.ndindex(*y.shape):
        total = 0
        for c, p, q in np.ndindex(*weight.shape[1:]):
            channel = o // (len(weight) // step.groups) * seen + c
            row = i * step.stride[0] + p * step.dilation[0] - top
            column = j * step.stride[1] + q * step.dilation[1] - left
            inside = 0 <= row < x.shape[1] and 0 <= column < x.shape[2]
            pixel = int(x[channel, row, column]) if inside else step.inputs[0].padding[channel]
            total += abs(pixel - weight[o, c, p, q]) if step.kind == "adder" else pixel * weight[o, c, p, q]
        y[o, i, j] = _affine(step.affine, o, int(total), 0 if addend is None else int(addend[o, i, j]))
    return y


def _pool(step: MaxPool | AveragePool, x: np.ndarray) -> np.ndarray:
    y = np.zeros(step.output.shape, int)
    above, left = step.padding if isinstance(step, MaxPool) else (0, 0)
    for c, i, j in np.ndindex(*y.shape):
        first = i * step.stride[0] - above, j * step.stride[1] - left
        rows, columns = (
            slice(max(start, 0), start + size) for start, size in zip(first, step.kernel_size, strict=True)
        )
        window = x[c, rows, columns]
        if isinstance(step, AveragePool):
            y[c, i, j] = _affine(step.affine, 0, int(window.sum()), 0)
        else:
            y[c, i, j] = window.min() if step.least[c] else window.max()
    return y


@pytest.mark.parametrize("seed", range(6))
def test_a_network_computes_what_is_defined(seed: int) -> None:
    network = integer_network(*random_quantized(seed)[:2], terms=3 if seed == 2 else None)
    images = torch.randint(0, 256, (1, *network.input_shape), dtype=torch.uint8)
    assert network(images)[0].tolist() == defined(network, images[0].numpy()).tolist()


def test_a_published_network_computes_what_is_defined() -> None:
    network = integer_network(*quantized("adder_lenet5.digits"))
    images = torch.randint(0, 256, (1, *network.input_shape), dtype=torch.uint8)
    assert network(images)[0].tolist() == defined(network, images[0].numpy()).tolist()


def test_logits_are_near_those_of_bytes() -> None:
    errors = [closeness(seed) for seed in range(12)]
    assert statistics.median(errors) < 0.05, errors
    assert max(errors) < 0.6, errors  # some random networks make much of little, and every third has 5 bits


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """(N, 1, 32, 32) in uint8 of the half that the published network was not trained on, and labels."""
    data = load_digits()
    images = torch.from_numpy(data.images[898:] * 255 / 16).float()[:, None]
    return torch.nn.functional.interpolate(images, (32, 32), mode="bicubic").clamp(0, 255).round().byte(), (
        torch.from_numpy(data.target[898:])
    )


@pytest.fixture(scope="module")
def lenet5() -> tuple[Any, dict[str, Any], torch.Tensor, torch.Tensor]:
    """Quantized to 8 bits, with statistics, pixels and their classes."""
    model = timm.create_model("adder_lenet5.digits", pretrained=True).eval()
    pixels, labels = digits()
    mean, std = model.pretrained_cfg["mean"][0], model.pretrained_cfg["std"][0]
    batches = [(pixels[:100] / 255 - mean) / std]
    network = quantization.quantize(quantization.calibrate(model, batches))
    return network, observe(network, batches), pixels, labels


def test_integers_are_as_right_as_bytes(lenet5: Any) -> None:
    network, seen, pixels, labels = lenet5
    config = network.pretrained_cfg
    with torch.no_grad():
        of_bytes = network((pixels / 255 - config["mean"][0]) / config["std"][0]).argmax(1)
    right = int((of_bytes == labels).sum())
    assert right > 0.95 * len(labels)
    for terms in (None, 3):
        of_integers = integer_network(network, seen, terms)(pixels).argmax(1)
        assert abs(int((of_integers == labels).sum()) - right) <= 0.003 * len(labels) + 1


def test_rounding_multipliers_moves_no_channel_as_a_whole() -> None:
    """Without the correction by the mean distance, a multiplier of 8 bits is an offset."""
    network, seen = quantized("adder_resnet20.cifar10", 8)
    images = torch.randint(0, 256, (32, 3, 32, 32), dtype=torch.uint8)
    fine = integer_network(network, seen)
    exact = fine(images) * fine.logit_scale
    unknown = {**seen, "distances": {name: [0.0] * len(v) for name, v in seen["distances"].items()}}

    def error(known: dict[str, Any]) -> float:
        coarse = integer_network(network, known, bits=8)
        return float((coarse(images) * coarse.logit_scale - exact).std() / exact.std())

    assert error(seen) < 0.2
    assert error(unknown) > 3 * error(seen)


def test_multipliers_of_three_terms_have_three_terms() -> None:
    network = integer_network(*quantized("adder_lenet5.digits"), terms=3)
    multipliers = [m for step in network.steps if isinstance(step, Layer) for m in step.affine.multiplier.tolist()]
    assert max(len(_non_adjacent(abs(m))) for m in multipliers) == 3


def _non_adjacent(number: int) -> list[int]:
    terms = []
    while number:
        digit = (2 - number % 4) * (number % 2)
        terms += [digit] * (number % 2)
        number = (number - digit) // 2
    return terms


def test_no_image_leaves_32_bits() -> None:
    network = integer_network(*quantized("adder_lenet5.digits", 8))
    for image in (torch.zeros, torch.ones):
        network(image(1, *network.input_shape, dtype=torch.uint8) * 255)  # which checks every sum


def test_images_of_other_sizes_are_refused() -> None:
    network = integer_network(*quantized("adder_lenet5.digits"))
    with pytest.raises(ValueError, match=r"images must be \(N, 1, 32, 32\) of uint8, got \(2, 1, 28, 28\)"):
        network(torch.zeros(2, 1, 28, 28, dtype=torch.uint8))


def test_what_integers_cannot_do_is_refused_by_name() -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = timm.create_model("adder_lenet5").conv1
            self.act = torch.nn.Sigmoid()
            self.pretrained_cfg = {"input_size": (1, 32, 32), "mean": (0.5,), "std": (0.5,)}

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act(self.layer(x)).mean((2, 3))

    batches = [torch.randn(2, 1, 32, 32)]
    network = quantization.quantize(quantization.calibrate(Odd(), batches))
    with pytest.raises(ValueError, match="act cannot be done in integers: Sigmoid"):
        integer_network(network, observe(network, batches))
    with pytest.raises(ValueError, match="must be one that quantize"):
        integer_network(Odd(), {})
    lenet, _ = quantized("adder_lenet5.digits")
    with pytest.raises(ValueError, match="statistics must have the distances of conv1_1: they are of another network"):
        integer_network(lenet, {})
