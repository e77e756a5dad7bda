"""Random small networks through quantize, export, compile and run: `python random_networks.py 300 [first seed]`."""

import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adderzoo.inference import quantization
from adderzoo.layers import Adder2d
from adderzoo.microcontroller import integer_network, observe, write_c

STRICT = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Wconversion")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


class Block(nn.Module):
    """A layer with what may follow it."""

    def __init__(self, channels: int, choose: random.Random) -> None:
        super().__init__()
        kernel = choose.choice([1, 3, (3, 1), (1, 2), 2])
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        groups = choose.choice([g for g in (1, 1, 1, 2, 4, channels) if channels % g == 0])
        self.channels = groups * choose.randint(1, max(12 // groups, 1))
        stride, dilation = choose.choice([1, 1, 2, (2, 1)]), choose.choice([1, 1, 2])
        padding = choose.choice([0, (dilation * (height - 1) // 2, dilation * (width - 1) // 2)])
        if choose.random() < 0.4:  # a residual connection
            stride, dilation, padding, self.channels = 1, 1, "same", channels
        self.layer = Adder2d(
            channels, self.channels, kernel, stride, padding, dilation, groups, bias=choose.random() < 0.3
        )
        self.norm = _norm(self.channels, choose)
        self.residual = padding == "same" and choose.random() < 0.8
        self.relu = choose.random() < 0.7

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.layer(x))
        if self.residual:
            y = y + x
        return y.relu() if self.relu else y


class Pool(nn.Module):
    def __init__(self, channels: int, choose: random.Random) -> None:
        super().__init__()
        self.channels = channels
        if choose.random() < 0.3:
            self.pool: nn.Module = nn.AvgPool2d(choose.choice([1, 2]))
            self.norm: nn.Module = nn.Identity()
        else:
            kernel = choose.choice([2, 3])
            self.pool = nn.MaxPool2d(
                kernel, choose.choice([1, 2]), choose.choice([0, kernel // 2]), ceil_mode=choose.random() < 0.3
            )
            self.norm = _norm(channels, choose) if choose.random() < 0.5 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.pool(x))


def _norm(channels: int, choose: random.Random) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, momentum=1.0)
    with torch.no_grad():
        norm.weight.uniform_(0.2, 1.5).mul_(torch.where(torch.rand(channels) < 0.2, -1, 1))
        norm.bias.normal_()
    return norm


class RandomNetwork(nn.Module):
    """A classifier of a few layers, with trained BatchNorm statistics; of a small image, or one of this size."""

    def __init__(self, seed: int, size: tuple[int, int] | None = None) -> None:
        super().__init__()
        choose = random.Random(seed)
        torch.manual_seed(seed)
        channels, small = choose.choice([1, 3]), (choose.randint(7, 14), choose.randint(7, 14))
        size = small if size is None else size
        mean, std = ([choose.uniform(0.2, 0.6) for _ in range(channels)] for _ in range(2))
        self.pretrained_cfg = {"input_size": (channels, *size), "mean": mean, "std": std}
        self.num_classes = choose.randint(2, 11)
        layers: list[nn.Module] = []
        if choose.random() < 0.6:
            width = choose.randint(1, 12)
            layers = [nn.Conv2d(channels, width, 3, choose.choice([1, 2]), choose.choice([0, 1])), nn.ReLU()]
            channels = width
        elif choose.random() < 0.5:
            layers = [Adder2d(channels, 5, 3, padding=1), _norm(5, choose)]
            channels = 5
        for _ in range(choose.randint(1, 4)):
            block = (Block if not layers or choose.random() < 0.7 else Pool)(channels, choose)
            layers.append(block)
            channels = block.channels
        if not any(isinstance(module, Adder2d) for layer in layers for module in layer.modules()):
            layers.append(Block(channels, choose))
            channels = layers[-1].channels  # type: ignore[assignment]
        self.features = nn.Sequential(*layers)
        head = choose.choice(["conv", "linear", "adder"])
        self.flat = head == "linear"
        self.pool = nn.AdaptiveAvgPool2d(1)
        if head == "conv":
            self.head: nn.Module = nn.Conv2d(channels, self.num_classes, 1)
        elif head == "linear":
            self.head = nn.Linear(channels, self.num_classes)
        else:
            self.head = nn.Sequential(Adder2d(channels, self.num_classes, 1), _norm(self.num_classes, choose))
        with torch.no_grad():
            self.train()(normalized(self, pixels(self, 8)))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.features(x))
        return self.head(x.flatten(1) if self.flat else x).flatten(1)


def pixels(network: Any, images: int) -> Tensor:
    """Noise, (N, C, H, W) in uint8."""
    return torch.randint(0, 256, (images, *network.pretrained_cfg["input_size"]), dtype=torch.uint8)


def normalized(network: Any, images: Tensor) -> Tensor:
    mean, std = (torch.tensor(network.pretrained_cfg[key]).view(-1, 1, 1) for key in ("mean", "std"))
    return (images / 255 - mean) / std


def random_quantized(seed: int, size: tuple[int, int] | None = None) -> tuple[Any, dict[str, Any], Tensor]:
    """A quantized network, its statistics, and the images that they and its ranges come from."""
    while True:
        try:
            model = RandomNetwork(seed, size)
            break
        except (RuntimeError, ValueError):  # no pixel is left
            seed += 100_000
    images = pixels(model, 32)
    batches = [normalized(model, images)]
    bits = (8, 7, 5, 7)[seed % 4]
    network = quantization.quantize(quantization.calibrate(model, batches, bits=bits))
    return network, observe(network, batches), images


def check(seed: int, folder: Path, compiler: str = "gcc", size: tuple[int, int] | None = None) -> None:
    """Export, compile with sanitizers, run: the C's logits are Python's.

    Raises:
        AssertionError: if they are not, with what was printed.
    """
    network, statistics, _ = random_quantized(seed, size)
    write_c(network, statistics, folder, "net", multiply=seed % 3 != 0)
    kernel = ("-DADDER_KERNEL=0",) if seed % 5 == 0 else ()
    command = [compiler, *STRICT, *SANITIZERS, *kernel, "-O1", "net.c", "net_test.c", "-o", "net_test"]
    compiled = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert compiled.returncode == 0, f"seed {seed}: {compiled.stderr}"
    done = subprocess.run([folder / "net_test"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "PASS\n"), f"seed {seed}: {done}"


def closeness(seed: int) -> float:
    """How far the logits of integers are from those of bytes, as a share of their spread."""
    network, statistics, images = random_quantized(seed)
    integers = integer_network(network, statistics)
    with torch.no_grad():
        expected = network(normalized(network, images))
        got = integers(images) * integers.logit_scale
    return float((got - expected).square().mean().sqrt() / expected.std())


if __name__ == "__main__":
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    for number in range(first, first + int(sys.argv[1])):
        with tempfile.TemporaryDirectory() as folder:
            check(number, Path(folder))
        if number % 10 == 9:
            print(f"{number + 1 - first} networks are equal to the bit", flush=True)
