"""Publishing of weights: what is written, what is refused, and that nothing is half written."""

import hashlib
import importlib.util
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
from checkpoint_files import write_trained
from pictures import random_images, write_folder
from registry import add_tag, untrained_network
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.data import resolve_model_data_config

import adderzoo
from adderzoo.catalogue import Accuracy, Measurement, read_results
from adderzoo.checkpoints import convert
from adderzoo.cli import main
from adderzoo.files.weights import save_weights
from adderzoo.inference import quantization
from adderzoo.models import _builder
from adderzoo.publish import card
from adderzoo.publish import weights as publishing
from adderzoo.publish.card import model_card
from adderzoo.publish.weights import add_baseline, add_weights

pytestmark = pytest.mark.usefixtures("one_thread")

CHECKOUT = Path(__file__).resolve().parent.parent.parent
WEIGHTS = CHECKOUT / "adderzoo" / "weights"
NAME, TWIN = "adder_lenet5.digits", "cnn_lenet5.digits"
UNTRAINED = f"{untrained_network()}.untrained"
MEASURED = Accuracy("some digits, the second half", 400, 80.0, 2.0, "bash it.sh", "SGD for an epoch.")


def write_checkpoint(path: Path, name: str = NAME, seed: int = 0, **said: Any) -> Path:
    classes = {"classes": json.dumps([*"0123456789"]), "top1": "12.34"}
    return write_trained(path, name, seed, classes | said, num_classes=int(said.get("num_classes") or 10))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "best.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With weights in it, of this name, of its twin and of a stranger."""
    folder = tmp_path / "weights"
    for name in (NAME, TWIN):
        add_weights(name, write_checkpoint(tmp_path / "old.safetensors", name, 5), MEASURED, folder)
    (folder / "stranger.a.safetensors").write_bytes(b"weights of another package")
    with (folder / "SHA256SUMS").open("a") as sums:
        sums.write(f"{hashlib.sha256(b'weights of another package').hexdigest()}  stranger.a.safetensors\n")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*")} if folder.exists() else {}


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as weights:
        return weights.metadata()


def assert_sums_hold(folder: Path) -> None:
    """As sha256sum reads them, for every file of weights."""
    done = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "".join(f"{path.name}: OK\n" for path in sorted(folder.glob("*.safetensors")))


# --------------------------------------------------------------------------------------------------- what is published


def test_weights_of_the_checkpoint_are_published_with_all_that_is_known(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "weights"
    files = add_weights(NAME, checkpoint, MEASURED, out)
    assert sorted(files.values()) == sorted(out.iterdir())
    assert {path.name for path in out.iterdir()} == {
        f"{NAME}.safetensors", f"{NAME}.md", "results.json", "SHA256SUMS"
    }  # fmt: skip
    old, new = load_file(checkpoint), load_file(files["weights"])
    assert old.keys() == new.keys()
    assert all(torch.equal(old[key], new[key]) and old[key].dtype == new[key].dtype for key in old)
    said = metadata(files["weights"])
    assert json.loads(said.pop("classes")) == [*"0123456789"]
    config = json.loads(said.pop("data_config"))
    expected = resolve_model_data_config(timm.create_model(NAME))
    assert config == json.loads(json.dumps(expected))
    assert said == {
        "format": "pt",
        "architecture": "adder_lenet5",
        "tag": "digits",
        "num_classes": "10",
        "license": "Apache-2.0",
        "command": "bash it.sh",
        "recipe": "SGD for an epoch.",
        "top1": "80.00",
        "top1_se": "2.00",
        "dataset": "some digits, the second half (400 images)",
    }
    assert read_results(out / "results.json") == {NAME: MEASURED}
    assert_sums_hold(out)
    assert files["card"].read_text(encoding="utf-8") == model_card(NAME, out)


def test_published_weights_are_those_that_pretrained_takes(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = add_weights(NAME, checkpoint, MEASURED, tmp_path / "weights")
    monkeypatch.setattr(_builder, "WEIGHTS", tmp_path / "weights")  # checks the SHA-256 of what lies there
    network = timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay={"file": str(files["weights"])})
    assert torch.equal(network.conv3.weight, load_file(checkpoint)["conv3.weight"])


def test_other_weights_in_the_folder_stay(folder: Path, checkpoint: Path) -> None:
    before = content(folder)
    add_weights(NAME, checkpoint, replace(MEASURED, top1=90.0, top1_se=1.5), folder)
    after = content(folder)
    assert after.keys() == before.keys()
    assert all(after[kept] == before[kept] for kept in (f"{TWIN}.safetensors", "stranger.a.safetensors"))
    results = read_results(folder / "results.json")
    assert results[TWIN] == MEASURED
    assert results[NAME].top1 == 90.0
    assert_sums_hold(folder)


def test_the_card_of_the_twin_shows_the_new_weights(folder: Path, checkpoint: Path) -> None:
    before = (folder / f"{TWIN}.md").read_text(encoding="utf-8")
    files = add_weights(NAME, checkpoint, replace(MEASURED, top1=90.0, top1_se=1.5), folder)
    after = (folder / f"{TWIN}.md").read_text(encoding="utf-8")
    assert files["twin's card"] == folder / f"{TWIN}.md"
    assert after == model_card(TWIN, folder)
    assert "90.00 ± 1.50" not in before
    assert "| 80.00 ± 2.00 | 90.00 ± 1.50 |" in after


def test_the_same_arguments_give_the_same_files(folder: Path, checkpoint: Path) -> None:
    add_weights(NAME, checkpoint, MEASURED, folder)
    first = content(folder)
    for _ in range(4):  # safetensors would write its metadata in another order
        add_weights(NAME, checkpoint, MEASURED, folder)
    assert content(folder) == first


def test_the_files_in_the_package_are_what_would_be_written_of_them(tmp_path: Path) -> None:
    names = [path.stem for path in sorted(WEIGHTS.glob("*.safetensors"))]
    add_baseline(read_results()["bicubic"], tmp_path)  # the cards of networks for super-resolution show it
    for name in names:
        add_weights(name, WEIGHTS / f"{name}.safetensors", read_results()[name], tmp_path)
    for path in tmp_path.iterdir():
        if path.name != "results.json":
            assert path.read_bytes() == (WEIGHTS / path.name).read_bytes(), path.name
    rows = json.loads((WEIGHTS / "results.json").read_text())
    assert json.loads((tmp_path / "results.json").read_text()) == {name: rows[name] for name in ("bicubic", *names)}
    assert (WEIGHTS / "results.json").read_text() == json.dumps(dict(sorted(rows.items())), indent=2) + "\n"


def test_percentages_are_rounded_as_they_are_shown(checkpoint: Path, tmp_path: Path) -> None:
    share = 888 / 899
    exact = replace(MEASURED, images=899, top1=100 * share, top1_se=100 * math.sqrt(share * (1 - share) / 899))
    files = add_weights(NAME, checkpoint, exact, tmp_path / "weights")
    row = read_results(files["results"])[NAME]
    assert (row.top1, row.top1_se) == (98.78, 0.37)
    assert (metadata(files["weights"])["top1"], metadata(files["weights"])["top1_se"]) == ("98.78", "0.37")


def test_ranges_and_origin_travel_with_the_weights(tmp_path: Path) -> None:
    said = {"ranges": '{"bits": 4}', "source": "theirs.pth", "source_sha256": "ab", "trained_from": "first.pth (cd)"}
    said["taught_by"] = "second.pth (ef); cnn_lenet5.digits"
    files = add_weights(NAME, write_checkpoint(tmp_path / "a.safetensors", **said), MEASURED, tmp_path / "weights")
    assert metadata(files["weights"]).items() >= said.items()
    start = " The training started from first.pth (cd)."
    assert f"{start} It was taught by second.pth (ef); cnn_lenet5.digits.\n" in files["card"].read_text()


def test_a_checkpoint_that_says_its_network_alone_is_known_by_its_tag(tmp_path: Path) -> None:
    torch.save(timm.create_model("adder_lenet5").state_dict(), tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "a.safetensors", "adder_lenet5")
    said = metadata(add_weights(NAME, tmp_path / "a.safetensors", MEASURED, tmp_path / "weights")["weights"])
    assert said["license"] == "Apache-2.0"
    assert json.loads(said["classes"]) == [*"0123456789"]
    assert json.loads(said["data_config"])["mean"] == list(timm.get_pretrained_cfg(NAME).mean)


# ----------------------------------------------------------------------------------------------------- what is refused


def assert_refused(message: str, name: str, checkpoint: Path, measured: Measurement, folder: Path) -> None:
    before = content(folder)
    with pytest.raises(ValueError, match=message):
        add_weights(name, checkpoint, measured, folder)
    assert content(folder) == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_net.digits", "network of adderzoo with a tag, .* got 'no_such_net.digits'"),
        ("resnet18.a1_in1k", "network of adderzoo with a tag, .* got 'resnet18.a1_in1k'"),
        ("adder_lenet5.letters", r"default_cfgs, which are .*\bdigits\b.*, got 'letters' in 'adder_lenet5.letters'"),
        ("adder_lenet5", r"default_cfgs, which are .*\bdigits\b.*, got '' in 'adder_lenet5'"),
        ("adder_*.digits", "network of adderzoo with a tag, .* got 'adder_"),
        (UNTRAINED, f"weights from the file {UNTRAINED}.safetensors, .* file None"),
        ("adder_resnet20.huawei_cifar10", "adder_resnet20.huawei_cifar10.safetensors, .* url 'https://github.com/"),
    ],
)
def test_a_name_that_has_no_such_weights_is_refused(name: str, message: str, checkpoint: Path, folder: Path) -> None:
    assert_refused(message, name, checkpoint, MEASURED, folder)


def test_a_tag_without_a_license_is_refused(checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_tag(monkeypatch, "adder_lenet5.free", file="adder_lenet5.free.safetensors", license=None)
    assert_refused("'adder_lenet5.free' must say the license", "adder_lenet5.free", checkpoint, MEASURED, folder)


def other_config(**values: Any) -> str:
    return json.dumps(resolve_model_data_config(timm.create_model(NAME)) | values)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"name": TWIN}, "another network than adder_lenet5: its metadata says cnn_lenet5"),
        ({"name": "adder_resnet20"}, "another network than adder_lenet5: its metadata says adder_resnet20"),
        ({"num_classes": "7"}, "must be of 10 classes as adder_lenet5.digits, .*best.safetensors is of 7"),
        ({"num_classes": "7", "architecture": "adder_lenet5.letters"}, "of 10 classes .* is of 7"),
        ({"classes": '["0", "1"]'}, "of the classes of adder_lenet5.digits, 10: '0', '1', .* is of 2: '0', '1'$"),
        ({"classes": json.dumps([*"1023456789"])}, "of the classes of .* is of 10: '1', '0', '2'"),
        ({"data_config": other_config(mean=[0.1307])}, r"pretrained_cfg has mean \(0.3112,\), .* has \(0.1307,\)$"),
        ({"data_config": other_config(std=[0.3081])}, r"pretrained_cfg has std \(0.3502,\), .* has \(0.3081,\)$"),
        (
            {"data_config": other_config(input_size=[1, 64, 64])},
            r"pretrained_cfg has input_size \(1, 32, 32\), .* has \(1, 64, 64\)$",
        ),
        ({"data_config": other_config(interpolation="bilinear")}, "has interpolation bicubic, .* has bilinear"),
        ({"data_config": "[]"}, r"its metadata data_config is wrong: it must be an object, got \[\]$"),
        ({"license": "BSD-3-Clause"}, "of the license of adder_lenet5.digits, apache-2.0, .* is of BSD-3-Clause"),
        ({"architecture": None}, "with an architecture in its metadata, .*, got .*best.safetensors"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(
    said: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    checkpoint = write_checkpoint(tmp_path / "best.safetensors", **said)
    if said.get("name", NAME).startswith("adder_resnet20"):  # its preprocessing is another one too
        save_weights(timm.create_model("adder_resnet20"), checkpoint, {"architecture": "adder_resnet20"})
    assert_refused(message, NAME, checkpoint, MEASURED, folder)


def test_tensors_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    tensors = timm.create_model("adder_lenet5").state_dict()
    del tensors["bn2.bias"]
    save_file(tensors, tmp_path / "a.safetensors", {"architecture": "adder_lenet5"})
    assert_refused(r"1 missing: bn2\.bias", NAME, tmp_path / "a.safetensors", MEASURED, folder)
    seven = write_checkpoint(tmp_path / "b.safetensors", num_classes="7")
    save_file(load_file(seven), seven, {"architecture": "adder_lenet5"})
    assert_refused("of another shape", NAME, seven, MEASURED, folder)


def test_files_that_are_no_float_checkpoint_are_refused(folder: Path, tmp_path: Path) -> None:
    assert_refused("none.safetensors is not a file", NAME, tmp_path / "none.safetensors", MEASURED, folder)
    (tmp_path / "cut.safetensors").write_bytes(b"\x08")
    assert_refused("not a valid safetensors file", NAME, tmp_path / "cut.safetensors", MEASURED, folder)
    torch.save(timm.create_model("adder_lenet5").state_dict(), tmp_path / "a.pth")
    assert_refused("an architecture in its metadata", NAME, tmp_path / "a.pth", MEASURED, folder)
    for name, bits in ((NAME, 8), ("adder_lenet5.mnist_u8", 4)):
        simulation = quantization.calibrate(timm.create_model(NAME), [torch.randn(8, 1, 32, 32)], bits)
        adderzoo.save(quantization.quantize(simulation), tmp_path / "bytes.safetensors")
        refusal = f"as in _u8, .* which is one of {bits} bits"
        assert_refused(refusal, name, tmp_path / "bytes.safetensors", MEASURED, folder)
    float_weights = WEIGHTS / "adder_lenet5.mnist.safetensors"
    assert_refused("which is not quantized", "adder_lenet5.mnist_u8", float_weights, MEASURED, folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"images": 0}, "images of the measurement must be at least 1, got 0"),
        ({"top1": 100.5}, "top1 of the measurement must be from 0 to 100, in percent, got 100.5"),
        ({"top1": float("nan")}, "top1 of the measurement must be from 0 to 100, in percent, got nan"),
        ({"top1": 0.8}, "the standard error of 0.8 % of 400 images, 0.45, got 2.0"),  # a share, not percent
        ({"top1_se": float("nan")}, "the standard error of 80.0 % of 400 images, 2.00, got nan"),
        ({"recipe": ""}, "recipe of the measurement must be a line of text, got ''"),
        ({"command": "a\nb"}, r"command of the measurement must be a line of text, got 'a\\nb'"),
        ({"dataset": " "}, "dataset of the measurement must be a line of text, got ' '"),
    ],
)
def test_a_measurement_that_cannot_be_is_refused(
    values: dict[str, Any], message: str, checkpoint: Path, folder: Path
) -> None:
    assert_refused(message, NAME, checkpoint, replace(MEASURED, **values), folder)


def test_nothing_is_written_where_nothing_was(tmp_path: Path, checkpoint: Path) -> None:
    assert_refused("got 'letters'", "adder_lenet5.letters", checkpoint, MEASURED, tmp_path / "new")
    assert not (tmp_path / "new").exists()


# ------------------------------------------------------------------------------------------------------- all or nothing


class Cut(BaseException):
    """What no program catches, as when it is interrupted."""


def failing_replacement(number: int, error: BaseException) -> Callable[[Path, Path], Path]:
    """`Path.replace`, the step by which a file appears, that fails the n-th time and works again behind it."""
    calls: list[Path] = []
    replace_file = Path.replace

    def fail(path: Path, target: Path) -> Path:
        calls.append(path)
        if len(calls) == number:
            raise error
        return replace_file(path, target)

    return fail


@pytest.mark.parametrize("error", [OSError("the disk is full"), Cut()], ids=["OSError", "interrupted"])
@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_a_file_that_cannot_be_replaced_leaves_all_as_they_were(
    number: int, error: BaseException, folder: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(folder)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", failing_replacement(number, error))
        with pytest.raises(type(error)):
            add_weights(NAME, checkpoint, replace(MEASURED, top1=90.0, top1_se=1.5), folder)
    assert content(folder) == before
    assert_sums_hold(folder)
    files = add_weights(NAME, checkpoint, replace(MEASURED, top1=90.0, top1_se=1.5), folder)
    assert len(files) == 5  # each of the numbers above was one of them
    assert all(content(folder)[path.name] != before[path.name] for path in files.values())


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_first_publication_that_fails_leaves_nothing(
    number: int, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "replace", failing_replacement(number, OSError("the disk is full")))
    with pytest.raises(OSError, match="the disk is full"):
        add_weights(NAME, checkpoint, MEASURED, tmp_path / "weights")
    assert content(tmp_path / "weights") == {}


def test_a_card_that_cannot_be_made_leaves_all_as_they_were(
    folder: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> str:
        raise ValueError("no card")

    monkeypatch.setattr(card, "model_card", fail)
    assert_refused("no card", NAME, checkpoint, replace(MEASURED, top1=90.0, top1_se=1.5), folder)


def test_a_folder_in_the_place_of_a_file_is_an_error_that_changes_nothing(folder: Path, checkpoint: Path) -> None:
    (folder / f"{NAME}.md").unlink()
    (folder / f"{NAME}.md").mkdir()
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(IsADirectoryError):
        add_weights(NAME, checkpoint, MEASURED, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def start_publication(folder: Path, last: int | None, top1: float) -> int:
    """A publication, in a process of its own that ends at its n-th step in the folder, as SIGKILL would end it.

    Weights and cards are other ones than usual, which take no time. Without a last step it begins again and again.

    Returns:
        The process. (A fork suffices: nothing in it computes.)
    """
    if pid := os.fork():
        return pid
    status = 1
    try:
        publishing._read_weights = lambda name, cfg, checkpoint, measured: b"weights %r" % measured.top1 * 10_000
        card.model_card = lambda name, folder: f"card of {read_results(folder / 'results.json')[name]}"
        steps = []

        def count(event: str, arguments: tuple[Any, ...]) -> None:
            """Files that are opened, made, renamed and removed."""
            if event.startswith(("open", "os.", "shutil.")) and str(folder) in str(arguments[:1]):
                steps.append(event)
                if len(steps) == last:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        add_weights(NAME, Path(), replace(MEASURED, top1=top1, top1_se=SE[top1]), folder)
        while last is None:
            top1 = 170 - top1
            add_weights(NAME, Path(), replace(MEASURED, top1=top1, top1_se=SE[top1]), folder)
        status = 0
    finally:
        os._exit(status)


def exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# By the top-1 accuracy of 400 images.
SE = {80.0: 2.0, 90.0: 1.5}


def assert_of_one_publication(folder: Path) -> None:
    """Weights, sum, row and card of NAME belong together, once the next publication has begun."""
    publishing.undo_unfinished(folder)
    top1 = read_results(folder / "results.json")[NAME].top1
    assert (folder / f"{NAME}.safetensors").read_bytes() == b"weights %r" % top1 * 10_000
    assert f"top1={top1}" in (folder / f"{NAME}.md").read_text()
    assert_sums_hold(folder)
    assert not list(folder.glob(".unfinished"))


@pytest.fixture
def published(folder: Path) -> Path:
    """The same, but for what a publication in a process of its own writes."""
    assert exit_code(start_publication(folder, 10**6, 80.0)) == 0
    assert_of_one_publication(folder)
    return folder


def test_a_publication_killed_at_any_step_is_whole_or_undone_by_the_next(published: Path) -> None:
    killed = 0
    for last in range(1, 1000, 2):
        code = exit_code(start_publication(published, last, 90.0 if killed % 2 else 80.0))
        assert_of_one_publication(published)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        killed += 1
    assert killed >= 40


def test_a_first_publication_killed_at_any_step_is_whole_or_undone_by_the_next(tmp_path: Path) -> None:
    for last in range(1, 1000, 5):
        folder = tmp_path / str(last)
        folder.mkdir()
        code = exit_code(start_publication(folder, last, 90.0))
        publishing.undo_unfinished(folder)
        names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        if names:
            assert names == {f"{NAME}.safetensors", f"{NAME}.md", "results.json", "SHA256SUMS"}
            assert_of_one_publication(folder)
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert names


def test_publications_killed_at_random_moments_are_undone_by_the_next(published: Path) -> None:
    seed = random.randrange(10**6)
    print("seed", seed)
    rng = random.Random(seed)
    for _ in range(5):
        pid = start_publication(published, None, 90.0)
        time.sleep(rng.random() / 5)
        os.kill(pid, signal.SIGKILL)
        assert exit_code(pid) == -signal.SIGKILL
        assert_of_one_publication(published)


# ----------------------------------------------------------------------------------------------------------- the script


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    spec = importlib.util.spec_from_file_location("publish", CHECKOUT / "scripts" / "reproduce" / "publish_weights.py")
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", ["publish_weights.py", *map(str, arguments)])
        module.main()

    return run


TEXTS = ("--dataset", "random images", "--command", "bash it.sh", "--recipe", "SGD for an epoch.")


def test_what_train_and_validate_write_is_published(
    script: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, seed in (("train", 0), ("test", 1)):
        labels = [index % 10 for index in range(20)]
        write_folder(tmp_path / split, random_images(20, mode="L", seed=seed), labels)
        for index in range(10):
            (tmp_path / split / f"class_{index}").rename(tmp_path / split / str(index))
    model = ["--model", NAME, "--workers", "0", "--batch-size", "10"]
    options = ["--epochs", "1", "--output", str(tmp_path), "--experiment", "run"]
    assert main(["train", *model, "--data-dir", str(tmp_path), *options]) == 0
    checkpoint, result = tmp_path / "run" / "last.safetensors", tmp_path / "result.json"
    measure = ["--checkpoint", str(checkpoint), "--data-dir", str(tmp_path / "test"), "--json", str(result)]
    assert main(["validate", *model, *measure]) == 0
    capsys.readouterr()

    out = tmp_path / "weights"
    script(NAME, checkpoint, "--result", result, *TEXTS, "--out", out)
    assert sorted(capsys.readouterr().out.splitlines()) == sorted(map(str, out.iterdir()))
    row, measured = read_results(out / "results.json")[NAME], json.loads(result.read_text())
    assert (row.top1, row.top1_se) == (round(measured["top1"], 2), round(measured["top1_se"], 2))
    assert (row.images, row.dataset, row.command, row.recipe) == (20, *TEXTS[1::2])
    said = metadata(out / f"{NAME}.safetensors")
    assert json.loads(said["classes"]) == [*"0123456789"]
    assert said["command"] == "bash it.sh"
    assert "epoch" not in said
    assert_sums_hold(out)
    again = tmp_path / "again.json"
    published = ["--checkpoint", str(out / f"{NAME}.safetensors"), "--data-dir", str(tmp_path / "test")]
    assert main(["validate", *model, *published, "--json", str(again)]) == 0
    assert json.loads(again.read_text())["top1"] == measured["top1"]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ('{"model": "cnn_lenet5", "images": 400, "top1": 80, "top1_se": 2}', "another network than .*: cnn_lenet5$"),
        ('{"model": "adder_lenet5", "images": 400, "top1": 80}', "no result of .*'top1_se'"),
        ('{"model": "adder_lenet5", "images": 400, "top1": "high", "top1_se": 2}', "no result of .*'high'"),
        ("[1]", "no result of "),
        ("top1\n80\n", "no result of "),
    ],
)
def test_a_result_of_something_else_is_one_line(
    script: Callable[..., None], result: str, message: str, checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "result.json").write_text(result)
    before = content(folder)
    with pytest.raises(SystemExit, match=rf"^publish_weights\.py: error: .*result\.json is .*{message}"):
        script(NAME, checkpoint, "--result", tmp_path / "result.json", *TEXTS, "--out", folder)
    assert content(folder) == before


def test_errors_of_the_files_are_one_line(
    script: Callable[..., None], checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=r"^publish_weights\.py: error: .*No such file"):
        script(NAME, checkpoint, "--result", tmp_path / "none.json", *TEXTS, "--out", folder)
    result = {"model": "adder_lenet5", "images": 400, "top1": 80, "top1_se": 2}
    (tmp_path / "result.json").write_text(json.dumps(result))
    before = content(folder)
    with pytest.raises(SystemExit, match=r"^publish_weights\.py: error: name must have a tag .*got 'letters'"):
        script("adder_lenet5.letters", checkpoint, "--result", tmp_path / "result.json", *TEXTS, "--out", folder)
    assert content(folder) == before
