"""Networks beside one another: what runs, and what is made of it."""

import gc
import os
import signal
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from torch import nn

from adderzoo import catalogue
from adderzoo.engine.benchmark import networks
from adderzoo.engine.benchmark.networks import (
    Contender,
    Remote,
    build,
    contenders,
    default_batches,
    measure_networks,
    twin_of,
)
from adderzoo.engine.benchmark.timing import RunError

pytestmark = pytest.mark.usefixtures("one_thread")


def inference(
    name: str = "adder_lenet5", batch: int = 2, compiled: bool = False, device: str = "cpu"
) -> list[Contender]:
    return contenders(name, "inference", batch, True, compiled, device=device)


def test_every_adder_network_has_its_twin() -> None:
    for name in (name for name in catalogue.network_names() if name.startswith("adder_")):
        assert timm.is_model(twin_of(name))
    assert twin_of("adder_resnet20") == "cnn_resnet20"
    assert twin_of("adder_edsr_small_x2") == "cnn_edsr_small_x2"


@pytest.mark.parametrize("name", ["resnet50", "cnn_resnet20", "adder_resnet20.huawei_cifar10", "bicubic", ""])
def test_what_is_no_adder_network_is_refused(name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"models must be adder networks \(adder_edsr_baseline_x2, .*, adder_vdsr.*\), got '{name}'"
    ):
        twin_of(name)


def test_a_network_without_twin_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "network_names", lambda: ["adder_new", "cnn_old"])
    with pytest.raises(ValueError, match=r"models must have a CNN twin .* for 'adder_new' there is no 'cnn_new'"):
        twin_of("adder_new")


def test_default_batches() -> None:
    assert default_batches("adder_resnet20", "inference") == [1, 8, 128]
    assert default_batches("adder_resnet20", "training") == default_batches("adder_lenet5", "threads") == [128]
    assert default_batches("adder_resnet18", "training") == default_batches("adder_lenet5", "operator") == [8]
    assert default_batches(None, "operator") == [8]
    assert {part: default_batches("adder_vdsr", part) for part in ("operator", "inference", "threads")} == {
        "operator": [1], "inference": [1], "threads": [1]
    }  # fmt: skip
    assert default_batches("adder_vdsr", "training") == [16]


def test_default_batches_of_a_gpu() -> None:
    assert default_batches("adder_resnet50", "operator", "cuda") == [64]
    assert default_batches("adder_resnet50", "training", "cuda:1") == [64]
    assert default_batches("adder_resnet20", "training", "cuda") == [128]
    assert default_batches("adder_resnet20", "inference", "cuda") == [1, 8, 128]


def test_contenders_of_inference() -> None:
    found = inference("adder_resnet20", 8, compiled=True)
    assert len(set(found)) == len(found)
    assert {contender.label for contender in found} == {
        "CNN",
        "CNN, fused",
        "CNN, compiled",
        "CNN, compiled, frozen",
        "CNN, bfloat16",
        "CNN, bfloat16, compiled, frozen",
        "adder network",
        "adder network, compiled",
        "adder network, fused",
        "adder network, fused, compiled",
        "adder network, unfold + cdist",
        "adder network, authors' expression",
        "adder network, authors' expression, compiled",
    }
    for label in ("CNN", "CNN, fused", "adder network", "adder network, fused"):
        formats = {contender.memory_format for contender in found if contender.label == label}
        assert formats == {"contiguous", "channels_last"}
    assert {contender.batch for contender in found if contender.form in ("authors", "cdist")} == {1}
    assert {contender.batch for contender in found if contender.form in ("plain", "fused")} == {8}
    assert not any(contender.training for contender in found)
    without = contenders("adder_resnet20", "inference", 8, False, False)
    assert without == [
        contender for contender in found if not contender.compiled and contender.form in ("plain", "fused")
    ]


def test_contenders_of_training_and_threads() -> None:
    found = contenders("adder_resnet20", "training", 8, True, True)
    assert all(contender.training for contender in found)
    assert {contender.label for contender in found} == {
        "CNN", "CNN, compiled", "CNN, bfloat16", "adder network", "adder network, compiled",
        "adder network, authors' expression",
    }  # fmt: skip
    found = contenders("adder_resnet20", "threads", 8, True, True)
    assert {contender.label for contender in found} == {"adder network, fused"}
    assert [contender.threads for contender in found] == [1, 2][: networks.usable_cores()]


def test_contenders_of_byte_networks() -> None:
    found = contenders("adder_resnet20", "inference", 8, True, True, "u8")
    assert len(set(found)) == len(found)
    assert {contender.label for contender in found} == {
        "CNN",
        "CNN, fused",
        "CNN, compiled",
        "CNN, compiled, frozen",
        "CNN, bfloat16",
        "CNN, bfloat16, compiled, frozen",
        "CNN, int8, compiled, frozen",
        "adder network, fused",
        "adder network, uint8",
        "adder network, uint8, compiled",
    }
    assert {contender.memory_format for contender in found if contender.form in ("u8", "int8")} == {"channels_last"}
    without = contenders("adder_resnet20", "inference", 8, False, False, "u8")
    assert without == [contender for contender in found if not contender.compiled]
    found = contenders("adder_resnet20", "threads", 8, True, True, "u8")
    assert {contender.label for contender in found} == {"adder network, uint8"}
    assert [contender.threads for contender in found] == [1, 2][: networks.usable_cores()]


SUPER_RESOLUTION = "adder_edsr_small_x2"


@pytest.mark.parametrize(("part", "side"), [("inference", (90, 160)), ("training", (48, 48)), ("threads", (90, 160))])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_contenders_of_super_resolution_have_images_of_a_size_and_no_authors_expression(
    part: str, side: tuple[int, int], device: str
) -> None:
    found = contenders(SUPER_RESOLUTION, part, 1, True, True, device=device)
    assert {contender.input_size for contender in found} == {(3, *side)}
    assert not {"authors", "cdist"} & {contender.form for contender in found}
    classifiers = contenders("adder_resnet20", part, 1, False, True, device=device)
    assert [contender.label for contender in found] == [contender.label for contender in classifiers]


def test_networks_for_super_resolution_make_the_same_images_larger(device: torch.device) -> None:
    found = [
        replace(contender, input_size=(3, 8, 12))
        for precision in ("float32", "u8")
        for contender in contenders(SUPER_RESOLUTION, "inference", 1, True, False, precision, str(device))
    ]
    plain = {
        model: build(Contender(model, 1, memory_format="contiguous", device=str(device), input_size=(3, 8, 12))).run()
        for model in (SUPER_RESOLUTION, twin_of(SUPER_RESOLUTION))
    }
    for contender in found:
        larger, expected = build(contender).run(), plain[contender.model]
        assert larger.shape == (1, 3, 16, 24)
        rounding = 0.3 if contender.form == "u8" else {"bfloat16": 0.1, "tf32": 0.02}.get(contender.dtype, 1e-4)
        assert (larger - expected).abs().mean() < rounding * expected.std(), contender.label


def test_training_steps_of_super_resolution_lower_the_mean_absolute_error(device: torch.device) -> None:
    for contender in contenders(SUPER_RESOLUTION, "training", 2, True, False, device=str(device)):
        built = build(replace(contender, input_size=(3, 8, 8)))
        losses = [float(built.run()) for _ in range(30)]
        assert losses[-1] < losses[0], contender.label


def test_a_section_of_super_resolution_says_the_size_of_its_images() -> None:
    section = measure_networks(SUPER_RESOLUTION, "threads", 1, True, False, 0.001)
    assert section.title == f"{SUPER_RESOLUTION}, threads, batch 1 of 90x160"
    assert not any(row.error for row in section.rows)


def test_what_the_command_measures_by_default_is_known_to_it() -> None:
    """The command imports this package without its networks, for `--help` to be quick."""
    code = (
        "import sys; sys.argv[0] = 'adderzoo'; from adderzoo.engine.benchmark import default_batches; "
        "print(default_batches('adder_resnet18', 'training'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "[8]\n", done.stderr


def of_gpu(
    part: str, naive: bool = True, compiled: bool = True, precision: str = "float32", name: str = "adder_resnet20"
) -> dict[str, list[Contender]]:
    """By label."""
    found = contenders(name, part, 64, naive, compiled, precision, "cuda")
    assert len(set(found)) == len(found)
    assert {contender.device for contender in found} == {"cuda"}
    labels: dict[str, list[Contender]] = {}
    for contender in found:
        labels.setdefault(contender.label, []).append(contender)
    return labels


CNNS = ["CNN", "CNN, TF32", "CNN, bfloat16"]
COMPILED = ["compiled", "compiled, CUDA graphs"]


def test_contenders_of_inference_on_a_gpu() -> None:
    labels = of_gpu("inference")
    cnns = {*CNNS, "CNN, fused", *(f"CNN, fused, {how}" for how in COMPILED)}
    cnns |= {f"CNN, fused, {dtype}, compiled, CUDA graphs" for dtype in ("TF32", "bfloat16")}
    expressions = {
        "adder network, unfold + cdist",
        "adder network, authors' expression",
        "adder network, authors' expression, compiled",
    }
    fused = {
        "adder network, fused",
        "adder network, fused, bfloat16",
        *(f"adder network, fused, {h}" for h in COMPILED),
    }
    fused |= {"adder network, fused, bfloat16, compiled, CUDA graphs"}
    assert set(labels) == cnns | expressions | fused | {"adder network"}
    for label in ("CNN", "CNN, TF32", "CNN, fused", "adder network", "adder network, fused"):
        assert {contender.memory_format for contender in labels[label]} == {"contiguous", "channels_last"}
    assert {contender.batch for found in labels.values() for contender in found} == {64}
    assert set(of_gpu("inference", naive=False)) == set(labels) - expressions
    assert set(of_gpu("inference", compiled=False)) == {label for label in labels if "compiled" not in label}
    large = of_gpu("inference", name="adder_resnet18")
    assert {contender.batch for label in expressions for contender in large[label]} == {8}
    bytes_ = of_gpu("inference", precision="u8")
    of_bytes = {"adder network, uint8", *(f"adder network, uint8, {how}" for how in COMPILED)}
    assert set(bytes_) == cnns | of_bytes | {"adder network, fused"}


def test_contenders_of_training_on_a_gpu() -> None:
    labels = of_gpu("training")
    assert set(labels) == {
        *CNNS, *(f"CNN, {how}" for how in COMPILED), "CNN, TF32, compiled, CUDA graphs",
        "CNN, bfloat16, compiled, CUDA graphs", "adder network", "adder network, TF32", "adder network, bfloat16",
        *(f"adder network, {how}" for how in COMPILED), "adder network, authors' expression",
        "adder network, authors' expression, compiled",
    }  # fmt: skip
    assert all(contender.training for found in labels.values() for contender in found)
    large = of_gpu("training", name="adder_resnet18")
    assert [contender.batch for contender in large["adder network, authors' expression"]] == [8]


def test_the_byte_network_computes_similar_logits(device: torch.device) -> None:
    bytes_, plain = (build(Contender("adder_resnet20", 2, form=form, device=str(device))) for form in ("u8", "plain"))
    logits, expected = bytes_.run(), plain.run()
    assert 0 < (logits - expected).abs().mean() < 0.3 * expected.std()
    assert bytes_.kept() < 0.5 * plain.kept()


def test_the_cnn_in_int8_computes_similar_logits_in_int8_convolutions() -> None:
    pytest.importorskip("torchao")
    from torch._inductor import config

    torch._dynamo.reset()
    contender = Contender("cnn_resnet20", 2, form="int8", compiled="freezing")
    with config.patch(freezing=False, compile_threads=1):
        built = build(contender)
        logits, plain = built.run(), build(replace(contender, form="plain", compiled="")).run()
        assert 0 < (logits - plain).abs().mean() < 0.3 * plain.std()
        with torch.profiler.profile() as profile:
            built.run()
    calls = {event.key: event.count for event in profile.key_averages() if "conv" in event.key}
    convolutions = [module for module in timm.create_model("cnn_resnet20").modules() if isinstance(module, nn.Conv2d)]
    assert sum(calls.values()) == len(convolutions)
    assert all("qconv" in name for name in calls)
    parameters = sum(parameter.numel() for parameter in timm.create_model("cnn_resnet20").parameters())
    assert built.kept() < 2 * 3 * 32 * 32 * 4 + 1.1 * parameters  # a byte each, and scales


def test_without_torchao_the_cnn_in_int8_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization.pt2e", None)
    with pytest.raises(ImportError, match=r"a CNN in int8 needs torchao: pip install 'adderzoo\[int8\]'"):
        build(Contender("cnn_lenet5", 2, form="int8", compiled="freezing"))


@pytest.mark.parametrize("name", ["adder_lenet5", "adder_resnet20"])
def test_contenders_compute_the_same_logits(device: torch.device, name: str) -> None:
    found = [replace(contender, batch=2) for contender in inference(name, device=str(device))]
    outputs = {contender: build(contender).run() for contender in found}
    for contender, logits in outputs.items():
        same = replace(contender, form="plain", dtype="float32", memory_format="contiguous")
        rounding = {"bfloat16": 0.1, "tf32": 0.02}.get(contender.dtype, 1e-4)
        difference = (logits - outputs[same]).abs().mean()
        assert difference < rounding * outputs[same].std(), contender.label
    adder, cnn = (
        outputs[Contender(model, 2, memory_format="contiguous", device=str(device))] for model in (name, twin_of(name))
    )
    assert not torch.allclose(adder, cnn, atol=0.1)
    assert adder.std() > 0.1  # something passes BatchNorm and ReLU


@pytest.mark.parametrize("how", ["default", "freezing"])
def test_a_frozen_network_has_its_parameters_folded_in(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    models: list[Any] = []
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name: models.append(create(name)) or models[-1])
    torch._dynamo.reset()  # else the code compiled for one network is used for its like
    with config.patch(freezing=False, compile_threads=1):
        built = build(Contender("cnn_lenet5", 2, compiled=how))
        before = built.run()
        plain = build(Contender("cnn_lenet5", 2)).run()
        torch.testing.assert_close(before, plain, rtol=1e-3, atol=1e-3)
        with torch.no_grad():
            for parameter in models[0].parameters():
                parameter.zero_()
        assert torch.equal(built.run(), before) == (how == "freezing")


def test_training_steps_train_and_keep_parameters_gradients_and_momentum(device: torch.device) -> None:
    for contender in contenders("adder_lenet5", "training", 8, True, False, device=str(device)):
        built = build(contender)
        losses = [float(built.run()) for _ in range(40)]
        assert losses[-1] < losses[0], contender.label
        model = timm.create_model(contender.model)
        tensors = [*model.parameters(), *model.parameters(), *model.buffers()]  # parameters, their momentum
        images = 4 * contender.batch * 32 * 32
        assert built.kept() == images + sum(tensor.nbytes for tensor in tensors)


def test_a_section(device: torch.device) -> None:
    notes: list[str] = []
    section = measure_networks("adder_lenet5", "training", 8, False, False, 0.01, notes.append, device=str(device))
    assert (section.model, section.part, section.batch) == ("adder_lenet5", "training", 8)
    expected = contenders("adder_lenet5", "training", 8, False, False, device=str(device))
    assert [row.contender for row in section.rows] == expected
    assert not any(row.error for row in section.rows)
    assert section.reference is not None
    reference = section.rows[section.reference]
    assert (reference.contender.label, reference.speed, reference.memory) == ("CNN", 1.0, 1.0)
    twins = [row.seconds for row in section.rows if row.contender.label == "CNN"]
    assert reference.seconds == min(second for second in twins if second)
    for row in section.rows:
        assert row.seconds
        assert row.quartiles
        assert row.quartiles[0] <= row.seconds <= row.quartiles[1]
        assert row.images_per_second == pytest.approx(8 / row.seconds)
        assert row.speed
        if sys.platform == "linux":
            parameters = sum(p.nbytes for p in timm.create_model(row.contender.model).parameters())
            assert row.peak_memory
            assert row.peak_memory > 3 * parameters  # with momentum and gradients
            assert row.memory == pytest.approx(row.peak_memory / (reference.peak_memory or 0))
    assert notes[0] == "adder_lenet5, training, batch 8: building"


def test_contenders_that_fail_say_why_and_the_others_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    good = Contender("cnn_lenet5", 2)
    bad = [replace(good, model="cnn_nothing"), replace(good, dtype="float99"), replace(good, batch=1 << 40)]
    monkeypatch.setattr(networks, "contenders", lambda *args: [bad[0], good, *bad[1:]])
    section = measure_networks("adder_lenet5", "inference", 2, True, True, 0.01)
    errors = [row.error for row in section.rows]
    assert "Unknown model (cnn_nothing)" in errors[0]
    assert errors[1] == ""
    assert "float99" in errors[2]
    assert "memory" in errors[3]
    assert section.reference == 1
    assert all(row.seconds is None and row.speed is None for row in section.rows if row.error)


def test_a_process_that_is_killed_says_so() -> None:
    remote = Remote(Contender("cnn_lenet5", 2))
    try:
        remote.build()
        assert remote.warm_up() > 0
        os.kill(remote.process.pid or 0, signal.SIGKILL)
        with pytest.raises(RunError, match=r"its process ended with exit status -9 \(out of memory\?\)"):
            remote.visit(0.01)
    finally:
        remote.hang_up()
        remote.kill()


def test_a_run_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "LIMIT", 0.2)
    remote = Remote(Contender("cnn_lenet5", 2))
    try:
        with pytest.raises(RunError, match="given up after 0 s"):
            remote.visit(1000)
        remote.process.join(10)
        assert not remote.process.is_alive()
    finally:
        remote.hang_up()
        remote.kill()


def test_threads_of_a_process_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Any = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)

    class Closed:
        def recv(self) -> None:
            raise EOFError

    monkeypatch.setattr(signal, "signal", lambda *args: None)
    monkeypatch.setattr(gc, "freeze", lambda: None)
    networks._serve(Closed(), Contender("cnn_lenet5", 2, threads=3))  # type: ignore[arg-type]
    assert seen == [3]
