"""Networks to fuse, and what a test asks of a fused one."""

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, fx, nn

from adderzoo.layers import Adder2d

CHANNELS = 4


def settle(network: nn.Module, batch: Tensor) -> nn.Module:
    """In evaluation mode, with BatchNorm statistics of a batch, so that results have both signs."""
    torch.manual_seed(0)
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
    network.train()
    with torch.no_grad():
        network(batch)
    for norm in norms:
        norm.momentum = 0.1
    return network.eval()


def settled(network: nn.Module, *shape: int) -> nn.Module:
    """In float64 and evaluation mode, with BatchNorm statistics that fit."""
    return settle(network.double(), images(8, *shape))


def images(batch: int = 2, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    shape = shape or (CHANNELS, 9, 9)
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


@torch.no_grad()
def assert_same(fused: nn.Module, network: nn.Module, *shape: int) -> None:
    """In float64, where all that rounds is far below what a mistake would change."""
    x = images(2, *shape)
    expected = network(x.clone())  # which a ReLU in place may change
    assert expected.std() > 1e-3
    torch.testing.assert_close(fused(x), expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def kinds(network: nn.Module) -> dict[str, int]:
    """How often a network has each kind of module that is called."""
    names = [type(module).__name__ for module in network.modules() if not list(module.children())]
    return {name: names.count(name) for name in sorted(set(names))}


def calls(network: nn.Module) -> list[str]:
    """What a fused network calls, in order: modules by their class, functions and methods by their name."""
    assert isinstance(network, fx.GraphModule)
    called = []
    for node in network.graph.nodes:
        if node.op == "call_module":
            called.append(type(network.get_submodule(node.target)).__name__)
        elif node.op in ("call_function", "call_method"):
            called.append(getattr(node.target, "__name__", node.target))
    return called


def adder(channels: int = CHANNELS, **kwargs: Any) -> Adder2d:
    return Adder2d(channels, channels, 3, **{"bias": False, "padding": 1} | kwargs)


class Function(nn.Module):
    """Adder layer, BatchNorm and a function of both and of the input."""

    def __init__(self, function: Callable[..., Tensor], layer: nn.Module | None = None, **kwargs: Any) -> None:
        super().__init__()
        self.layer, self.norm, self.function = layer or adder(**kwargs), nn.BatchNorm2d(CHANNELS), function
        self.relu, self.relu_in_place, self.relu6 = nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x, self.norm(self.layer(x)))


@timm.models.register_notrace_module
class NotTraced(nn.Module):
    """What torch.fx does not look into, at timm's word."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = adder(), nn.BatchNorm2d(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x)) if x.sum() < 1e9 else x
