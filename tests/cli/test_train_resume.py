import csv
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import Done
from pictures import random_images
from safetensors import safe_open
from safetensors.torch import load_file

import adderzoo as package
from adderzoo import TrainConfig

Command = Callable[..., Done]

pytestmark = pytest.mark.usefixtures("one_thread")  # sums of other numbers of threads differ in the last bit

EPOCHS = 4

# A process that gets no further than the third epoch: WHERE is a moment of it.
KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from adderzoo.cli import main
from adderzoo.engine import files

where = sys.argv[1]
calls = {}

def die_at(what, count):
    calls[what] = calls.get(what, 0) + 1
    if (what, calls[what]) == (where, count):
        os.kill(os.getpid(), signal.SIGKILL)

def dying(function, what, count):
    def call(*arguments, **keywords):
        die_at(what, count)
        return function(*arguments, **keywords)
    return call

write_bytes = Path.write_bytes

def write_half(path, content):
    what, count = ("while it writes the state", 3) if path.suffix == ".pt" else ("while it writes the weights", 5)
    if calls.get(what, 0) == count - 1:
        write_bytes(path, b"half of what was to be written")
    die_at(what, count)
    return write_bytes(path, content)

torch.nn.CrossEntropyLoss.forward = dying(torch.nn.CrossEntropyLoss.forward, "in a batch", 10)
Path.write_bytes = write_half
files._write_summary = dying(files._write_summary, "between weights and state", 3)
main(sys.argv[2:])
raise SystemExit("it was not killed")
"""
MOMENTS = ["in a batch", "while it writes the weights", "between weights and state", "while it writes the state"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for seed, name in enumerate(("train/a", "train/b", "val/a", "val/b")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index, image in enumerate(random_images(8, (32, 32), mode="L", seed=seed)):
            image.save(tmp_path / "data" / name / f"{index}.png")
    return tmp_path / "data"


def arguments(data: Path, output: Path, name: str, *options: object) -> list[object]:
    return [
        *("train", "--model", "adder_lenet5", "--data-dir", data, "--epochs", EPOCHS, "--batch-size", 4, "-j", 0),
        *("--output", output, "--experiment", name, *options),
    ]


def run(script: str, parameter: object, command: list[object]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, str(parameter), *map(str, command)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(package.__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def assert_equal(got: Any, expected: Any, where: str = "") -> None:
    """Nested containers, and every bit of the tensors in them."""
    assert type(got) is type(expected), where
    if isinstance(expected, dict):
        assert got.keys() == expected.keys(), where
        for key in expected.keys() - {"seconds"}:  # what a clock has measured
            assert_equal(got[key], expected[key], f"{where}/{key}")
    elif isinstance(expected, list | tuple):
        assert len(got) == len(expected), where
        for index, (a, b) in enumerate(zip(got, expected, strict=True)):
            assert_equal(a, b, f"{where}/{index}")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(got, expected), where
    else:
        assert got == expected, where


def content(folder: Path) -> dict[str, Any]:
    """All that a training has left, by the name of the file."""
    found: dict[str, Any] = {"state": torch.load(folder / "state.pt", weights_only=True)}
    for name in ("best", "last"):
        path = folder / f"{name}.safetensors"
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        found[name] = load_file(path) | {"metadata": {key: metadata[key] for key in metadata.keys() - {"command"}}}
    with (folder / "summary.csv").open(newline="") as file:
        found["summary"] = list(csv.DictReader(file))
    return found


OPTIONS = {
    "plain": (),
    "everything": (
        *("--no-in-memory", "--workers", 1, "--color-jitter", 0.3, "--mixup", 0.2, "--model-ema", "--model-ema-decay"),
        *(0.9, "--amp", "--amp-dtype", "float16", "--grad-accum-steps", 3, "--sched-on-updates", "--opt", "adamw"),
        *("--model-kwargs", "drop_rate=0.2", "--clip-grad", 1),
    ),
    "plateau": ("--sched", "plateau"),
    "pkkd": (
        *("--kd", "pkkd", "--mixup", 0.2, "--model-ema", "--model-ema-decay", 0.9, "--amp", "--amp-dtype", "float16"),
        *("--grad-accum-steps", 3, "--sched-on-updates"),
    ),
    "logits": ("--kd", "logits", "--num-classes", 10),
    "quantized": ("--model", "adder_lenet5.digits", "--pretrained", "--quantize-bits", 4, "--model-ema"),
}


@pytest.mark.parametrize(
    ("where", "options"),
    [
        *((where, "plain") for where in MOMENTS),
        *(("while it writes the state", options) for options in OPTIONS if options != "plain"),
    ],
)
def test_a_killed_training_ends_as_an_uninterrupted_one(
    adderzoo: Command, data: Path, tmp_path: Path, where: str, options: str
) -> None:
    out = tmp_path / "out"
    done = run(KILLED, where, arguments(data, out, "killed", *OPTIONS[options]))
    assert done.returncode == -9, done.stdout + done.stderr
    assert "\nepoch 2: loss " in done.stdout  # not in a buffer, which is lost
    assert len(torch.load(out / "killed" / "state.pt", weights_only=True)["history"]) == 2
    for path in (out / "killed").glob("*.safetensors"):
        load_file(path)  # whole, whenever it was killed
    resumed = adderzoo(*arguments(data, out, "killed", *OPTIONS[options], "--resume"))
    assert resumed.status == 0, resumed
    assert "behind epoch 2" in resumed.out
    assert adderzoo(*arguments(data, out, "whole", *OPTIONS[options])).status == 0
    assert_equal(content(out / "killed"), content(out / "whole"))
    assert {path.name for path in (out / "killed").iterdir()} == {path.name for path in (out / "whole").iterdir()}


# A process whose files may not grow beyond so many bytes from its third epoch on.
FULL = """
import resource, sys
import torch
from adderzoo.cli import main

forward, calls = torch.nn.CrossEntropyLoss.forward, []

def fill(self, *inputs):
    calls.append(1)
    if len(calls) == 10:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
    return forward(self, *inputs)

torch.nn.CrossEntropyLoss.forward = fill
raise SystemExit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(("limit", "file"), [(100_000, "last.safetensors"), (300_000, "state.pt")])
def test_a_full_disk_ends_a_training_that_goes_on_when_there_is_room(
    adderzoo: Command, data: Path, tmp_path: Path, limit: int, file: str
) -> None:
    out = tmp_path / "out"
    done = run(FULL, limit, arguments(data, out, "full"))
    assert done.returncode == 1, done.stderr
    error = done.stderr.splitlines()[-1]
    assert error == f"adderzoo train: error: [Errno 27] File too large: '{out / 'full' / file}'"
    assert "Traceback" not in done.stderr
    assert adderzoo(*arguments(data, out, "full", "--resume")).status == 0
    assert adderzoo(*arguments(data, out, "whole")).status == 0
    assert_equal(content(out / "full"), content(out / "whole"))


def test_resuming_begins_where_there_is_nothing_and_leaves_alone_what_is_complete(
    adderzoo: Command, data: Path, tmp_path: Path
) -> None:
    command = arguments(data, tmp_path / "out", "run", "--resume")
    assert adderzoo(*command).status == 0
    files = {path.name: path.read_bytes() for path in (tmp_path / "out" / "run").glob("*.safetensors")}
    assert len(files) == 3
    done = adderzoo(*command)
    assert done.status == 0, done
    assert f"behind epoch {EPOCHS}" in done.out
    assert {path.name: path.read_bytes() for path in (tmp_path / "out" / "run").glob("*.safetensors")} == files


def test_resuming_needs_the_same_options(adderzoo: Command, data: Path, tmp_path: Path) -> None:
    assert adderzoo(*arguments(data, tmp_path / "out", "run")).status == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out" / "run").iterdir()}
    done = adderzoo(*arguments(data, tmp_path / "out", "run", "--resume", "--lr", 0.3))
    folder = tmp_path / "out" / "run"
    assert done.error.endswith(f"resume needs the options of the training in {folder}: there lr is None, got 0.3")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    done = adderzoo(*arguments(data, tmp_path / "out", "run", "--resume", "--log-tensorboard"))
    assert done.status == 0, done
    assert yaml.safe_load((folder / "args.yaml").read_text())["log_tensorboard"] is True


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("-vb", 3), "validation-batch-size was None and is 3: the result may differ in its last bits"),
        (("--workers", 1), "workers was 0 and is 1: what is random may go on with other numbers"),
        (("--no-in-memory",), "in-memory was None and is False: what is random may go on with other numbers"),
        (("--channels-last",), "channels-last was False and is True: the result may differ in its last bits"),
        (("--kd-temperature", 4.0), ""),  # as it was
    ],
)
def test_how_a_training_runs_may_change_when_it_is_resumed(
    adderzoo: Command, data: Path, tmp_path: Path, options: tuple[object, ...], line: str
) -> None:
    run = arguments(data, tmp_path / "out", "run", "--epochs", 1)
    assert adderzoo(*run).status == 0
    done = adderzoo(*run, "--resume", "--epochs", 2, *options)
    assert done.status == 0, done
    said = [each.removeprefix("adderzoo train: ") for each in done.err.splitlines() if " was " in each]
    schedule = "epochs was 1 and is 2: from here on the learning rate is that of a schedule of so many epochs"
    assert sorted(said) == sorted([schedule, *([line] if line else [])])
    assert len(torch.load(tmp_path / "out" / "run" / "state.pt", weights_only=True)["history"]) == 2


@pytest.mark.parametrize("options", [("--sched-on-updates",), ("--opt", "adamw"), ("--sched", "step")])
def test_more_epochs_go_on_at_the_rates_of_the_longer_schedule(
    adderzoo: Command, data: Path, tmp_path: Path, options: tuple[object, ...]
) -> None:
    run = arguments(data, tmp_path / "out", "run", *options)
    assert adderzoo(*run, "--epochs", 2).status == 0
    done = adderzoo(*run, "--epochs", 4, "--resume")
    assert done.status == 0, done
    assert adderzoo(*arguments(data, tmp_path / "out", "whole", *options), "--epochs", 4).status == 0
    rates = {
        name: [float(row["lr"]) for row in content(tmp_path / "out" / name)["summary"]] for name in ("run", "whole")
    }
    assert rates["run"][2:] == rates["whole"][2:]
    before = (tmp_path / "out" / "run" / "state.pt").read_bytes()
    done = adderzoo(*run, "--epochs", 3, "--resume")
    assert done.status == 1
    assert done.err.splitlines()[-1].endswith("error: epochs must be at least the 4 that are complete, got 3")
    assert (tmp_path / "out" / "run" / "state.pt").read_bytes() == before


def test_options_without_effect_are_not_compared(adderzoo: Command, data: Path, tmp_path: Path) -> None:
    """As where a default has changed since."""
    command, path = arguments(data, tmp_path / "out", "run"), tmp_path / "out" / "run" / "args.yaml"
    assert adderzoo(*command).status == 0
    written = yaml.safe_load(path.read_text())
    others = {"feature_loss_weight": 3.0, "kd_temperature": 1.0, "model_ema_decay": 0.5, "amp_dtype": "float16"}
    others |= {"mixup_prob": 0.5, "recount": 3, "warmup_lr": 1.0, "clip_mode": "agc", "decay_milestones": [1]}
    path.write_text(yaml.safe_dump(written | others))
    done = adderzoo(*command, "--resume")
    assert done.status == 0, done
    assert " was " not in done.err
    path.write_text(yaml.safe_dump(written | {"mixup_prob": 0.5, "mixup": 0.2}))
    assert "there mixup" in adderzoo(*command, "--resume").error


class Foreign:
    """Of no class that a state has."""


@pytest.mark.parametrize(("key", "change"), [("step", lambda step: None), ("history", lambda history: history * 2)])
def test_a_state_with_wrong_numbers_is_refused(
    adderzoo: Command, data: Path, tmp_path: Path, key: str, change: Callable[[Any], Any]
) -> None:
    command, path = arguments(data, tmp_path / "out", "run"), tmp_path / "out" / "run" / "state.pt"
    assert adderzoo(*command, "--epochs", 1).status == 0
    state = torch.load(path)
    torch.save({**state, key: change(state[key])}, path)
    done = adderzoo(*command, "--epochs", 3, "--resume")
    assert done.status == 1
    assert f"adderzoo train: error: {path} is damaged, or of another training: " in done.err


def test_class_names_that_could_not_be_read_again_are_refused_ahead_of_the_training(
    adderzoo: Command, data: Path, tmp_path: Path
) -> None:
    shutil.copytree(next((data / "train").iterdir()), data / "train" / "\x1b[2J")
    error = adderzoo(*arguments(data, tmp_path / "out", "run"), "--epochs", 1).error
    assert "error: the names of the classes could not be read again from the weights: " in error
    assert error.isprintable()
    assert not (tmp_path / "out").exists()


def test_a_folder_that_no_weights_could_be_read_from_again_is_refused_ahead_of_the_training(
    data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "\udcff"
    config = TrainConfig(model="adder_lenet5", data_dir=data, output=output, experiment="run")
    with pytest.raises(ValueError, match=r"^output must be a path in UTF-8"):
        package.train(config)  # not by the command: pytest cannot read the byte that it would print
    assert not output.exists()


@pytest.mark.parametrize("kind", ["foreign", "pickle", "text", "empty", "cut"])
def test_a_refused_state_is_never_answered_with_the_advice_to_trust_it(
    adderzoo: Command, data: Path, tmp_path: Path, kind: str
) -> None:
    command, path = arguments(data, tmp_path / "out", "run"), tmp_path / "out" / "run" / "state.pt"
    path.parent.mkdir(parents=True)
    if kind == "foreign":
        torch.save({"model": Foreign()}, path)
    elif kind == "cut":
        torch.save({"model": torch.ones(1000)}, path)
        path.write_bytes(path.read_bytes()[:2000])
    else:
        path.write_bytes({"pickle": pickle.dumps(Foreign()), "text": b"garbage", "empty": b""}[kind])
    done = adderzoo(*command, "--resume")
    assert done.status == 1
    missing, error = done.err.splitlines()
    assert "args.yaml is missing: whether these are the options of the training there is not known" in missing
    assert f"{path} is damaged, or of another training: " in error
    assert not re.search("weights_only|arbitrary code|trust|safe_globals|allowlist", error)


def test_an_option_that_is_younger_than_a_training_has_its_default_there(
    adderzoo: Command, data: Path, tmp_path: Path
) -> None:
    command, path = arguments(data, tmp_path / "out", "run"), tmp_path / "out" / "run" / "args.yaml"
    assert adderzoo(*command).status == 0
    written = yaml.safe_load(path.read_text())
    for key in ("input_grad", "min_lr", "opt_kwargs", "processes"):
        known = {other: value for other, value in written.items() if other != key}
        assert len(known) == len(written) - 1
        path.write_text(yaml.safe_dump(known))
        assert adderzoo(*command, "--resume").status == 0
        assert yaml.safe_load(path.read_text()) == written | {"resume": True}
    path.write_text(yaml.safe_dump({key: value for key, value in written.items() if key != "input_grad"}))
    done = adderzoo(*command, "--resume", "--input-grad", "sign")
    assert done.error.endswith(": there input-grad is hardtanh, got sign")


def test_resuming_needs_the_state_of_epochs_that_are_there(adderzoo: Command, data: Path, tmp_path: Path) -> None:
    command, folder = arguments(data, tmp_path / "out", "run"), tmp_path / "out" / "run"
    assert adderzoo(*command).status == 0
    (folder / "state.pt").unlink()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    done = adderzoo(*command, "--resume")
    expected = f"resume needs {folder / 'state.pt'}, which is missing, behind the {EPOCHS} epochs in summary.csv: "
    assert done.error.startswith(f"adderzoo train: error: {expected}")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_training_killed_in_its_first_epoch_begins_again_with_other_options_too(
    adderzoo: Command, data: Path, tmp_path: Path
) -> None:
    """It may have a line of its summary, which is written ahead of the state."""
    folder = tmp_path / "out" / "run"
    assert adderzoo(*arguments(data, tmp_path / "out", "run", "--lr", 0.3)).status == 0
    (folder / "state.pt").unlink()
    lines = (folder / "summary.csv").read_text().splitlines(keepends=True)
    (folder / "summary.csv").write_text("".join(lines[:2]))
    assert adderzoo(*arguments(data, tmp_path / "out", "run", "--resume")).status == 0
    assert adderzoo(*arguments(data, tmp_path / "out", "whole")).status == 0
    assert_equal(content(folder), content(tmp_path / "out" / "whole"))


def test_a_state_of_other_rates_is_refused(adderzoo: Command, data: Path, tmp_path: Path) -> None:
    """A schedule would go on with its own, and the filters of an older version had no multiple of it."""
    command = arguments(data, tmp_path / "out", "run", "--opt", "adamw")
    assert adderzoo(*command).status == 0
    path = tmp_path / "out" / "run" / "state.pt"
    state = torch.load(path, weights_only=True)
    for group in state["optimizer"]["param_groups"]:
        group["initial_lr"] *= group.pop("lr_scale", 1.0)
    torch.save(state, path)
    done = adderzoo(*command, "--resume")
    assert (
        f"{path} is damaged, or of another training: its learning rates begin at [0.001, 0.0002], those" in done.error
    )


def test_resuming_needs_a_name(adderzoo: Command, data: Path, tmp_path: Path) -> None:
    done = adderzoo("train", "--model", "adder_lenet5", "--data-dir", data, "--output", tmp_path / "out", "--resume")
    assert "resume needs --experiment" in done.error


def test_a_damaged_state_is_an_error_that_names_the_file(adderzoo: Command, data: Path, tmp_path: Path) -> None:
    assert adderzoo(*arguments(data, tmp_path / "out", "run")).status == 0
    path = tmp_path / "out" / "run" / "state.pt"
    path.write_bytes(path.read_bytes()[:1000])
    done = adderzoo(*arguments(data, tmp_path / "out", "run", "--resume"))
    assert f"adderzoo train: error: {path} is damaged, or of another training: " in done.error
