"""The one door for files: `adderzoo.load`, what `adderzoo.save` writes for it, and timm's way into a training."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from pictures import SHARED
from timm.data import resolve_model_data_config
from torch import Tensor, nn

import adderzoo
from adderzoo.checkpoints import write_local_dir
from adderzoo.files.weights import save_weights

CONFIG = {"input_size": [3, 64, 64], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_pct": 0.9}
CLASSES = ["ant", "bee", "cat"]
NARROW = {"widths": [4, 8, 8, 16]}


@torch.no_grad()
def trained(name: str, *shape: int, **arguments: Any) -> Any:
    """A network whose every tensor is its own, as a training leaves it."""
    torch.manual_seed(len(name))
    network: Any = timm.create_model(name, **arguments)
    for _ in range(3):
        network(torch.randn(8, *shape))
    return network


def assert_same(got: nn.Module, expected: nn.Module) -> None:
    assert type(got) is type(expected)
    own = expected.state_dict()
    assert got.state_dict().keys() == own.keys()
    for key, value in got.state_dict().items():
        assert torch.equal(value, own[key]), key


@pytest.fixture
def training(tmp_path: Path) -> Path:
    """A folder with float weights as `adderzoo train` describes them: of other classes, images and arguments."""
    network = trained("adder_resnet18", 3, 64, 64, num_classes=3, **NARROW)
    said = {
        "architecture": "adder_resnet18",
        "num_classes": "3",
        "classes": json.dumps(CLASSES),
        "data_config": json.dumps(CONFIG),
        "model_args": json.dumps(NARROW),
    }
    folder = tmp_path / "training"
    save_weights(network, folder / "best.safetensors", said)
    write_local_dir(folder, folder / "best.safetensors")
    torch.save(network.state_dict(), tmp_path / "expected.pt")
    return folder


def expected(training: Path) -> dict[str, Tensor]:
    return torch.load(training.parent / "expected.pt", weights_only=True)


def assert_described(network: Any, training: Path) -> None:
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in expected(training).items())
    assert network.num_classes == network.pretrained_cfg["num_classes"] == 3
    assert list(network.pretrained_cfg["label_names"]) == CLASSES
    config = resolve_model_data_config(network)
    got = {key: list(config[key]) if isinstance(value, list) else config[key] for key, value in CONFIG.items()}
    assert got == CONFIG


@pytest.mark.parametrize("kind", [Path, str])
@pytest.mark.parametrize("place", ["file", "folder"])
@pytest.mark.parametrize("model", [None, "adder_resnet18"])
def test_float_weights_of_a_training(training: Path, kind: type, place: str, model: str | None) -> None:
    path = training if place == "folder" else training / "best.safetensors"
    network = adderzoo.load(kind(path), model)
    assert_described(network, training)
    assert network.training


def test_a_network_that_is_given_gets_the_weights(training: Path) -> None:
    network = timm.create_model("adder_resnet18", num_classes=3, **NARROW)
    assert adderzoo.load(training, network) is network
    assert_described(network, training)


def test_timm_opens_the_folder_of_a_training(training: Path) -> None:
    """Real timm, in a process of its own."""
    script = (
        "import sys, torch, timm, adderzoo\n"
        "network = timm.create_model('local-dir:' + sys.argv[1], pretrained=True)\n"
        "again = timm.create_model('local-dir:' + sys.argv[1], pretrained=True, num_classes=5)\n"
        "assert again.num_classes == 5\n"
        "random = timm.create_model('local-dir:' + sys.argv[1])\n"
        "assert not torch.equal(random.layer1[0].conv1.weight, network.layer1[0].conv1.weight)\n"
        "torch.save((network.state_dict(), network.pretrained_cfg, network.num_classes), sys.argv[2])\n"
    )
    out = training.parent / "out.pt"
    subprocess.run([sys.executable, "-c", script, training, out], check=True)
    weights, config, num_classes = torch.load(out, weights_only=True)
    assert {key: value.tolist() for key, value in weights.items()} == {
        key: value.tolist() for key, value in expected(training).items()
    }
    assert (num_classes, config["num_classes"], config["label_names"]) == (3, 3, CLASSES)
    assert {key: config[key] for key in CONFIG} == CONFIG
    assert_described(adderzoo.create_model(f"local-dir:{training}", pretrained=True), training)


def test_the_folder_follows_the_weights_and_needs_no_room(training: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = timm.create_model("adder_resnet18", num_classes=3, **NARROW)
    said = json.loads((training / "config.json").read_text())
    assert (training / "model.safetensors").is_symlink()
    save_weights(other, training / "best.safetensors", {"architecture": "adder_resnet18", "num_classes": "3"})
    assert (training / "model.safetensors").read_bytes() == (training / "best.safetensors").read_bytes()
    assert said["architecture"] == "adder_resnet18"
    assert not {"url", "hf_hub_id", "file", "source"} & said["pretrained_cfg"].keys()

    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    (training / "model.safetensors").unlink()
    write_local_dir(training, training / "best.safetensors")
    assert not (training / "model.safetensors").is_symlink()
    assert (training / "model.safetensors").read_bytes() == (training / "best.safetensors").read_bytes()
    assert sorted(path.name for path in training.iterdir()) == ["best.safetensors", "config.json", "model.safetensors"]


def test_weights_of_no_registered_network_make_a_folder_of_ours_alone(tmp_path: Path) -> None:
    network, other = nn.Linear(2, 2), nn.Linear(2, 2)
    save_weights(network, tmp_path / "last.safetensors", {})
    write_local_dir(tmp_path, tmp_path / "last.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.safetensors", "model.safetensors"]
    assert_same(adderzoo.load(tmp_path, other), network)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/checkpoints")
@pytest.mark.parametrize("given", ["name", "network"])
def test_the_authors_file(given: str) -> None:
    path = SHARED / "checkpoints" / "ResNet20-AdderNet.pth"
    model: Any = "adder_resnet20" if given == "name" else timm.create_model("adder_resnet20")
    network = adderzoo.load(str(path), model)
    theirs = torch.load(path, map_location="cpu", weights_only=True)
    assert torch.equal(network.state_dict()["layer1.0.conv1.weight"], theirs["module.layer1.0.conv1.adder"])
    with pytest.raises(ValueError, match="does not say which network it is of: pass its name, or a network like it"):
        adderzoo.load(path)


def test_published_weights_are_a_file_too() -> None:
    published: Any = timm.create_model("adder_lenet5.digits", pretrained=True)
    network: Any = adderzoo.load(adderzoo.models.WEIGHTS / "adder_lenet5.digits.safetensors")
    assert_same(network, published)
    for key in ("tag", "mean", "input_size", "label_names"):
        assert network.pretrained_cfg[key] == published.pretrained_cfg[key]


@pytest.mark.parametrize("given", ["", "network"])
@pytest.mark.parametrize("form", ["float", "integer"])
def test_what_is_saved_is_loaded(tmp_path: Path, form: str, given: str) -> None:
    network = trained("adder_lenet5", 1, 32, 32, num_classes=3).eval()
    network.pretrained_cfg.update(mean=(0.3,), std=(0.7,))
    x = torch.randn(4, 1, 32, 32)
    if form == "integer":
        network = adderzoo.quantize(adderzoo.calibrate(network, [x]))
    adderzoo.save(network, str(tmp_path / "network.safetensors"), {"classes": json.dumps(CLASSES)})
    like: Any = timm.create_model("adder_lenet5", num_classes=3) if given else None
    again: Any = adderzoo.load(tmp_path / "network.safetensors", like).eval()
    assert torch.equal(again(x), network(x))
    assert again.num_classes == 3
    if like is not None and form == "integer":  # it is left as it is
        assert like.pretrained_cfg["label_names"] != tuple(CLASSES)
    assert again.pretrained_cfg["label_names"] == tuple(CLASSES)
    assert resolve_model_data_config(again)["std"] == (0.7,)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("adder_lenet5", {"conv_layer": "conv"}),
        ("adder_edsr_small_x2", {"res_scale": 0.5}),
        ("adder_resnet18", {"small_images": True, "output_stride": 8}),
    ],
)
def test_arguments_that_change_no_shape_are_part_of_the_network(
    tmp_path: Path, name: str, arguments: dict[str, Any]
) -> None:
    """Tensors of the same names and shapes are not enough to call a network by a name that makes another one."""
    torch.manual_seed(1)
    network: Any = timm.create_model(name, **arguments).eval()
    x = torch.randn(1, network.in_chans, 32, 32)
    path = tmp_path / "network.safetensors"
    adderzoo.save(network, path)
    with pytest.raises(ValueError, match="does not say which network it is of"):
        adderzoo.load(path)
    adderzoo.save(network, path, **arguments)
    assert torch.equal(adderzoo.load(path).eval()(x), network(x))


def test_where_weights_were_read_is_no_part_of_the_network(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"pretrained": True, "cache_dir": str(tmp_path), "conv_layer": "adder"}
    network: Any = timm.create_model("adder_lenet5.digits", **arguments)
    adderzoo.save(network, tmp_path / "network.safetensors", **arguments)
    again: Any = adderzoo.load(tmp_path / "network.safetensors")
    assert_same(again, network)
    assert again.pretrained_cfg["tag"] == "digits"


def test_what_matters_in_training_alone_does_not_make_another_network(tmp_path: Path) -> None:
    network: Any = timm.create_model("adder_resnet20", drop_rate=0.5)
    network.layer1[0].conv1.weight_grad = "sign"
    network.bn1.momentum = 0.01
    network.comment = "mine"
    network.set_grad_checkpointing()
    network.eval()
    adderzoo.save(network, tmp_path / "network.safetensors")
    assert_same(adderzoo.load(tmp_path / "network.safetensors"), network)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("adder_lenet5", {"drop_rate": 1e9}, "cannot be saved: its numbers must be from -1048576 to 1048576"),
        ("adder_lenet5", {"dtype": torch.float32}, "cannot be saved: Object of type dtype is not JSON serializable"),
        ("adder_lenet5", {"conv_layer": "conv"}, "make another adder_lenet5 than this: got a LeNet5"),
        ("adder_lenet5", {"nonsense": 1}, r"model_args {'nonsense': 1} make another adder_lenet5 than this"),
        ("", {"width": 1}, r"model_args {'width': 1} are for a network of timm.create_model: got a Linear"),
    ],
)
def test_arguments_that_no_file_can_have_are_refused(
    tmp_path: Path, name: str, arguments: dict[str, Any], message: str
) -> None:
    network: Any = timm.create_model(name) if name else nn.Linear(1, 1)
    with pytest.raises(ValueError, match=message):
        adderzoo.save(network, tmp_path / "network.safetensors", **arguments)
    assert not list(tmp_path.iterdir())


def test_a_quantized_network_needs_no_other_import(tmp_path: Path) -> None:
    """The door and timm's know it by themselves."""
    network = trained("adder_lenet5", 1, 32, 32).eval()
    adderzoo.save(
        adderzoo.quantize(adderzoo.calibrate(network, [torch.randn(4, 1, 32, 32)])), tmp_path / "a.safetensors"
    )
    script = (
        "import sys, timm, adderzoo\n"
        "overlay = {'file': sys.argv[1]}\n"
        "network = timm.create_model('adder_lenet5', pretrained=True, pretrained_cfg_overlay=overlay)\n"
        "assert network.quantization['bits'] == 8\n"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "a.safetensors"], check=True)


def test_arguments_of_the_caller_come_before_those_of_the_file(training: Path) -> None:
    with pytest.raises(ValueError, match="of another shape"):
        adderzoo.load(training, "adder_resnet18", 4)
    with pytest.raises(ValueError, match="of another shape"):
        adderzoo.load(training, widths=[8, 8, 8, 16])
    network: Any = adderzoo.load(training, "adder_resnet18", 4, other_classes=True)
    assert network.num_classes == 4
    assert torch.equal(network.layer1[0].conv1.weight, expected(training)["layer1.0.conv1.weight"])


@pytest.mark.parametrize(
    ("said", "arguments", "message"),
    [
        ({}, {}, "does not say which network it is of"),
        ({"architecture": "hf-hub:somebody/else"}, {}, r"is of 'hf-hub:somebody/else', which is no registered network"),
        ({"architecture": "adder_lenet5"}, {"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"architecture": "adder_lenet5"}, {"num_classes": "three"}, "num_classes must be an integer, got 'three'"),
        ({"architecture": "adder_lenet5"}, {"num_classes": True}, "num_classes must be an integer, got True"),
        ({"architecture": "adder_lenet5"}, {"nonsense": 1}, r"cannot be created with the arguments {'nonsense': 1"),
        ({"architecture": "cnn_lenet5"}, {"model": "adder_lenet5"}, "another network than adder_lenet5"),
        ({"architecture": "adder_lenet5", "classes": '["a"]'}, {}, "has 1 class names, the network 10 classes"),
        (
            {"architecture": "adder_lenet5"},
            {"model": nn.Linear(1, 1), "depth": 3},
            "arguments are for a network by name",
        ),
    ],
)
def test_bad_input(tmp_path: Path, said: dict[str, str], arguments: dict[str, Any], message: str) -> None:
    save_weights(timm.create_model("adder_lenet5"), tmp_path / "a.safetensors", said)
    with pytest.raises(ValueError, match=message):
        adderzoo.load(tmp_path / "a.safetensors", **arguments)


@pytest.mark.parametrize("name", ["missing.safetensors", "missing.pth", ""])
def test_a_file_that_is_not_there(tmp_path: Path, name: str) -> None:
    missing = tmp_path / (name or "model.safetensors")
    with pytest.raises(ValueError, match=f"^{missing} is not a file$"):
        adderzoo.load(tmp_path / name, "adder_lenet5")


def test_a_folder_around_trainings_names_them(tmp_path: Path) -> None:
    for name in ("second", "first"):
        (tmp_path / name).mkdir()
        adderzoo.save(timm.create_model("adder_lenet5"), tmp_path / name / "model.safetensors")
    (tmp_path / "third").mkdir()
    with pytest.raises(ValueError, match=f"these in it do, pass one: {tmp_path}/first, {tmp_path}/second$"):
        adderzoo.load(tmp_path)
    adderzoo.load(tmp_path / "first")


@pytest.mark.parametrize(
    "said", [{"classes": '["a"]'}, {"data_config": "[]"}, {"architecture": "cnn_lenet5"}, {"classes": "[1]"}]
)
def test_a_network_that_gets_no_weights_is_left_as_it_was(tmp_path: Path, said: dict[str, str]) -> None:
    model: Any = timm.create_model("adder_lenet5")
    before, config = {key: value.clone() for key, value in model.state_dict().items()}, dict(model.pretrained_cfg)
    kept = {"architecture": "adder_lenet5", "data_config": json.dumps({"mean": [0.9]})} | said
    save_weights(trained("adder_lenet5", 1, 32, 32), tmp_path / "a.safetensors", kept)
    with pytest.raises(ValueError, match=r"a\.safetensors"):
        adderzoo.load(tmp_path / "a.safetensors", model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.pretrained_cfg == config
