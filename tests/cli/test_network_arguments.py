"""What commands make of the arguments that name a network, and of --json."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from commands import Done

from adderzoo import models
from adderzoo.cli._results import open_results

Command = Callable[..., Done]

pytestmark = pytest.mark.usefixtures("one_thread")

LENET, RESNET = "adder_lenet5.digits", "adder_resnet32"
WEIGHTS = models.WEIGHTS / f"{LENET}.safetensors"

# All but the network.
COMMANDS: dict[str, tuple[object, ...]] = {
    "predict": ("digits/test/3/0908.png",),
    "validate": ("digits/test", "-j", 0),
    "quantize": ("digits", "out.safetensors", "-j", 0, "--images", 8),
    "profile": (),
    "export": ("out.pt",),
}


@pytest.fixture
def command(adderzoo: Command, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """One of COMMANDS with further arguments, in a folder with digits and nothing else."""
    (tmp_path / "digits").symlink_to(digits)
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: object) -> Done:
        return adderzoo(name, *COMMANDS[name], *arguments)

    return run


@pytest.mark.parametrize("name", COMMANDS)
def test_weights_are_those_of_the_tag_or_asked_for(command: Command, tmp_path: Path, name: str) -> None:
    done = command(name, "-m", LENET)
    assert done.status == 0, done
    assert re.match(rf"adderzoo {name}: adder_lenet5\.digits, published weights(, on \S+)?\n", done.err)
    done = command(name, "-m", RESNET, "--json", "out.json")
    assert done.error == (
        f"adderzoo {name}: error: model {RESNET} has no published weights: --checkpoint FILE gives it other weights, "
        "--random-weights random ones; `adderzoo list --pretrained` shows what has some"
    )
    assert not (tmp_path / "out.json").exists()
    done = command(name, "-m", LENET, "--num-classes", 3)
    assert f"num-classes must be 10, for which the weights of {LENET} are published, got 3" in done.error
    for options in (("--random-weights", "--num-classes", 3), ("--random-weights",)):
        done = command(name, "-m", "adder_lenet5", *options)
        assert done.err.startswith(f"adderzoo {name}: adder_lenet5, random weights")


def test_a_name_without_a_tag_is_said_to_have_that_of_its_first(command: Command) -> None:
    (first, *_) = timm.list_models("adder_lenet5.*", pretrained=True, include_tags=True)
    default = timm.get_pretrained_cfg("adder_lenet5").tag
    assert default != first.partition(".")[2]  # of timm's sorted list, so that the default is a choice
    assert (
        command("profile", "-m", "adder_lenet5").err == f"adderzoo profile: adder_lenet5.{default}, published weights\n"
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_of_weights_says_which_network_it_is_of(command: Command, tmp_path: Path, name: str) -> None:
    published = command(name, "-m", LENET)
    done = command(name, "-m", WEIGHTS)
    assert done.status == 0, done
    assert done.err.startswith(f"adderzoo {name}: {LENET}, weights of {WEIGHTS}")
    differs = r"[\d.]+ images/s|[\d,]+ bytes[;,]"  # time, and what the file says of where its weights are from
    assert re.sub(differs, "", done.out) == re.sub(differs, "", published.out)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.safetensors").symlink_to(WEIGHTS)
    assert command(name, "-m", "run").err.startswith(f"adderzoo {name}: {LENET}, weights of run/model.safetensors")


def test_files_of_weights_that_are_none(command: Command, tmp_path: Path) -> None:
    torch.save(timm.create_model(LENET, pretrained=True).state_dict(), tmp_path / "a.pth")
    for arguments, message in {
        ("-m", "a.pth"): "a.pth does not say of which network it is: pass --model NAME and --checkpoint a.pth",
        ("-m", "b.pth"): "model must be a registered network or a file of weights, but there is no file b.pth",
        ("-m", "c/d"): "model must be a registered network or a file of weights, but there is no file c/d",
        ("-m", WEIGHTS, "--checkpoint", "a.pth"): f"checkpoint must not be given beside model {WEIGHTS}",
        ("-m", WEIGHTS, "--random-weights"): f"random-weights must not be given beside model {WEIGHTS}",
        ("-m", "adder_resnet20", "--checkpoint", "a.pth"): "a.pth is a checkpoint of another network than",
        ("-m", "adder_lenet5.nowhere"): "model adder_lenet5 has no tag 'nowhere'",
        ("-m", LENET, "--model-kwargs", "in_chans=3"): "model-kwargs must not have in_chans: there is --in-chans",
        ("-m", LENET, "--model-kwargs", "pretrained=0"): "model-kwargs must not have pretrained: there is --random-",
        ("-m", LENET, "--in-chans", 0): "in-chans must be at least 1, got 0",
        ("-m", LENET, "--mean", 0.1, 0.2): "mean must be of the 1 channels of input_size, got (0.1, 0.2)",
    }.items():
        assert message in command("profile", *arguments).error
    assert command("profile", "-m", "adder_lenet5", "--checkpoint", "a.pth").status == 0
    # A name is a network's, whatever lies beside the user.
    (tmp_path / LENET).mkdir()
    assert command("profile", "-m", LENET).err == f"adderzoo profile: {LENET}, published weights\n"


def test_weights_that_cannot_be_downloaded(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", "nowhere")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "nowhere")
    done = command("profile", "-m", "resnet10t")
    assert re.match(r"adderzoo profile: error: the weights of 'resnet10t' cannot be had: .+", done.error)
    assert done.error.endswith("--checkpoint FILE gives it other weights, --random-weights random ones")


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_other_channels_and_normalization(command: Command, digits: Path, channels: int) -> None:
    """As timm normalizes them, and adapts the filters."""
    from PIL import Image

    options = ("--in-chans", channels, "--mean", 0.3, "--std", 0.4, "--topk", 10, "--json", "-")
    (row,) = json.loads(command("predict", "-m", LENET, *options).out)
    model = timm.create_model(LENET, pretrained=True, in_chans=channels).eval()
    arguments = {"input_size": (channels, 32, 32), "mean": [0.3], "std": [0.4]}
    transform = timm.data.create_transform(**timm.data.resolve_data_config(arguments, model.pretrained_cfg))
    image = Image.open(digits / "test" / "3" / "0908.png").convert("L" if channels == 1 else "RGB")
    with torch.inference_mode():
        expected = model(transform(image)[None])[0].softmax(0)
    got = {entry["index"]: entry["probability"] for entry in row["classes"]}
    assert [got[index] for index in range(10)] == pytest.approx(expected.tolist(), abs=1e-5)


# ---------------------------------------------------------------------------------------------------------------- JSON


@pytest.mark.parametrize("name", COMMANDS)
def test_json_is_alone_on_standard_output_or_in_a_file(command: Command, tmp_path: Path, name: str) -> None:
    def without_what_varies(text: str) -> object:
        result = json.loads(re.sub(r'"images_per_second": [\d.]+', '"images_per_second": 0', text))
        if name in ("export", "quantize"):  # TorchScript numbers the classes of a process, one more digit now and then
            assert result.pop("bytes") == Path(result["file"]).stat().st_size
        return result

    done = command(name, "-m", LENET, "--json", "-")
    assert done.status == 0, done
    shown = without_what_varies(done.out)
    assert shown
    done = command(name, "-m", LENET, "--json", "new/result.json")
    assert done.status == 0, done
    assert done.out
    assert without_what_varies((tmp_path / "new" / "result.json").read_text()) == shown
    done = command(name, "-m", LENET, "--json", "digits")
    assert done.error == f"adderzoo {name}: error: json must be a file, got the folder digits"


def test_what_others_print_is_not_in_the_json(capsys: pytest.CaptureFixture[str]) -> None:
    from argparse import Namespace

    with open_results(Namespace(json=Path("-"))) as results:
        print("downloading")
        results.show("for people")
        results.write([float("nan")], last=False)
        results.write([float("inf"), 1.5])
    captured = capsys.readouterr()
    assert json.loads(captured.out) == [None, 1.5]
    assert captured.err == "downloading\n"
