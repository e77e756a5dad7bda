"""Ways that a network goes: files, copies and recorded programs, all of which have to give its output."""

import copy
import io
import pickle
from collections.abc import Callable

import torch
from torch import Tensor, nn


def through_torch_save(network: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def through_torchscript(program: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    file = io.BytesIO()
    torch.jit.save(program, file)
    file.seek(0)
    return torch.jit.load(file)


def through_export(network: nn.Module, x: Tensor) -> nn.Module:
    dynamic_shapes = ({0: torch.export.Dim("batch")},)
    file = io.BytesIO()
    torch.export.save(torch.export.export(network, (x,), dynamic_shapes=dynamic_shapes), file)
    file.seek(0)
    return torch.export.load(file).module()


def ways(images: Callable[[], Tensor]) -> dict[str, Callable[[nn.Module], nn.Module]]:
    """By name, for networks that take these images alone."""
    return {
        "torch.save": through_torch_save,
        "pickle": lambda network: pickle.loads(pickle.dumps(network)),
        "deepcopy": copy.deepcopy,
        "script": lambda network: through_torchscript(torch.jit.script(network)),
        "trace": lambda network: through_torchscript(torch.jit.trace(network, images())),
        "fx": torch.fx.symbolic_trace,
        "export": lambda network: through_export(network, images()),
        "compile": lambda network: torch.compile(network, backend="aot_eager", fullgraph=True),
    }
