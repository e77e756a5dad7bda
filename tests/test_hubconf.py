"""torch.hub, as a user meets it: a plain copy of the checkout, the package not installed."""

import inspect
import json
import os
import re
import shutil
import site
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import adderzoo  # noqa: F401 - registers its networks with timm

CHECKOUT = Path(__file__).resolve().parent.parent

# The entry points as they stand in the sources.
NETWORKS = {
    name
    for file in (CHECKOUT / "adderzoo" / "models").glob("*.py")
    for name in re.findall(r"^@register_model\ndef (\w+)\(", file.read_text(), re.MULTILINE)
}

# `-S` keeps Python from reading the .pth files that an editable installation is made of.
SCRIPT = """
import importlib.util, json, sys, timm, torch
assert importlib.util.find_spec("adderzoo") is None, "adderzoo is installed"
repo, hub_dir = sys.argv[1:3]
torch.hub.set_dir(hub_dir)
github = "OWNER/adderzoo:main"  # lies in that folder already, so that nothing is fetched
names = torch.hub.list(github, trust_repo=True)
helps = {name: torch.hub.help(github, name, trust_repo=True) for name in names}
torch.hub.load(github, names[0], trust_repo=True)
models = {}
for name in names:
    super_resolution = timm.get_pretrained_cfg(name).num_classes == 0
    with torch.device("meta" if super_resolution else "cpu"):  # EDSR is large
        model = torch.hub.load(repo, name, source="local", **({} if super_resolution else {"num_classes": 7}))
    channels, size, _ = model.pretrained_cfg["input_size"]
    size = min(size, 64)  # ImageNet's networks take any
    device = "meta" if super_resolution else "cpu"
    shape = list(model.eval()(torch.zeros(2, channels, size, size, device=device)).shape)
    models[name] = [model.pretrained_cfg["architecture"], shape, sorted(model.state_dict())]
pretrained = torch.hub.load(repo, "adder_lenet5", source="local", pretrained=True)
torch.save(pretrained.state_dict(), f"{hub_dir}/pretrained.pth")
import adderzoo
backend = adderzoo.ops.backend()
print(json.dumps({"file": adderzoo.__file__, "backend": backend, "names": names, "helps": helps, "models": models}))
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub") / "OWNER_adderzoo_main"
    shutil.copytree(CHECKOUT / "adderzoo", root / "adderzoo", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    shutil.copytree(CHECKOUT / "csrc", root / "csrc")
    shutil.copy2(CHECKOUT / "hubconf.py", root)
    return root


@pytest.fixture(scope="module")
def hub(copy: Path) -> dict[str, Any]:
    paths = [*site.getsitepackages(), site.getusersitepackages()]
    done = subprocess.run(
        [sys.executable, "-S", "-c", SCRIPT, copy, copy.parent],
        cwd=copy.parent,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "TORCH_EXTENSIONS_DIR": str(copy.parent / "build")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_copy_is_what_runs_with_an_operator_that_is_compiled_on_first_use(hub: dict[str, Any], copy: Path) -> None:
    assert Path(hub["file"]) == copy / "adderzoo" / "__init__.py"
    assert hub["backend"].startswith("compiled on first use")
    assert list((copy.parent / "build").glob("adderzoo_*/*.so"))


def test_hub_lists_the_networks_and_nothing_else(hub: dict[str, Any]) -> None:
    assert {"adder_lenet5", "adder_resnet20", "cnn_resnet20"} <= NETWORKS
    assert sorted(hub["names"]) == sorted(NETWORKS)


def test_every_network_has_a_help_text(hub: dict[str, Any]) -> None:
    assert hub["helps"].keys() == set(hub["names"])
    assert all(text and text.strip().endswith(".") for text in hub["helps"].values())


def test_every_network_loads_by_its_name_with_its_arguments(hub: dict[str, Any]) -> None:
    for name in hub["names"]:
        architecture, shape, keys = hub["models"][name]
        assert architecture == name
        scale = int(name[-1]) if name[-3:-1] == "_x" else 2
        assert shape == ([2, 3, 64 * scale, 64 * scale] if "dsr" in name or name == "bicubic" else [2, 7])
        with torch.device("meta"):
            assert keys == sorted(timm.create_model(name).state_dict())


def test_pretrained_weights_are_those_of_timm(hub: dict[str, Any], copy: Path) -> None:
    expected = timm.create_model("adder_lenet5", pretrained=True).state_dict()
    got = torch.load(copy.parent / "pretrained.pth", weights_only=True)
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[key], value) for key, value in expected.items())


@pytest.fixture(scope="module")
def namespace() -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec((CHECKOUT / "hubconf.py").read_text(), names)
    return names


def test_hubconf_has_nothing_public_but_networks_and_dependencies(namespace: dict[str, Any]) -> None:
    assert {name for name in namespace if not name.startswith("_")} == NETWORKS | {"dependencies"}


def test_every_network_is_untrained_unless_asked_for(namespace: dict[str, Any]) -> None:
    for name in NETWORKS:
        first, *_ = inspect.signature(namespace[name]).parameters.values()
        assert (first.name, first.default) == ("pretrained", False)
        assert namespace[name] is timm.model_entrypoint(name)


def test_dependencies_are_what_the_package_needs_to_run(namespace: dict[str, Any]) -> None:
    with (CHECKOUT / "pyproject.toml").open("rb") as file:
        required = {entry.split(">")[0] for entry in tomllib.load(file)["project"]["dependencies"]}
    # ninja is a command, needed to compile only; torch.hub looks for modules, and timm has PyYAML's.
    assert set(namespace["dependencies"]) == required - {"ninja", "pyyaml"}
