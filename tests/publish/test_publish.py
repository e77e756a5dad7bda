"""scripts/publish.py and a Hub on loopback: what is published, what goes wrong, and that nothing is half published."""

import hashlib
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch
from hub_server import Fault, HubServer, environment
from huggingface_hub import constants
from timm.data import resolve_model_data_config

from adderzoo.models import WEIGHTS, _builder
from adderzoo.publish.card import model_card

pytestmark = pytest.mark.usefixtures("one_thread")

SCRIPT = Path(__file__).resolve().parent.parent.parent / "scripts" / "publish.py"
NAME = "adder_lenet5.digits"
REPO = f"adderzoo/{NAME}"
CONTENT = (WEIGHTS / f"{NAME}.safetensors").read_bytes()
UPLOAD = f"PUT /lfs/{hashlib.sha256(CONTENT).hexdigest()}"
COMMIT = f"POST /api/models/{REPO}/commit/main"

Publish = Callable[..., None]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("publish", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def publish(script: ModuleType, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """The command, with a token that may write; it exits where it fails."""
    monkeypatch.setenv("HF_TOKEN", "hf_writer")

    def run(*options: str, name: str = NAME, repo: str | None = None) -> None:
        monkeypatch.setattr(sys, "argv", ["publish.py", name, "--repo", repo or f"adderzoo/{name}", *options])
        script.main()

    return run


def refused(publish: Publish, message: str, *options: str, **arguments: str) -> None:
    """The command fails, saying this in one line."""
    with pytest.raises(SystemExit) as error:
        publish(*options, **arguments)
    said = str(error.value)
    assert re.match(r"publish\.py: error: \S", said)
    assert re.search(message, said), said
    assert "\n" not in said


# --------------------------------------------------------------------------------------------------- what is published


@pytest.mark.parametrize("name", sorted(path.stem for path in WEIGHTS.glob("*.safetensors")))
def test_the_repository_has_the_weights_their_configuration_and_their_card(
    name: str, publish: Publish, hub: HubServer
) -> None:
    publish(name=name)
    (files,) = hub.commits[f"adderzoo/{name}"]
    assert files.keys() == {"README.md", "config.json", "model.safetensors"}  # and no pickle
    assert files["model.safetensors"] == (WEIGHTS / f"{name}.safetensors").read_bytes()
    assert files["README.md"].decode() == model_card(name)
    config = json.loads(files["config.json"])
    registered = timm.get_pretrained_cfg(name)
    assert (config["architecture"], config["pretrained_cfg"]["tag"]) == tuple(name.split("."))
    assert config["num_classes"] == registered.num_classes
    assert config.get("label_names") == (list(registered.label_names) if registered.label_names else None)
    assert tuple(config["pretrained_cfg"]["mean"]) == registered.mean
    assert str(WEIGHTS.parent.parent) not in files["config.json"].decode()  # no path of this machine


def test_timm_makes_the_network_of_the_repository(publish: Publish, hub: HubServer) -> None:
    publish()
    network = timm.create_model(f"hf-hub:{REPO}", pretrained=True).eval()
    expected = timm.create_model(NAME, pretrained=True).eval()
    x = torch.randn(4, 1, 32, 32)
    assert torch.equal(network(x), expected(x))
    configs = [json.dumps(resolve_model_data_config(each)) for each in (network, expected)]  # lists are tuples there
    assert configs[0] == configs[1]
    assert list(network.pretrained_cfg["label_names"]) == list(expected.pretrained_cfg["label_names"])


def test_a_process_of_its_own_publishes_by_the_variables_of_the_environment(hub: HubServer, tmp_path: Path) -> None:
    environ = environment(hub, tmp_path / "cache", HF_TOKEN="hf_writer", OMP_NUM_THREADS="1")
    command = [sys.executable, str(SCRIPT), NAME, "--repo", REPO]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    *_, url, usage = done.stdout.splitlines()
    assert url.startswith(f"{hub.endpoint}/{REPO}/commit/")
    assert usage == f'timm.create_model("hf-hub:{REPO}", pretrained=True)'
    assert len(hub.commits[REPO]) == 1


def test_a_dry_run_needs_no_token_and_sends_nothing(
    publish: Publish, hub: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    publish("--dry-run")
    assert hub.requests == []
    said = capsys.readouterr().out
    assert re.search(rf"{len(CONTENT):,} bytes  {hashlib.sha256(CONTENT).hexdigest()}  model\.safetensors\n", said)
    assert f"--dry-run: {REPO} is as it was" in said


# -------------------------------------------------------------------------------------------------------- repeating it


def test_publishing_again_changes_and_sends_nothing(publish: Publish, hub: HubServer) -> None:
    publish()
    hub.requests.clear()
    publish()
    assert len(hub.commits[REPO]) == 1
    assert not {UPLOAD, COMMIT} & set(hub.requests)


def test_what_changed_is_published_and_what_did_not_is_not_sent(publish: Publish, hub: HubServer) -> None:
    publish()
    hub.commit(REPO, {"README.md": b"---\nlicense: mit\n---\nAn old card\n", "pictures.md": b"Somebody's own"})
    hub.requests.clear()
    publish()
    assert UPLOAD not in hub.requests
    *_, files = hub.commits[REPO]
    assert files["README.md"].decode() == model_card(NAME)
    assert files["pictures.md"] == b"Somebody's own"


def test_another_file_of_weights_is_replaced(publish: Publish, hub: HubServer) -> None:
    hub.commit(REPO, {"model.safetensors": b"weights of last year"})
    publish()
    assert hub.commits[REPO][-1]["model.safetensors"] == CONTENT


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Fault(UPLOAD, cut=1000), r"http://127\.0\.0\.1:\d+ cannot be reached, or broke off"),
        (Fault(UPLOAD, status=500), "HTTP 500"),
        (Fault("POST /lfs/.*/verify", status=404), "HTTP 404"),
        (Fault(COMMIT, status=503), "HTTP 503"),
        (Fault(".*/preupload/main", status=500), "HTTP 500"),
        (Fault(".*/objects/batch", status=502), "HTTP 502"),
    ],
    ids=lambda value: value.request if isinstance(value, Fault) else "",
)
def test_an_upload_that_breaks_off_publishes_nothing_and_is_repeated(
    fault: Fault, says: str, publish: Publish, hub: HubServer
) -> None:
    hub.faults.append(fault)
    fault.times = 1000
    refused(publish, rf"{REPO} was not published: .*{says}")
    assert hub.commits[REPO] == []  # the repository, without a file
    hub.faults.clear()
    publish()
    assert [sorted(files) for files in hub.commits[REPO]] == [["README.md", "config.json", "model.safetensors"]]


def test_an_update_that_breaks_off_leaves_the_published_files(publish: Publish, hub: HubServer) -> None:
    hub.commit(REPO, {"model.safetensors": b"weights of last year", "config.json": b"{}"})
    hub.faults.append(Fault(UPLOAD, cut=1000))
    refused(publish, "was not published")
    assert hub.commits[REPO] == [{"model.safetensors": b"weights of last year", "config.json": b"{}"}]


def test_weights_that_arrived_before_the_interruption_are_not_sent_again(publish: Publish, hub: HubServer) -> None:
    hub.faults.append(Fault(COMMIT, status=503, times=1))
    refused(publish, "HTTP 503")
    assert UPLOAD in hub.requests
    hub.requests.clear()
    publish()
    assert UPLOAD not in hub.requests
    assert hub.commits[REPO][-1]["model.safetensors"] == CONTENT


@pytest.mark.parametrize("fault", [Fault(UPLOAD, cut=1000, times=1), Fault(UPLOAD, status=500, times=2)])
def test_an_upload_that_fails_once_or_twice_is_retried(fault: Fault, publish: Publish, hub: HubServer) -> None:
    hub.faults.append(fault)
    publish()
    assert fault.times == 0
    assert hub.commits[REPO][-1]["model.safetensors"] == CONTENT


# ------------------------------------------------------------------------------------------------------ what is refused


def test_without_a_token_nothing_is_sent(publish: Publish, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    refused(publish, "there is no token: run `hf auth login`, or set HF_TOKEN")
    assert hub.requests == []


def test_a_token_that_nobody_knows_is_refused(
    publish: Publish, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_unknown")
    refused(publish, rf"{REPO} was not published: the Hub does not know the token \(HTTP 401\)")
    assert hub.commits == {}


def test_a_token_without_permission_is_refused(
    publish: Publish, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    says = r'the token may not write there: .*rights to write under the namespace "adderzoo".*\(HTTP 403\)'
    refused(publish, says)
    assert hub.commits == {}
    hub.commit(REPO, {"model.safetensors": b"weights of last year"})
    refused(publish, says)
    assert len(hub.commits[REPO]) == 1


def test_a_hub_that_cannot_be_reached_is_named(publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    refused(publish, r"http://127\.0\.0\.1:9 cannot be reached")


def test_offline_nothing_is_published(publish: Publish, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(publish, "offline mode is enabled")
    assert hub.requests == []


@pytest.mark.parametrize(
    ("name", "repo", "message"),
    [
        (NAME, "adder_lenet5.digits", r"--repo must be ORG/adder_lenet5\.digits, .* got 'adder_lenet5\.digits'"),
        (NAME, "adderzoo/cnn_lenet5.digits", r"--repo must be ORG/adder_lenet5\.digits"),
        (NAME, "adderzoo/adder_lenet5xdigits", r"--repo must be ORG/adder_lenet5\.digits"),
        ("adder_lenet5.emnist", "adderzoo/adder_lenet5.emnist", "a tag in the registry, got 'adder_lenet5.emnist'"),
        ("resnet50.a1_in1k", "adderzoo/resnet50.a1_in1k", "resnet50.a1_in1k"),
        ("adder_resnet20.huawei_cifar10", "adderzoo/adder_resnet20.huawei_cifar10", "has no file"),
    ],
)
def test_names_that_are_not_the_packages_weights_are_refused(
    name: str, repo: str, message: str, publish: Publish, hub: HubServer
) -> None:
    refused(publish, message, name=name, repo=repo)
    assert hub.requests == []


def test_damaged_weights_are_not_published(
    publish: Publish, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = hashlib.sha256(b"something else").hexdigest()
    monkeypatch.setattr(_builder, "_published_sha256", lambda: {f"{NAME}.safetensors": other})
    refused(publish, rf"{NAME}\.safetensors is damaged: its SHA-256 is .*, published is {other}")
    assert hub.requests == []
