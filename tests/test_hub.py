"""Weights from the Hugging Face Hub, by huggingface_hub's and timm's own clients: where from, checks, faults."""

import hashlib
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hub_server import Fault, HubServer, environment
from huggingface_hub import constants
from safetensors.torch import load as load_bytes
from safetensors.torch import load_file, save
from timm.models import save_for_hf
from torch import nn

import adderzoo.models
from adderzoo import hub as adderzoo_hub
from adderzoo.checkpoints import create_model
from adderzoo.hub import from_hub, hub_id
from adderzoo.models import _builder

pytestmark = pytest.mark.usefixtures("one_thread")

NAME = "adder_lenet5.digits"
REPO = f"ours/{NAME}"
PACKAGED = adderzoo.models.WEIGHTS / f"{NAME}.safetensors"
WEIGHTS = PACKAGED.read_bytes()
FIRST = load_file(PACKAGED)["conv1.weight"]
CONTENT = rf"/content/{hashlib.sha256(WEIGHTS).hexdigest()}"


@pytest.fixture(autouse=True)
def all_is_published(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it will be."""
    if "before_publication" not in request.node.name:
        monkeypatch.setattr(adderzoo_hub, "HUB_ORGANIZATION", "ours")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    """Of a repository, in timm's format."""
    save_for_hf(timm.create_model(NAME, pretrained=True), tmp_path / "made", safe_serialization=True)
    return {"config.json": (tmp_path / "made" / "config.json").read_bytes(), "model.safetensors": WEIGHTS}


@pytest.fixture
def published(hub: HubServer, files: dict[str, bytes]) -> HubServer:
    hub.commit(REPO, files)
    return hub


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., nn.Module]:
    """`pretrained=True` of a package that has the sums of its weights, but not the weights."""
    bare = tmp_path / "package"
    bare.mkdir()
    shutil.copy(adderzoo.models.WEIGHTS / "SHA256SUMS", bare)
    monkeypatch.setattr(_builder, "WEIGHTS", bare)

    def create(name: str = NAME, **kwargs: Any) -> nn.Module:
        own = {"file": str(bare / f"{NAME}.safetensors"), "hf_hub_id": hub_id(NAME)}
        overlay = {"pretrained_cfg_overlay": own} if name == NAME else {}
        return timm.create_model(name, pretrained=True, **overlay, **kwargs)

    return create


def other_weights() -> bytes:
    """Those of the package's own file with another last byte: a valid file, of the same size."""
    return WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1])


def cached(tmp_path: Path, folder: str = "hub", repo: str = REPO) -> Path:
    (file,) = (tmp_path / folder).glob(f"models--{repo.replace('/', '--')}/snapshots/*/model.safetensors")
    return file


def no_weights_are_in(folder: Path) -> bool:
    return not [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 100_000]


def assert_published(network: nn.Module) -> None:
    assert torch.equal(network.get_parameter("conv1.weight"), FIRST)


# ----------------------------------------------------------------------------------------------------------- the order


IDS = """
import sys
sys.argv = ["adderzoo"]  # the command, which does not import the networks at once
import adderzoo.hub
adderzoo.hub.HUB_ORGANIZATION = "ours"
import timm
from adderzoo.models import WEIGHTS
for path in WEIGHTS.glob("*.safetensors"):
    print(path.stem, timm.get_pretrained_cfg(path.stem).hf_hub_id)
"""


def test_every_tag_with_a_file_has_its_repository_on_the_hub_once_it_is_there() -> None:
    done = subprocess.run([sys.executable, "-c", IDS], capture_output=True, text=True, check=True)
    found = dict(line.split() for line in done.stdout.splitlines())
    assert found == {path.stem: f"ours/{path.stem}" for path in adderzoo.models.WEIGHTS.glob("*.safetensors")}


def test_before_publication_nothing_says_where_weights_are_on_the_hub() -> None:
    assert adderzoo_hub.HUB_ORGANIZATION is None, "published: README.md, limits.md and publishing.md say otherwise"
    ours = [
        name for name in timm.list_models("*.*", module="", include_tags=True) if name.startswith(("adder_", "cnn_"))
    ]
    assert {path.stem for path in adderzoo.models.WEIGHTS.glob("*.safetensors")} <= set(ours)
    assert {timm.get_pretrained_cfg(name).hf_hub_id for name in ours} == {None}


def test_before_publication_weights_that_are_missing_are_not_looked_for_elsewhere(
    hub: HubServer, load: Callable[..., nn.Module]
) -> None:
    with pytest.raises(OSError, match=rf"{NAME}\.safetensors is missing: install adderzoo again"):
        load()
    assert hub.requests == []


def test_before_publication_a_repository_named_by_the_user_is_loaded(published: HubServer) -> None:
    assert_published(timm.create_model(f"hf-hub:{REPO}", pretrained=True))


def test_weights_of_a_tag_whose_sum_is_not_known_are_not_loaded(
    published: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else whoever has the organization's name on the Hub could have any weights loaded."""
    monkeypatch.setattr(_builder, "_published_sha256", dict)
    with pytest.raises(OSError, match=rf"{REPO} is not loaded: the package does not know its SHA-256"):
        timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay={"file": None, "hf_hub_id": REPO})
    assert published.requests == []


def test_a_file_in_the_package_comes_first_and_the_hub_is_not_asked(published: HubServer) -> None:
    published.commit(REPO, {"model.safetensors": other_weights()})
    assert_published(timm.create_model(NAME, pretrained=True))
    assert published.requests == []


def test_the_hub_comes_last_and_the_cache_before_it(
    published: HubServer, load: Callable[..., nn.Module], tmp_path: Path
) -> None:
    network = load()
    assert_published(network)
    assert network.pretrained_cfg["file"] == str(cached(tmp_path))
    assert published.requests == [f"HEAD /{REPO}/resolve/main/model.safetensors", f"GET {CONTENT}"]
    assert_published(load())
    assert len(published.requests) == 2  # no more than before


def test_cache_dir_is_where_the_file_goes_and_comes_from(
    published: HubServer, load: Callable[..., nn.Module], tmp_path: Path
) -> None:
    load(cache_dir=tmp_path / "elsewhere")
    assert cached(tmp_path, "elsewhere").read_bytes() == WEIGHTS
    assert not (tmp_path / "hub").exists()
    published.requests.clear()
    assert_published(load(cache_dir=tmp_path / "elsewhere"))
    assert published.requests == []


def test_weights_of_the_hub_adapt_to_other_classes(published: HubServer, load: Callable[..., nn.Module]) -> None:
    network = load(num_classes=5)
    assert_published(network)
    assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 5)


def test_offline_the_cache_is_enough(
    published: HubServer, load: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    load()
    published.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_published(load())
    assert published.requests == []


def test_offline_without_a_file_in_the_cache_is_an_error(
    published: HubServer, load: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=rf"model.safetensors of {REPO} cannot be had from .*offline mode is enabled"):
        load()
    assert published.requests == []


PROCESS = """
import sys, timm, torch, adderzoo
network = timm.create_model(sys.argv[1], pretrained=True)
print(network.pretrained_cfg["file"], network.conv1.weight.double().sum().item())
"""


def test_variables_of_the_environment_are_respected(published: HubServer, tmp_path: Path) -> None:
    """By processes of their own, since huggingface_hub reads them when it is imported."""

    def run(**more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", PROCESS, f"hf-hub:{REPO}"]
        environ = environment(published, tmp_path / "cache", OMP_NUM_THREADS="1", **more)
        return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300)

    online = run()
    assert online.returncode == 0, online.stderr
    assert f"GET {CONTENT}" in published.requests
    file, total = online.stdout.split()
    assert Path(file) == cached(tmp_path, "cache")
    assert float(total) == FIRST.double().sum().item()
    published.requests.clear()
    offline = run(HF_HUB_OFFLINE="1")
    assert offline.stdout == online.stdout, offline.stderr
    assert published.requests == []


# -------------------------------------------------------------------------------------------------- repositories named


def test_a_repository_named_by_the_user_is_loaded_and_its_file_checked_against_the_published_sum(
    published: HubServer,
) -> None:
    assert_published(timm.create_model(f"hf-hub:{REPO}", pretrained=True))
    # Once: timm reads the file that was checked, and does not ask for another.
    assert published.requests.count(f"HEAD /{REPO}/resolve/main/model.safetensors") == 1
    published.commit(REPO, {"model.safetensors": other_weights()})
    with pytest.raises(OSError, match=rf"model.safetensors of {REPO} .* is not used: its SHA-256 is [0-9a-f]{{64}}"):
        timm.create_model(f"hf-hub:{REPO}", pretrained=True, cache_dir=constants.HF_HUB_CACHE + "_new")


def test_a_repository_of_somebody_else_may_have_other_weights(hub: HubServer, files: dict[str, bytes]) -> None:
    hub.commit(f"somebody/{NAME}", files | {"model.safetensors": other_weights()})
    network = timm.create_model(f"hf-hub:somebody/{NAME}", pretrained=True)
    assert any(not torch.equal(load_file(PACKAGED)[key], value) for key, value in network.state_dict().items())


def test_a_revision_named_by_the_user_is_the_one_that_is_loaded(hub: HubServer, files: dict[str, bytes]) -> None:
    first = hub.commit("somebody/tuned", files)
    hub.commit("somebody/tuned", {"model.safetensors": other_weights()})
    for name, content in ((f"somebody/tuned@{first}", WEIGHTS), ("somebody/tuned", other_weights())):
        network = timm.create_model(f"hf-hub:{name}", pretrained=True)
        assert Path(network.pretrained_cfg["file"]).read_bytes() == content


def test_a_repository_of_somebody_else_that_changed_is_loaded_anew(hub: HubServer, files: dict[str, bytes]) -> None:
    hub.commit("somebody/tuned", files)
    timm.create_model("hf-hub:somebody/tuned", pretrained=True)
    hub.commit("somebody/tuned", {"model.safetensors": other_weights()})
    network = timm.create_model("hf-hub:somebody/tuned", pretrained=True)
    assert Path(network.pretrained_cfg["file"]).read_bytes() == other_weights()


def test_a_local_folder_is_loaded_as_it_is(hub: HubServer, files: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, content in (files | {"model.safetensors": other_weights()}).items():
        (folder / name).write_bytes(content)
    network = timm.create_model(f"local-dir:{folder}", pretrained=True)
    expected = load_file(folder / "model.safetensors")
    assert all(torch.equal(expected[key], value) for key, value in network.state_dict().items())
    assert hub.requests == []


@pytest.mark.parametrize("name", ["adder_edsr_small_x2", "cnn_vdsr"])
def test_a_repository_of_a_network_for_super_resolution_is_loaded(name: str, hub: HubServer, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model(name, width=8).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # VDSR begins as bicubic interpolation
    save_for_hf(network, tmp_path / "made", safe_serialization=True)
    hub.commit("somebody/sharp", {file.name: file.read_bytes() for file in (tmp_path / "made").iterdir()})
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(timm.create_model("hf-hub:somebody/sharp", pretrained=True).eval()(x), network(x))


# -------------------------------------------------------------------------------------------------------------- faults


def flip_a_bit(path: Path) -> None:
    path.write_bytes(other_weights())


def cut_short(path: Path) -> None:
    path.write_bytes(WEIGHTS[:1000])


@pytest.mark.parametrize("repo", [REPO, "somebody/tuned"])
@pytest.mark.parametrize("damage", [flip_a_bit, cut_short])
def test_a_damaged_file_in_the_cache_is_fetched_again(
    damage: Callable[[Path], None], repo: str, hub: HubServer, files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.commit(repo, files)
    timm.create_model(f"hf-hub:{repo}", pretrained=True)
    damage(cached(tmp_path, repo=repo))
    hub.requests.clear()
    assert_published(timm.create_model(f"hf-hub:{repo}", pretrained=True))
    assert hub.requests.count(f"GET {CONTENT}") == 1
    assert cached(tmp_path, repo=repo).read_bytes() == WEIGHTS


def test_a_damaged_file_in_the_cache_is_refused_where_it_cannot_be_fetched_again(
    published: HubServer, load: Callable[..., nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load()
    flip_a_bit(cached(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"/model.safetensors is damaged, and .* cannot be had .*offline mode is enabled"):
        load()


@pytest.mark.parametrize("repo", [REPO, "somebody/tuned"])
def test_a_file_damaged_on_its_way_is_fetched_again(repo: str, hub: HubServer, files: dict[str, bytes]) -> None:
    hub.commit(repo, files)
    hub.faults.append(Fault(f"GET {CONTENT}", flip=True, times=1))
    assert_published(timm.create_model(f"hf-hub:{repo}", pretrained=True))
    assert hub.requests.count(f"GET {CONTENT}") == 2


@pytest.mark.parametrize("repo", [REPO, "somebody/tuned"])
def test_a_file_that_always_comes_damaged_is_refused(repo: str, hub: HubServer, files: dict[str, bytes]) -> None:
    hub.commit(repo, files)
    hub.faults.append(Fault(f"GET {CONTENT}", flip=True))
    with pytest.raises(OSError, match=rf"model.safetensors of {repo} .* is not used: its SHA-256 is .*, published is"):
        timm.create_model(f"hf-hub:{repo}", pretrained=True)


def test_weights_that_nobody_says_the_sha256_of_are_said_to_be_unchecked(
    hub: HubServer, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a server has no LFS its ETags are git's SHA-1, or anything."""
    monkeypatch.setattr("hub_server.is_lfs", lambda path: False)
    for repo in ("somebody/tuned", REPO):
        hub.commit(repo, files)
    with pytest.warns(UserWarning, match="safetensors of somebody/tuned is not checked: .* is no SHA-256"):
        assert_published(timm.create_model("hf-hub:somebody/tuned", pretrained=True))
    with warnings.catch_warnings(action="error"):  # the package knows what these are
        assert_published(timm.create_model(f"hf-hub:{REPO}", pretrained=True))


@pytest.mark.parametrize("content", [b"<!DOCTYPE html><p>Sign in", b"", WEIGHTS[:1000], (2**63).to_bytes(8, "little")])
def test_a_file_that_is_no_safetensors_is_named(hub: HubServer, files: dict[str, bytes], content: bytes) -> None:
    hub.commit("somebody/tuned", files | {"model.safetensors": content})
    with pytest.raises(OSError, match=r"/model\.safetensors is no checkpoint, or is damaged: SafetensorError "):
        timm.create_model("hf-hub:somebody/tuned", pretrained=True)
    with pytest.raises(ValueError, match=r"model 'hf-hub:somebody/tuned' cannot be created: .* is no checkpoint"):
        create_model("hf-hub:somebody/tuned", pretrained=True)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (b"[]", r"its config.json is wrong: it must be an object, got \[\]"),
        (b"{", "its config.json is wrong: Expecting property name"),
        (b"[" * 100_000, "its config.json is wrong: it is nested without end"),
        (b'{"architecture": "adder_lenet5", "pretrained_cfg": {"input_size": 5}}', "input_size must be three integers"),
        (b'{"architecture": "adder_lenet5", "model_args": {"checkpoint_path": "x"}}', "would read other files: check"),
        (b'{"architecture": 3}', "architecture must be a name, got 3"),
    ],
)
def test_a_config_that_is_none_is_named(
    hub: HubServer, files: dict[str, bytes], config: bytes, message: str, tmp_path: Path
) -> None:
    hub.commit("somebody/tuned", files | {"config.json": config})
    (tmp_path / "config.json").write_bytes(config)
    for name in ("hf-hub:somebody/tuned", f"local-dir:{tmp_path}"):
        with pytest.raises(ValueError, match=f"model '{name}' cannot be created: .*{message}"):
            create_model(name, pretrained=True)


def test_weights_with_nan_are_refused(hub: HubServer, files: dict[str, bytes]) -> None:
    weights = load_bytes(WEIGHTS)
    weights["conv1.weight"][0, 0, 0, 0] = float("nan")
    hub.commit("somebody/tuned", files | {"model.safetensors": save(weights)})
    with pytest.raises(ValueError, match=r"cannot be used: 1 with NaN or infinity: conv1\.weight"):
        create_model("hf-hub:somebody/tuned", pretrained=True)


def test_a_wrong_file_on_the_hub_is_refused_and_the_right_one_taken_once_it_is_there(
    published: HubServer, load: Callable[..., nn.Module]
) -> None:
    published.commit(REPO, {"model.safetensors": other_weights()})
    for _ in range(2):
        with pytest.raises(OSError, match="is not used"):
            load()
    published.commit(REPO, {"model.safetensors": WEIGHTS})
    assert_published(load())


def test_a_download_that_is_cut_goes_on_where_it_was(published: HubServer, load: Callable[..., nn.Module]) -> None:
    published.faults.append(Fault(f"GET {CONTENT}", cut=100_000, times=1))
    assert_published(load())
    assert published.requests.count(f"GET {CONTENT}") == 2


def test_a_download_that_is_always_cut_leaves_nothing_behind(
    published: HubServer, load: Callable[..., nn.Module], tmp_path: Path
) -> None:
    published.faults.append(Fault(f"GET {CONTENT}", cut=0))
    with pytest.raises(OSError, match=f"model.safetensors of {REPO} cannot be had from the Hugging Face Hub"):
        load()
    assert no_weights_are_in(tmp_path / "hub")
    published.faults.clear()
    assert_published(load())


@pytest.mark.parametrize("status", [401, 403, 404, 500, 503])
def test_a_hub_that_refuses_is_named_with_its_answer(
    status: int, published: HubServer, load: Callable[..., nn.Module], tmp_path: Path
) -> None:
    published.faults.append(Fault(".*", status=status))
    with pytest.raises(
        OSError, match=rf"model.safetensors of {REPO} cannot be had from the Hugging Face Hub: .*{status}"
    ):
        load()
    assert no_weights_are_in(tmp_path / "hub")


def test_a_repository_that_is_not_there_is_named(hub: HubServer, load: Callable[..., nn.Module]) -> None:
    with pytest.raises(OSError, match=rf"model.safetensors of {REPO} cannot be had .*Repository Not Found"):
        load()


def test_a_repository_without_weights_is_named(hub: HubServer) -> None:
    hub.commit("somebody/empty", {"README.md": b"# Nothing yet"})
    with pytest.raises(OSError, match=r"model.safetensors of somebody/empty cannot be had .*Entry Not Found"):
        from_hub("somebody/empty")


def test_a_hub_that_is_not_there_is_an_error(
    hub: HubServer, load: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", nowhere)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OSError, match=rf"model.safetensors of {REPO} cannot be had .*refused"):
        load()
