import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from commands import Done
from pictures import SHARED
from safetensors.torch import load_file, save_file
from torch import nn

import adderzoo as package
from adderzoo.files.weights import read_metadata, save_weights

Command = Callable[..., Done]
NAME = "adder_lenet5"


class TouchesAFile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.path}'",)


def write(path: Path, content: object) -> None:
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)


def everything_in(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Of `NAME`, as the authors' training script would save it but for the filters' name."""
    torch.manual_seed(0)
    torch.save(nn.DataParallel(timm.create_model(NAME)).state_dict(), tmp_path / "lenet.pth")
    return tmp_path / "lenet.pth"


def test_there_and_back_again(adderzoo: Command, tmp_path: Path, checkpoint: Path) -> None:
    original = {
        key.removesuffix("weight") + "adder" if key[7:].startswith(("conv", "fc.")) else key: value
        for key, value in torch.load(checkpoint, weights_only=True).items()
    }
    assert sum(key.endswith(".adder") for key in original) == 5
    torch.save(original, checkpoint)
    there = adderzoo("convert", checkpoint, tmp_path / "a.safetensors", "--model", NAME)
    back = adderzoo("convert", tmp_path / "a.safetensors", tmp_path / "b.pth", "--model", NAME, "--to-original")
    assert (there.status, back.status, there.err, back.err) == (0, 0, "", "")
    assert there.out.startswith(f"{tmp_path / 'a.safetensors'}: ")
    assert {key.partition(".")[0] for key in load_file(tmp_path / "a.safetensors")} >= {"conv1", "bn_fc"}
    got = torch.load(tmp_path / "b.pth", weights_only=True)
    assert got.keys() == original.keys()
    assert all(torch.equal(got[key], value) for key, value in original.items())


def test_what_a_source_says_of_itself_stays(adderzoo: Command, tmp_path: Path) -> None:
    said = {"classes": '["a", "b"]', "data_config": '{"mean": [0.5]}', "license": "mit"}
    model = timm.create_model(NAME, num_classes=2)
    save_weights(model, tmp_path / "a.safetensors", said | {"architecture": NAME, "num_classes": "2"})
    assert adderzoo("convert", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--model", NAME).status == 0
    got = read_metadata(tmp_path / "b.safetensors")
    assert said.items() <= got.items()
    assert (got["source"], got["num_classes"]) == ("a.safetensors", "2")


def bad_content(kind: str, good: bytes, ran: Path) -> object:
    """What is no checkpoint of `NAME`."""
    return {
        "empty": lambda: b"",
        "random bytes": lambda: random.Random(0).randbytes(50_000),
        "garbage in a zip": lambda: b"PK\x03\x04" + random.Random(1).randbytes(3000),
        "cut off in the header": lambda: good[:40],
        "cut off in the middle": lambda: good[: len(good) // 2],
        "cut off at the end": lambda: good[:-1],
        "text": lambda: b"epoch 1: loss 2.30\nepoch 2: loss 1.97\n",
        "a list": lambda: [1, 2],
        "a number": lambda: 3,
        "another network": lambda: timm.create_model("cnn_lenet5", num_classes=7).state_dict(),
        "another family": lambda: timm.create_model("adder_resnet20").state_dict(),
        "code, saved": lambda: TouchesAFile(ran),
        "code, pickled": lambda: pickle.dumps(TouchesAFile(ran)),
        "code, pickled the old way": lambda: pickle.dumps(TouchesAFile(ran), protocol=2),
    }[kind]()


KINDS = [
    ("empty", "is not a PyTorch checkpoint, or is damaged"),
    ("random bytes", "is not a PyTorch checkpoint, or is damaged"),
    ("garbage in a zip", "is not a PyTorch checkpoint, or is damaged"),
    ("cut off in the header", "is not a PyTorch checkpoint, or is damaged"),
    ("cut off in the middle", "is not a PyTorch checkpoint, or is damaged"),
    ("cut off at the end", "is not a PyTorch checkpoint, or is damaged"),
    ("text", "is not a PyTorch checkpoint, or is damaged"),
    ("a list", "holds no state dict, but an object of type list"),
    ("a number", "holds no state dict, but an object of type int"),
    ("another network", "is a checkpoint of another network than adder_lenet5: 5 of another shape"),
    ("another family", "is a checkpoint of another network than adder_lenet5: "),
    ("code, saved", "is refused, since reading it could run code"),
    ("code, pickled", "is not a PyTorch checkpoint, or is damaged"),
    ("code, pickled the old way", "is refused, since reading it could run code"),
]


@pytest.mark.parametrize("destination", ["new.safetensors", "folder/new.safetensors", "old.safetensors"])
@pytest.mark.parametrize(("kind", "message"), KINDS, ids=[kind for kind, _ in KINDS])
def test_a_bad_source_is_refused_in_one_line_and_nothing_is_written(
    adderzoo: Command, tmp_path: Path, checkpoint: Path, kind: str, message: str, destination: str
) -> None:
    write(checkpoint, bad_content(kind, checkpoint.read_bytes(), tmp_path / "ran"))
    (tmp_path / "old.safetensors").write_text("what was there before")
    before = everything_in(tmp_path)
    done = adderzoo("convert", checkpoint, tmp_path / destination, "--model", NAME)
    assert done.error.startswith(f"adderzoo convert: error: {checkpoint} {message}")
    assert everything_in(tmp_path) == before  # code in the pickle would have made a file


@pytest.mark.parametrize("kind", ["empty", "garbage", "a header that is too long", "another network", "a checkpoint"])
def test_bad_safetensors_are_refused_in_one_line(
    adderzoo: Command, tmp_path: Path, checkpoint: Path, kind: str
) -> None:
    source = tmp_path / "bad.safetensors"
    if kind == "another network":
        save_file(timm.create_model("adder_resnet20").state_dict(), source)
    else:
        source.write_bytes(
            {
                "empty": b"",
                "garbage": random.Random(2).randbytes(1000),
                "a header that is too long": (2**40).to_bytes(8, "little") + b"{}",
                "a checkpoint": checkpoint.read_bytes(),
            }[kind]
        )
    before = everything_in(tmp_path)
    done = adderzoo("convert", source, tmp_path / "b.pth", "--model", NAME, "--to-original")
    wrong = "is a checkpoint of another network" if kind == "another network" else "is not a valid safetensors file"
    assert done.error.startswith(f"adderzoo convert: error: {source} {wrong}")
    assert everything_in(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing.pth", "b.safetensors", "--model", NAME), "missing.pth is not a file"),
        ((".", "b.safetensors", "--model", NAME), ". is not a file"),
        (("lenet.pth", "lenet.pth", "--model", NAME), "destination must be another file than the source"),
        (("lenet.pth", "./lenet.pth", "--model", NAME, "--to-original"), "destination must be another file"),
        (("lenet.pth", "link.pth", "--model", NAME, "--to-original"), "destination must be another file"),
        (("lenet.pth", "b.pth", "--model", NAME), "destination must end in .safetensors, got b.pth"),
        (("lenet.pth", "b", "--model", NAME), "destination must end in .safetensors, got b"),
        (
            ("lenet.pth", "b.safetensors", "--model", NAME, "--to-original"),
            "destination must not end in .safetensors for the authors' format, got b.safetensors",
        ),
        (("lenet.pth", "b.safetensors", "--model", "lenet"), "model must be a registered network, got 'lenet'"),
        (("lenet.pth", "b.safetensors", "--model", f"{NAME}.nowhere"), "model adder_lenet5 has no tag 'nowhere'"),
        (("lenet.pth", "lenet.pth/b.safetensors", "--model", NAME), "lenet.pth"),
        (("lenet.pth", "folder.safetensors", "--model", NAME), "folder.safetensors"),
    ],
)
def test_bad_arguments_are_refused_in_one_line_and_nothing_is_written(
    adderzoo: Command,
    tmp_path: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.pth").symlink_to("lenet.pth")
    (tmp_path / "folder.safetensors").mkdir()
    before = everything_in(tmp_path)
    done = adderzoo("convert", *arguments)
    assert done.error.startswith("adderzoo convert: error: ")
    assert message in done.error
    assert everything_in(tmp_path) == before


@pytest.mark.parametrize("original", [False, True])
@pytest.mark.parametrize("old", [False, True])
def test_a_write_that_fails_halfway_is_one_line_and_leaves_what_was_there(
    adderzoo: Command, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, old: bool, original: bool
) -> None:
    def half(path: Path, content: bytes) -> None:
        path.write_text("half of a checkp")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    destination = tmp_path / ("b.pth" if original else "b.safetensors")
    if old:
        destination.write_text("what was there before")
    before = everything_in(tmp_path)
    done = adderzoo("convert", checkpoint, destination, "--model", NAME, *["--to-original"] * original)
    assert "No space left on device" in done.error
    assert everything_in(tmp_path) == before


def test_a_folder_that_cannot_be_written_to_is_one_line(adderzoo: Command, tmp_path: Path, checkpoint: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o555)
    target = folder if os.geteuid() else Path("/proc")  # root may write to any folder on a disk
    done = adderzoo("convert", checkpoint, target / "b.safetensors", "--model", NAME)
    assert str(target) in done.error
    assert list(folder.iterdir()) == []


def test_the_command_itself_ends_with_status_1_and_one_line(tmp_path: Path) -> None:
    write(tmp_path / "evil.pth", pickle.dumps(TouchesAFile(tmp_path / "ran")))
    done = subprocess.run(
        [sys.executable, "-m", "adderzoo.cli", "convert", "evil.pth", "b.safetensors", "--model", NAME],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(package.__file__).parent.parent)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("adderzoo convert: error: evil.pth is not a PyTorch checkpoint, or is damaged")
    assert [path.name for path in tmp_path.iterdir()] == ["evil.pth"]


def test_another_number_of_classes_is_told_or_read(adderzoo: Command, tmp_path: Path) -> None:
    state_dict = timm.create_model("adder_resnet20", num_classes=100).state_dict()
    torch.save({f"module.{key}": value for key, value in state_dict.items()}, tmp_path / "cifar100.pth")
    arguments = ("convert", tmp_path / "cifar100.pth", tmp_path / "a.safetensors", "--model", "adder_resnet20")
    assert "of another shape: fc.weight (100, 64, 1, 1) for (10, 64, 1, 1)" in adderzoo(*arguments).error
    assert "num_classes 100" in adderzoo(*arguments, "--num-classes", 100).out
    back = adderzoo(
        "convert", tmp_path / "a.safetensors", tmp_path / "b.pth", "--model", "adder_resnet20", "--to-original"
    )
    assert (back.status, back.err) == (0, "")
    fc = torch.load(tmp_path / "b.pth", weights_only=True)["module.fc.weight"]
    assert torch.equal(fc, state_dict["fc.weight"])


def test_the_authors_file_is_converted_with_its_license(adderzoo: Command, tmp_path: Path) -> None:
    source = SHARED / "checkpoints" / "ResNet20-AdderNet.pth"
    if not source.is_file():
        pytest.skip("needs ../shared/checkpoints")
    done = adderzoo("convert", source, tmp_path / "a.safetensors", "--model", "adder_resnet20")
    assert (done.status, done.err) == (0, "")
    assert "source ResNet20-AdderNet.pth, source_sha256 fe3ad7c1" in done.out
    assert "license BSD-3-Clause" in done.out
    done = adderzoo("convert", source, tmp_path / "b.safetensors", "--model", "adder_resnet32")
    assert "is a checkpoint of another network than adder_resnet32: " in done.error
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
