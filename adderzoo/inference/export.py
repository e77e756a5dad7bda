"""Networks as files that run elsewhere: `torch.export` programs, AOTInductor packages, TorchScript, ONNX."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from adderzoo.files.output import in_memory, write_atomically
from adderzoo.inference.fusion import fuse
from adderzoo.inference.tracing import copy_of
from adderzoo.models import is_super_resolution
from adderzoo.ops import onnx as operators
from adderzoo.ops._pytorch import aot_inductor

# Formats, and how the names of their files end.
FORMATS = {"pt2": ".pt2", "aoti": ".pt2", "torchscript": ".pt", "onnx": ".onnx"}

# What the exporter and the check need: `pip install 'adderzoo[onnx]'`.
_ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")

# Of the spread of the results. Rounding leaves 1e-3 of it at most, a layer that is computed wrongly a multiple of it.
_TOLERANCE = 0.01


def export_network(
    model: nn.Module,
    path: Path | str,
    format: str,
    image_size: int | None = None,
    dynamic_batch: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> float:
    """Write a trained network as a file that runs without its Python code.

    Before the file gets its name, it is opened again and run beside the network, on random images.

    Formats, of which the first three call the compiled operators (`import adderzoo` in Python, the library
    `adderzoo/_C.*so` in C++) and run a network that :func:`adderzoo.fuse` has made, unless it is quantized:

    - "pt2": a `torch.export` program, for `torch.export.load`.
    - "aoti": the same compiled by AOTInductor for this kind of processor, for `torch._inductor.aoti_load_package` and
      C++'s `torch::inductor::AOTIModelPackageLoader`.
    - "torchscript": for `torch.jit.load`, of any batch and image size. PyTorch deprecates it.
    - "onnx": standard operators alone, for any ONNX runtime; slow, since none of them is an adder layer.

    Args:
        model: The network, of float32 and not fused, or quantized (:mod:`adderzoo.inference.quantization`), on the CPU.
            It is left as it is.
        path: File to write, .pt2, .pt for TorchScript or .onnx.
        format: One of the above.
        image_size: Height and width of the input; None for the classifier's own.
        dynamic_batch: Whether the file takes batches of any size, instead of one image.
        metadata: What the file is to say of itself: extra files of "pt2" and "torchscript", metadata of the others.

    Returns:
        How far the file's results are from the network's, evaluated in eager mode: the root of the mean square of the
        difference, as a share of the standard deviation of the results (of the result, if that is a single number).

    Raises:
        ValueError: if an argument is none of what it takes, the network cannot be exported, or the file's results are
            not the network's.
        OSError: if the file cannot be written.
    """
    path = Path(path)
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    if path.suffix != FORMATS[format]:
        raise ValueError(f"path must end in {FORMATS[format]} for the format {format}, got {path}")
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
            raise ValueError(
                f"model must be of float32 and on the CPU, got {name} of {parameter.dtype} on {parameter.device}"
            )
    if format == "onnx":
        _check_onnx()
    size = input_size(model, image_size)
    reference = copy_of(model).eval()
    # The translation into ONNX's operators knows adder2d; what fuse() packs would have to be unpacked again.
    network = reference if format == "onnx" or hasattr(model, "quantization") else fuse(model)
    write, open_file = _WRITERS[format], _READERS[format]
    errors = []

    def write_and_check(temporary: Path) -> None:
        images = next(_images(size, (2 if dynamic_batch else 1,)))  # a batch of one would be taken for a constant
        try:
            write(network, images, dynamic_batch, dict(metadata or {}), temporary)
            run = open_file(temporary)
        except RuntimeError as error:  # which the errors of all exporters are
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            reason = reason.replace(str(temporary), str(path))
            raise ValueError(f"model cannot be exported as {format}: {reason}") from error
        for images in _images(size, (1, 3) if dynamic_batch else (1,)):
            errors.append(_error(run(images), reference(images)))
            if not errors[-1] <= _TOLERANCE:
                raise ValueError(
                    f"the {format} file does not give the network's results: on {len(images)} images they differ by "
                    f"{errors[-1]:.2g} of their standard deviation"
                )

    with torch.no_grad():
        write_atomically(path, write_and_check)
    return max(errors)


def describe(model: Any, image_size: int | None = None, classes: Iterable[str] | None = None) -> dict[str, str]:
    """What a program without Python has to know of a network, as metadata for :func:`export_network`.

    Args:
        model: The network.
        image_size: As for :func:`export_network`.
        classes: Names of the classes.

    Returns:
        "architecture" and "tag"; "input_size" (C H W); of a classifier, what timm's `create_transform` takes ("mean",
        "std", "interpolation", "crop_pct", "crop_mode") and "classes", a name a line; of a network for super-resolution
        its "scale". Numbers are separated by spaces.
    """
    config = getattr(model, "pretrained_cfg", {})
    said = {key: str(config[key]) for key in ("architecture", "tag") if config.get(key)}
    said["input_size"] = _numbers(input_size(model, image_size))
    if is_super_resolution(model):
        return said | {"scale": str(model.scale)}
    config = resolve_model_data_config(model)
    said |= {key: _numbers(config[key]) for key in ("mean", "std")}
    said |= {key: str(config[key]) for key in ("interpolation", "crop_pct", "crop_mode")}
    if classes is not None:
        said["classes"] = "\n".join(classes)
    return said


def input_size(model: Any, image_size: int | None = None) -> tuple[int, int, int]:
    """(C, H, W) of the images of a network.

    Raises:
        ValueError: if `image_size` is less than 1, or None for a network for super-resolution, which takes any size; if
            the network has other channels than its configuration.
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"img-size must be at least 1, got {image_size}")
    if image_size is None and is_super_resolution(model):
        raise ValueError("img-size must be given for a network for super-resolution, whose images have any size")
    channels, height, width = resolve_model_data_config(model)["input_size"]
    if getattr(model, "in_chans", channels) != channels:
        raise ValueError(
            f"model must take images of {channels} channels, as its configuration says, got {model.in_chans}"
        )
    return (channels, height, width) if image_size is None else (channels, image_size, image_size)


def _numbers(values: Iterable[float]) -> str:
    return " ".join(map(str, values))


def _images(size: tuple[int, int, int], batches: Iterable[int]) -> Iterator[Tensor]:
    """Random ones, always the same."""
    generator = torch.Generator().manual_seed(0)
    return (torch.rand((batch, *size), generator=generator) for batch in batches)


def _error(got: Tensor, expected: Tensor) -> float:
    tiny = torch.finfo(expected.dtype).tiny
    spread = expected.std() if expected.numel() > 1 else expected.abs()  # one number has no deviation
    return float((got - expected).square().mean().sqrt() / spread.clamp(min=tiny))


# ------------------------------------------------------------------------------------------------------------- formats


def _program(network: nn.Module, images: Tensor, dynamic_batch: bool) -> torch.export.ExportedProgram:
    dynamic = ({0: torch.export.Dim("batch", min=1)},) if dynamic_batch else None
    return torch.export.export(network, (images,), dynamic_shapes=dynamic)


def _write_pt2(network: nn.Module, images: Tensor, dynamic_batch: bool, metadata: dict[str, str], path: Path) -> None:
    program = _program(network, images, dynamic_batch)
    in_memory(lambda file: torch.export.save(program, file, extra_files=metadata))(path)


def _write_aoti(network: nn.Module, images: Tensor, dynamic_batch: bool, metadata: dict[str, str], path: Path) -> None:
    program, configs = _program(network, images, dynamic_batch), {"aot_inductor.metadata": metadata}
    compile = aot_inductor().aoti_compile_and_package
    in_memory(lambda file: compile(program, package_path=file, inductor_configs=configs))(path)


def _write_torchscript(
    network: nn.Module, images: Tensor, dynamic_batch: bool, metadata: dict[str, str], path: Path
) -> None:
    with _without_deprecation():
        in_memory(lambda file: torch.jit.save(torch.jit.script(network), file, _extra_files=metadata))(path)


def _write_onnx(network: nn.Module, images: Tensor, dynamic_batch: bool, metadata: dict[str, str], path: Path) -> None:
    program = torch.onnx.export(
        _program(network, images, dynamic_batch),
        dynamo=True,
        custom_translation_table=operators.translations(),
        input_names=["input"],
        output_names=["output"],
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update(metadata)
    program.save(path, external_data=False)


_WRITERS: dict[str, Callable[[nn.Module, Tensor, bool, dict[str, str], Path], None]] = {
    "pt2": _write_pt2,
    "aoti": _write_aoti,
    "torchscript": _write_torchscript,
    "onnx": _write_onnx,
}


def _open_torchscript(path: Path) -> Callable[[Tensor], Tensor]:
    with _without_deprecation():
        return torch.jit.load(path)


def _open_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own errors have nothing but this in common
        raise RuntimeError(str(error)) from error
    return lambda images: torch.from_numpy(session.run(None, {"input": images.numpy()})[0])


def _open_pt2(path: Path) -> Callable[[Tensor], Tensor]:
    with path.open("rb") as file:  # of a path that is no text PyTorch makes nothing
        return torch.export.load(file).module()


_READERS: dict[str, Callable[[Path], Callable[[Tensor], Tensor]]] = {
    "pt2": _open_pt2,
    "aoti": lambda path: aot_inductor().aoti_load_package(str(path)),
    "torchscript": _open_torchscript,
    "onnx": _open_onnx,
}


def _without_deprecation() -> Any:
    """TorchScript is supported here while PyTorch has it; the command says what its warning means."""
    return warnings.catch_warnings(action="ignore")


def _check_onnx() -> None:
    missing = [name for name in _ONNX_PACKAGES if find_spec(name) is None]
    if missing:
        raise ValueError(f"format onnx needs {', '.join(missing)}: pip install 'adderzoo[onnx]'")
