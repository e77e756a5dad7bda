"""What every operator's layer has to survive: files, export, scripting and compilation."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

Images = Callable[[int], Tensor]  # of as many as are asked for, (N, 4, 7, 8)


def check_compiled(layer: nn.Module, images: Images, backend: str) -> None:
    """Every batch size is served with one recompilation."""
    torch.compiler.reset()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    for batch in (2, 3, 5):
        x = images(batch)
        torch.testing.assert_close(compiled(x), layer(x))
        assert compiled(x).stride() == layer(x).stride()
    assert counter.frame_count <= 2  # the first batch, then any batch


def check_exported(layer: nn.Module, images: Images, operator: Any, file: Path) -> None:
    """A program that calls the operator twice survives a file and takes any batch and size."""
    dims = {0: torch.export.Dim("batch", min=1), 2: torch.export.Dim("height", min=2)}
    program = torch.export.export(layer.eval(), (images(2),), dynamic_shapes={"x": dims})
    assert [node.target for node in program.graph.nodes].count(operator.default) == 2
    torch.export.save(program, file)
    loaded = torch.export.load(file).module()
    for batch in (1, 2, 7):
        x = images(batch)[:, :, batch % 3 :]
        assert loaded(x).equal(layer(x))


def check_recorded(layer: nn.Module, images: Images, way: str) -> None:
    """What "script", "trace" or "fx" makes of a layer, saved and loaded, gives the same output."""
    if way == "fx":
        recorded: Any = torch.fx.symbolic_trace(layer)
    else:
        file = io.BytesIO()
        torch.jit.save(torch.jit.script(layer) if way == "script" else torch.jit.trace(layer, images(2)), file)
        file.seek(0)
        recorded = torch.jit.load(file)
    x = images(5)
    assert recorded(x).equal(layer(x))
