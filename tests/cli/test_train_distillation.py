"""`adderzoo train --kd`."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Done, run_group
from safetensors.torch import load_file
from torch import nn
from trainings import QUICK, metadata, rows, write_classes

from adderzoo.engine import students

Train = Callable[..., Done]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_classes(tmp_path / "data" / "train", {"a": 5, "b": 5})
    write_classes(tmp_path / "data" / "val", {"a": 2, "b": 3})
    return tmp_path / "data"


@pytest.fixture
def done(train: Train, folder: Path, tmp_path: Path) -> Callable[..., Path]:
    def run(*arguments: object, name: str = "run") -> Path:
        finished = train("--data-dir", folder, "--epochs", 2, "--batch-size", 4, *arguments, "--experiment", name)
        assert finished.status == 0, finished
        return tmp_path / "out" / name

    return run


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("options", [(), ("--mixup", 0.3, "--grad-accum-steps", 2, "--amp", "--amp-dtype", "float16")])
def test_the_teacher_of_pkkd_is_the_cnn_trained_alone(done: Callable[..., Path], options: tuple[object, ...]) -> None:
    alone = done("--model", "cnn_lenet5", *options, name="alone")
    student = done("--kd", "pkkd", *options, name="student")
    weights = load_file(alone / "last.safetensors")
    teacher = torch.load(student / "state.pt", weights_only=True)["task"]["teacher"]
    assert weights.keys() == teacher.keys()
    for key, value in weights.items():
        assert torch.equal(teacher[key], value), key


def test_what_is_saved_is_the_student(done: Callable[..., Path], adderzoo: Train, folder: Path) -> None:
    plain, taught = done(name="plain"), done("--kd", "pkkd", name="taught")
    weights, other = (load_file(run / "last.safetensors") for run in (plain, taught))
    assert weights.keys() == other.keys()
    assert not torch.equal(weights["conv2.weight"], other["conv2.weight"])
    assert metadata(taught / "last.safetensors")["architecture"] == "adder_lenet5"
    checked = adderzoo(
        *("validate", "--model", "adder_lenet5", "--data-dir", folder, "--checkpoint", taught / "last.safetensors")
    )
    assert f"top-1 {float(rows(taught)[-1]['eval_top1']):.2f}" in checked.out


def test_weights_and_temperature_reach_the_task(done: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    found = []

    class Watched(students.KernelDistillationTask):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)  # type: ignore[arg-type]
            found.append((self.task_loss_weight, self.distill_loss_weight, self.feature_loss_weight, self.temperature))

    monkeypatch.setattr(students, "KernelDistillationTask", Watched)
    done("--kd", "pkkd", name="defaults")
    done("--kd", "pkkd", "--task-loss-weight", 0.25, name="rest")
    weights = ("--task-loss-weight", 0.5, "--distill-loss-weight", 0.6, "--feature-loss-weight", 0.7)
    done("--kd", "pkkd", *weights, "--kd-temperature", 2, name="given")
    assert found == [(1.0, 1.0, 10.0, 4.0), (0.25, 0.75, 10.0, 4.0), (0.5, 0.6, 0.7, 2.0)]


def test_logits_come_from_published_weights_or_a_checkpoint(done: Callable[..., Path]) -> None:
    """Which, with all weight on them, is what the student comes to say."""
    weights = ("--num-classes", 10, "--kd", "logits", "--kd-temperature", 1, "--task-loss-weight", 0)
    taught = done(*weights, name="published")  # by cnn_lenet5's default weights
    assert metadata(taught / "last.safetensors")["num_classes"] == "10"
    cnn = done("--model", "cnn_lenet5", name="cnn")
    once = done("--kd", "logits", "--kd-checkpoint", cnn / "best.safetensors", "--model-ema", name="taught")
    assert torch.load(once / "state.pt", weights_only=True)["task"] == {}
    done("--kd", "logits", "--kd-checkpoint", cnn / "best.safetensors", "--torchcompile", "eager", name="compiled")
    compiled = load_file(once.parent / "compiled" / "last.safetensors")
    again = done("--kd", "logits", "--kd-checkpoint", cnn / "best.safetensors", name="again")
    for key, value in load_file(again / "last.safetensors").items():
        torch.testing.assert_close(compiled[key], value, rtol=1e-4, atol=1e-4, msg=key)


def test_several_teachers_are_one_fused_and_named_in_the_file(
    done: Callable[..., Path], adderzoo: Train, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of other kinds, one in bytes; a training by them goes on where it was interrupted."""
    found: list[Any] = []

    class Watched(students.EnsembleTeacher):
        def __init__(self, members: Any, *arguments: Any) -> None:
            super().__init__(members, *arguments)
            found.append((members, *arguments))

    monkeypatch.setattr(students, "EnsembleTeacher", Watched)
    cnn, adder = (done("--model", f"{kind}_lenet5", name=kind) / "best.safetensors" for kind in ("cnn", "adder"))
    small = tmp_path / "bytes.safetensors"
    options = ("quantize", "--model", "adder_lenet5", "--checkpoint", adder, "--data-dir", folder / "train", "-j", 0)
    assert adderzoo(*options, small).status == 0
    teachers = (
        *("--kd", "logits", "--kd-model-name", "cnn_lenet5", "adder_lenet5", "adder_lenet5"),
        *("--kd-checkpoint", cnn, adder, small, "--resume"),
    )
    taught = done(*teachers, name="taught") / "last.safetensors"
    ((members, temperature, _),) = found
    assert (len(members), temperature) == (3, 4.0)
    assert not any(isinstance(module, nn.BatchNorm2d) for member in members for module in member.modules())
    assert metadata(taught)["taught_by"].split("; ") == [
        f"{file.name} (SHA-256 {hashlib.sha256(file.read_bytes()).hexdigest()})" for file in (cnn, adder, small)
    ]
    again = done(*teachers, name="taught") / "last.safetensors"
    assert again.read_bytes() == taught.read_bytes()


def test_the_twin_has_the_tag_of_the_network(done: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights trained on other images have as many classes, and teach nonsense."""
    found = []

    class Watched(students.LogitDistillationTask):
        def __init__(self, student: Any, teacher: Any, **options: Any) -> None:
            super().__init__(student, teacher, **options)
            found.append(teacher.model.pretrained_cfg["tag"])

    monkeypatch.setattr(students, "LogitDistillationTask", Watched)
    for model in ("adder_lenet5.digits", "adder_lenet5.mnist", "adder_lenet5"):
        done("--num-classes", 10, "--model", model, "--kd", "logits", name=model)
    assert found == ["digits", "mnist", "mnist"]


def test_a_student_of_few_bits_learns_from_a_float_teacher(done: Callable[..., Path]) -> None:
    done("--num-classes", 10, "--model", "adder_lenet5.digits", "--pretrained", "--quantize-bits", 4, "--kd", "logits")


@pytest.mark.parametrize("kd", [("pkkd",), ("logits", "--num-classes", 10)])
def test_a_group_trains_student_and_teacher_together(tmp_path: Path, folder: Path, kd: tuple[object, ...]) -> None:
    command = [
        *("train", "--model", "adder_lenet5", "--data-dir", folder, "-j", 0, *QUICK, "--grad-accum-steps", 2),
        *("--output", tmp_path / "out", "--experiment", "run", "--resume", "--kd", *kd),
    ]
    first, second = run_group([command] * 2, tmp_path)
    assert (first.status, second.status) == (0, 0), (first, second)
    command[command.index("--epochs") + 1] = 1
    again = run_group([command] * 2, tmp_path)
    assert "behind epoch 1" in again[0].out, again


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--kd-temperature", 2), "kd-temperature needs --kd"),
        (("--distill-loss-weight", 2), "distill-loss-weight needs --kd"),
        (
            ("--kd", "logits", "--kd-model-name", "cnn_lenet5", "adder_lenet5", "--kd-checkpoint", "a.pth"),
            "kd-checkpoint must be a file for each of 2 kd-model-name, got 1",
        ),
        (("--kd", "pkkd", "--kd-model-name", "a", "b"), "kd-model-name must be one for --kd pkkd, got a, b"),
        (("--kd", "logits", "--feature-loss-weight", 2), "feature-loss-weight is for --kd pkkd"),
        (("--kd", "logits", "--kd-temperature", 0), "kd-temperature must be a finite number above 0, got 0.0"),
        (("--kd", "pkkd", "--task-loss-weight", -1), "task-loss-weight must be a finite number from 0, got -1.0"),
        (
            ("--kd", "pkkd", "--kd-checkpoint", "teacher.safetensors"),
            "kd-checkpoint is for --kd logits: the teacher of pkkd is trained at the same time",
        ),
        (("--kd", "pkkd", "--clip-grad", 1), "clip-grad cannot be used with --kd pkkd, "),
        (("--kd", "pkkd", "--torchcompile"), "torchcompile cannot be used with --kd pkkd, "),
        (("--kd", "pkkd", "--opt-kwargs", "layer_decay=0.9"), "opt-kwargs layer_decay cannot be used with --kd pkkd, "),
        (
            ("--kd", "pkkd", "--pretrained", "--quantize-bits", 4),
            "quantize-bits cannot be used with --kd pkkd, ",
        ),
        (
            ("--kd", "pkkd", "--model", "cnn_lenet5"),
            "kd pkkd cannot be used for cnn_lenet5 with the teacher adder_lenet5: student_model must have adder layers",
        ),
        (
            ("--kd", "pkkd", "--kd-model-name", "cnn_resnet20", "--img-size", 32),
            "kd pkkd cannot be used for adder_lenet5 with the teacher cnn_resnet20: teacher_model must have a",
        ),
        (("--kd", "logits"), "kd-model-name must be a network of 2 classes, cnn_lenet5 has 10"),
        (
            ("--kd", "logits", "--kd-model-name", "cnn_resnet20", "--num-classes", 10),
            "kd-model-name must be a network for images of 1 channels, cnn_resnet20 takes 3",
        ),
        (("--kd", "logits", "--kd-model-name", "cnn_resnet32"), "model 'cnn_resnet32' cannot be created: "),
        (("--kd", "logits", "--kd-model-name", "none"), "kd-model-name must be a registered network, got 'none'"),
        (("--kd", "logits", "--model", "resnet18"), "kd-model-name must be given for resnet18, which has no twin"),
        (("--kd", "pkkd", "--model", "adder_edsr_small_x2"), "kd is for classifiers, but adder_edsr_small_x2 is"),
    ],
)
def test_what_cannot_be_is_one_line_and_nothing_is_written(
    train: Train, folder: Path, tmp_path: Path, options: tuple[object, ...], error: str
) -> None:
    done = train("--data-dir", folder, *QUICK, *options)
    assert done.error.startswith(f"adderzoo train: error: {error}")
    assert not (tmp_path / "out").exists()


def test_a_teacher_of_other_classes_is_refused(done: Callable[..., Path], train: Train, tmp_path: Path) -> None:
    cnn = done("--model", "cnn_lenet5", name="cnn")
    write_classes(tmp_path / "other" / "train", {"a": 4, "c": 4})
    finished = train("--data-dir", tmp_path / "other", "--kd", "logits", "--kd-checkpoint", cnn / "best.safetensors")
    assert "kd-checkpoint must have the classes of the images, a, c ..., " in finished.error


def test_a_published_teacher_of_other_classes_is_said_to_be_one(train: Train, tmp_path: Path) -> None:
    options = (*QUICK, "--model", "adder_lenet5.digits", "--kd", "logits")
    for names in ("0123456789", "abcdefghij"):
        write_classes(tmp_path / names / "train", dict.fromkeys(names, 1))
        finished = train("--data-dir", tmp_path / names, *options, "--experiment", names)
        assert finished.status == 0
        said = "the classes of the teacher cnn_lenet5.digits are 0, 1, 2, 3 ..., those of the images a, b, c, d ..."
        assert (said in finished.err) == (names == "abcdefghij")
