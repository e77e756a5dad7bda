"""What a bug report is asked for."""

import json
import platform
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import torch
from commands import Done

import adderzoo as package
from adderzoo import ops
from adderzoo.ops import _library

Command = Callable[..., Done]


def test_versions_machine_and_operator_are_those_of_this_process(
    adderzoo: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_TOKEN", "a secret")
    path = tmp_path / "env.json"
    done = adderzoo("env", "--json", path)
    found = json.loads(path.read_text())
    assert done.status == 0
    assert found["adderzoo"].startswith(package.__version__)
    assert found["python"] == platform.python_version()
    assert all(found[name] == metadata.version(name) for name in ("torch", "torchvision", "timm"))
    assert found["operator"] == ops.backend()
    assert found["cuda"] == (torch.version.cuda or "none")
    assert len(found["gpus"]) == torch.cuda.device_count()
    assert found["cores"] >= 1
    assert found["settings"]["OMP_NUM_THREADS"] == "1"
    assert "secret" not in path.read_text() + done.out
    for name in ("operator", "torch", "processor"):
        assert found[name] in next(line for line in done.out.splitlines() if line.startswith(f"{name}:"))
    if "compiled" in found["operator"]:
        assert any(Path(library).is_file() for library in found["libraries"])
    assert json.loads(adderzoo("env", "--json", "-").out) == found


def test_what_did_not_load_is_said_with_the_reason(adderzoo: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_library, "_reasons", ["there is no C++ compiler"])
    monkeypatch.setattr(_library, "BACKEND", "PyTorch reference")
    lines = adderzoo("env").out.splitlines()
    assert any(line.startswith("operator:") and line.endswith("PyTorch reference") for line in lines)
    assert any(line.startswith("failed:") and "there is no C++ compiler" in line for line in lines)


def test_it_answers_where_pytorch_does_not_load(adderzoo: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    found = json.loads(adderzoo("env", "--json", "-").out)
    assert "import of torch halted" in found["failed"][0]
    assert found["torch"] == metadata.version("torch")
