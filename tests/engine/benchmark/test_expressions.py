"""What the operator is compared with computes the same thing."""

import pytest
import timm
import torch
from definition import adder2d64, adder2d64_gradients
from torch import Tensor, nn

from adderzoo.engine.benchmark.expressions import EXPRESSIONS, Authors, Cdist, replace_operator
from adderzoo.layers import Adder2d
from adderzoo.optim import adaptive_lr

pytestmark = pytest.mark.usefixtures("one_thread")

GEOMETRIES = [
    ((3, 3), {"padding": 1}, (2, 3, 7, 6)),
    ((1, 1), {"stride": 2}, (3, 3, 6, 6)),
    ((3, 2), {"stride": (2, 1), "padding": (1, 0), "dilation": (2, 1)}, (2, 3, 9, 8)),
]


def layer_and_input(index: int, device: torch.device) -> tuple[Adder2d, Tensor]:
    torch.manual_seed(index)
    kernel, geometry, shape = GEOMETRIES[index]
    return Adder2d(3, 4, kernel, bias=False, **geometry).to(device), torch.randn(shape).to(device)


def expected(layer: Adder2d, x: Tensor) -> Tensor:
    return adder2d64(x, layer.weight.detach(), layer.stride, layer.operator_padding, layer.dilation)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("expression", EXPRESSIONS)
@pytest.mark.parametrize("index", range(len(GEOMETRIES)))
def test_forward(device: torch.device, index: int, expression: str, training: bool) -> None:
    layer, x = layer_and_input(index, device)
    output = EXPRESSIONS[expression](layer).train(training)(x)
    torch.testing.assert_close(output.double(), expected(layer, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("index", range(len(GEOMETRIES)))
def test_the_authors_gradients(device: torch.device, index: int) -> None:
    layer, x = layer_and_input(index, device)
    x.requires_grad_()
    output = Authors(layer).train()(x)
    g = torch.randn_like(output)
    of_input, of_weight = torch.autograd.grad(output, (x, layer.weight), g)
    values = adder2d64_gradients(
        x.detach(), layer.weight.detach(), g, layer.stride, layer.operator_padding, layer.dilation
    )
    torch.testing.assert_close((of_input.double(), of_weight.double()), values, rtol=1e-5, atol=1e-5)


def test_the_compiled_expression(device: torch.device) -> None:
    layer, x = layer_and_input(2, device)
    compiled = torch.compile(Authors(layer).eval(), dynamic=False)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x).double(), expected(layer, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_a_network_computes_the_same(expression: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model("adder_resnet20").train()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        logits = model(x)
        replaced = replace_operator(model, expression)
        assert replaced is model
        assert not any(isinstance(module, Adder2d) for module in model.modules())
        # BatchNorm brings the logits to a spread of 1, and enlarges rounding errors.
        torch.testing.assert_close(model(x), logits, rtol=1e-3, atol=1e-3)


def test_a_network_is_trained_by_the_same_rule() -> None:
    model = replace_operator(nn.Sequential(Adder2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)), "authors").train()
    optimizer = adaptive_lr(torch.optim.SGD(model.parameters(), lr=1.0), 0.2)
    before = model[0].weight.detach().clone()
    model(torch.randn(2, 3, 5, 5)).square().sum().backward()
    optimizer.step()
    change = model[0].weight.detach() - before
    assert change.square().mean().sqrt() == pytest.approx(0.2, rel=1e-4)  # eq. 12 and 13: the filter has its mark yet


@pytest.mark.parametrize("expression", [Authors, Cdist])
@pytest.mark.parametrize("extra", [{"groups": 2}, {"bias": True}, {"padding": 1, "padding_mode": "reflect"}])
def test_what_the_authors_layer_does_not_have_is_refused(expression: type[Authors], extra: dict[str, object]) -> None:
    layer = Adder2d(4, 4, 3, **{"bias": False, **extra})
    with pytest.raises(ValueError, match="the authors' layer has no groups, no bias and zeros as padding, got Adder2d"):
        expression(layer)
