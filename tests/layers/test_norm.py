"""BatchNorm2d, held to torch.nn.BatchNorm2d."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from adderzoo.layers import Adder2d, BatchNorm2d

pytestmark = pytest.mark.usefixtures("one_thread")

HALVES = (torch.bfloat16, torch.float16)
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def pair(dtype: torch.dtype = torch.float32, **kwargs: Any) -> tuple[BatchNorm2d, nn.BatchNorm2d]:
    """Ours and PyTorch's with the same parameters and statistics, none of them trivial."""
    torch.manual_seed(0)
    theirs = nn.BatchNorm2d(5, dtype=dtype, **kwargs)
    nn.init.uniform_(theirs.weight, 0.5, 2)
    nn.init.normal_(theirs.bias)
    nn.init.normal_(theirs.running_mean)
    nn.init.uniform_(theirs.running_var, 0.5, 2)
    ours = BatchNorm2d(5, dtype=dtype, **kwargs)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def batches(dtype: torch.dtype = torch.float32, mean: float = 0.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [(mean + 3 * torch.randn(4, 5, 6, 7, generator=generator)).to(dtype) for _ in range(3)]


def same_module(module: nn.Module) -> nn.Module:
    return module


@pytest.mark.parametrize("way", [same_module, torch.jit.script, torch.fx.symbolic_trace], ids=["eager", "script", "fx"])
@pytest.mark.parametrize("kwargs", [{}, {"eps": 0.1, "momentum": 0.3}, {"momentum": None}], ids=str)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_is_pytorchs_bit_for_bit(
    dtype: torch.dtype, training: bool, kwargs: dict[str, Any], way: Callable[[nn.Module], nn.Module]
) -> None:
    ours, theirs = (module.train(training) for module in pair(dtype, **kwargs))
    run = way(ours)
    for x in batches(dtype):
        mine, reference = (x.clone().requires_grad_() for _ in range(2))
        y, expected = run(mine), theirs(reference)
        assert torch.equal(y, expected)
        y.square().sum().backward()
        expected.square().sum().backward()
        assert torch.equal(mine.grad, reference.grad)
    state = run.state_dict()
    assert all(torch.equal(state[key], value) for key, value in theirs.state_dict().items())
    assert state["num_batches_tracked"] == (3 if training else 0)
    gradients = {name: parameter.grad for name, parameter in run.named_parameters()}
    assert all(torch.equal(gradients[name], parameter.grad) for name, parameter in theirs.named_parameters())


@pytest.mark.parametrize("way", [same_module, torch.jit.script, torch.fx.symbolic_trace], ids=["eager", "script", "fx"])
@pytest.mark.parametrize("input_dtype", [torch.float32, None], ids=["of an adder layer", "of its own type"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_precision_is_float32_but_for_the_rounding_of_parameters_and_output(
    dtype: torch.dtype, training: bool, input_dtype: torch.dtype | None, way: Callable[[nn.Module], nn.Module]
) -> None:
    ours, _ = pair(dtype)
    ours.running_mean.copy_(torch.linspace(-1000, -997, 5))
    reference = copy.deepcopy(ours).float().train(training)
    run = way(ours.train(training))
    ulp = torch.finfo(dtype).eps
    for x in batches(input_dtype or dtype, mean=-1000.0):
        y, expected = run(x), reference(x.float())
        assert y.dtype == dtype
        torch.testing.assert_close(y.float(), expected, rtol=ulp, atol=0)
        (y.float() * x.float()).sum().backward()
    state = run.state_dict()
    assert all(torch.equal(state[key], reference.get_buffer(key)) for key in STATISTICS)
    assert state["running_mean"].dtype == torch.float32
    assert state["num_batches_tracked"] == (3 if training else 0)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_running_statistics_are_never_rounded_to_half_precision(dtype: torch.dtype) -> None:
    """Near -1000 bfloat16 knows every fourth number only."""
    mean = torch.linspace(-1000, -997, 5)
    norm = BatchNorm2d(5)
    norm.running_mean.copy_(mean)
    for module in (norm.to(dtype), norm.half(), norm.to("cpu", dtype), copy.deepcopy(norm), norm.float()):
        assert module.running_mean.dtype == module.running_var.dtype == torch.float32
        assert torch.equal(module.running_mean, mean)
    assert norm.double().running_mean.dtype == torch.float64
    assert norm.to(dtype).running_mean.dtype == torch.float32
    assert norm.weight.dtype == dtype
    new = BatchNorm2d(5, dtype=dtype)
    new.load_state_dict(norm.state_dict())
    assert torch.equal(new.running_mean, mean)
    empty = BatchNorm2d(5, device="meta", dtype=dtype).to(dtype).to_empty(device="cpu")
    assert (empty.running_mean.dtype, empty.weight.dtype) == (torch.float32, dtype)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_statistics_that_a_checkpoint_assigns_in_half_precision_are_updated_in_place(dtype: torch.dtype) -> None:
    norm, reference = BatchNorm2d(5, dtype=dtype), BatchNorm2d(5)
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in norm.state_dict().items()}
    norm.load_state_dict(state, assign=True)
    x = batches()[0]
    norm(x).float().sum().backward()
    reference(x)
    for key in STATISTICS[:2]:
        assert norm.get_buffer(key).dtype == dtype
        expected = reference.get_buffer(key)
        torch.testing.assert_close(norm.get_buffer(key).float(), expected, rtol=torch.finfo(dtype).eps, atol=1e-7)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_precision_layer_and_norm_train_where_pytorchs_norm_refuses(dtype: torch.dtype) -> None:
    layer, norm = Adder2d(3, 5, 3, dtype=dtype), BatchNorm2d(5, dtype=dtype)
    x = torch.randn(4, 3, 8, 8, dtype=dtype)
    norm(layer(x)).float().square().sum().backward()
    for parameter in [*layer.parameters(), *norm.parameters()]:
        assert parameter.grad.dtype == dtype
        assert parameter.grad.isfinite().all()
    with pytest.raises(RuntimeError):
        nn.BatchNorm2d(5, dtype=dtype)(layer(x))


def test_autocast_leaves_the_float32_of_an_adder_layer_alone() -> None:
    ours, theirs = pair()
    x = batches(mean=-1000.0)[0]
    with torch.autocast("cpu", torch.bfloat16):
        y = ours(x)
    assert y.dtype == torch.float32
    assert torch.equal(y, theirs(x))


def test_batches_alone_are_taken() -> None:
    for shape in [(5, 6, 7), (4, 5), (4, 5, 6)]:
        with pytest.raises(ValueError, match=rf"input must be \(N, C, H, W\), got {len(shape)} dimensions"):
            pair()[0](torch.randn(shape))


def test_single_values_have_no_variance() -> None:
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        pair()[0](torch.randn(1, 5, 1, 1))


def test_averaged_weights_get_statistics_of_their_own() -> None:
    """torch.optim.swa_utils.update_bn sets momentum to None for the time of its pass."""
    ours, theirs = (nn.Sequential(module) for module in pair())
    for model in (ours, theirs):
        update_bn(batches(), model)
    for key in STATISTICS:
        assert torch.equal(ours.get_buffer(f"0.{key}"), theirs.get_buffer(f"0.{key}"))
    assert ours[0].momentum == 0.1


def test_becomes_a_synchronized_norm_with_its_parameters_and_statistics() -> None:
    ours, _ = pair()
    model = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(copy.deepcopy(ours)))
    assert type(model[0]) is nn.SyncBatchNorm
    for key, value in ours.state_dict().items():
        assert torch.equal(model[0].state_dict()[key], value)
    x = batches()[0]
    assert torch.equal(model.eval()(x), ours.eval()(x))


def test_constructor_names_are_pytorchs() -> None:
    assert repr(BatchNorm2d(4, eps=0.1, momentum=0.2)) == repr(nn.BatchNorm2d(4, eps=0.1, momentum=0.2))
    assert BatchNorm2d(4, device="meta", dtype=torch.float64).weight.dtype == torch.float64
