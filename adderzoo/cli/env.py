"""`adderzoo env`."""

import argparse
import os
import platform
import shutil
import subprocess
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import adderzoo

from ._parser import Parser
from ._results import add_json_argument, open_results
from ._table import align

# What a result may depend on, beside this package.
_PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "safetensors", "huggingface_hub")
# By name: others may be secrets, such as a token of the Hub.
_SETTINGS = (
    *("ADDERZOO_CPU_CAPABILITY", "ADDERZOO_CUDA", "ATEN_CPU_CAPABILITY", "CUDA_HOME", "CUDA_VISIBLE_DEVICES", "CXX"),
    *("HF_ENDPOINT", "HF_HUB_OFFLINE", "OMP_NUM_THREADS", "TORCH_EXTENSIONS_DIR"),
)


def add_arguments(parser: Parser) -> None:
    parser.explain(
        "[options]",
        "adderzoo env",
        "adderzoo env --json env.json",
        description="That includes parts that did not load, and why.",
    )
    add_json_argument(parser, "the same")


def run(args: argparse.Namespace) -> None:
    with open_results(args) as results:
        found = describe()
        results.show(
            align([(f"{name.replace('_', ' ')}:", _text(value)) for name, value in found.items()], left={0, 1})
        )
        results.write(found)


def describe() -> dict[str, Any]:
    """What a bug report needs, whatever of it is missing or broken here."""
    found: dict[str, Any] = {"adderzoo": f"{adderzoo.__version__} in {Path(adderzoo.__file__).parent}"}
    found |= {"python": platform.python_version(), "system": platform.platform()}
    found |= {name: _version(name) for name in _PACKAGES}
    found["compiler"] = _compiler()
    found["settings"] = {name: os.environ[name] for name in _SETTINGS if name in os.environ}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reasons are among what failed
        try:
            found |= _machine()
        except Exception as error:  # a PyTorch that does not load is what the report is about
            found["failed"] = [f"{type(error).__name__}: {error}"]
    return found


def _machine() -> dict[str, Any]:
    import torch

    from adderzoo import ops
    from adderzoo.engine.benchmark import describe_machine

    machine = describe_machine()
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "processor": machine.processor,
        "instructions": " ".join(machine.instructions),
        "cores": machine.cores,
        "threads": machine.threads,
        "cuda": torch.version.cuda or "none",
        "gpus": gpus,
        **ops.describe(),
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _compiler() -> str:
    """What would compile the operator on first use."""
    words = (os.environ.get("CXX") or "c++").split()
    if shutil.which(words[0]) is None:
        return f"none, {words[0]} is not found"
    done = subprocess.run([*words, "--version"], capture_output=True, text=True, check=False)
    return (done.stdout.splitlines() or ["unknown"])[0]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        value = [f"{name}={each}" for name, each in value.items()]
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)
