"""What files say of themselves is foreign text: whatever it is, a command works or ends in one line."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from checkpoint_files import write_trained
from commands import Done
from pictures import random_images
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from trainings import write_classes

from adderzoo.checkpoints import save
from adderzoo.inference import quantization

pytestmark = pytest.mark.usefixtures("one_thread")

Command = Callable[..., Done]

# More with FUZZ_RUNS, others with FUZZ_SEED.
RUNS = int(os.environ.get("FUZZ_RUNS", "40"))
SEED = int(os.environ.get("FUZZ_SEED", random.randrange(10**6)))

VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 3, 5, 0.5, -2.5, 10**5, 10**30, -(10**30), 1e-30, 1e308, float("nan"), float("inf")),
    *("", "a", "1", "\x1b[2J", "\ud800", "ä" * 300, [], {}, [1], [1, "a", 32], [1, 100000, 100000], [[]], [None] * 3),
    *([0, 0, 0], [1, 1, 1], [3, 32, 32], [1, 33, 35], ["0"] * 10, {"a": 1}, {"": {}}, list(range(1000))),
]
TEXTS = ["", " ", "null", "{", "[]", "{}", "0", "-1", '""', "NaN", "1e999", "9" * 5000, "[" * 10**5, '{"a":' * 3000]
TEXTS += [
    "٣",
    "adder_lenet5.digits",
    "cnn_lenet5",
    "adder_*",
    "[!a]",
    "hf-hub:a/b",
    "local-dir:.",
    "\x1b[2J",
    "../../etc",
]


def mutated(value: Any, rng: random.Random) -> Any:
    """A value with one of its parts, or all of it, replaced, taken out or doubled."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(sorted(value))
        copy = dict(value)
        if rng.random() < 0.15:
            del copy[key]
        elif rng.random() < 0.1:
            copy[rng.choice(["pretrained", "checkpoint_path", "file", "scale", "width", "", "\n"])] = rng.choice(VALUES)
        else:
            copy[key] = mutated(value[key], rng)
        return copy
    if isinstance(value, list) and value and rng.random() < 0.8:
        index = rng.randrange(len(value))
        return [*value[:index], *([mutated(value[index], rng)] * rng.choice([0, 1, 1, 1, 2])), *value[index + 1 :]]
    return rng.choice(VALUES)


def mutated_text(text: str, rng: random.Random) -> str:
    try:
        value = json.loads(text)
    except ValueError:
        return rng.choice(TEXTS)
    if rng.random() < 0.2:
        return rng.choice(TEXTS)
    if rng.random() < 0.1:
        return text[: rng.randrange(len(text) + 1)]
    return json.dumps(mutated(value, rng))


class Files:
    """What the commands read, and images for them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_classes(folder / "data" / "train", {"0": 4, "1": 4})
        write_classes(folder / "data" / "val", {"0": 2, "1": 2})
        (self.image,) = [folder / "data" / "val" / "0" / "0.png"]
        self.photo = folder / "photo.png"
        random_images(1, (8, 6), seed=1)[0].convert("RGB").save(self.photo)
        classes = {"classes": '["0", "1"]', "model_args": '{"drop_rate": 0.1}', "num_classes": "2"}
        model = timm.create_model("adder_lenet5", num_classes=2).eval()
        simulation = quantization.calibrate(model, [torch.rand(4, 1, 32, 32)])
        ranges = json.dumps(quantization.ranges(simulation))
        self.float = write_trained(
            folder / "float.safetensors", "adder_lenet5", 1, {**classes, "ranges": ranges}, num_classes=2
        )
        self.bytes = folder / "bytes.safetensors"
        save(quantization.quantize(simulation), self.bytes, {"classes": classes["classes"]})
        small = {"blocks": 1, "width": 4}
        said = {"model_args": json.dumps(small), "num_classes": None}
        self.edsr = write_trained(folder / "edsr.safetensors", "cnn_edsr_small_x2", 1, said, **small)
        save_for_hf(model, folder / "repository", safe_serialization=True)

    def commands(self, out: Path) -> list[tuple[Path, list[object]]]:
        """A file, and a command that reads it in the place of "FILE"."""
        lenet = ["--model", "adder_lenet5", "--checkpoint", "FILE"]
        train = ["train", "--model", "adder_lenet5", "--data-dir", self.folder / "data", "--workers", 0, "--epochs", 1]
        train += ["--batch-size", 4, "--experiment", "run"]
        data = ["--data-dir", self.folder / "data", "--workers", 0]
        edsr = ["--model", "cnn_edsr_small_x2", "--checkpoint", "FILE"]
        teacher = ["--kd-model-name", "adder_lenet5", "--kd-checkpoint", "FILE"]
        return [
            *((file, ["predict", self.image, *lenet]) for file in (self.float, self.bytes)),
            *((file, ["validate", *data, *lenet]) for file in (self.float, self.bytes)),
            *((file, ["profile", *lenet]) for file in (self.float, self.bytes)),
            (self.float, ["quantize", out / "q.safetensors", *lenet]),
            (self.float, ["convert", "FILE", out / "c.safetensors", "--model", "adder_lenet5"]),
            (self.float, ["export", out / "e.pt", "--format", "torchscript", *lenet]),
            (self.float, [*train, "--output", out / "trained", "--initial-checkpoint", "FILE"]),
            (
                self.float,
                [*train, "--output", out / "taught", "--kd", "logits", *teacher],
            ),
            (self.edsr, ["upscale", self.photo, "-o", out / "u.png", *edsr]),
            (self.edsr, ["profile", "--img-size", 8, *edsr]),
        ]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("foreign"))


def wrong(done: Callable[[], Done]) -> str:
    """What is wrong with how a command ended; "" for nothing."""
    try:
        got = done()
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    errors = [line for line in got.err.splitlines() if ": error: " in line]
    if got.status not in (0, 1) or "Traceback" in got.err + got.out or len(errors) != got.status:
        return repr(got)
    return "" if all(len(line) < 3000 and line.isprintable() for line in errors) else repr(errors)


def test_the_files_themselves_are_taken(adderzoo: Command, files: Files, tmp_path: Path) -> None:
    for file, command in files.commands(tmp_path):
        done = adderzoo(*(file if word == "FILE" else word for word in command))
        assert done.status == 0, (command, done)


def test_whatever_the_metadata_says_a_command_works_or_says_why_not(
    adderzoo: Command, files: Files, tmp_path: Path
) -> None:
    print("FUZZ_SEED", SEED)
    rng = random.Random(SEED)
    failures = []
    for number in range(RUNS):
        file, command = rng.choice(files.commands(tmp_path / str(number)))
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
        said = {key: mutated_text(metadata[key], rng) for key in rng.sample(sorted(metadata), rng.choice([1, 1, 1, 2]))}
        path = tmp_path / "foreign.safetensors"
        save_file(load_file(file), path, metadata | said)
        if problem := wrong(lambda c=command, p=path: adderzoo(*(p if word == "FILE" else word for word in c))):
            failures.append((number, command[0], {key: text[:200] for key, text in said.items()}, problem[-1000:]))
    assert not failures


@pytest.mark.parametrize("key", ["mean", "std"])
def test_normalization_of_other_channels_than_the_network_has_is_refused(
    adderzoo: Command, files: Files, tmp_path: Path, key: str
) -> None:
    path = tmp_path / "a.safetensors"
    save_file(load_file(files.float), path, {"num_classes": "2", "data_config": json.dumps({key: [0.5, 0.5, 0.5]})})
    for command in (["predict", files.image], ["validate", "--data-dir", files.folder / "data"]):
        done = adderzoo(*command, "--model", "adder_lenet5", "--checkpoint", path)
        assert done.status == 1
        assert f"adder_lenet5 takes images of 1 channels, but its {key} is (0.5, 0.5, 0.5)" in done.err


@pytest.mark.parametrize("command", ["predict", "validate", "upscale", "validate super-resolution"])
def test_network_whose_results_are_not_finite_is_refused(
    adderzoo: Command, files: Files, tmp_path: Path, command: str
) -> None:
    """Its weights are: a negative variance is a number like any other."""
    name = "adder_lenet5" if command in ("predict", "validate") else "adder_edsr_small_x2"
    model = timm.create_model(name, **({"num_classes": 2} if name == "adder_lenet5" else {}))
    state_dict = {key: -value if key.endswith("var") else value for key, value in model.state_dict().items()}
    torch.save(state_dict, tmp_path / "a.pth")
    photos = tmp_path / "photos"
    photos.mkdir()
    random_images(1, (32, 32), seed=1)[0].convert("RGB").save(photos / "a.png")
    out = tmp_path / "out.json"
    arguments = {
        "predict": ["predict", files.image, "--num-classes", 2],
        "validate": [
            "validate",
            "--data-dir",
            files.folder / "data",
            "--num-classes",
            2,
            "--json",
            f"{out}.json",
        ],
        "upscale": ["upscale", photos / "a.png", "-o", tmp_path / "out.png"],
        "validate super-resolution": ["validate", "--data-dir", photos, "--json", out],
    }[command]
    done = adderzoo(*arguments, "--model", name, "--checkpoint", tmp_path / "a.pth")
    assert done.status == 1
    assert "error: the network's results are not finite" in done.err
    assert done.out == ""
    assert {path.name for path in tmp_path.iterdir()} == {"a.pth", "photos"}


def test_whatever_a_config_says_a_command_works_or_says_why_not(
    adderzoo: Command, files: Files, tmp_path: Path
) -> None:
    """Of a folder in timm's format; a repository's is read in the same place."""
    print("FUZZ_SEED", SEED)
    rng = random.Random(SEED)
    repository = files.folder / "repository"
    config = (repository / "config.json").read_text()
    (tmp_path / "model.safetensors").write_bytes((repository / "model.safetensors").read_bytes())
    failures = []
    for _ in range(RUNS // 4):
        text = mutated_text(config, rng)
        (tmp_path / "config.json").write_text(text, errors="surrogatepass")
        command = rng.choice([["predict", files.image], ["validate", "--data-dir", files.folder / "data", "-j", 0]])
        if problem := wrong(lambda c=command: adderzoo(*c, "--model", f"local-dir:{tmp_path}")):
            failures.append((command[0], text[:2000], problem[-1000:]))
    assert not failures


def test_whatever_is_in_args_yaml_resuming_works_or_says_why_not(
    adderzoo: Command, files: Files, tmp_path: Path
) -> None:
    print("FUZZ_SEED", SEED)
    rng = random.Random(SEED)
    command = ["train", "--model", "adder_lenet5", "--data-dir", files.folder / "data", "--workers", 0, "--epochs", 1]
    command += ["--batch-size", 4, "--output", tmp_path, "--experiment", "run"]
    assert adderzoo(*command).status == 0
    path = tmp_path / "run" / "args.yaml"
    known = yaml.safe_load(path.read_text())
    none = ["", "- 1\n- 2\n", "text", "a: [", "!!python/object/apply:os.system [ls]", "[" * 5000, "\x00"]
    bomb = "a: &a [1, 1]\nlr: &b [*a, *a]\nseed: &c [*b, *b, *b, *b, *b]\nmomentum: [*c, *c, *c, *c, *c, *c]"
    texts = [*none, "a: &x [*x]", "lr: &x [*x]", bomb]
    texts += [yaml.safe_dump(mutated(known, rng)) for _ in range(RUNS // 4)]
    failures = []
    for text in texts:
        path.write_text(text)
        if problem := wrong(lambda: adderzoo(*command, "--resume")):
            failures.append((text[:2000], problem[-1000:]))
        elif text in none:
            assert path.read_text() == text
    assert not failures
