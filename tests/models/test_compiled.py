"""torch.compile on the registered networks."""

import re
from typing import Any

import pytest
import timm
import torch
from networks import EVERY_NAME, images, make, small
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.utils import run_and_get_code

import adderzoo
from adderzoo.layers import ConvUnit
from adderzoo.models import is_super_resolution

pytestmark = pytest.mark.usefixtures("one_thread")


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    arguments: dict[str, Any] = small(name)
    if "edsr" in name:
        arguments = {"blocks": 1, "width": 4}
    elif "vdsr" in name:
        arguments = {"depth": 3, "width": 4}
    return timm.create_model(name, **arguments).eval()


def inputs(network: Any, batch: int) -> Tensor:
    return torch.rand(batch, 3, 8, 8) if is_super_resolution(network) else images(network, batch)


@pytest.mark.parametrize("name", EVERY_NAME)
@torch.no_grad()
def test_one_graph_serves_every_batch_size_with_one_recompilation(name: str) -> None:
    """What the graph is made into, by inductor or another, has no part in that."""
    torch.compiler.reset()
    network = build(name)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(network, fullgraph=True, backend=counter)  # which refuses a break
    for batch in (2, 3, 5):
        x = inputs(network, batch)
        torch.testing.assert_close(compiled(x), network(x))
    assert counter.frame_count <= 2  # the first batch, then any batch


# One of each family.
@pytest.mark.parametrize("name", ["adder_lenet5", "adder_vgg_small", "adder_resnet18", "adder_edsr_baseline_x2"])
@torch.no_grad()
def test_the_fused_network_is_one_graph_too(name: str) -> None:
    torch.compiler.reset()
    network = build(name)
    fused = adderzoo.fuse(network)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(fused, fullgraph=True, backend=counter)
    for batch in (2, 3, 5):
        x = inputs(network, batch)
        torch.testing.assert_close(compiled(x), fused(x))
    assert counter.frame_count <= 2


def test_training_step_is_one_graph() -> None:
    torch.compiler.reset()
    network = make("adder_lenet5").train()
    torch.compile(network, fullgraph=True, backend="aot_eager")(images(network, 4)).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@torch.no_grad()
def test_max_autotune_gives_the_same_logits() -> None:
    torch.compiler.reset()
    network = timm.create_model("adder_lenet5.digits", pretrained=True).eval()
    x = images(network, 4)
    compiled = torch.compile(network, mode="max-autotune", fullgraph=True)
    torch.testing.assert_close(compiled(x), network(x), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_what_surrounds_the_operator_is_one_loop() -> None:
    """BatchNorm, shortcut and ReLU behind an adder layer."""
    torch.compiler.reset()
    torch.manual_seed(0)
    unit = ConvUnit(8, 8, power=False).eval()
    x = torch.randn(2, 8, 6, 6)
    got, (code,) = run_and_get_code(torch.compile(unit, fullgraph=True), x)
    torch.testing.assert_close(got, unit(x), rtol=1e-4, atol=1e-4)
    assert "adderzoo.adder2d" in code
    (kernel,) = set(re.findall(r"cpp_fused_\w+(?=\()", code))
    assert "relu" in kernel
