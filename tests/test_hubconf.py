"""torch.hub, as a user meets it: a clone or GitHub's zip file, adderzoo not installed, with and without a compiler."""

import inspect
import json
import os
import re
import shutil
import site
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

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

# `-S` keeps Python from reading the .pth files that an editable installation is made of. Of GitHub, torch.hub sees what
# three URLs answer; any other is a KeyError.
SCRIPT = """
import importlib.util, json, sys, timm, torch, urllib.request, warnings
assert importlib.util.find_spec("adderzoo") is None, "adderzoo is installed"
clone, archive, hub_dir, load_all = sys.argv[1:]
torch.hub.set_dir(hub_dir)
fetched, github, repo, source = [], "OWNER/adderzoo", clone, "local"
if archive:
    repo, source = github, "github"
else:  # list and help take no folder, but what lies where torch.hub keeps clones
    github += ":main"

def urlopen(request):
    url = request if isinstance(request, str) else request.full_url
    fetched.append(url)
    return urllib.request.urlopen({
        "https://github.com/OWNER/adderzoo/tree/main/": "data:,",
        "https://api.github.com/repos/OWNER/adderzoo/branches?per_page=100&page=1":
            'data:application/json,[{"name":"main","commit":{"sha":"0123456"}}]',
        "https://github.com/OWNER/adderzoo/zipball/main": f"file://{archive}",
    }[url])

torch.hub.urlopen = urlopen
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    names = torch.hub.list(github, trust_repo=True)
    helps = {name: torch.hub.help(github, name, trust_repo=True) for name in names}
    pretrained = torch.hub.load(repo, "adder_lenet5", source=source, trust_repo=True, pretrained=True).eval()
    torch.manual_seed(0)
    with torch.inference_mode():
        logits = pretrained(torch.randn(4, 1, 32, 32))
torch.save({"state": pretrained.state_dict(), "logits": logits}, f"{hub_dir}/pretrained.pth")
models = {}
for name in names if load_all else []:
    super_resolution = timm.get_pretrained_cfg(name).num_classes == 0
    device = "meta" if super_resolution else "cpu"  # EDSR is large
    arguments = {} if super_resolution else {"num_classes": 7}
    with torch.device(device):
        model = torch.hub.load(repo, name, source=source, trust_repo=True, **arguments)
    channels, size, _ = model.pretrained_cfg["input_size"]
    size = min(size, 32)  # ImageNet's networks take any
    shape = list(model.eval()(torch.zeros(2, channels, size, size, device=device)).shape)
    models[name] = [model.pretrained_cfg["architecture"], shape, sorted(model.state_dict())]
import adderzoo
print(json.dumps({
    "file": adderzoo.__file__, "backend": adderzoo.ops.backend(), "names": names, "helps": helps, "models": models,
    "fetched": fetched, "warnings": [str(each.message) for each in caught if "adderzoo" in str(each.message)],
}))
"""


class Hub(NamedTuple):
    """What a process saw through torch.hub."""

    folder: Path  # torch.hub's own
    zipped: bool
    compiler: bool
    said: dict[str, Any]

    @property
    def pretrained(self) -> dict[str, Any]:
        return torch.load(self.folder / "pretrained.pth", weights_only=True)


def make_clone(folder: Path) -> Path:
    shutil.copytree(CHECKOUT / "adderzoo", folder / "adderzoo", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    shutil.copytree(CHECKOUT / "csrc", folder / "csrc")
    shutil.copy2(CHECKOUT / "hubconf.py", folder)
    return folder


def run_hub(folder: Path, extensions: Path, zipped: bool, compiler: bool, load_all: bool = False) -> Hub:
    """torch.hub's functions in a process in which adderzoo is not installed.

    Args:
        folder: For torch.hub, which does not exist yet.
        extensions: Where the operator is built on first use.
        zipped: The repository is fetched as GitHub's zip file; else it is a clone.
        compiler: There is one.
        load_all: Load every network and run it.
    """
    folder.mkdir()
    clone, archive = folder / "OWNER_adderzoo_main", ""
    if zipped:  # GitHub names the folder in it by the commit
        make_clone(folder.with_name(f"{folder.name}_github") / "OWNER-adderzoo-0123456")
        packed = folder.with_name(f"{folder.name}_zipball")
        archive = shutil.make_archive(str(packed), "zip", f"{folder}_github", "OWNER-adderzoo-0123456")
    else:
        make_clone(clone)
    programs = folder / "programs"
    programs.mkdir()
    if compiler:  # which takes a third of the time if it does not optimize
        (programs / "compile").write_text('#!/bin/sh\nexec c++ "$@" -O0\n')
        (programs / "compile").chmod(0o755)
        variables = {"TORCH_EXTENSIONS_DIR": str(extensions), "CXX": str(programs / "compile")}
    else:
        variables = {"TORCH_EXTENSIONS_DIR": str(folder), "CXX": "no-such-compiler", "PATH": str(programs)}
    variables["PYTHONPATH"] = os.pathsep.join([*site.getsitepackages(), site.getusersitepackages()])
    done = subprocess.run(
        [sys.executable, "-S", "-c", SCRIPT, clone, archive, folder, "all" if load_all else ""],
        cwd=folder,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return Hub(folder, zipped, compiler, json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def hubs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Hub]:
    """A clone and GitHub's zip file, each with and without a compiler; two processes at a time."""
    root = tmp_path_factory.mktemp("torch_hub")
    with ThreadPoolExecutor() as pool:
        first = {
            "clone": pool.submit(run_hub, root / "clone", root / "build", zipped=False, compiler=True),
            "zip, no compiler": pool.submit(run_hub, root / "zip_bare", root / "build", zipped=True, compiler=False),
        }
        hubs = {name: future.result() for name, future in first.items()}
        second = {
            "zip": pool.submit(run_hub, root / "zip", root / "build", zipped=True, compiler=True, load_all=True),
            "clone, no compiler": pool.submit(run_hub, root / "bare", root / "build", zipped=False, compiler=False),
        }
        return hubs | {name: future.result() for name, future in second.items()}


@pytest.fixture(params=["clone", "zip", "clone, no compiler", "zip, no compiler"])
def hub(request: pytest.FixtureRequest, hubs: dict[str, Hub]) -> Hub:
    return hubs[request.param]


def test_the_copy_is_what_runs(hub: Hub) -> None:
    assert Path(hub.said["file"]) == hub.folder / "OWNER_adderzoo_main" / "adderzoo" / "__init__.py"


def test_the_operator_is_compiled_on_first_use_or_a_warning_says_why_not(hub: Hub) -> None:
    if hub.compiler:
        assert hub.said["backend"].startswith("compiled on first use")
        assert hub.said["warnings"] == []
    else:
        assert hub.said["backend"] == "PyTorch reference"
        (warning,) = hub.said["warnings"]
        assert "there is no C++ compiler, no-such-compiler is not found" in warning


def test_sources_are_compiled_once(hubs: dict[str, Hub]) -> None:
    assert len(list((hubs["clone"].folder.parent / "build").glob("adderzoo_*/*.so"))) == 1


def test_the_zip_file_is_fetched_once_and_a_clone_never(hub: Hub) -> None:
    assert [url.rpartition("/")[2] for url in hub.said["fetched"] if "zipball" in url] == ["main"] * hub.zipped
    assert bool(hub.said["fetched"]) == hub.zipped
    assert not list(hub.folder.glob("*.zip"))


def test_hub_lists_the_networks_and_nothing_else(hub: Hub) -> None:
    assert {"adder_lenet5", "adder_resnet20", "cnn_resnet20"} <= NETWORKS
    assert sorted(hub.said["names"]) == sorted(NETWORKS)


def test_every_network_has_a_help_text(hub: Hub) -> None:
    assert hub.said["helps"].keys() == set(hub.said["names"])
    assert all(text and text.strip().endswith(".") for text in hub.said["helps"].values())


def test_every_network_loads_by_its_name_with_its_arguments(hubs: dict[str, Hub]) -> None:
    hub = hubs["zip"]
    for name in hub.said["names"]:
        architecture, shape, keys = hub.said["models"][name]
        assert architecture == name
        scale = int(name[-1]) if name[-3:-1] == "_x" else 2
        assert shape == ([2, 3, 32 * scale, 32 * scale] if "dsr" in name or name == "bicubic" else [2, 7])
        with torch.device("meta"):
            assert keys == sorted(timm.create_model(name).state_dict())


def test_pretrained_weights_are_those_of_timm(hub: Hub) -> None:
    network = timm.create_model("adder_lenet5", pretrained=True).eval()
    expected, got = network.state_dict(), hub.pretrained["state"]
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[key], value) for key, value in expected.items())
    torch.manual_seed(0)
    with torch.inference_mode():
        torch.testing.assert_close(hub.pretrained["logits"], network(torch.randn(4, 1, 32, 32)), rtol=1e-3, atol=1e-3)


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
    modules = {"PIL" if name == "pillow" else name for name in required}
    assert set(namespace["dependencies"]) == modules - {"ninja", "pyyaml"}
