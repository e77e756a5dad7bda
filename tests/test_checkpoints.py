import hashlib
import os
import pickle
import re
import resource
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from pictures import SHARED
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adderzoo import checkpoints
from adderzoo.checkpoints import convert, create_model, load_checkpoint
from adderzoo.files.weights import read_state_dict

AUTHORS_FILE = SHARED / "checkpoints" / "ResNet20-AdderNet.pth"
NETWORKS = ["adder_lenet5", "adder_resnet20", "cnn_resnet20"]


def random_network(name: str) -> nn.Module:
    """Every tensor random, the counters too."""
    torch.manual_seed(1)
    model = timm.create_model(name)
    for value in model.state_dict().values():
        value.copy_(torch.randn(value.shape) if value.is_floating_point() else torch.randint(1, 1000, value.shape))
    return model


def authors_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """As their training script saved it: from DataParallel, with the filters of adder layers named `adder`."""
    adder = re.compile(r"(layer\d\.\d\.(conv\d|downsample\.0)|LeNet5\.(conv\d|fc))\.weight")
    kind = f"{type(model).__name__}." if type(model).__name__ == "LeNet5" else ""
    is_adder = any("Adder" in type(module).__name__ for module in model.modules())
    return {
        key.removesuffix("weight") + "adder"
        if is_adder and adder.fullmatch(kind + key.removeprefix("module."))
        else key: value
        for key, value in nn.DataParallel(model).state_dict().items()
    }


def assert_same_tensors(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        assert got[key].dtype == value.dtype, key
        assert torch.equal(got[key], value), key


@pytest.mark.parametrize("name", NETWORKS)
def test_the_authors_format_becomes_safetensors_of_the_network(tmp_path: Path, name: str) -> None:
    model = random_network(name)
    original = authors_state_dict(model)
    assert ("module.layer2.0.downsample.0.adder" in original) == (name == "adder_resnet20")
    torch.save(original, tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "a.safetensors", name)
    assert_same_tensors(load_file(tmp_path / "a.safetensors"), model.state_dict())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_authors_format_survives_a_round_trip_bit_by_bit(tmp_path: Path, name: str) -> None:
    original = authors_state_dict(random_network(name))
    torch.save(original, tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "a.safetensors", name)
    convert(tmp_path / "a.safetensors", tmp_path / "b.pth", name, original=True)
    assert_same_tensors(torch.load(tmp_path / "b.pth", weights_only=True), original)


def test_the_authors_resnet20_survives_a_round_trip_bit_by_bit(tmp_path: Path) -> None:
    if not AUTHORS_FILE.is_file():
        pytest.skip("needs ../shared/checkpoints")
    metadata = convert(AUTHORS_FILE, tmp_path / "a.safetensors", "adder_resnet20")
    convert(tmp_path / "a.safetensors", tmp_path / "b.pth", "adder_resnet20", original=True)
    original = torch.load(AUTHORS_FILE, map_location="cpu", weights_only=True)
    assert len(original) == 132
    assert_same_tensors(torch.load(tmp_path / "b.pth", weights_only=True), original)
    assert metadata["license"] == "BSD-3-Clause"
    assert metadata["source_sha256"] == hashlib.sha256(AUTHORS_FILE.read_bytes()).hexdigest()


def test_safetensors_carries_architecture_source_digest_and_license(tmp_path: Path) -> None:
    torch.save(authors_state_dict(random_network("adder_lenet5")), tmp_path / "lenet 5.pth")
    metadata = convert(tmp_path / "lenet 5.pth", tmp_path / "a.safetensors", "adder_lenet5")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == metadata
    assert metadata == {
        "format": "pt",
        "architecture": "adder_lenet5",
        "num_classes": "10",
        "source": "lenet 5.pth",
        "source_sha256": hashlib.sha256((tmp_path / "lenet 5.pth").read_bytes()).hexdigest(),
        "license": "unknown",
    }


@pytest.mark.parametrize("key", ["state_dict", "model", "state_dict_ema"])
def test_a_training_checkpoint_is_converted_by_the_state_dict_in_it(tmp_path: Path, key: str) -> None:
    model = random_network("adder_lenet5")
    torch.save({"epoch": 3, "arch": "adder_lenet5", key: model.state_dict()}, tmp_path / "a.pth.tar")
    convert(tmp_path / "a.pth.tar", tmp_path / "a.safetensors", "adder_lenet5")
    assert_same_tensors(load_file(tmp_path / "a.safetensors"), model.state_dict())


PREFIXES = [
    "",
    "module.",
    "model.",
    "net.",
    "_orig_mod.",
    "_orig_mod.module.",
    "module._orig_mod.",
    "student.net.model.",
]
WRAPPINGS = [
    (),
    *(
        (key,)
        for key in (
            "state_dict",
            "model",
            "net",
            "params",
            "params_ema",
            "model_state_dict",
            "ema",
            "state_dict_ema",
            "x",
        )
    ),
    ("checkpoint", "model", "weights"),
]


@pytest.mark.parametrize("name", ["adder_lenet5", "cnn_resnet20"])
@pytest.mark.parametrize(
    ("prefix", "wrapping"), [*((prefix, ("model",)) for prefix in PREFIXES), *(("module.", keys) for keys in WRAPPINGS)]
)
def test_weights_are_found_in_what_others_wrap_around_them(
    tmp_path: Path, name: str, prefix: str, wrapping: tuple[str, ...]
) -> None:
    """With an optimizer beside them, and without the counters of BatchNorm."""
    model = random_network(name)
    content: Any = {
        f"{prefix}{key}": value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")
    }
    for key in reversed(wrapping):
        adam = {"state": {0: {"exp_avg": torch.ones(2)}}, "by_name": {"conv1.weight": {"exp_avg": torch.ones(2)}}}
        content = {"epoch": 3, "optimizer": adam, "lr_schedulers": [{"last_epoch": 1}], key: content}
    torch.save(content, tmp_path / "a.pth")
    got = timm.create_model(name)
    load_checkpoint(got, tmp_path / "a.pth")
    expected = {
        key: torch.tensor(0) if key.endswith("num_batches_tracked") else value
        for key, value in model.state_dict().items()
    }
    assert_same_tensors(got.state_dict(), expected)


def test_several_state_dicts_are_a_question_that_convert_answers(tmp_path: Path) -> None:
    last, averaged = random_network("adder_lenet5").state_dict(), timm.create_model("adder_lenet5").state_dict()
    source, to = tmp_path / "a.pth", tmp_path / "a.safetensors"
    torch.save({"params": last, "params_ema": averaged, "step": 3}, source)
    with pytest.raises(ValueError, match=r"a\.pth has several state dicts, under params, params_ema: which one[?]"):
        load_checkpoint(timm.create_model("adder_lenet5"), source)
    for key, expected in {"params": last, "params_ema": averaged}.items():
        convert(source, to, "adder_lenet5", key=key)
        assert_same_tensors(load_file(to), expected)
    with pytest.raises(ValueError, match="no state dict under the key 'ema', but under params, params_ema"):
        convert(source, to, "adder_lenet5", key="ema")


def test_two_networks_in_one_state_dict_are_a_question_too(tmp_path: Path) -> None:
    """As Lightning stores a module that has a teacher."""
    student, teacher = random_network("adder_lenet5").state_dict(), timm.create_model("adder_lenet5").state_dict()
    both = {
        f"{name}.{key}": value for name, each in (("net", student), ("ema", teacher)) for key, value in each.items()
    }
    source, to = tmp_path / "a.ckpt", tmp_path / "a.safetensors"
    torch.save({"state_dict": both}, source)
    with pytest.raises(ValueError, match=r"all names of the network are there several times, behind net\., ema\."):
        load_checkpoint(timm.create_model("adder_lenet5"), source)
    for key, expected in {"state_dict.net": student, "state_dict.ema": teacher}.items():
        convert(source, to, "adder_lenet5", key=key)
        assert_same_tensors(load_file(to), expected)


def test_what_lies_beside_the_network_is_left_out_and_said(tmp_path: Path) -> None:
    """As in torch.optim.swa_utils.AveragedModel."""
    averaged = torch.optim.swa_utils.AveragedModel(random_network("adder_lenet5"))
    torch.save(averaged.state_dict(), tmp_path / "a.pth")
    got = timm.create_model("adder_lenet5")
    with pytest.warns(UserWarning, match="1 tensors are left out .* behind 'module.': n_averaged"):
        load_checkpoint(got, tmp_path / "a.pth")
    assert_same_tensors(got.state_dict(), dict(averaged.module.state_dict()))


def test_a_dictionary_that_holds_itself_is_searched_once(tmp_path: Path) -> None:
    content: dict[str, Any] = {"model": random_network("adder_lenet5").state_dict()}
    content |= {f"again{index}": content for index in range(50)}
    torch.save(content, tmp_path / "a.pth")
    assert read_state_dict(tmp_path / "a.pth").keys() == content["model"].keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x * float("nan"), "1 with NaN or infinity: conv1.weight"),
        (lambda x: x / 0, "1 with NaN or infinity: conv1.weight"),
        (
            lambda x: x.to(torch.complex64),
            "1 of another kind of numbers: conv1.weight torch.complex64 for torch.float32",
        ),
        (lambda x: x.to(torch.int8), "1 of another kind of numbers: conv1.weight torch.int8 for torch.float32"),
        (lambda x: x > 0, "1 of another kind of numbers: conv1.weight torch.bool for torch.float32"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_that_are_no_finite_floats_are_refused(
    tmp_path: Path, change: Callable[[Tensor], Tensor], message: str, suffix: str
) -> None:
    state_dict = random_network("adder_lenet5").state_dict()
    state_dict["conv1.weight"] = change(state_dict["conv1.weight"])
    path = tmp_path / f"a{suffix}"
    save_file(state_dict, path) if suffix == ".safetensors" else torch.save(state_dict, path)
    with pytest.raises(ValueError, match=f"has no weights of adder_lenet5: {message}"):
        load_checkpoint(timm.create_model("adder_lenet5"), path)


def test_foreign_names_of_tensors_are_short_and_printable_in_a_message(tmp_path: Path) -> None:
    state_dict = random_network("adder_lenet5").state_dict()
    torch.save({**state_dict, "a\x1b[2J": torch.ones(1), "x" * 10**5: torch.ones(1)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="2 unknown: 'a") as caught:
        load_checkpoint(timm.create_model("adder_lenet5"), tmp_path / "a.pth")
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 1000


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_taken(tmp_path: Path, dtype: torch.dtype) -> None:
    model = random_network("adder_lenet5").to(dtype)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    got = timm.create_model("adder_lenet5")
    load_checkpoint(got, tmp_path / "a.pth")
    assert torch.equal(got.get_parameter("conv1.weight"), model.get_parameter("conv1.weight").float())


def test_averaged_weights_come_before_the_last_ones(tmp_path: Path) -> None:
    last, averaged = timm.create_model("adder_lenet5").state_dict(), random_network("adder_lenet5").state_dict()
    torch.save({"state_dict": last, "state_dict_ema": averaged}, tmp_path / "a.pth")
    assert_same_tensors(read_state_dict(tmp_path / "a.pth"), averaged)


@pytest.mark.parametrize("original", [False, True])
def test_channels_last_and_shared_tensors_are_converted(tmp_path: Path, original: bool) -> None:
    model = random_network("adder_lenet5").to(memory_format=torch.channels_last)
    state_dict = model.state_dict()
    state_dict["bn1.bias"] = state_dict["bn1.weight"]
    large = torch.randn(1_000_000)
    state_dict["bn2.bias"] = large[:16]
    torch.save(state_dict, tmp_path / "a.pth")
    destination = tmp_path / ("b.pth" if original else "b.safetensors")
    convert(tmp_path / "a.pth", destination, "adder_lenet5", original)
    got = create_model("adder_lenet5")
    load_checkpoint(got, destination)
    assert_same_tensors(got.state_dict(), dict(state_dict))
    assert destination.stat().st_size < 1_000_000  # without the rest of what a tensor is cut from


class TouchesAFile:
    """Unpickled by the usual means, it runs a shell command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.path}'",)


def test_the_pickle_of_the_next_test_does_run_code_when_it_is_trusted(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(TouchesAFile(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


def _pickles(path: Path) -> dict[str, Any]:
    evil = TouchesAFile(path)
    return {
        "saved": lambda file: torch.save(evil, file),
        "saved in a state dict": lambda file: torch.save({"conv1.weight": torch.ones(1), "extra": evil}, file),
        "saved the old way": lambda file: torch.save(evil, file, _use_new_zipfile_serialization=False),
        "pickled": lambda file: file.write_bytes(pickle.dumps(evil)),
        "pickled with protocol 2": lambda file: file.write_bytes(pickle.dumps(evil, protocol=2)),
        "pickled with protocol 0": lambda file: file.write_bytes(pickle.dumps(evil, protocol=0)),
    }


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", _pickles(Path()))
def test_code_in_a_pickle_is_refused_and_does_not_run(tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / f"evil{suffix}"
    _pickles(tmp_path / "ran")[kind](path)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read_state_dict(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["saved", "saved in a state dict", "saved the old way", "pickled with protocol 2"])
def test_the_refusal_of_a_pickle_names_what_it_would_run(tmp_path: Path, kind: str) -> None:
    _pickles(tmp_path / "ran")[kind](tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"refused, since reading it could run code: .*posix\.system"):
        read_state_dict(tmp_path / "evil.pth")


def test_a_whole_network_in_a_pickle_is_refused(tmp_path: Path) -> None:
    torch.save(random_network("adder_lenet5"), tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"refused, since reading it could run code: .*LeNet5") as info:
        read_state_dict(tmp_path / "model.pth")
    assert "add_safe_globals" not in str(info.value)


@pytest.mark.parametrize(
    "content",
    [
        [torch.ones(2)],
        3,
        {},
        {"epoch": 3},
        {"state_dict": {}},
        {1: torch.ones(2)},
        {"weight": torch.ones(2), "name": "x"},
        {"weight": torch.ones(2).to_sparse()},
        {"weight": torch.ones(2, device="meta")},
        torch.ones(2),
    ],
    ids=lambda content: repr(content).replace("\n", " ")[:40],
)
def test_what_is_no_state_dict_of_tensors_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth holds no state dict, but "):
        read_state_dict(tmp_path / "a.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_checkpoint_cut_off_anywhere_is_refused(tmp_path: Path, suffix: str) -> None:
    whole, part = tmp_path / f"whole{suffix}", tmp_path / f"part{suffix}"
    state_dict = random_network("adder_lenet5").state_dict()
    save_file(state_dict, whole) if suffix == ".safetensors" else torch.save(state_dict, whole)
    content = whole.read_bytes()
    assert read_state_dict(whole)
    for size in sorted({0, 1, 2, 7, 8, 9, 100, *range(0, len(content), len(content) // 40), len(content) - 1}):
        part.write_bytes(content[:size])
        with pytest.raises(ValueError, match=rf"part\{suffix} is not a"):
            read_state_dict(part)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_checkpoint_is_loaded_whichever_format_it_is_in(tmp_path: Path, name: str) -> None:
    model = random_network(name)
    torch.save(authors_state_dict(model), tmp_path / "authors.pth")
    torch.save(model.state_dict(), tmp_path / "ours.pth")
    save_file(model.state_dict(), tmp_path / "ours.safetensors")
    for file in ("authors.pth", "ours.pth", "ours.safetensors"):
        other = timm.create_model(name)
        load_checkpoint(other, tmp_path / file)
        assert_same_tensors(other.state_dict(), model.state_dict())


def test_a_checkpoint_that_does_not_fit_is_refused_with_its_keys_and_changes_nothing(tmp_path: Path) -> None:
    state_dict = random_network("adder_lenet5").state_dict()
    del state_dict["conv2.weight"]
    state_dict["conv3.bias"] = torch.ones(120)
    state_dict["conv4.weight"] = torch.ones(84, 121, 1, 1)
    torch.save(state_dict, tmp_path / "a.pth")
    model = random_network("adder_lenet5")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"a\.pth is a checkpoint of another network than adder_lenet5: ") as info:
        load_checkpoint(model, tmp_path / "a.pth")
    assert "1 missing: conv2.weight" in str(info.value)
    assert "1 unknown: conv3.bias" in str(info.value)
    assert "1 of another shape: conv4.weight (84, 121, 1, 1) for (84, 120, 1, 1)" in str(info.value)
    assert_same_tensors(model.state_dict(), before)


def test_a_long_list_of_keys_is_cut(tmp_path: Path) -> None:
    save_file({f"layer{i}": torch.ones(1) for i in range(10_000)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"10000 unknown: layer\d+, layer\d+, layer\d+, layer\d+, [.]{3}") as info:
        load_checkpoint(timm.create_model("adder_lenet5"), tmp_path / "a.safetensors")
    assert len(str(info.value)) < 1000


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adder_resnet21", "must be a registered network, got 'adder_resnet21'"),
        ("adder_resnet20.imagenet", "has no tag 'imagenet'"),
        ("cnn_resnet32", "No pretrained weights exist"),
        ("somewhere:else", "somewhere:else"),
    ],
)
def test_a_network_that_is_not_there_is_a_value_error(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model(name, pretrained=True)


# ------------------------------------------------------------------------------------------------------- writing files


@pytest.fixture
def small_files_only() -> Iterator[None]:
    """No file can grow beyond 100 kB, as on a disk that is nearly full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def resnet(tmp_path: Path) -> Path:
    torch.save(authors_state_dict(random_network("adder_resnet20")), tmp_path / "resnet.pth")
    return tmp_path / "resnet.pth"


@pytest.mark.parametrize("original", [False, True])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, resnet: Path, small_files_only: None, original: bool
) -> None:
    destination = tmp_path / "out" / ("a.pth" if original else "a.safetensors")
    destination.parent.mkdir()
    destination.write_text("old")
    with pytest.raises(OSError, match=re.escape(str(destination))):
        convert(resnet, destination, "adder_resnet20", original)
    assert {path.name: path.read_text() for path in destination.parent.iterdir()} == {destination.name: "old"}


def test_a_written_checkpoint_can_be_read_by_others(tmp_path: Path, resnet: Path) -> None:
    umask = os.umask(0o022)
    try:
        convert(resnet, tmp_path / "deep" / "er" / "a.safetensors", "adder_resnet20")
        convert(resnet, tmp_path / "deep" / "a.pth", "adder_resnet20", original=True)
    finally:
        os.umask(umask)
    for path in (tmp_path / "deep" / "er" / "a.safetensors", tmp_path / "deep" / "a.pth"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_checkpoint_is_read_once_without_code_and_onto_the_cpu(resnet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    load = torch.load
    monkeypatch.setattr(
        checkpoints.torch, "load", lambda *args, **kwargs: calls.append(kwargs) or load(*args, **kwargs)
    )
    read_state_dict(resnet)
    assert calls == [{"map_location": "cpu", "weights_only": True}]


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_twin_of_the_same_shapes_is_refused(tmp_path: Path, suffix: str) -> None:
    torch.save(authors_state_dict(random_network("adder_lenet5")), tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "a.safetensors", "adder_lenet5")
    with pytest.raises(ValueError, match="is a checkpoint of another network than cnn_lenet5: "):
        convert(tmp_path / f"a.{suffix}", tmp_path / "b.safetensors", "cnn_lenet5")
    assert not (tmp_path / "b.safetensors").exists()
    with pytest.raises(ValueError, match="is a checkpoint of another network than cnn_lenet5: "):
        checkpoints.load_checkpoint(timm.create_model("cnn_lenet5"), tmp_path / f"a.{suffix}")
