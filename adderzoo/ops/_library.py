"""Loads, builds or replaces the compiled library, so that `torch.ops.adderzoo` has its operators in any case."""

import contextlib
import functools
import importlib
import logging
import os
import shutil
import sys
import sysconfig
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from filelock import FileLock

from . import _build, reference
from ._build import BENCHMARK, CUDA_BENCHMARK, CUDA_OPERATORS, OPERATORS, Library

PACKAGE = Path(__file__).resolve().parent.parent

# What csrc/adder2d.cpp defines, for where it cannot be compiled; a test compares the two.
SCHEMAS = (
    "adder2d(Tensor input, Tensor weight, SymInt[2] stride=1, SymInt[2] padding=0, SymInt[2] dilation=1, "
    'SymInt groups=1, str input_grad="hardtanh", str weight_grad="full") -> Tensor',
    "_adder2d_backward_input(Tensor grad, Tensor input, Tensor weight, SymInt[2] stride, SymInt[2] padding, "
    "SymInt[2] dilation, SymInt groups, str input_grad) -> Tensor",
    "_adder2d_backward_weight(Tensor grad, Tensor input, Tensor weight, SymInt[2] stride, SymInt[2] padding, "
    'SymInt[2] dilation, SymInt groups, str weight_grad="sign") -> Tensor',
    "adder2d_affine(Tensor input, Tensor weight, Tensor scale, Tensor shift, Tensor? addend=None, "
    "SymInt[2] stride=1, SymInt[2] padding=0, SymInt[2] dilation=1, SymInt groups=1, bool relu=False) -> Tensor",
    "adder2d_u8(Tensor input, Tensor weight, Tensor scale, Tensor shift, Tensor? addend=None, SymInt[2] stride=1, "
    "SymInt[2] padding=0, SymInt[2] dilation=1, SymInt groups=1, bool relu=False, int zero_point=0, "
    "int? out_zero_point=None, int out_max=255, float addend_scale=1.) -> Tensor",
    "quantize_u8(Tensor input, float inverse, int zero_point, int top) -> Tensor",
    "_cpu_capability() -> str",
)

# Registrations made from Python live as long as this object.
LIBRARY = torch.library.Library("adderzoo", "FRAGMENT")


class LibraryNotFoundError(Exception):
    """One way to get the compiled library does not lead to it; the message says why."""


def _load_installed(compiled: Library) -> None:
    libraries = sorted(PACKAGE.glob(f"{compiled.name}.*so"))
    if not libraries:
        raise LibraryNotFoundError("the package has no compiled library")
    if compiled.sources() and not _build.is_marked(libraries[0], compiled.digest()):
        raise LibraryNotFoundError("the compiled library is of other sources or flags than those beside it")
    try:
        torch.ops.load_library(libraries[0])
    except OSError as error:
        raise LibraryNotFoundError(f"{libraries[0]} does not load: {error}") from error


@contextlib.contextmanager
def _own_programs_on_path() -> Iterator[None]:
    """pip's ninja lies beside Python, in a folder that is not on PATH where Python was started by its full name."""
    path = os.environ.get("PATH", os.defpath)
    os.environ["PATH"] = os.pathsep.join([path, sysconfig.get_path("scripts")])
    try:
        yield
    finally:
        os.environ["PATH"] = path


def _check_compiler(compiled: Library) -> None:
    if not compiled.sources():
        raise LibraryNotFoundError("the C++ sources are not beside the package")
    compiler = os.environ.get("CXX") or "c++"  # PyTorch's own choice
    if shutil.which(compiler.split()[0]) is None:
        raise LibraryNotFoundError(f"there is no C++ compiler, {compiler} is not found")
    if compiled.cuda:
        try:
            wanted, reason = _build.cuda_is_wanted()
        except ValueError as error:
            raise LibraryNotFoundError(str(error)) from error
        if not wanted:
            raise LibraryNotFoundError(reason)


def _cpp_extension() -> Any:
    """PyTorch's, which is slow to import and seldom needed; without its warning that a toolkit is there but no GPU."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return importlib.import_module("torch.utils.cpp_extension")
    finally:
        logger.setLevel(level)


def _cuda_link_flags(cuda_home: str | None) -> list[str]:
    if reason := _build.cuda_is_lacking(cuda_home):
        raise LibraryNotFoundError(reason)
    return [f"-L{folder}" for folder in _build.cuda_library_folders(str(cuda_home))]


def _open_cache(name: str) -> Path:
    """A folder for what is compiled on first use.

    Raises:
        LibraryNotFoundError: if there is none that can be written.
    """
    try:
        cache = os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions"
        folder = Path(cache) / name
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):  # another user's folder, or a read-only file system
            raise PermissionError(f"no right to write into {folder}")
    except (OSError, RuntimeError) as error:
        raise LibraryNotFoundError(
            f"building it failed: {error}; set TORCH_EXTENSIONS_DIR to a folder that can be written"
        ) from error
    return folder


def _load_built(compiled: Library) -> None:
    _check_compiler(compiled)
    digest = compiled.digest()
    folder = _open_cache(f"adderzoo_{digest[:16]}")
    library, complete = folder / f"adderzoo{compiled.name}.so", folder / f"complete{compiled.name}"
    try:
        with FileLock(folder / "adderzoo.lock"):
            if not complete.exists():
                cpp_extension = _cpp_extension()

                link = _cuda_link_flags(cpp_extension.CUDA_HOME) if compiled.cuda else []
                (folder / "lock").unlink(missing_ok=True)  # PyTorch's own, left by a build that was killed
                time = "minutes" if compiled.cuda else "about a minute"
                text = f"adderzoo: compiling its {compiled.contents} into {folder}, once; this takes {time}"
                print(text, file=sys.stderr, flush=True)
                with _own_programs_on_path():
                    cpp_extension.load(  # builds it, and loads it as well
                        name=library.stem,
                        sources=[str(path) for path in compiled.sources()],
                        extra_cflags=_build.CXX_FLAGS,
                        extra_cuda_cflags=_build.NVCC_FLAGS,
                        extra_ldflags=[*link, *_build.mark_flags(digest)],
                        with_cuda=compiled.cuda,
                        build_directory=str(folder),
                        is_python_module=False,
                    )
                complete.touch()
                return
        torch.ops.load_library(library)
    except (OSError, RuntimeError, ImportError) as error:
        lines = str(error).strip().splitlines() or [repr(error)]
        reason = next((line for line in lines if "error:" in line or "cannot find" in line), lines[0])  # of many
        raise LibraryNotFoundError(f"building it failed: {reason}") from error


_WAYS: tuple[tuple[str, Callable[[Library], None]], ...] = (
    ("compiled at installation", _load_installed),
    ("compiled on first use", _load_built),
)


_reasons: list[str] = []


def _load() -> str:
    if hasattr(torch.ops.adderzoo, "adder2d"):  # the schema is there: a second definition would end the process
        return "compiled, loaded before the package"
    for name, load in _WAYS:
        try:
            load(OPERATORS)
            return name
        except LibraryNotFoundError as error:
            _reasons.append(str(error))
    for schema in SCHEMAS:
        LIBRARY.define(schema)
    LIBRARY.impl("_cpu_capability", lambda: "none", "CompositeExplicitAutograd")
    warnings.warn(
        "adderzoo's compiled operator is not available, so its PyTorch reference runs, many times slower: "
        f"{'; '.join(_reasons)}. Install a C++ compiler (g++) and ninja (pip install ninja), then adderzoo again (a "
        "checkout is compiled when it is imported next).",
        RuntimeWarning,
        stacklevel=2,
    )
    return "PyTorch reference"


class _Cuda:
    """The kernels for NVIDIA GPUs: those of the installation come with the package, others with the first tensor."""

    backend: str | None = None
    reasons: tuple[str, ...] = ()
    tried_all = False
    lock = threading.RLock()

    @classmethod
    def load(cls, build: bool) -> bool:
        """Whether they are there. A thread that asks while another one builds waits for what becomes of it."""
        with cls.lock:
            if cls.backend or cls.tried_all or BACKEND == "PyTorch reference":
                return cls.backend is not None
            cls.reasons = ()
            for name, load in _WAYS if build else _WAYS[:1]:
                try:
                    load(CUDA_OPERATORS)
                    cls.backend = name
                    return True
                except LibraryNotFoundError as error:
                    cls.reasons += (str(error),)
            cls.tried_all = build
            return False


class _Triton:
    """Its kernels, where there are no compiled ones. They are tried on a device of each type before they are used."""

    devices = ("cuda", "xpu")
    reasons: ClassVar[dict[str, str | None]] = {}  # of the types that were tried: why it does not work there
    lock = threading.RLock()

    @classmethod
    def serves(cls, device: str) -> bool:
        """Whether it works on a type of device. A thread that asks while another one tries waits."""
        if device not in cls.devices:
            return False
        with cls.lock:
            if device not in cls.reasons:
                try:
                    cls.reasons[device] = cls._try(device)
                except Exception as error:  # of a compiler, a driver or a GPU
                    line = next(iter(str(error).strip().splitlines()), repr(error))
                    cls.reasons[device] = f"Triton does not work: {line}"
            return cls.reasons[device] is None

    @classmethod
    def _try(cls, device: str) -> str | None:
        from . import _triton

        x, w = torch.linspace(-2, 2, 1024).view(1, 8, 8, 16), torch.linspace(3, -3, 512).view(64, 8, 1, 1)
        grad, geometry = torch.linspace(-1, 1, 8192).view(1, 64, 8, 16), ([1, 1], [0, 0], [1, 1], 1)
        forward, backward = (x, w), (grad, x, w)
        for name, tensors in {"adder2d": forward, "_adder2d_backward_input": backward}.items():
            kernel, plain = _triton.KERNELS[name], _ON_ANY_DEVICE[name]
            result = kernel(*(tensor.to(device) for tensor in tensors), *geometry, "hardtanh")
            if not torch.allclose(result.cpu(), plain(*tensors, *geometry, "hardtanh"), rtol=1e-5, atol=1e-4):
                return "Triton's results differ from the reference's"
        return None

    @classmethod
    def kernel(cls, name: str) -> Callable[..., torch.Tensor] | None:
        """Of an operator; None where it has none."""
        from . import _triton

        return _triton.KERNELS.get(name)


_warned_devices: set[str] = set()


def _warn_about_device(device: torch.device) -> None:
    if device.type in _warned_devices or (device.type == "cpu" and BACKEND == "PyTorch reference"):
        return
    _warned_devices.add(device.type)
    reasons = list(_Cuda.reasons) if device.type == "cuda" else []
    instead = "its PyTorch reference runs on that device, many times slower"
    if _Triton.serves(device.type):
        if torch.version.cuda is None:
            return  # where nothing is compiled
        instead = "its Triton kernels run on that device, which are slower"
    elif reason := _Triton.reasons.get(device.type):
        reasons.append(reason)
    why = f" ({'; '.join(reasons)})" if reasons else ""
    warnings.warn(
        f"adderzoo has no compiled operator for {device.type} tensors{why}, so {instead}",
        RuntimeWarning,
        stacklevel=2,
    )


def _on_device(name: str, kernel: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def run(first: torch.Tensor, *arguments: object) -> torch.Tensor:
        if first.layout != torch.strided:  # whatever the device
            raise RuntimeError(f"{name}: tensors must be dense, got one with the layout {first.layout}")
        if first.device.type == "cuda" and _Cuda.load(build=True):
            return getattr(torch.ops.adderzoo, name)(first, *arguments)  # which goes there from now on
        _warn_about_device(first.device)
        if _Triton.serves(first.device.type) and (of_triton := _Triton.kernel(name)):
            with _current(first.device):
                return of_triton(first, *arguments)
        return kernel(first, *arguments)

    return run


def _current(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Where a device is the current one, on which Triton launches its kernels."""
    return contextlib.nullcontext() if device.index is None else torch.get_device_module(device).device(device)


BACKEND = _load()

if torch.version.cuda is not None:
    _Cuda.load(build=False)

# For every device, but a kernel that is registered for a device itself comes first.
_ON_ANY_DEVICE: dict[str, Callable[..., torch.Tensor]] = {
    "adder2d": reference.adder2d,
    "_adder2d_backward_input": reference.backward_input,
    "_adder2d_backward_weight": reference.backward_weight,
    "adder2d_affine": reference.affine,
    "adder2d_u8": reference.u8,
}
for _name, _kernel in _ON_ANY_DEVICE.items():
    LIBRARY.impl(_name, _on_device(_name, _kernel), "CompositeExplicitAutograd")
LIBRARY.impl("quantize_u8", reference.quantize_u8, "CompositeExplicitAutograd")  # no reason to warn


@functools.cache
def load_ceilings(device: str = "cpu") -> str | None:
    """Compiles and loads `torch.ops.adderzoo_benchmark`, the loops that bound the operators.

    Args:
        device: "cpu" or "cuda".

    Returns:
        Why they are not there; None if they are.
    """
    for library in (BENCHMARK, CUDA_BENCHMARK) if device == "cuda" else (BENCHMARK,):
        try:
            _load_built(library)
        except LibraryNotFoundError as error:
            return str(error)
    return None


def describe() -> dict[str, Any]:
    """What runs the operators, where their libraries are, and what did not load and why; nothing is compiled for it."""
    cuda = "none, this PyTorch has no CUDA"
    if torch.version.cuda is not None:
        cuda = _Cuda.backend or "not compiled yet: that comes with the first tensor on a GPU"
    names = (OPERATORS.name, CUDA_OPERATORS.name)
    return {
        "operator": backend(),
        "operator_on_gpu": cuda,
        "libraries": sorted(
            path for path in torch.ops.loaded_libraries if Path(path).stem.split(".")[0].endswith(names)
        ),
        "failed": [*_reasons, *(f"on GPUs: {reason}" for reason in _Cuda.reasons)],
    }


def backend(device: str = "cpu") -> str:
    """What runs `adder2d` on the tensors of a device.

    Args:
        device: "cpu", "cuda", or another type of device.

    Returns:
        How the compiled library was found and, for the CPU, the instruction set of its loops ("compiled at
        installation, avx512"), "Triton", or "PyTorch reference". Where the GPU's kernels are still to be compiled, this
        does it.
    """
    if device == "cuda" and _Cuda.load(build=True):
        return str(_Cuda.backend)
    if _Triton.serves(device):
        return "Triton"
    if device != "cpu" or BACKEND == "PyTorch reference":
        return "PyTorch reference"
    return f"{BACKEND}, {torch.ops.adderzoo._cpu_capability()}"
