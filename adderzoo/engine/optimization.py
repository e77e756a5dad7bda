"""timm's optimizers and schedules, with the learning rates of adder filters."""

from typing import Any

from timm.optim import create_optimizer_v2, get_optimizer_class, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from adderzoo.files.names import did_you_mean
from adderzoo.layers import Adder2d, AdderLinear, AdderTranspose2d
from adderzoo.optim import LR_FACTOR, PROPORTIONAL, adaptive_lr, rule_for


def create_optimizer(
    model: nn.Module,
    opt: str = "momentum",
    lr: float | None = None,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    eta: float = 0.2,
    filter_lr_scale: float | None = None,
    lr_share: float = 1.0,
    **options: Any,
) -> Optimizer:
    """timm's optimizer of this name, with the adaptive learning rate of adder filters, as the paper's authors use it.

    Args:
        model: Its parameters all decay, BatchNorm's too, but those that its `no_weight_decay` names.
        opt: Such as "momentum" (SGD), "sgd" (with Nesterov's momentum), "adamw".
        lr: Learning rate; None is 0.1 for SGD in all its variants, else the optimizer's own default.
        momentum: Of optimizers that have one.
        weight_decay: Weight decay.
        eta: Of the adaptive learning rate; 0 turns it off. Networks without adder filters do without it.
        filter_lr_scale: In the place of the adaptive rate, what the learning rate of adder filters is multiplied by:
            the "increased learning rate" of the paper's section 4.5. Their weight decay stays what it is for the rest.
        lr_share: What a learning rate that is not given is multiplied by.
        options: Further arguments of timm's `create_optimizer_v2` and of the optimizer.

    Raises:
        ValueError: if timm knows no such optimizer, one of the numbers is nothing it takes, it is of second order, or
            it is none whose steps `eta` can set.
    """
    # What "addersgd" adds to "sgd" is what `eta` says here.
    opt, usual = opt.lower().removeprefix("adder"), lr is None
    if (name := opt.removeprefix("lookahead_")) not in (known := list_optimizers()):
        raise ValueError(f"opt {opt!r} cannot be used: it is not found among timm's{did_you_mean(name, known)}")
    try:
        if lr is None and issubclass(get_optimizer_class(name, False), PROPORTIONAL):
            lr = 0.1
        optimizer = create_optimizer_v2(
            model,
            opt,
            **{"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "filter_bias_and_bn": False, **options},
        )
    except (AssertionError, ImportError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"opt {opt!r} cannot be used: {error}") from error
    if getattr(optimizer, "is_second_order", False):
        raise ValueError(f"opt {opt!r} cannot be used: it needs second derivatives, which training does not compute")
    if any(group["lr"] is None for group in optimizer.param_groups):
        raise ValueError(f"lr must be given for opt {opt!r}, which has no default, got None")
    for group in optimizer.param_groups if usual else []:
        group["lr"] *= lr_share
    if any(isinstance(module, Adder2d | AdderLinear | AdderTranspose2d) for module in model.modules()):
        if filter_lr_scale is not None:
            adaptive_lr(optimizer, filter_lr_scale, rule="lr")
            for group in optimizer.param_groups:
                if group[LR_FACTOR]:  # as if the gradient were multiplied: weight decay acts on it as on others
                    group["weight_decay"] /= filter_lr_scale
        elif eta:
            if rule_for(optimizer) is None:
                raise ValueError(f"opt {opt!r} has no rule for adder filters: eta must be 0 or filter-lr-scale given")
            adaptive_lr(optimizer, eta)
    return optimizer


def create_scheduler(
    optimizer: Optimizer, sched: str, epochs: int, updates_per_epoch: int = 0, **options: Any
) -> Scheduler | None:
    """timm's learning rate scheduler of this name; None for "none".

    Where adder filters have a rate of their own, a multiple of the others', it is that multiple of the whole schedule:
    of `warmup_lr` and `min_lr` too. (But "plateau" never takes a rate below `min_lr`.)

    Args:
        optimizer: With the learning rates to start from.
        sched: Such as "cosine", "step", "multistep", "poly".
        epochs: Length of the schedule.
        updates_per_epoch: Steps of an epoch, for a schedule that acts after every step; 0 for one an epoch.
        options: Further arguments of timm's `create_scheduler_v2`: `warmup_epochs`, `warmup_lr`, `min_lr`,
            `decay_epochs`, `decay_milestones`, `decay_rate`, `patience_epochs`.

    Raises:
        ValueError: if timm knows no such scheduler.
    """
    if sched == "none":
        return None
    for group in optimizer.param_groups:
        if factor := group.get(LR_FACTOR):  # what timm's schedulers multiply every rate of a group by
            group["lr"] /= factor
            group["lr_scale"] = group.get("lr_scale", 1.0) * factor
    try:
        return create_scheduler_v2(
            optimizer,
            sched,
            num_epochs=epochs,
            step_on_epochs=not updates_per_epoch,
            updates_per_epoch=updates_per_epoch,
            **options,
        )[0]
    except (AssertionError, ValueError) as error:
        raise ValueError(f"sched {sched!r} cannot be used: {error}") from error
