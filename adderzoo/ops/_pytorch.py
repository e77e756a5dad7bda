"""All private names of PyTorch that this package needs.

The compiled library serves later versions too, which may lack some. A test says which these are, and that no other file
has any.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules import batchnorm, conv
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode

ConvNd = conv._ConvNd
ConvTransposeNd = conv._ConvTransposeNd
NormBase = batchnorm._NormBase

# What subclasses of PyTorch's modules override, call or read.
OF_MODULES: Mapping[type[nn.Module], tuple[str, ...]] = {
    nn.Module: (
        *("_apply", "_load_from_state_dict", "_parameters", "_buffers", "_modules"),
        *("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks"),
    ),
    nn.Conv2d: ("_conv_forward", "_reversed_padding_repeated_twice"),
    nn.ConvTranspose2d: ("_output_padding",),
}

check = torch._check
foreach_clamp_min_ = torch._foreach_clamp_min_
foreach_div_ = torch._foreach_div_
foreach_norm = torch._foreach_norm

# What PyTorch makes of native_batch_norm.
BATCH_NORMS = (torch.ops.aten._native_batch_norm_legit, torch.ops.aten._native_batch_norm_legit_no_training)


def below_autograd() -> AbstractContextManager[None]:
    """Where an operator is called without its gradients."""
    return torch._C._AutoDispatchBelowAutograd()


def without(key: str) -> AbstractContextManager[None]:
    """Where an operator is called without what is registered for a dispatch key."""
    return torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key)))


def transforms_are_active() -> bool:
    """Whether torch.func differentiates; vmap is none of these, it has rules of its own."""
    return torch._C._are_functorch_transforms_active()


def forward_mode_is_active() -> bool:
    """Whether there is a level of forward-mode differentiation."""
    return forward_ad._current_level >= 0


def has_global_hook() -> bool:
    """Whether all modules have a hook."""
    return torch.nn.modules.module._has_any_global_hook()


def defaults_of(operator: Any) -> dict[str, Any]:
    """The arguments of an operator by name, in order, with their defaults; None where there is none."""
    return {argument.name: argument.default_value for argument in operator.default._schema.arguments}


def aot_inductor() -> ModuleType:
    """The module with `aoti_compile_and_package` and `aoti_load_package`, which is slow to import."""
    import torch._inductor

    return torch._inductor


def inductor_config() -> Any:
    """The settings of `torch.compile`'s code generator, which is slow to import."""
    import torch._inductor.config

    return torch._inductor.config


def inductor_cache() -> str:
    """The folder of what `torch.compile` has compiled, unless TORCHINDUCTOR_CACHE_DIR names another."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    return default_cache_dir()


def has_vnni() -> bool:
    """Whether this processor multiplies bytes and adds them up in 32 bits."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.cpu._is_vnni_supported()
