"""The adaptive learning rate, against eq. 12 and 13 and the optimizers' updates written out in float64 numpy."""

import copy
import io
import logging
import math
import pickle
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import timm.optim
import torch
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

import adderzoo.optim
from adderzoo.layers import Adder2d, AdderLinear
from adderzoo.optim import adaptive_lr

FILTER_SHAPES = [(4, 3, 3, 3), (6, 4, 1, 1)]
OTHER_SHAPES = [(3, 5), (7,)]


def make_parameters(dtype=torch.float64, device="cpu"):
    """Filters and other parameters, alternating, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    filters = [nn.Parameter(torch.randn(s, generator=generator).to(device, dtype)) for s in FILTER_SHAPES]
    others = [nn.Parameter(torch.randn(s, generator=generator).to(device, dtype)) for s in OTHER_SHAPES]
    for parameter in filters:
        parameter.is_adder_filter = True
    return [filters[0], others[0], filters[1], others[1]]


def is_filter(parameter):
    return getattr(parameter, "is_adder_filter", False)


def make_gradients(step, size=1e-3):
    generator = torch.Generator().manual_seed(100 + step)
    shapes = [FILTER_SHAPES[0], OTHER_SHAPES[0], FILTER_SHAPES[1], OTHER_SHAPES[1]]
    return [torch.randn(s, generator=generator, dtype=torch.float64) * size * 10**i for i, s in enumerate(shapes)]


def set_gradients(parameters, gradients, scale=1.0):
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = (gradient * scale).to(parameter)


def eq_12_13(gradient, eta):
    gradient = np.asarray(gradient, dtype=np.float64)
    return eta * math.sqrt(gradient.size) * gradient / max(math.sqrt((gradient**2).sum()), 1e-12)


def expected_sgd(
    parameters, gradients_of_steps, eta, lr, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False
):
    """SGD as torch documents it, on gradients after eq. 12 and 13."""
    results = []
    for i, parameter in enumerate(parameters):
        p, buffer = parameter.detach().double().cpu().numpy().copy(), None
        for gradients in gradients_of_steps:
            g = gradients[i].numpy()
            g = eq_12_13(g, eta) if is_filter(parameter) else g
            g = g + weight_decay * p
            if momentum:
                buffer = g if buffer is None else momentum * buffer + (1 - dampening) * g
                g = g + momentum * buffer if nesterov else buffer
            p = p - lr * g
        results.append(p)
    return results


def assert_equal_to(parameters, expected, rtol=1e-12, atol=1e-14):
    for parameter, value in zip(parameters, expected, strict=True):
        np.testing.assert_allclose(parameter.detach().double().cpu().numpy(), value, rtol=rtol, atol=atol)


class Filter(nn.Module):
    """A network with a marked filter and an unmarked layer, of ordinary gradients."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, 3, 3, bias=False, dtype=torch.float64)
        self.conv.weight.is_adder_filter = True
        self.head = nn.Linear(3, 2, dtype=torch.float64)

    def forward(self, input):
        return self.head(self.conv(input).tanh().mean((2, 3)))


class Other(torch.optim.Optimizer):
    """An optimizer that adaptive_lr cannot know; its step does nothing."""

    def __init__(self, params, lr=1.0):
        super().__init__(params, {"lr": lr})

    def step(self, closure=None):
        return closure() if closure is not None else None


# The rule "gradient"


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.05},
        {"momentum": 0.9, "weight_decay": 0.05},
        {"momentum": 0.9, "weight_decay": 0.05, "nesterov": True},
        {"momentum": 0.9, "weight_decay": 0.05, "dampening": 0.3},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_sgd_updates_are_those_of_equations_12_and_13(device, options, foreach):
    parameters = make_parameters(device=device)
    steps = [make_gradients(step, size=10.0**-step) for step in range(4)]
    expected = expected_sgd(parameters, steps, eta=0.3, lr=0.1, **options)
    optimizer = adaptive_lr(torch.optim.SGD(parameters, lr=0.1, foreach=foreach, **options), eta=0.3)
    for gradients in steps:
        set_gradients(parameters, gradients)
        optimizer.step()
    assert_equal_to(parameters, expected)


def test_eta_is_the_authors_by_default_and_the_optimizer_comes_back():
    parameters = make_parameters()
    expected = expected_sgd(parameters, [make_gradients(0)], eta=0.2, lr=0.1)
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    assert adaptive_lr(optimizer) is optimizer
    set_gradients(parameters, make_gradients(0))
    optimizer.step()
    assert_equal_to(parameters, expected)


def test_sgdw_decays_weights_apart_from_the_scaled_gradient():
    parameters = make_parameters()
    lr, decay = 0.1, 0.05
    expected = [
        p.detach().numpy() * (1 - lr * decay) - lr * (eq_12_13(g, 0.2) if is_filter(p) else g.numpy())
        for p, g in zip(parameters, make_gradients(0), strict=True)
    ]
    optimizer = adaptive_lr(timm.optim.SGDW(parameters, lr=lr, weight_decay=decay))
    set_gradients(parameters, make_gradients(0))
    optimizer.step()
    assert_equal_to(parameters, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
# In float16, a norm of the first size has lost most of its digits and one of the last is infinite.
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e4])
def test_norms_of_narrow_gradients_are_taken_in_float32(device, dtype, size):
    filters = [p for p in make_parameters(dtype, device) if is_filter(p)]
    optimizer = adaptive_lr(torch.optim.SGD(filters, lr=0.1))
    for p, shape in zip(filters, FILTER_SHAPES, strict=True):
        p.grad = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) * size).to(device, dtype)
    expected = [eq_12_13(p.grad.double().cpu(), 0.2) for p in filters]
    optimizer.step()
    for p, value in zip(filters, expected, strict=True):
        assert p.grad.dtype == dtype
        eps = torch.finfo(dtype).eps
        np.testing.assert_allclose(p.grad.double().cpu().numpy(), value, rtol=4 * eps, atol=eps * 1e-3)


def test_groups_of_mixed_types_keep_float64_exact():
    wide, narrow = [p for p in make_parameters() if is_filter(p)]
    narrow = nn.Parameter(narrow.detach().bfloat16())
    narrow.is_adder_filter = True
    optimizer = adaptive_lr(torch.optim.SGD([wide, narrow], lr=0.1))
    wide.grad, narrow.grad = torch.randn_like(wide), torch.randn_like(narrow)
    expected = [eq_12_13(p.grad.double(), 0.2) for p in (wide, narrow)]
    optimizer.step()
    np.testing.assert_allclose(wide.grad.numpy(), expected[0], rtol=1e-14)
    np.testing.assert_allclose(narrow.grad.double().numpy(), expected[1], rtol=1e-2)


def test_other_parameters_are_updated_as_without_the_rule_bit_for_bit():
    for dtype in (torch.float32, torch.bfloat16):
        plain, adaptive = make_parameters(dtype), make_parameters(dtype)
        options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05, "nesterov": True}
        optimizers = [torch.optim.SGD(plain, **options), adaptive_lr(torch.optim.SGD(adaptive, **options))]
        for step in range(3):
            for parameters, optimizer in zip((plain, adaptive), optimizers, strict=True):
                set_gradients(parameters, make_gradients(step))
                optimizer.step()
        for a, b in zip(plain, adaptive, strict=True):
            assert torch.equal(a, b) == (not is_filter(a))


def test_zero_gradients_and_norms_below_the_clamp():
    parameters = make_parameters()
    before = [p.detach().clone() for p in parameters]
    optimizer = adaptive_lr(torch.optim.SGD(parameters, lr=0.1))
    set_gradients(parameters, make_gradients(0), scale=0.0)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))

    tiny = parameters[0]
    tiny.grad = torch.full_like(tiny, 1e-15)  # norm 1e-14
    optimizer.step()
    np.testing.assert_allclose(tiny.grad.numpy(), 0.2 * math.sqrt(tiny.numel()) * 1e-15 / 1e-12, rtol=1e-12)


def test_parameters_without_gradients_stay():
    parameters = make_parameters()
    before = parameters[0].detach().clone()
    expected = expected_sgd(parameters, [make_gradients(0)], eta=0.2, lr=0.1)
    optimizer = adaptive_lr(torch.optim.SGD(parameters, lr=0.1))
    optimizer.step()  # no gradient at all
    set_gradients(parameters, make_gradients(0))
    parameters[0].grad = None
    optimizer.step()
    assert torch.equal(parameters[0], before)
    assert_equal_to(parameters[1:], expected[1:])


def test_gradients_of_a_differentiable_backward():
    parameters = make_parameters()
    expected = expected_sgd(parameters, [make_gradients(0)], eta=0.2, lr=0.1)
    optimizer = adaptive_lr(torch.optim.SGD(parameters, lr=0.1))
    set_gradients(parameters, make_gradients(0))
    for p in parameters:
        p.grad.requires_grad_()  # as backward(create_graph=True) leaves them
    optimizer.step()
    assert_equal_to(parameters, expected)


def test_accumulated_gradients_are_scaled_once_as_a_sum():
    parameters = make_parameters()
    halves = make_gradients(0), make_gradients(1)
    total = [a + b for a, b in zip(*halves, strict=True)]
    expected = expected_sgd(parameters, [total], eta=0.2, lr=0.1)
    start = parameters[0].detach().numpy().copy()
    each_half = start - 0.1 * (eq_12_13(halves[0][0], 0.2) + eq_12_13(halves[1][0], 0.2))
    assert np.abs(expected[0] - each_half).max() > 1e-3  # the two can be told apart

    optimizer = adaptive_lr(torch.optim.SGD(parameters, lr=0.1))
    for half in halves:
        sum((p * g).sum() for p, g in zip(parameters, half, strict=True)).backward()
    optimizer.step()
    assert_equal_to(parameters, expected)


def test_a_second_step_on_the_same_gradient_makes_the_same_update():
    parameters = make_parameters()
    gradients = make_gradients(0)
    expected = expected_sgd(parameters, [gradients, gradients], eta=0.2, lr=0.1, momentum=0.9)
    optimizer = adaptive_lr(torch.optim.SGD(parameters, lr=0.1, momentum=0.9))
    set_gradients(parameters, gradients)
    optimizer.step()
    optimizer.step()
    assert_equal_to(parameters, expected)


@pytest.mark.parametrize("call", ["positional", "keyword"])
@pytest.mark.parametrize("scheduled", [False, True])
def test_gradients_that_a_closure_makes_are_scaled(call, scheduled):
    parameters = make_parameters()
    steps = [make_gradients(step) for step in range(2)]
    expected = expected_sgd(parameters, steps, eta=0.2, lr=0.1, momentum=0.9)
    optimizer = adaptive_lr(torch.optim.SGD(parameters, lr=0.1, momentum=0.9))
    if scheduled:  # a torch scheduler puts a wrapper around the step
        CosineAnnealingLR(optimizer, 10)
    for gradients in steps:

        def closure(gradients=gradients):
            assert torch.is_grad_enabled()
            optimizer.zero_grad()
            loss = sum((p * g).sum() for p, g in zip(parameters, gradients, strict=True))
            loss.backward()
            return loss.detach()

        loss = optimizer.step(closure) if call == "positional" else optimizer.step(closure=closure)
        assert loss.isfinite()
    assert_equal_to(parameters, expected)


@pytest.mark.parametrize("unscale_first", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_grad_scaler_steps_are_those_without_it(device, fused, unscale_first):
    parameters = make_parameters(torch.float32, device)
    steps = [make_gradients(step) for step in range(3)]
    expected = expected_sgd(parameters, steps, eta=0.2, lr=0.1, momentum=0.9, weight_decay=0.05)
    optimizer = adaptive_lr(torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.05, fused=fused))
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**14, growth_interval=1)
    seen = []
    optimizer.register_step_pre_hook(
        lambda optimizer, args, kwargs: seen.append(getattr(optimizer, "grad_scale", None))
    )
    for gradients in steps:
        optimizer.zero_grad()
        loss = sum((p * g.to(p)).sum() for p, g in zip(parameters, gradients, strict=True))
        scaler.scale(loss).backward()
        if unscale_first:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    # Only a fused step on gradients that are still scaled gets the scale, which doubles from step to step here.
    in_step = fused and not unscale_first
    assert [scale.item() if scale is not None else None for scale in seen] == (
        [2.0**14, 2.0**15, 2.0**16] if in_step else [None] * 3
    )
    assert_equal_to(parameters, expected, rtol=1e-5, atol=1e-6)


def test_the_clamp_of_a_fused_step_is_on_the_unscaled_norm(device):
    filters = [p for p in make_parameters(torch.float32, device) if is_filter(p)]
    optimizer = adaptive_lr(torch.optim.SGD(filters, lr=1.0, fused=True))
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**16)
    with torch.no_grad():
        for p in filters:
            p.zero_()  # so that the update is not rounded away
    scaler.scale(sum((p * 1e-15).sum() for p in filters)).backward()  # norms of 1e-14, scaled 7e-10
    scaler.step(optimizer)
    for p in filters:
        np.testing.assert_allclose(p.detach().cpu().numpy(), -0.2 * math.sqrt(p.numel()) * 1e-15 / 1e-12, rtol=1e-5)


@pytest.mark.parametrize("fused", [False, True])
def test_a_gradient_that_overflowed_skips_the_step(device, fused):
    parameters = make_parameters(torch.float32, device)
    optimizer = adaptive_lr(torch.optim.SGD(parameters, lr=0.1, momentum=0.9, fused=fused))
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**14)

    def step(factor):
        optimizer.zero_grad()
        scaler.scale(sum((p * g.to(p)).sum() for p, g in zip(parameters, make_gradients(0), strict=True))).backward()
        parameters[0].grad[0, 0, 0, 0] *= factor
        scaler.step(optimizer)
        scaler.update()

    step(1.0)
    before = [p.detach().clone() for p in parameters]
    buffers = [optimizer.state[p]["momentum_buffer"].clone() for p in parameters]
    step(math.inf)
    assert scaler.get_scale() == 2.0**13
    assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    assert all(torch.equal(a, optimizer.state[p]["momentum_buffer"]) for a, p in zip(buffers, parameters, strict=True))
    step(1.0)
    assert all(p.isfinite().all() and not torch.equal(a, p) for a, p in zip(before, parameters, strict=True))


def test_float16_gradients_in_a_fused_step_under_grad_scaler_are_refused():
    filters = [p for p in make_parameters(torch.float16) if is_filter(p)]
    optimizer = adaptive_lr(torch.optim.SGD(filters, lr=0.1, fused=True))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    scaler.scale(sum((p * 0.1).sum() for p in filters)).backward()
    with pytest.raises(RuntimeError, match="float32"):
        scaler.step(optimizer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_value_is_read_back_from_the_device(dtype):
    # A meta tensor has no values: whatever would wait for a GPU fails on one.
    parameters = make_parameters(dtype, device="meta")
    optimizer = adaptive_lr(Other(parameters), rule="gradient")
    for scale in (None, torch.empty((), device="meta")):
        optimizer.grad_scale = scale
        for p in parameters:
            p.grad = torch.empty_like(p)
        optimizer.step()
    with pytest.raises(RuntimeError):
        parameters[0].grad.sum().item()


def test_compiled_steps():
    parameters = make_parameters()
    steps = [make_gradients(step) for step in range(3)]
    expected = expected_sgd(parameters, steps, eta=0.2, lr=0.1, momentum=0.9)
    optimizer = adaptive_lr(torch.optim.SGD(parameters, lr=0.1, momentum=0.9))
    step = torch.compile(optimizer.step, backend="aot_eager")
    for gradients in steps:
        set_gradients(parameters, gradients)
        step()
    assert_equal_to(parameters, expected)


def test_added_groups_follow_the_rule():
    parameters = make_parameters()
    expected = expected_sgd(parameters, [make_gradients(0)], eta=0.3, lr=0.1)
    optimizer = adaptive_lr(torch.optim.SGD(parameters[:2], lr=0.1), eta=0.3)
    optimizer.add_param_group({"params": parameters[2:]})
    set_gradients(parameters, make_gradients(0))
    optimizer.step()
    assert_equal_to(parameters, expected)


def test_state_dict_round_trip_continues_the_same_training():
    parameters, resumed = make_parameters(), make_parameters()
    steps = [make_gradients(step) for step in range(4)]
    expected = expected_sgd(parameters, steps, eta=0.3, lr=0.1, momentum=0.9)
    optimizer = adaptive_lr(torch.optim.SGD(parameters, lr=0.1, momentum=0.9), eta=0.3)
    for gradients in steps[:2]:
        set_gradients(parameters, gradients)
        optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)

    for p, q in zip(parameters, resumed, strict=True):
        q.data.copy_(p.data)
    other = adaptive_lr(torch.optim.SGD(resumed, lr=1.0))
    other.load_state_dict(torch.load(file, weights_only=True))
    for gradients in steps[2:]:
        set_gradients(resumed, gradients)
        other.step()
    assert_equal_to(resumed, expected)


def test_the_state_of_a_plain_optimizer_leaves_the_rule_in_place():
    plain, parameters = make_parameters(), make_parameters()
    expected = expected_sgd(parameters, [make_gradients(0)], eta=0.3, lr=0.1)
    optimizer = adaptive_lr(torch.optim.SGD(parameters, lr=1.0), eta=0.3)
    optimizer.load_state_dict(torch.optim.SGD(plain, lr=0.1).state_dict())
    set_gradients(parameters, make_gradients(0))
    optimizer.step()
    assert_equal_to(parameters, expected)


def test_a_plain_optimizer_stays_plain_with_the_state_of_another():
    plain, parameters = make_parameters(), make_parameters()
    expected = [(p.detach() - 0.1 * g).numpy() for p, g in zip(plain, make_gradients(0), strict=True)]
    optimizer = torch.optim.SGD(plain, lr=1.0)
    optimizer.load_state_dict(adaptive_lr(torch.optim.SGD(parameters, lr=0.1)).state_dict())
    set_gradients(plain, make_gradients(0))
    optimizer.step()
    assert_equal_to(plain, expected)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_made_with_the_model_keep_the_rule(duplicate):
    model = nn.Sequential(Adder2d(2, 3, 3, bias=False), nn.BatchNorm2d(3)).double()
    optimizer = adaptive_lr(torch.optim.SGD(model.parameters(), lr=0.1), eta=0.3)
    model, optimizer = duplicate((model, optimizer))
    weight = model[0].weight
    assert optimizer.param_groups[0]["params"][0] is weight
    weight.grad = torch.randn_like(weight)
    expected = weight.detach().numpy() - 0.1 * eq_12_13(weight.grad, 0.3)
    optimizer.step()
    assert_equal_to([weight], [expected])


def test_a_copy_made_without_the_model_does_not_train_in_silence():
    optimizer = copy.deepcopy(adaptive_lr(torch.optim.SGD(make_parameters(), lr=0.1)))
    set_gradients(optimizer.param_groups[0]["params"], make_gradients(0))
    with pytest.raises(RuntimeError, match=r"copy\.deepcopy\(\(model, optimizer\)\)"):
        optimizer.step()


TRAIN_ON_TWO = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
sys.path.insert(0, sys.argv[1])
from test_optim import Filter, train

rank, store, out = int(sys.argv[2]), sys.argv[3], sys.argv[4]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
model = Filter()
weights = train(model, DistributedDataParallel(model), slice(rank, None, 2))
if rank == 0:
    torch.save(weights, out)
dist.destroy_process_group()
"""


def train(model, forward, share):
    """Two steps on a share of the batch; the weights."""
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(8, 2, 6, 6, generator=generator, dtype=torch.float64)
    target = torch.randn(8, 2, generator=generator, dtype=torch.float64)
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}
    optimizer = adaptive_lr(torch.optim.SGD(model.parameters(), **options))
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.mse_loss(forward(input[share]), target[share]).backward()
        optimizer.step()
    return {name: value.detach() for name, value in model.state_dict().items()}


def test_two_processes_with_half_the_batch_each_train_as_one_with_all(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(TRAIN_ON_TWO)
    arguments = [str(Path(__file__).parent), str(tmp_path / "store"), str(tmp_path / "out")]
    processes = [
        subprocess.Popen([sys.executable, str(script), arguments[0], str(rank), *arguments[1:]]) for rank in range(2)
    ]
    assert [process.wait(300) for process in processes] == [0, 0]
    distributed = torch.load(arguments[2])

    model = Filter()
    alone = train(model, model, slice(None))
    for name, value in alone.items():
        np.testing.assert_allclose(distributed[name], value, rtol=1e-10, atol=1e-12)
    # Half the batch alone ends elsewhere, so the agreement means something.
    model = Filter()
    half = train(model, model, slice(0, None, 2))
    assert (half["conv.weight"] - alone["conv.weight"]).abs().max() > 1e-3


SHARDED = """
import sys

sys.path.insert(0, sys.argv[1])
import torch
import torch.distributed as dist
from test_optim import adders, train_adders
from torch.distributed.fsdp import fully_shard

rank, size, store, out = int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
mesh = dist.device_mesh.init_device_mesh("cpu", (size,))
weights = {}
for rule in ("gradient", "lr"):
    model = adders()
    for part in (model[0], model[2], model):
        fully_shard(part, mesh=mesh)
    train_adders(model, rule, slice(rank, None, size))
    weights[rule] = {name: parameter.full_tensor().detach() for name, parameter in model.named_parameters()}
if rank == 0:
    torch.save(weights, out)
dist.destroy_process_group()
"""


def adders():
    """Of 5 and 3 filters, which two processes cannot share evenly, and one with parameters in the place of filters."""
    torch.manual_seed(0)
    layers = [Adder2d(2, 5, 3), nn.Tanh(), Adder2d(5, 3, 3, bias=False), nn.Flatten(), AdderLinear(12, 2)]
    model = nn.Sequential(*layers).double()
    nn.utils.parametrizations.weight_norm(model[2])
    return model


def train_adders(model, rule, share):
    """Two steps on a share of the batch."""
    generator = torch.Generator().manual_seed(1)
    input = torch.randn(8, 2, 6, 6, generator=generator, dtype=torch.float64)
    kind = {"gradient": torch.optim.SGD, "lr": torch.optim.AdamW}[rule]
    optimizer = adaptive_lr(kind(model.parameters(), lr=0.1))
    for _ in range(2):
        optimizer.zero_grad()
        model(input[share]).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("size", [1, 2])
def test_sharded_filters_train_as_whole_ones(tmp_path, size):
    script = tmp_path / "train.py"
    script.write_text(SHARDED)
    folder, store, out = str(Path(__file__).parent), str(tmp_path / "store"), str(tmp_path / "out")
    processes = [
        subprocess.Popen([sys.executable, str(script), folder, str(rank), str(size), store, out])
        for rank in range(size)
    ]
    assert [process.wait(300) for process in processes] == [0] * size
    for rule, sharded in torch.load(out).items():
        model = adders()
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        train_adders(model, rule, slice(None))
        assert sharded.keys() == before.keys()
        for name, parameter in model.named_parameters():
            assert not parameter.equal(before[name])
            np.testing.assert_allclose(sharded[name], parameter.detach(), rtol=1e-10, atol=1e-12)


def test_flat_pieces_of_filters_are_refused():
    """Those of FullyShardedDataParallel with use_orig_params."""
    piece = nn.Parameter(torch.ones(9))
    piece.is_adder_filter = True
    with pytest.raises(ValueError, match=r"got one flat of 9 elements, as FullyShardedDataParallel .*fully_shard"):
        adaptive_lr(torch.optim.SGD([*make_parameters(), piece], lr=0.1))


# The rule "lr"


def adam_update(gradients, lr, betas=(0.9, 0.999), eps=1e-8):
    """The sum of Adam's updates, without weight decay."""
    m = v = total = 0.0
    for t, g in enumerate(gradients, 1):
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
        total = total - lr * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    return total


def test_adam_updates_filters_at_eta_times_the_learning_rate():
    parameters = make_parameters()
    steps = [make_gradients(step) for step in range(3)]
    expected = [
        p.detach().numpy() + adam_update([g[i].numpy() for g in steps], lr=0.01 * (0.3 if is_filter(p) else 1))
        for i, p in enumerate(parameters)
    ]
    optimizer = adaptive_lr(torch.optim.Adam(parameters, lr=0.01), eta=0.3)
    for gradients in steps:
        set_gradients(parameters, gradients)
        optimizer.step()
        for p, g in zip(parameters, gradients, strict=True):
            assert torch.equal(p.grad, g)
    assert_equal_to(parameters, expected, rtol=1e-9)


def lr_of(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


def test_mixed_groups_are_split_and_keep_their_options():
    f0, o0, f1, o1 = make_parameters()
    f2 = make_parameters()[0]
    groups = [
        {"params": [("f0", f0), ("o0", o0), ("f1", f1)], "lr": 0.1, "weight_decay": 0.5, "lr_scale": 0.7},
        {"params": [("o1", o1)], "betas": (0.8, 0.9)},
        {"params": [("f2", f2)], "lr": torch.tensor(0.4)},
    ]
    optimizer = adaptive_lr(torch.optim.AdamW(groups, lr=0.3, eps=1e-5), eta=0.5)
    a, b, c, d = optimizer.param_groups
    assert [group["param_names"] for group in (a, b, c, d)] == [["o0"], ["f0", "f1"], ["o1"], ["f2"]]
    assert [[id(p) for p in group["params"]] for group in (a, b, c, d)] == [
        [id(o0)],
        [id(f0), id(f1)],
        [id(o1)],
        [id(f2)],
    ]
    assert lr_of(optimizer) == [0.1, 0.05, 0.3, 0.2]
    assert [group["adder_lr_factor"] for group in (a, b, c, d)] == [None, 0.5, None, 0.5]
    differs = {"params", "param_names", "lr", "adder_lr_factor"}
    assert {k: v for k, v in a.items() if k not in differs} == {k: v for k, v in b.items() if k not in differs}
    assert a["weight_decay"] == 0.5
    assert a["lr_scale"] == 0.7
    assert c["betas"] == (0.8, 0.9)
    assert all(group["eps"] == 1e-5 for group in optimizer.param_groups)


def test_a_shared_tensor_learning_rate_is_not_multiplied_for_the_others():
    lr = torch.tensor(0.1)
    optimizer = adaptive_lr(torch.optim.AdamW(make_parameters(), lr=lr), eta=0.5)
    assert optimizer.param_groups[0]["lr"] is lr
    assert [float(value) for value in lr_of(optimizer)] == [pytest.approx(0.1), pytest.approx(0.05)]


def test_corrected_weight_decay_stays_relative_to_the_learning_rate_of_the_group():
    model = Filter()
    options = {"lr": 0.1, "weight_decay": 0.5, "corrected_weight_decay": True}
    optimizer = adaptive_lr(timm.optim.AdamWLegacy(model.parameters(), **options), eta=0.5)
    filters = optimizer.param_groups[1]
    assert filters["params"] == [model.conv.weight]
    start = model.conv.weight.detach().clone()
    model.conv.weight.grad = torch.zeros_like(start)
    optimizer.step()
    # timm decays by lr**2 / max_lr, which is lr while lr is at its maximum.
    np.testing.assert_allclose(model.conv.weight.detach().numpy(), start.numpy() * (1 - 0.05 * 0.5), rtol=1e-12)


def test_torch_cosine_scheduler_keeps_the_factor():
    optimizer = adaptive_lr(torch.optim.AdamW(make_parameters(), lr=0.1))
    scheduler = CosineAnnealingLR(optimizer, 10)
    for _ in range(9):
        optimizer.step()
        scheduler.step()
        others, filters = lr_of(optimizer)
        assert filters == pytest.approx(0.2 * others, rel=1e-12)
    assert others == pytest.approx(0.05 * (1 + math.cos(0.9 * math.pi)))


def test_one_cycle_keeps_the_factor_with_one_max_lr_per_group():
    optimizer = adaptive_lr(torch.optim.AdamW(make_parameters(), lr=0.1))
    scheduler = OneCycleLR(optimizer, max_lr=lr_of(optimizer), total_steps=10)
    for _ in range(9):
        optimizer.step()
        scheduler.step()
        others, filters = lr_of(optimizer)
        assert filters == pytest.approx(0.2 * others, rel=1e-9)


@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_timm_scheduler_keeps_the_factor(layer_decay):
    model = Filter()
    model.pretrained_cfg = {"classifier": "head"}
    plain = timm.optim.create_optimizer_v2(model, "adamw", lr=0.1, weight_decay=0.05, layer_decay=layer_decay)
    optimizer = timm.optim.create_optimizer_v2(model, "adamw", lr=0.1, weight_decay=0.05, layer_decay=layer_decay)
    optimizer = adaptive_lr(optimizer)
    schedulers = [
        create_scheduler_v2(o, sched="cosine", num_epochs=10, warmup_epochs=2, warmup_lr=0.0)[0]
        for o in (plain, optimizer)
    ]
    for epoch in range(1, 10):
        for scheduler in schedulers:
            scheduler.step(epoch)
        without = {id(p): group["lr"] for group in plain.param_groups for p in group["params"]}
        for group in optimizer.param_groups:
            for p in group["params"]:
                assert group["lr"] == pytest.approx(without[id(p)] * (0.2 if is_filter(p) else 1.0), rel=1e-12)


@pytest.mark.parametrize("make", [lambda o: CosineAnnealingLR(o, 10), lambda o: create_scheduler_v2(o, "cosine")])
def test_attaching_behind_a_scheduler_is_refused_and_changes_nothing(make):
    optimizer = torch.optim.AdamW(make_parameters(), lr=0.1)
    make(optimizer)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match="before creating it"):
        adaptive_lr(optimizer)
    assert optimizer.state_dict() == before


def test_filters_that_lost_their_learning_rate_do_not_train_in_silence():
    parameters = make_parameters()
    optimizer = adaptive_lr(torch.optim.AdamW(parameters[1:], lr=0.1))
    optimizer.add_param_group({"params": parameters[:1]})
    with pytest.raises(RuntimeError, match=r"parameter group 2 .* adder_lr_factor"):
        optimizer.step()

    filters = [p for p in parameters if is_filter(p)]
    optimizer = adaptive_lr(torch.optim.AdamW(filters, lr=0.1))
    optimizer.load_state_dict(torch.optim.AdamW(filters, lr=0.1).state_dict())
    with pytest.raises(RuntimeError, match="parameter group 0"):
        optimizer.step()


def test_filters_added_with_their_learning_rate():
    parameters = make_parameters()
    optimizer = adaptive_lr(torch.optim.AdamW(parameters[1:], lr=0.1))
    optimizer.add_param_group({"params": parameters[:1], "lr": 0.02, "adder_lr_factor": 0.2})
    set_gradients(parameters, make_gradients(0))
    start = parameters[0].detach().clone()
    optimizer.step()
    update = (parameters[0] - start).detach()
    assert update.square().mean().sqrt().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize(
    "optimizer", [torch.optim.AdamW, lambda p, lr: timm.optim.Lookahead(torch.optim.AdamW(p, lr=lr))]
)
def test_state_dict_round_trip_of_split_groups(optimizer):
    parameters, resumed = make_parameters(), make_parameters()
    first = adaptive_lr(optimizer(parameters, lr=0.1))
    set_gradients(parameters, make_gradients(0))
    first.step()
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    for p, q in zip(parameters, resumed, strict=True):
        q.data.copy_(p.data)
    second = adaptive_lr(optimizer(resumed, lr=0.7))
    second.load_state_dict(torch.load(file, weights_only=True))
    assert lr_of(second) == lr_of(first) == [0.1, pytest.approx(0.02)]
    for o, ps in ((first, parameters), (second, resumed)):
        set_gradients(ps, make_gradients(1))
        o.step()
    assert all(torch.equal(p, q) for p, q in zip(parameters, resumed, strict=True))


# Which rule


def last_update(make, size):
    """The update after 100 steps on gradients of a size, the parameter all but in place."""
    weight = nn.Parameter(make_parameters()[0].detach().clone())
    weight.is_adder_filter = True
    optimizer = make([weight])
    generator = torch.Generator().manual_seed(1)
    for _ in range(100):
        before = weight.detach().clone()
        weight.grad = torch.randn(weight.shape, generator=generator, dtype=weight.dtype) * size
        optimizer.step()
    return (weight.detach() - before).norm().item()


def optimizers_of_torch_and_timm():
    """One of each class."""
    makers, classes = {}, set()
    # Adahessian needs the graph of the gradients, Kron takes most of a minute to compile itself.
    for name in timm.optim.list_optimizers(exclude_filters=["bnb*", "fused*", "adder*", "adahessian", "kron*"]):
        if timm.optim.get_optimizer_class(name, bind_defaults=False) not in classes:
            makers[name] = lambda params, name=name: timm.optim.create_optimizer_v2(params, name, lr=1e-5)
        classes.add(timm.optim.get_optimizer_class(name, bind_defaults=False))
    # LBFGS needs a closure, Muon matrices, SparseAdam sparse gradients.
    for name in ("ASGD", "Adafactor", "Adagrad", "NAdam", "RAdam", "Rprop"):
        makers[f"torch.{name}"] = lambda params, name=name: getattr(torch.optim, name)(params, lr=1e-5)
    return makers


@pytest.mark.parametrize("name", optimizers_of_torch_and_timm())
def test_the_rule_of_each_class_fits_how_its_updates_grow_with_the_gradient(name):
    make = optimizers_of_torch_and_timm()[name]
    if name in {"madgrad", "larc"}:  # larc is Lars
        with pytest.raises(ValueError, match="no rule is known"):
            adaptive_lr(make(make_parameters()))
        return
    optimizer = adaptive_lr(make(make_parameters()))
    growth = last_update(make, 64.0) / last_update(make, 1.0)
    if "adder_eta" in optimizer.defaults:
        assert growth == pytest.approx(64, rel=0.01)
    else:
        assert growth == pytest.approx(1, rel=0.3)
        assert lr_of(optimizer)[1] == pytest.approx(0.2e-5)


def test_subclasses_take_the_rule_of_their_class():
    class MySGD(torch.optim.SGD):
        pass

    class MyAdam(torch.optim.Adam):
        pass

    assert "adder_eta" in adaptive_lr(MySGD(make_parameters(), lr=0.1)).defaults
    assert "adder_lr_factor" in adaptive_lr(MyAdam(make_parameters(), lr=0.1)).defaults


@pytest.mark.parametrize("make", [Other, torch.optim.LBFGS, lambda p: timm.optim.MADGRAD(p, lr=0.1)])
def test_unknown_optimizers_have_to_be_told_the_rule(make):
    with pytest.raises(ValueError, match=r"no rule is known for .*rule='gradient'.*rule='lr'"):
        adaptive_lr(make(make_parameters()))


def test_a_rule_can_be_chosen():
    parameters = make_parameters()
    optimizer = adaptive_lr(Other(parameters), rule="gradient")
    set_gradients(parameters, make_gradients(0))
    optimizer.step()
    np.testing.assert_allclose(parameters[0].grad, eq_12_13(make_gradients(0)[0], 0.2), rtol=1e-12)
    assert lr_of(adaptive_lr(Other(make_parameters()), rule="lr")) == [1.0, 0.2]


# Bad input


@pytest.mark.parametrize("eta", [0, -0.2, math.nan, math.inf, "0.2", None, True, torch.tensor(0.2)])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_eta_has_to_be_a_positive_number(eta, optimizer):
    optimizer = optimizer(make_parameters(), lr=0.1)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match="eta must be a finite number above 0, got"):
        adaptive_lr(optimizer, eta)
    assert optimizer.state_dict() == before


def test_errors_say_what_they_got():
    parameters = make_parameters()
    with pytest.raises(ValueError, match="at least one adder filter"):
        adaptive_lr(torch.optim.SGD([p for p in parameters if not is_filter(p)], lr=0.1))
    with pytest.raises(TypeError, match=r"torch\.optim\.Optimizer, got Filter"):
        adaptive_lr(Filter())
    with pytest.raises(ValueError, match="got 'norm'"):
        adaptive_lr(torch.optim.SGD(parameters, lr=0.1), rule="norm")
    with pytest.raises(ValueError, match="lr=None in parameter group 0"):
        adaptive_lr(timm.optim.Adafactor(parameters, lr=None))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_attaching_twice_is_refused(optimizer):
    optimizer = adaptive_lr(optimizer(make_parameters(), lr=0.1))
    before = copy.deepcopy(optimizer.state_dict())
    for wrapped in (optimizer, timm.optim.Lookahead(optimizer)):
        with pytest.raises(ValueError, match="already has"):
            adaptive_lr(wrapped)
    assert lr_of(optimizer) == [group["lr"] for group in before["param_groups"]]


# timm


@pytest.mark.parametrize(("name", "nesterov"), [("addersgd", True), ("addermomentum", False)])
def test_timm_creates_the_optimizer_with_its_weight_decay_groups(name, nesterov):
    model = Filter()
    optimizer = timm.optim.create_optimizer_v2(model, opt=name, lr=0.1, weight_decay=0.05, eta=0.3)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.05}
    parameters = list(model.parameters())
    steps = [[torch.randn_like(p) for p in parameters] for _ in range(3)]
    options = {"eta": 0.3, "lr": 0.1, "momentum": 0.9, "nesterov": nesterov}
    decayed = expected_sgd(parameters, steps, weight_decay=0.05, **options)
    plain = expected_sgd(parameters, steps, weight_decay=0.0, **options)
    expected = [a if p.ndim > 1 else b for p, a, b in zip(parameters, decayed, plain, strict=True)]
    for gradients in steps:
        set_gradients(parameters, gradients)
        optimizer.step()
    assert_equal_to(parameters, expected)


def test_timm_training_script_arguments():
    args = Namespace(opt="addersgd", lr=0.1, weight_decay=1e-4, momentum=0.8, opt_eps=None, opt_betas=None)
    model = Filter()
    options = timm.optim.optimizer_kwargs(cfg=args)
    optimizer = timm.optim.create_optimizer_v2(model, **options, **{"eta": 0.1, "foreach": False})
    group = optimizer.param_groups[1]
    assert (group["adder_eta"], group["momentum"], group["nesterov"], group["foreach"]) == (0.1, 0.8, True, False)
    args.opt_args = {"eta": 0.4}
    assert timm.optim.create_optimizer(args, model).param_groups[0]["adder_eta"] == 0.4
    with pytest.raises(ValueError, match="eta must be"):
        timm.optim.create_optimizer_v2(model, **options, eta=-1)


def test_lookahead_around_the_rule():
    model = Filter()
    options = {"lr": 0.1, "weight_decay": 0.0, "momentum": 0.9}
    optimizers = [
        timm.optim.create_optimizer_v2(model, opt="lookahead_addersgd", eta=0.3, **options),
        adaptive_lr(
            timm.optim.Lookahead(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)), 0.3
        ),
    ]
    parameters = list(model.parameters())
    start = copy.deepcopy(model.state_dict())
    steps = [[torch.randn_like(p) for p in parameters] for _ in range(12)]
    # The sixth step sets the slow weights; the twelfth meets them half way.
    rule = {"eta": 0.3, "lr": 0.1, "momentum": 0.9, "nesterov": True}
    slow, fast = expected_sgd(parameters, steps[:6], **rule), expected_sgd(parameters, steps, **rule)
    expected = [(a + b) / 2 for a, b in zip(slow, fast, strict=True)]
    for optimizer in optimizers:
        assert isinstance(optimizer, timm.optim.Lookahead)
        model.load_state_dict(start)
        for gradients in steps:
            set_gradients(parameters, gradients)
            optimizer.step()
        assert_equal_to(parameters, expected)


def test_registering_again_says_nothing(caplog):
    with caplog.at_level(logging.WARNING):
        adderzoo.optim._register()
    assert caplog.records == []
    assert {"addersgd", "addermomentum"} <= set(timm.optim.list_optimizers())
