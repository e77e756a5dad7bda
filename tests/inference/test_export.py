"""adderzoo.inference.export: networks as files."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import adderzoo
from adderzoo.inference import export, quantization
from adderzoo.inference.export import describe, export_network

pytestmark = pytest.mark.usefixtures("one_thread")

# AOTInductor's packages compile for a while: one is tested here, others by tests/deploy.
QUICK = ("pt2", "torchscript", "onnx")


def opened(path: Path, format: str) -> Callable[[Tensor], Tensor]:
    """The file, as its users open it."""
    if format == "pt2":
        return torch.export.load(path).module()
    if format == "torchscript":
        return torch.jit.load(path)
    if format == "aoti":
        return torch._inductor.aoti_load_package(str(path))
    import onnx
    import onnxruntime

    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert ([opset.domain for opset in model.opset_import], len(model.functions)) == ([""], 0)  # standard operators
    session = onnxruntime.InferenceSession(path)
    return lambda x: torch.from_numpy(session.run(None, {"input": x.numpy()})[0])


def lenet() -> nn.Module:
    return timm.create_model("adder_lenet5.digits", pretrained=True).eval()


def resnet(**arguments: Any) -> nn.Module:
    """With residual additions."""
    torch.manual_seed(0)
    model = timm.create_model("adder_resnet18", widths=(4, 6, 8, 10), num_classes=10, **arguments)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(8, 3, 32, 32))
    return model.eval()


def edsr() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("adder_edsr_baseline_x2", blocks=1, width=4).eval()


def quantized(model: nn.Module, size: int) -> nn.Module:
    images = torch.rand(4, *export.input_size(model, size), generator=torch.Generator().manual_seed(1))
    return quantization.quantize(quantization.calibrate(model, [images]))


@pytest.mark.parametrize("format", QUICK)
@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lenet, 32),
        (lambda: quantized(lenet(), 32), 32),
        (lambda: quantized(resnet(), 32), 32),
        (edsr, 8),
        (lambda: quantized(edsr(), 8), 8),
        (lambda: resnet(conv_layer="binary", layers=(1, 1, 1, 1)), 32),
        (lambda: resnet(conv_layer="shiftadd", layers=(1, 1, 1, 1)), 32),
    ],
    ids=["float", "bytes", "residual-bytes", "super-resolution", "super-resolution-bytes", "binary", "shiftadd"],
)
@torch.no_grad()
def test_files_give_the_networks_results_for_any_batch(
    make: Callable[[], nn.Module], size: int, format: str, tmp_path: Path
) -> None:
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    model, path = make(), tmp_path / f"network{export.FORMATS[format]}"
    error = export_network(model, path, format, size, dynamic_batch=True)
    assert error < 1e-3
    run = opened(path, format)
    for batch in (1, 5):
        x = torch.rand(batch, export.input_size(model, size)[0], size, size)
        torch.testing.assert_close(run(x), model(x), rtol=1e-3, atol=1e-3)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@torch.no_grad()
def test_a_compiled_package_gives_the_networks_results_for_any_batch(tmp_path: Path) -> None:
    model, path = quantized(edsr(), 8), tmp_path / "network.pt2"
    assert export_network(model, path, "aoti", 8, dynamic_batch=True) < 1e-3
    x = torch.rand(5, 3, 8, 8)
    torch.testing.assert_close(opened(path, "aoti")(x), model(x), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_a_file_is_for_one_image_unless_batches_are_asked_for(tmp_path: Path) -> None:
    model = lenet().train()
    export_network(model, tmp_path / "network.pt2", "pt2")
    assert model.training
    run = torch.export.load(tmp_path / "network.pt2").module()
    x = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(run(x[:1]), model.eval()(x[:1]), rtol=1e-3, atol=1e-3)
    with pytest.raises((AssertionError, RuntimeError), match=r"[Gg]uard|shape"):
        run(x)


def test_a_single_result_is_compared_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one class, whose standard deviation over one image is not a number."""
    torch.manual_seed(0)
    model = timm.create_model("adder_lenet5", num_classes=1)
    assert export_network(model, tmp_path / "network.pt2", "pt2") < 1e-3
    monkeypatch.setitem(export._READERS, "pt2", lambda path: lambda x: model.eval()(x) * 1.1)
    with pytest.raises(ValueError, match="does not give the network's results"):
        export_network(model, tmp_path / "other.pt2", "pt2")


def test_what_is_said_of_the_network_is_in_the_file(tmp_path: Path) -> None:
    model, path = lenet(), tmp_path / "network.pt2"
    said = describe(model, classes=map(str, range(10)))
    assert said == {
        "architecture": "adder_lenet5",
        "tag": "digits",
        "input_size": "1 32 32",
        "mean": "0.3112",
        "std": "0.3502",
        "interpolation": "bicubic",
        "crop_pct": "1.0",
        "crop_mode": "center",
        "classes": "0\n1\n2\n3\n4\n5\n6\n7\n8\n9",
    }
    export_network(model, path, "pt2", metadata=said)
    read = dict.fromkeys(said, "")
    torch.export.load(path, extra_files=read)
    assert read == said
    assert describe(edsr(), 8) == {
        "architecture": "adder_edsr_baseline_x2",
        "tag": "untrained",
        "input_size": "3 8 8",
        "scale": "2",
    }


def test_a_file_that_gives_other_results_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = lenet(), tmp_path / "network.pt2"
    path.write_text("what was there")
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.conv3.weight[0] += 1
    monkeypatch.setitem(export._READERS, "pt2", lambda path: adderzoo.fuse(other))
    with pytest.raises(
        ValueError, match=r"^the pt2 file does not give the network's results: on 1 images they differ by"
    ):
        export_network(model, path, "pt2")
    assert path.read_text() == "what was there"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


class Branches(nn.Module):
    """What no exporter takes."""

    def __init__(self) -> None:
        super().__init__()
        self.pretrained_cfg = {"input_size": (3, 8, 8), "num_classes": 1}
        self.quantization = {}  # and fuse() is not asked

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (lenet, {"format": "tflite"}, r"^format must be one of pt2, aoti, torchscript, onnx, got 'tflite'"),
        (lenet, {"format": "onnx"}, r"^path must end in \.onnx for the format onnx, got .*network\.pt2"),
        (lenet, {"image_size": 0}, r"^img-size must be at least 1, got 0"),
        (edsr, {}, r"^img-size must be given for a network for super-resolution"),
        (
            lambda: timm.create_model("adder_lenet5", in_chans=3),
            {},
            r"^model must take images of 1 channels, as its configuration says, got 3",
        ),
        (
            lambda: lenet().double(),
            {},
            r"^model must be of float32 and on the CPU, got conv1\.weight of torch\.float64",
        ),
        (Branches, {}, r"^model cannot be exported as pt2: \S"),
    ],
)
def test_wrong_arguments_are_named(
    make: Callable[[], nn.Module], arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        export_network(make(), tmp_path / "network.pt2", **{"format": "pt2", **arguments})
    assert not any(tmp_path.iterdir())


def test_what_onnx_needs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    message = r"^format onnx needs onnx, onnxruntime, onnxscript: pip install 'adderzoo\[onnx\]'"
    with pytest.raises(ValueError, match=message):
        export_network(lenet(), tmp_path / "network.onnx", "onnx")


def test_hooks_are_exported_and_those_of_the_network_itself_refused(tmp_path: Path) -> None:
    model, x = lenet(), torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    prune.l1_unstructured(model.conv2, "weight", 0.3)
    model(x)  # leaves a computed weight, which copy.deepcopy refuses
    with torch.no_grad():
        model.conv2.weight_orig.add_(0.5)
    export_network(model, tmp_path / "pruned.pt2", "pt2")
    torch.testing.assert_close(opened(tmp_path / "pruned.pt2", "pt2")(x), model(x), rtol=1e-3, atol=1e-3)
    model.register_forward_hook(lambda module, args, output: output + 1)
    with pytest.raises(ValueError, match=r"^model must have no hooks of its own"):
        export_network(model, tmp_path / "hooked.pt2", "pt2")
    assert not (tmp_path / "hooked.pt2").exists()
