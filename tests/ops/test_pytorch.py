"""The private names of PyTorch that the package needs: they are these, PyTorch has them, and no other file has any."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import adderzoo
from adderzoo.ops import _pytorch

PACKAGE = Path(adderzoo.__file__).parent
NAMES = [
    "torch._C._AutoDispatchBelowAutograd",
    "torch._C.DispatchKey",
    "torch._C.DispatchKeySet",
    "torch._C._ExcludeDispatchKeyGuard",
    "torch._C._are_functorch_transforms_active",
    "torch._check",
    "torch._foreach_clamp_min_",
    "torch._foreach_div_",
    "torch._foreach_norm",
    "torch._inductor",
    "torch._inductor.config",
    "torch._inductor.runtime.cache_dir_utils.default_cache_dir",
    "torch.autograd.forward_ad._current_level",
    "torch.cpu._is_vnni_supported",
    "torch.nn.modules.batchnorm._NormBase",
    "torch.nn.modules.conv._ConvNd",
    "torch.nn.modules.conv._ConvTransposeNd",
    "torch.nn.modules.module._has_any_global_hook",
    "torch.ops.aten._native_batch_norm_legit",
    "torch.ops.aten._native_batch_norm_legit_no_training",
    "torch.utils._python_dispatch.TorchDispatchMode",
]


def is_private(name: str) -> bool:
    parts = name.split(".")
    own = parts[:3] == ["torch", "ops", "adderzoo"]
    return parts[0] == "torch" and not own and any(part.startswith("_") and part[1:2] != "_" for part in parts)


def private_names(source: str) -> Iterator[str]:
    """Those of PyTorch that a file imports, or reads of what it imports."""
    tree = ast.parse(source)
    imported: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for each in node.names:
                imported[each.asname or each.name.partition(".")[0]] = (
                    each.name if each.asname else each.name.partition(".")[0]
                )
                if is_private(each.name):
                    yield each.name
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for each in node.names:
                name = imported[each.asname or each.name] = f"{node.module}.{each.name}"
                if is_private(name):
                    yield name
    inner = {node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        parts: list[str] = []
        root: ast.AST = node
        while isinstance(root, ast.Attribute):
            parts.insert(0, root.attr)
            root = root.value
        if node not in inner and parts and isinstance(root, ast.Name) and root.id in imported:
            name = ".".join([imported[root.id], *parts])
            if is_private(name):
                yield name


def test_the_search_sees_every_form_of_a_private_name() -> None:
    source = (
        "import torch\nimport torch._a\nimport torch.b._c as d\nfrom torch._e import f\nfrom torch.g import _h as i\n"
        "from torch import j\nfrom torch.k import l\n"
        "torch.m._n(torch.ops.adderzoo._own, torch.__version__)\nj._o\nl.p.q\ndef r():\n    from torch.s import _t\n"
    )
    expected = {"torch._a", "torch.b._c", "torch._e.f", "torch.g._h", "torch.m._n", "torch.j._o", "torch.s._t"}
    assert set(private_names(source)) == expected


def test_the_names_are_these() -> None:
    assert sorted(set(private_names(Path(_pytorch.__file__).read_text()))) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_pytorch_has_the_name(name: str) -> None:
    value: object = torch
    path = "torch"
    for part in name.split(".")[1:]:
        path += f".{part}"
        if not hasattr(value, part):
            value = importlib.import_module(path)
        value = getattr(value, part) if hasattr(value, part) else value


@pytest.mark.parametrize("kind", _pytorch.OF_MODULES)
def test_modules_have_the_names(kind: type[nn.Module]) -> None:
    module = kind(1, 1, 1) if kind is not nn.Module else kind()
    for name in _pytorch.OF_MODULES[kind]:
        assert hasattr(module, name), name


def test_no_other_file_has_any() -> None:
    found = {
        str(path.relative_to(PACKAGE)): names
        for path in PACKAGE.rglob("*.py")
        if path != Path(_pytorch.__file__) and (names := sorted(set(private_names(path.read_text()))))
    }
    assert not found


def test_an_operator_tells_its_defaults() -> None:
    assert _pytorch.defaults_of(torch.ops.aten.relu) == {"self": None}
    assert _pytorch.defaults_of(torch.ops.adderzoo.adder2d) == {
        "input": None,
        "weight": None,
        "stride": [1, 1],
        "padding": [0, 0],
        "dilation": [1, 1],
        "groups": 1,
        "input_grad": "hardtanh",
        "weight_grad": "full",
    }
