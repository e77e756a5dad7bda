"""Loads, builds or replaces the compiled library, so that `torch.ops.adderzoo` has its operators in any case."""

import contextlib
import hashlib
import os
import platform
import shutil
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from filelock import FileLock

from . import _build, reference

PACKAGE = Path(__file__).resolve().parent.parent

# What csrc/adder2d.cpp defines, for where it cannot be compiled; a test compares the two.
SCHEMAS = (
    "adder2d(Tensor input, Tensor weight, SymInt[2] stride=1, SymInt[2] padding=0, SymInt[2] dilation=1, "
    'SymInt groups=1, str input_grad="hardtanh", str weight_grad="full") -> Tensor',
    "_adder2d_backward_input(Tensor grad, Tensor input, Tensor weight, SymInt[2] stride, SymInt[2] padding, "
    "SymInt[2] dilation, SymInt groups, str input_grad) -> Tensor",
    "_adder2d_backward_weight(Tensor grad, Tensor input, Tensor weight, SymInt[2] stride, SymInt[2] padding, "
    "SymInt[2] dilation, SymInt groups) -> Tensor",
    "adder2d_affine(Tensor input, Tensor weight, Tensor scale, Tensor shift, Tensor? addend=None, "
    "SymInt[2] stride=1, SymInt[2] padding=0, SymInt[2] dilation=1, SymInt groups=1, bool relu=False) -> Tensor",
    "adder2d_u8(Tensor input, Tensor weight, Tensor scale, Tensor shift, Tensor? addend=None, SymInt[2] stride=1, "
    "SymInt[2] padding=0, SymInt[2] dilation=1, SymInt groups=1, bool relu=False, int zero_point=0, "
    "int? out_zero_point=None, int out_max=255, float addend_scale=1.) -> Tensor",
    "_cpu_capability() -> str",
    "_cpu_ceiling(str form, int steps) -> int",
)

# Registrations made from Python live as long as this object.
LIBRARY = torch.library.Library("adderzoo", "FRAGMENT")


class LibraryNotFoundError(Exception):
    """One way to get the compiled library does not lead to it; the message says why."""


def _load_installed() -> None:
    libraries = sorted(PACKAGE.glob("_C.*so"))
    if not libraries:
        raise LibraryNotFoundError("the package has no compiled library")
    newest_source = max((path.stat().st_mtime for path in _build.build_inputs()), default=0.0)
    if newest_source > libraries[0].stat().st_mtime:
        raise LibraryNotFoundError("the compiled library is older than its sources")
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


def _load_built() -> None:
    if not _build.source_files():
        raise LibraryNotFoundError("the C++ sources are not beside the package")
    compiler = os.environ.get("CXX") or "c++"  # PyTorch's own choice
    if shutil.which(compiler.split()[0]) is None:
        raise LibraryNotFoundError(f"there is no C++ compiler, {compiler} is not found")
    digest = hashlib.sha256(" ".join([*_build.CXX_FLAGS, platform.machine()]).encode())
    for path in _build.build_inputs():
        digest.update(path.read_bytes())
    try:
        cache = os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions"
        folder = Path(cache) / f"adderzoo_{digest.hexdigest()[:16]}"
        library, complete = folder / "adderzoo_C.so", folder / "complete"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "adderzoo.lock"):
            if not complete.exists():
                from torch.utils import cpp_extension  # slow to import, and seldom needed

                (folder / "lock").unlink(missing_ok=True)  # PyTorch's own, left by a build that was killed
                with _own_programs_on_path():
                    cpp_extension.load(  # builds it, and loads it as well
                        name=library.stem,
                        sources=[str(path) for path in _build.source_files()],
                        extra_cflags=_build.CXX_FLAGS,
                        build_directory=str(folder),
                        is_python_module=False,
                    )
                complete.touch()
                return
        torch.ops.load_library(library)
    except (OSError, RuntimeError, ImportError) as error:
        lines = str(error).strip().splitlines() or [repr(error)]
        reason = next((line for line in lines if "error:" in line), lines[0])  # of a compiler's many
        raise LibraryNotFoundError(f"building it failed: {reason}") from error


def _load() -> str:
    if hasattr(torch.ops.adderzoo, "adder2d"):  # the schema is there: a second definition would end the process
        return "compiled, loaded before the package"
    ways: tuple[tuple[str, Callable[[], None]], ...] = (
        ("compiled at installation", _load_installed),
        ("compiled on first use", _load_built),
    )
    reasons = []
    for name, load in ways:
        try:
            load()
            return name
        except LibraryNotFoundError as error:
            reasons.append(str(error))
    for schema in SCHEMAS:
        LIBRARY.define(schema)
    LIBRARY.impl("_cpu_capability", lambda: "none", "CompositeExplicitAutograd")
    warnings.warn(
        "adderzoo's compiled operator is not available, so its PyTorch reference runs, many times slower: "
        f"{'; '.join(reasons)}. Install a C++ compiler (g++) and ninja (pip install ninja), then adderzoo again (a "
        "checkout is compiled when it is imported next).",
        RuntimeWarning,
        stacklevel=2,
    )
    return "PyTorch reference"


_warned_devices: set[str] = set()


def _warn_about_device(device: torch.device) -> None:
    if device.type in _warned_devices or (device.type == "cpu" and BACKEND == "PyTorch reference"):
        return
    _warned_devices.add(device.type)
    warnings.warn(
        f"adderzoo has no compiled operator for {device.type} tensors, so its PyTorch reference runs on that device, "
        "many times slower",
        RuntimeWarning,
        stacklevel=2,
    )


def _on_device(kernel: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def run(first: torch.Tensor, *arguments: object) -> torch.Tensor:
        _warn_about_device(first.device)
        return kernel(first, *arguments)

    return run


BACKEND = _load()

# For every device, but a kernel that is registered for a device itself comes first.
LIBRARY.impl("adder2d", _on_device(reference.adder2d), "CompositeExplicitAutograd")
LIBRARY.impl("_adder2d_backward_input", _on_device(reference.backward_input), "CompositeExplicitAutograd")
LIBRARY.impl("_adder2d_backward_weight", _on_device(reference.backward_weight), "CompositeExplicitAutograd")
LIBRARY.impl("adder2d_affine", _on_device(reference.affine), "CompositeExplicitAutograd")
LIBRARY.impl("adder2d_u8", _on_device(reference.u8), "CompositeExplicitAutograd")


def backend() -> str:
    """What runs `adder2d` on CPU tensors.

    Returns:
        How the compiled library was found and the instruction set of its loops ("compiled at installation, avx512"),
        or "PyTorch reference".
    """
    if BACKEND == "PyTorch reference":
        return BACKEND
    return f"{BACKEND}, {torch.ops.adderzoo._cpu_capability()}"
