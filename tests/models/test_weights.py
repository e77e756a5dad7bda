"""Pretrained weights: tags, other heads and channels, files that are not what was published."""

import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import timm.models._builder
import torch
from networks import MODULES, NAMES, TAGS, head_keys, images, logits_norm_name, make, small
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import adderzoo.models
from adderzoo.cli import main
from adderzoo.files.weights import read_state_dict
from adderzoo.models import _builder

pytestmark = pytest.mark.usefixtures("one_thread")

Shared = Callable[[str], Path]

QUANTIZED = [tag for tag in TAGS if re.search(r"_u\d$", tag)]
FLOATS = [tag for tag in TAGS if tag not in QUANTIZED]


class Published:
    """The published weights. For a download stands the same file in ../shared."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared

    def file(self, tag: str) -> Path:
        cfg = timm.get_pretrained_cfg(tag)
        return Path(cfg.file) if cfg.file else self.shared(f"checkpoints/{cfg.url.rpartition('/')[2]}")

    def network(self, tag: str, **kwargs: Any) -> nn.Module:
        overlay = None if timm.get_pretrained_cfg(tag).file else {"file": str(self.file(tag))}
        return timm.create_model(tag, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs).eval()


@pytest.fixture
def published(shared: Shared) -> Published:
    return Published(shared)


def generated(name: str, path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """A network, and the overlay by which its weights are the pretrained ones."""
    network = make(name)
    save_file(network.state_dict(), path)
    return network, {
        "file": str(path),
        "num_classes": 10,
    }  # timm drops a classifier of other classes than its tag names


def test_every_published_weight_has_a_tag() -> None:
    assert {"adder_lenet5.digits", "cnn_lenet5.digits", "adder_resnet20.huawei_cifar10"} <= set(TAGS)


@pytest.mark.parametrize("tag", TAGS)
def test_pretrained_network_has_the_tensors_of_its_file(tag: str, published: Published) -> None:
    stored = read_state_dict(published.file(tag))
    stored = {re.sub(r"\.adder$", ".weight", key.removeprefix("module.")): value for key, value in stored.items()}
    loaded = published.network(tag).state_dict()
    assert stored.keys() == loaded.keys()
    assert all(torch.equal(stored[key], loaded[key]) for key in stored)


def assert_other_head(network: nn.Module, whole: nn.Module) -> None:
    """5 classes: a new head, of which the BatchNorm knows nothing of the old one, on the same features."""
    x = images(whole, 8)
    assert network(x).shape == (8, 5)
    assert torch.equal(network.forward_features(x), whole.forward_features(x))
    before, after = ({k: p.shape for k, p in n.state_dict().items()} for n in (whole, network))
    assert {key for key in before if before[key] != after[key]} == {key for key in head_keys(whole) if before[key]}
    name = logits_norm_name(network)
    if name is not None:
        norm = network.get_submodule(name)
        assert norm.num_batches_tracked == 0
        assert torch.equal(norm.running_mean, torch.zeros(5))
        assert torch.equal(norm.running_var, torch.ones(5))
        assert torch.equal(norm.weight, torch.ones(5))
        assert torch.equal(norm.bias, torch.zeros(5))


@torch.no_grad()
def assert_other_channels(network: nn.Module, whole: nn.Module) -> None:
    """Both see the same in images whose channels are all alike; only the first layer and its norm may differ."""
    gray = images(whole, 8, channels=1)
    first, expected = (
        n.forward_intermediates(gray.expand(-1, n.in_chans, -1, -1), [0], stop_early=True, intermediates_only=True)[0]
        for n in (network, whole)
    )
    spread = expected.std(0).mean().item()
    assert spread > 0.01
    torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-3 * min(spread, 0.1))
    after = network.state_dict()
    assert {key for key, value in whole.state_dict().items() if not torch.equal(after[key], value)} <= {
        "conv1.weight",
        "bn1.running_mean",
        "bn1.running_var",
    }


@pytest.mark.parametrize("tag", FLOATS)
def test_pretrained_weights_adapt_to_other_classes(tag: str, published: Published) -> None:
    assert_other_head(published.network(tag, num_classes=5), published.network(tag))


@pytest.mark.parametrize("tag", FLOATS)
def test_pretrained_weights_adapt_to_other_channels(tag: str, published: Published) -> None:
    whole = published.network(tag)
    # timm repeats three filters that differ: no network of 2 or 4 channels sees just the same.
    for in_chans in (1,) if whole.in_chans == 3 else (2, 3, 4):
        network = published.network(tag, in_chans=in_chans)
        assert network.in_chans == in_chans
        assert_other_channels(network, whole)


@pytest.mark.parametrize("tag", QUANTIZED)
def test_bytes_answer_as_the_float_network_and_are_refused_where_they_cannot_change(tag: str) -> None:
    network, whole = timm.create_model(tag, pretrained=True), timm.create_model(tag[: -len("_u8")], pretrained=True)
    assert any(buffer.dtype == torch.uint8 for buffer in network.buffers())
    assert network.pretrained_cfg["tag"] == tag.partition(".")[2]
    assert network.pretrained_cfg["label_names"] == whole.pretrained_cfg["label_names"]
    mean, std = (torch.tensor(whole.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    x = (torch.rand(8, *whole.pretrained_cfg["input_size"], generator=torch.Generator().manual_seed(0)) - mean) / std
    y, expected = network.eval()(x), whole.eval()(x)
    bits = int(tag[-1])  # below 8 they have been trained since
    assert (y - expected).std() < (0.1 if bits == 8 else 0.5) * expected.std()
    for key, value in (("num_classes", 5), ("in_chans", 2)):
        with pytest.raises(ValueError, match=f"{key} must be that of .* got {value}"):
            timm.create_model(tag, pretrained=True, **{key: value})
    with pytest.raises(ValueError, match="quantized network, which gives no features"):
        timm.create_model(tag, pretrained=True, features_only=True)


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_any_file_adapt_to_other_classes_and_channels(name: str, tmp_path: Path) -> None:
    whole, overlay = generated(name, tmp_path / "weights.safetensors")
    kwargs: dict[str, Any] = {"pretrained": True, "pretrained_cfg_overlay": overlay} | small(name)
    x = images(whole)
    assert torch.equal(timm.create_model(name, **kwargs).eval()(x), whole(x))
    assert_other_head(timm.create_model(name, **kwargs | {"num_classes": 5}).eval(), whole)
    other = 1 if whole.in_chans == 3 else 3
    assert_other_channels(timm.create_model(name, in_chans=other, **kwargs).eval(), whole)
    bare = timm.create_model(name, **kwargs | {"num_classes": 0}).eval()
    assert torch.equal(bare(x), whole.forward_head(whole.forward_features(x), pre_logits=True))
    backbone = timm.create_model(name, features_only=True, **kwargs).eval()
    torch.testing.assert_close(backbone(x)[-1], whole.forward_features(x))


def test_the_authors_file_comes_from_their_repository_at_a_fixed_commit() -> None:
    """They removed it later: the URL must name a commit that has it, not a branch."""
    url = timm.get_pretrained_cfg("adder_resnet20.huawei_cifar10").url
    assert re.fullmatch(
        r"https://(github\.com/huawei-noah/AdderNet/raw|raw\.githubusercontent\.com/huawei-noah/AdderNet)"
        r"/[0-9a-f]{40}/models/ResNet20-AdderNet\.pth",
        url,
    )


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A weights folder of a package, with one published file."""
    generated("adder_lenet5", tmp_path / "adder_lenet5.digits.safetensors")
    digest = hashlib.sha256((tmp_path / "adder_lenet5.digits.safetensors").read_bytes()).hexdigest()
    (tmp_path / "SHA256SUMS").write_text(f"{digest}  adder_lenet5.digits.safetensors\n")
    monkeypatch.setattr(_builder, "WEIGHTS", tmp_path)
    return tmp_path


def load_packaged(weights: Path) -> nn.Module:
    overlay = {"file": str(weights / "adder_lenet5.digits.safetensors")}
    return timm.create_model("adder_lenet5", pretrained=True, pretrained_cfg_overlay=overlay)


def test_packaged_weights_that_are_the_published_ones_load(weights: Path) -> None:
    stored = load_file(weights / "adder_lenet5.digits.safetensors")
    assert torch.equal(load_packaged(weights).conv1.weight, stored["conv1.weight"])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def replace_by_another(path: Path) -> None:
    tensors = load_file(path)
    save_file({key: value + 1 for key, value in tensors.items()}, path)


@pytest.mark.parametrize("damage", [flip_a_bit, cut_short, replace_by_another])
def test_damaged_packaged_weights_are_refused_before_they_are_read(
    damage: Callable[[Path], None], weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = weights / "adder_lenet5.digits.safetensors"
    damage(path)

    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("the damaged file was read")

    monkeypatch.setattr(timm.models._builder, "load_state_dict", read)
    with pytest.raises(OSError, match=rf"{re.escape(str(path))} is damaged: its SHA-256 is [0-9a-f]{{64}}"):
        load_packaged(weights)


def test_missing_packaged_weights_are_named(weights: Path) -> None:
    path = weights / "adder_lenet5.digits.safetensors"
    path.unlink()
    with pytest.raises(OSError, match=rf"{re.escape(str(path))} is missing: install adderzoo again"):
        load_packaged(weights)


def test_file_of_ones_own_needs_no_published_sum(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("own") / "adder_lenet5.digits.safetensors"
    shutil.copy(weights / path.name, path)
    replace_by_another(path)
    network = timm.create_model("adder_lenet5", pretrained=True, pretrained_cfg_overlay={"file": str(path)})
    assert torch.equal(network.conv1.weight, load_file(path)["conv1.weight"])


def test_download_that_is_not_the_published_file_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "served" / "ResNet20-AdderNet.pth"
    path.parent.mkdir()
    torch.save(timm.create_model("adder_resnet20").state_dict(), path)

    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("the file was read")

    monkeypatch.setattr(timm.models._builder, "load_state_dict", read)
    with pytest.raises(OSError, match=r"ResNet20-AdderNet.pth is damaged.*published is fe3ad7c1"):
        load_huawei(path, tmp_path / "cache")


@pytest.mark.parametrize("damage", [flip_a_bit, cut_short])
def test_damaged_download_in_the_cache_is_fetched_again(
    damage: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ResNet20-AdderNet.pth"
    weights = timm.create_model("adder_resnet20").state_dict()
    torch.save(weights, path)
    monkeypatch.setitem(_builder.FOREIGN_SHA256, path.name, hashlib.sha256(path.read_bytes()).hexdigest())
    load_huawei(path, tmp_path / "cache")
    damage(tmp_path / "cache" / path.name)
    assert torch.equal(load_huawei(path, tmp_path / "cache").bn1.weight, weights["bn1.weight"])
    assert (tmp_path / "cache" / path.name).read_bytes() == path.read_bytes()


def test_download_that_fails_names_the_url(tmp_path: Path) -> None:
    path = tmp_path / "ResNet20-AdderNet.pth"
    with pytest.raises(OSError, match=rf"{path.as_uri()} cannot be fetched: .*No such file"):
        load_huawei(path, tmp_path / "cache")


def test_a_command_says_in_a_line_that_weights_are_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "adder_lenet5.digits"
    monkeypatch.setattr(_builder, "_published_sha256", lambda: {f"{name}.safetensors": "another"})
    Image.new("L", (32, 32)).save(tmp_path / "image.png")
    assert main(["predict", str(tmp_path / "image.png"), "--model", name]) == 1
    error = capsys.readouterr().err
    assert re.fullmatch(
        rf"adderzoo predict: error: .*/{name}\.safetensors is damaged: .* published is another; .*\n", error
    )


def test_download_of_the_published_file_is_loaded(tmp_path: Path, shared: Shared) -> None:
    path = shared("checkpoints/ResNet20-AdderNet.pth")
    network = load_huawei(path, tmp_path)
    original = torch.load(path, map_location="cpu", weights_only=True)
    assert torch.equal(network.layer3[2].conv2.weight, original["module.layer3.2.conv2.adder"])


def load_huawei(path: Path, cache: Path) -> Any:
    overlay = {"url": path.resolve().as_uri()}
    name = "adder_resnet20.huawei_cifar10"
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, cache_dir=cache)


def test_packaged_files_are_those_of_the_sums_and_of_the_tags() -> None:
    lines = (adderzoo.models.WEIGHTS / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split() for line in lines)}
    files = {path.name: path for path in adderzoo.models.WEIGHTS.glob("*.safetensors")}
    assert sums == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    tags = [tag for module in MODULES for tag in timm.list_models(module=module, pretrained=True)]
    assert set(files) == {f"{tag}.safetensors" for tag in tags if timm.get_pretrained_cfg(tag).file}
