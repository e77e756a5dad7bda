"""adderzoo.fuse on every registered network."""

import pytest
import torch
from networks import BINARY, NAMES, images, kind, logits_norm_name, make
from torch import nn

import adderzoo
from adderzoo.layers import Adder2d, AdderAffine2d

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_every_network_is_fused_to_the_same_logits(name: str) -> None:
    """In float64, where rounding is far below what a mistake would change, and but for rounding in float32."""
    network = make(name)
    x = images(network)
    fused = adderzoo.fuse(network.double())
    expected = network(x.double())
    torch.testing.assert_close(fused(x.double()), expected, rtol=1e-9, atol=1e-9)
    single = fused.float()(x)
    if name not in BINARY:  # where a rounding error that crosses 0.5 is a 1 for a 0
        assert (single - network.float()(x)).abs().max() < 0.02 * expected.std()

    adders = {part: module for part, module in network.named_modules() if isinstance(module, Adder2d)}
    affine = {part: module for part, module in fused.named_modules() if isinstance(module, AdderAffine2d)}
    assert affine.keys() == adders.keys()
    for part, layer in adders.items():
        assert affine[part].weight.numel() == -(-layer.out_channels // 16) * 16 * layer.weight[0].numel()
    assert not any(isinstance(module, Adder2d) for module in fused.modules())
    norms = [part for part, module in fused.named_modules() if isinstance(module, nn.BatchNorm2d)]
    if kind(name) in ("bnn", "shift"):  # all that are neither behind the first layer nor the last
        every = [part for part, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)]
        assert set(norms) == set(every) - {"bn1", logits_norm_name(network)}
    else:
        assert norms == (["bn2", "bn4", "bn6"] if "vgg" in name else [])  # those behind a pooling layer
    if name.startswith(("adder_resnet", "shiftadd_resnet")):  # what is left is that behind the first convolution
        assert [part for part, module in fused.named_modules() if isinstance(module, nn.ReLU)] == ["act1"]
        assert not any(node.name.startswith("add") for node in fused.graph.nodes)
