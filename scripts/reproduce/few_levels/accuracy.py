"""Accuracy of a trained adder network whose filters take m levels, as an integer network, without and with training.

    python scripts/reproduce/few_levels/accuracy.py CIFAR10 --checkpoint ResNet20-AdderNet.pth --levels 2 3 4 8
    python scripts/reproduce/few_levels/accuracy.py CIFAR10 --checkpoint ResNet20-AdderNet.pth --levels 3 --steps 390

CIFAR10 has train/CLASS/IMAGE and test/CLASS/IMAGE; without --checkpoint, the network is `adder_resnet20.cifar10`.

The bytes of a layer's input range from 0 to 255, and so do its filters (`adderzoo.calibrate`). Their levels are 0, 255
and m - 2 others for the whole layer. A filter's number w becomes the level v whose error |x - v| - |x - w| varies
least over the layer's inputs x, of which there is a histogram of each byte; the mean of the error, summed over the
filter, becomes a bias. The levels are those of which the sum of these variances over all filters is least, as far as
Lloyd's algorithm finds them. Training goes on with these levels: forward with the level of each number, the paper's
gradients at the number itself. Printed is how many test images the integer network is right on, which runs on the byte
kernel: what it computes does not depend on how.
"""

import argparse
import copy
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data import resolve_model_data_config
from torch import Tensor, nn

import adderzoo
from adderzoo.checkpoints import load
from adderzoo.data import Loading, MemoryLoader, open_dataset, open_loader, open_training_loader
from adderzoo.layers.fake_quantized import FakeQuantizedAdder2d
from adderzoo.layers.quantized import Quantizer
from adderzoo.ops.adder2d import full_weight_gradient
from adderzoo.optim import adaptive_lr

BYTES = torch.arange(256.0, dtype=torch.float64)
DISTANCES = (BYTES[:, None] - BYTES).abs()  # of bytes w and x


class _Leveled(torch.autograd.Function):
    """An adder layer with leveled filters, and the paper's gradients at the filters themselves."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, leveled: Tensor, *geometry: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        return torch.ops.adderzoo.adder2d(x, leveled, *geometry)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_input = torch.ops.adderzoo._adder2d_backward_input(grad, x, weight, *ctx.geometry, "hardtanh")
        return of_input, full_weight_gradient(grad, x, weight, *ctx.geometry), None, None, None, None, None


class LeveledAdder2d(FakeQuantizedAdder2d):
    """An adder layer of the simulation, whose filters take few levels once it has some.

    Attributes:
        counts: (256,), how often each byte was in the input while there were no levels.
        level_of: (256,), the level of each byte; None before `fit`.
        error: (256,), the mean error of a number that is this byte.
    """

    counts: Tensor
    level_of: Tensor | None
    error: Tensor

    @classmethod
    def convert(cls, layer: FakeQuantizedAdder2d) -> "LeveledAdder2d":
        """Change a layer in place."""
        layer.__class__ = cls
        assert isinstance(layer, cls)
        layer.counts, layer.level_of = torch.zeros(256, dtype=torch.long), None
        return layer

    @property
    def quantizer(self) -> Quantizer:
        assert self.quantize.quantizer is not None
        return self.quantize.quantizer

    def _adder_forward(self, input: Tensor) -> Tensor:
        if self.level_of is None:
            self.counts += torch.bincount(self.quantizer.bytes_of(input).flatten(), minlength=256)
            return super()._adder_forward(input)
        filters, constant = self.leveled()
        output = _Leveled.apply(
            input, self.weight, filters, self.stride, self.operator_padding, self.dilation, self.groups
        )
        return output + constant[:, None, None]

    def bytes(self) -> Tensor:
        """The filters."""
        return self.quantizer.bytes_of(self.weight.detach()).long()

    def leveled(self) -> tuple[Tensor, Tensor]:
        """The filters as levels, in units of the input, and what each filter's output lacks: (O,)."""
        assert self.level_of is not None
        indices = self.bytes()
        error = self.error[indices].flatten(1).sum(1)
        filters = self.level_of[indices].float() * self.quantizer.scale
        return filters, error - self.quantizer.beyond(self.weight.detach())

    def fit(self, m: int) -> None:
        """Choose m levels."""
        share = self.counts.double() / self.counts.sum()
        mean = DISTANCES @ share  # of |x - w|, for each byte w
        covariance = (DISTANCES * share) @ DISTANCES - mean[:, None] * mean
        own = covariance.diagonal()
        variance = own[:, None] + own - 2 * covariance  # of |x - w| - |x - v|
        count = torch.bincount(self.bytes().flatten(), minlength=256).double()
        ranks = count[1:-1].cumsum(0) / count[1:-1].sum()
        levels = torch.tensor([0, *(1 + int((ranks >= j / (m - 1)).nonzero()[0]) for j in range(1, m - 1)), 255])
        while True:
            nearest = variance[:, levels].argmin(1)
            costs = [(count * (nearest == j)) @ variance for j in range(1, m - 1)]
            moved = torch.tensor([0, *(int(cost.argmin()) for cost in costs), 255])
            if torch.equal(moved, levels):
                break
            levels = moved
        self.level_of = levels[nearest]
        self.error = ((mean[self.level_of] - mean) * self.quantizer.scale).float()

    def settle(self) -> None:
        """Become a layer of the simulation, whose filters are the levels, with a bias."""
        filters, constant = self.leveled()
        self.weight, self.bias = nn.Parameter(filters), nn.Parameter(constant)
        self.__class__ = FakeQuantizedAdder2d


def leveled_layers(simulation: nn.Module) -> list[LeveledAdder2d]:
    return [module for module in simulation.modules() if isinstance(module, LeveledAdder2d)]


def integers(simulation: nn.Module) -> nn.Module:
    """The integer network with leveled filters."""
    settled = copy.deepcopy(simulation)
    for layer in leveled_layers(settled):
        layer.settle()
    return adderzoo.quantize(settled)


def right(network: nn.Module, test: Any) -> int:
    """Images of a loader that a network is right on."""
    with torch.inference_mode():
        return sum(int((network(channels_last(images)).argmax(1) == labels).sum()) for images, labels in test)


def channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def train(simulation: nn.Module, loader: Any, steps: int, lr: float) -> None:
    """SGD with the paper's rule for filters, the learning rate on a cosine to 0."""
    optimizer = adaptive_lr(torch.optim.SGD(simulation.parameters(), lr, momentum=0.9, weight_decay=5e-4))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    simulation.train()
    for step, (images, labels) in enumerate(islice(chain.from_iterable(repeat(loader)), steps)):
        loss = F.cross_entropy(simulation(channels_last(images)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    simulation.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="CIFAR10", type=Path)
    parser.add_argument("--checkpoint", type=Path, help="of adder_resnet20; that of the package by default")
    parser.add_argument("--levels", type=int, nargs="+", default=[3, 4, 8])
    parser.add_argument("--steps", type=int, default=0, help="of training, in batches of 128 images")
    parser.add_argument("--lr", type=float, default=0.001)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = timm.create_model("adder_resnet20.cifar10", pretrained=args.checkpoint is None)
    if args.checkpoint:
        model = load(args.checkpoint, model)
    model.eval()
    config = resolve_model_data_config(model)
    folders = {split: open_dataset("", str(args.folder / split), "", 3) for split in ("train", "test")}
    test = open_loader(folders["test"], config, Loading(batch_size=250, in_memory=True))
    loading = Loading(batch_size=128)
    training = open_training_loader(folders["train"], config, loading)  # shifted by up to 4 pixels, and flipped
    shuffled = MemoryLoader(training.images, training.labels, config, loading, training=True)
    images = [channels_last(batch) for batch, _ in islice(shuffled, 4)]
    print(f"float: {right(model, test)} of {len(test.images)} right", flush=True)
    calibrated = adderzoo.calibrate(model, images, bits=8)
    print(f"bytes: {right(adderzoo.quantize(calibrated), test)}", flush=True)
    for m in args.levels:
        simulation = copy.deepcopy(calibrated)
        layers = [LeveledAdder2d.convert(x) for x in simulation.modules() if type(x) is FakeQuantizedAdder2d]
        with torch.no_grad():
            for batch in images:
                simulation(batch)
        for layer in layers:
            layer.fit(m)
        print(f"{m} levels: {right(integers(simulation), test)}", flush=True)
        if args.steps:
            train(simulation, training, args.steps, args.lr)
            print(f"{m} levels, {args.steps} steps: {right(integers(simulation), test)}", flush=True)


if __name__ == "__main__":
    main()
