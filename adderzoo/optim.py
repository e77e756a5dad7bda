"""The adaptive local learning rate of adder filters ("AdderNet", CVPR 2020, eq. 12 and 13), for any optimizer.

Importing this module also registers `addersgd` and `addermomentum` with timm: its `sgd` (Nesterov) and `momentum`
(classical), with this rule and one more option, `eta`.
"""

import math
from functools import reduce
from itertools import compress
from numbers import Real
from typing import Any, TypeVar

import torch
from timm.optim import MADGRAD, SGDP, SGDW, Lars, Lookahead, OptimInfo
from timm.optim._optim_factory import default_registry
from torch import Tensor
from torch.optim import ASGD, LBFGS, SGD, Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from adderzoo.ops._pytorch import foreach_clamp_min_, foreach_div_, foreach_norm

__all__ = ["adaptive_lr"]

# Optimizers whose step grows in proportion to the gradient. All others of torch and timm divide its size out, ...
PROPORTIONAL = (ASGD, SGD, SGDP, SGDW)
# ... except these: MADGRAD keeps its cube root, Lars divides it out only where there is weight decay, LBFGS takes a
# single parameter group.
IN_BETWEEN = (LBFGS, Lars, MADGRAD)

# The options in which an optimizer remembers its rule. In `defaults`, they say that it has one; in a parameter group,
# they are its value. Nothing else of an optimizer, no hook and no attribute, comes through copy.deepcopy and pickle.
ETA = "adder_eta"
LR_FACTOR = "adder_lr_factor"

OptimizerT = TypeVar("OptimizerT", bound=Optimizer)


def adaptive_lr(optimizer: OptimizerT, eta: float = 0.2, rule: str | None = None) -> OptimizerT:
    """Gives the adder filters of an optimizer their adaptive local learning rate ("AdderNet", CVPR 2020, eq. 12, 13).

    The gradients of adder filters are small and differ in size from layer to layer; the paper fixes the root mean
    square of each filter tensor's gradient at `eta`. There are two rules:

    - "gradient", where the step is proportional to the gradient (torch's SGD and ASGD, timm's SGDW and SGDP): every
      step starts with g <- eta * sqrt(k) * g / max(||g||_2, 1e-12) for each filter tensor of k elements, in place, and
      then weight decay and momentum act. By then gradients are accumulated, averaged over processes and unscaled (or,
      with `fused=True` under a GradScaler, about to be: the rule then acts on what they will be). Clipping them
      before the step has no effect on the filters.
    - "lr", where the step divides the size of the gradient out (Adam, Lion, RMSprop, Muon ...), so that scaling it
      would do nothing: an update has a root mean square near the learning rate instead, and the filters get `eta`
      times the learning rate, in parameter groups of their own (a group that also has other parameters is split, the
      others first). Prefer decoupled weight decay (AdamW): decay added to the gradient can drown the filters' own.

    `eta` is kept as the option `adder_eta`, or `adder_lr_factor`, of the parameter groups: like `lr`, it is saved with
    `state_dict` and replaced by `load_state_dict`. Copies of the optimizer keep the rule; copy or pickle it together
    with its model, since :func:`copy.deepcopy` of a parameter alone forgets that it is a filter.

    Filters may be sharded by :func:`torch.distributed.fsdp.fully_shard`, in a model whose optimizer is made after that,
    as PyTorch has it: norms are those of whole filters, and a step is the one without shards. The older
    `FullyShardedDataParallel` cuts filters into flat pieces, of which there are no such norms.

    Groups added later are covered by "gradient"; under "lr", add filters as a group of their own, with `lr` multiplied
    and `adder_lr_factor` set. A scheduler made after this call keeps the factor wherever it multiplies `lr`; absolute
    values in its arguments (`eta_min`, `lr_min`, `warmup_lr_init`, the `max_lr` of OneCycleLR) are the same for all
    groups unless given per group: `max_lr=[group["lr"] for group in optimizer.param_groups]`.

    Args:
        optimizer: Any :class:`torch.optim.Optimizer`, timm's `Lookahead` included, that has adder filters. It is
            changed in place.
        eta: The paper's hyper-parameter, above zero. The authors use 0.2 for every network.
        rule: "gradient" or "lr". By default what fits the class, for torch's and timm's optimizers and their
            subclasses. Others have to say: a wrong guess would not fail, it would just train badly.

    Returns:
        The same optimizer.

    Raises:
        TypeError: if `optimizer` is not an optimizer.
        ValueError: if `eta` or `rule` is none of the above, if `optimizer` has no adder filter or has pieces of some,
            or already has this rule, or if under "lr" it has no `lr` or already has a scheduler, which would lose track
            of split groups.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if isinstance(eta, bool) or not isinstance(eta, Real) or not 0 < eta < math.inf:
        raise ValueError(f"eta must be a finite number above 0, got {eta!r}")
    inner = _inner(optimizer)
    if not any(_is_filter(parameter) for group in inner.param_groups for parameter in group["params"]):
        raise ValueError(
            "optimizer must have at least one adder filter (the weight of an adder layer), got none; with "
            "FullyShardedDataParallel, use torch.distributed.fsdp.fully_shard instead"
        )
    for group in inner.param_groups:
        for parameter in filter(_is_filter, group["params"]):
            if parameter.dim() == 1:
                raise ValueError(
                    f"optimizer must have whole adder filters, got one flat of {parameter.numel()} elements, as "
                    "FullyShardedDataParallel makes them: use torch.distributed.fsdp.fully_shard instead"
                )
    if ETA in inner.defaults or LR_FACTOR in inner.defaults:
        raise ValueError("optimizer already has the adaptive learning rate of adder filters")
    if rule is None and (rule := rule_for(inner)) is None:
        raise ValueError(
            f"no rule is known for {type(inner).__name__}: pass rule='gradient' if its step is proportional to the "
            "gradient, rule='lr' if it divides the size of the gradient out"
        )
    if rule == "gradient":
        inner.defaults[ETA] = float(eta)  # add_param_group takes it from there
        for group in inner.param_groups:
            group[ETA] = float(eta)
    elif rule == "lr":
        _scale_lr(inner, float(eta))
    else:
        raise ValueError(f"rule must be 'gradient', 'lr' or None, got {rule!r}")
    return optimizer


def _is_filter(parameter: Tensor) -> bool:
    return getattr(parameter, "is_adder_filter", False)


def _inner(optimizer: Optimizer) -> Any:
    """Lookahead's own step calls no hooks, that of the optimizer inside does."""
    return optimizer._base_optimizer if isinstance(optimizer, Lookahead) else optimizer


def rule_for(optimizer: Optimizer) -> str | None:
    """The rule of :func:`adaptive_lr` that fits an optimizer of torch or timm; None if that is not known."""
    inner = _inner(optimizer)
    if isinstance(inner, PROPORTIONAL):
        return "gradient"
    # As in "torch.optim.adam.", "torch.optim." and "timm.optim.lion.".
    modules = [f"{cls.__module__}." for cls in type(inner).__mro__ if cls is not Optimizer]
    known = any(module.startswith(("torch.optim.", "timm.optim.")) for module in modules)
    return "lr" if known and not isinstance(inner, IN_BETWEEN) else None


def _scale_lr(optimizer: Optimizer, eta: float) -> None:
    """The rule "lr": eq. 12 and 13 fix the root mean square of a filter's update at lr * eta, and so does this."""
    for index, group in enumerate(optimizer.param_groups):
        if group.get("lr") is None:
            raise ValueError(f"optimizer must have a learning rate to multiply, got lr=None in parameter group {index}")
        if "initial_lr" in group:
            raise ValueError("optimizer already has a learning rate scheduler: call adaptive_lr before creating it")
    optimizer.defaults[LR_FACTOR] = None  # so that _check_groups knows filters added later without their factor
    for group in optimizer.param_groups:
        group[LR_FACTOR] = None
    optimizer.param_groups[:] = [part for group in optimizer.param_groups for part in _split(group, eta)]


def _split(group: dict[str, Any], eta: float) -> list[dict[str, Any]]:
    is_filter = [_is_filter(parameter) for parameter in group["params"]]
    if not any(is_filter):
        return [group]
    filters, others = dict(group), group
    for key in {"params", "param_names"} & group.keys():
        filters[key] = list(compress(group[key], is_filter))
        others[key] = list(compress(group[key], [not mark for mark in is_filter]))
    filters[LR_FACTOR] = eta
    # timm's corrected weight decay compares lr with its value at the start.
    for key in {"lr", "max_lr_snapshot"} & group.keys():
        filters[key] = group[key] * eta
    return [others, filters] if others["params"] else [filters]


def _before_step(optimizer: Optimizer, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """What every optimizer calls ahead of its step; it returns other arguments for it, or None."""
    # Wrappers of optimizers may do without `defaults`.
    defaults = getattr(optimizer, "defaults", {})
    if LR_FACTOR in defaults:
        _check_groups(optimizer)
    if ETA not in defaults:
        return None
    closure = kwargs["closure"] if "closure" in kwargs else next(iter(args[1:]), None)
    if closure is None:
        _scale_gradients(optimizer)
        return None

    # The step gets its gradients from the closure.
    def closure_and_rule() -> Any:
        loss = closure()
        _scale_gradients(optimizer)
        return loss

    if "closure" in kwargs:
        return args, {**kwargs, "closure": closure_and_rule}
    return (args[0], closure_and_rule, *args[2:]), kwargs


def _check_groups(optimizer: Optimizer) -> None:
    for index, group in enumerate(optimizer.param_groups):
        if group.get(LR_FACTOR) is None and any(map(_is_filter, group["params"])):
            raise RuntimeError(
                f"parameter group {index} has adder filters without their learning rate (added, or loaded from an "
                f"optimizer without adaptive_lr): give them a group of their own, with lr multiplied by eta and with "
                f"{LR_FACTOR}=eta"
            )


@torch.no_grad()
def _scale_gradients(optimizer: Optimizer) -> None:
    """The rule "gradient", eq. 12 and 13."""
    # Set by a GradScaler for the time of a fused step, which divides the gradients by it as it reads them.
    grad_scale = getattr(optimizer, "grad_scale", None)
    has_filters = False
    for group in optimizer.param_groups:
        filters = [parameter for parameter in group["params"] if _is_filter(parameter)]
        has_filters = has_filters or bool(filters)
        grads = [parameter.grad for parameter in filters if parameter.grad is not None]
        if grads:
            _scale_to_rms(grads, group.get(ETA, optimizer.defaults[ETA]), grad_scale)
    if not has_filters:
        raise RuntimeError(
            "no parameter of the optimizer is marked as an adder filter any more (a copied parameter loses its mark): "
            "copy optimizer and model together, as copy.deepcopy((model, optimizer))"
        )


def _scale_to_rms(grads: list[Tensor], eta: float, grad_scale: Tensor | None) -> None:
    dtype = reduce(torch.promote_types, (grad.dtype for grad in grads), torch.float32)
    norms = _norms(grads, dtype)
    if grad_scale is not None:
        if any(grad.dtype == torch.float16 for grad in grads):
            # A root mean square of grad_scale * eta leaves no room below 65504. Unfused, GradScaler refuses these too.
            raise RuntimeError("a fused step under GradScaler needs the gradients of adder filters in float32")
        norms = [norm / grad_scale.to(norm.device, non_blocking=True) for norm in norms]
    foreach_clamp_min_(norms, 1e-12)
    foreach_div_(norms, [eta * math.sqrt(grad.numel()) for grad in grads])
    for grad, divisor in zip(map(_shard, grads), norms, strict=True):
        if grad.dtype in (torch.float16, torch.bfloat16):
            # In place, a GPU would first round the divisor to the type of the gradient: in float16 often to zero.
            grad.copy_(grad.to(dtype) / divisor)
        else:
            grad.div_(divisor)


def _norms(grads: list[Any], dtype: torch.dtype) -> list[Tensor]:
    """Those of whole filters, where a gradient is sharded too: a DTensor, of fully_shard or tensor parallelism."""
    if not any(hasattr(grad, "full_tensor") for grad in grads):
        return list(foreach_norm(grads, 2, dtype))
    norms: list[Any] = [torch.linalg.vector_norm(grad, dtype=dtype) for grad in grads]
    return [norm.full_tensor() if hasattr(norm, "full_tensor") else norm for norm in norms]


def _shard(tensor: Any) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _adder_sgd(params: Any, eta: float = 0.2, **kwargs: Any) -> Optimizer:
    return adaptive_lr(SGD(params, **kwargs), eta)


def _register() -> None:
    variants = {"addersgd": ("Nesterov", True), "addermomentum": ("classical", False)}
    for name in variants.keys() - set(default_registry.list_optimizers()):
        momentum, nesterov = variants[name]
        info = OptimInfo(
            name=name,
            opt_class=_adder_sgd,
            description=f"SGD with {momentum} momentum and the adaptive learning rate of adder filters (option eta)",
            has_eps=False,
            has_momentum=True,
            defaults={"nesterov": nesterov},
        )
        default_registry.register(info)


# One hook for all optimizers, which finds the rule in their options: a hook of a single optimizer does not survive
# copy.deepcopy and pickle, and its copy would train without the rule in silence.
register_optimizer_step_pre_hook(_before_step)
_register()
