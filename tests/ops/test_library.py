"""How the compiled library is found, built and replaced, each time in a process of its own."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from processes import CHECKOUT, run_python

from adderzoo.ops import _library

# Prints the backend, the result of a known sum and the warnings about adderzoo.
IMPORT = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch, adderzoo.ops
print("backend:", adderzoo.ops.backend())
print("value:", adderzoo.ops.adder2d(torch.full((1, 1, 3, 3), 2.0), torch.full((1, 1, 3, 3), 5.0)).item())
for warning in caught:
    if "adderzoo" in str(warning.message):
        print(f"{warning.category.__name__}: {warning.message}")
"""

# With what it says on standard error.
ALL_OF_IT = "import sys; sys.stderr = sys.stdout\n" + IMPORT


def compiled_library() -> Path:
    """The one that this process runs."""
    if _library.BACKEND == "PyTorch reference":
        pytest.skip("the compiled library could not be loaded or built here")
    return next(
        Path(path) for path in torch.ops.loaded_libraries if re.search(r"/(adderzoo/_C\.[^/]*so|adderzoo_C\.so)$", path)
    )


def copy_checkout(to: Path) -> Path:
    """The package and its sources without anything built."""
    shutil.copytree(
        CHECKOUT / "adderzoo", to / "adderzoo", ignore=shutil.ignore_patterns("*.so", "__pycache__", "weights")
    )
    shutil.copytree(CHECKOUT / "csrc", to / "csrc")
    return to


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return copy_checkout(tmp_path / "checkout")


class Build(NamedTuple):
    checkout: Path
    cache: Path  # its TORCH_EXTENSIONS_DIR
    programs: Path  # its PATH
    printed: str = ""

    @property
    def library(self) -> Path:
        (library,) = self.cache.glob("adderzoo_*/adderzoo_C.so")
        return library

    def copy(self, to: Path) -> "Build":
        shutil.copytree(self.cache, to)
        return self._replace(cache=to)

    def run(self, cwd: Path) -> "Build":
        environment = {"TORCH_EXTENSIONS_DIR": self.cache, "PATH": self.programs, "MAX_JOBS": "2"}
        return self._replace(printed=run_python(ALL_OF_IT, cwd=cwd, package=self.checkout, **environment))


@pytest.fixture(scope="module")
def first_build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A build on first use, made here and written by nobody. On its PATH is what a compiler needs, and no more."""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("first_use")
    build = Build(copy_checkout(folder / "checkout"), folder / "torch_extensions", folder / "programs")
    build.programs.mkdir()
    beside_python = (Path(sysconfig.get_path("scripts")) / "ninja").exists()
    for name in ("c++", "g++", "gcc", "as", "ld", "sh", "uname", "which", *([] if beside_python else ["ninja"])):
        if path := shutil.which(name):
            (build.programs / name).symlink_to(path)
    return build.run(cwd=folder)


@pytest.fixture
def no_compiler(tmp_path: Path) -> dict[str, str | Path]:
    """An environment in which nothing can be compiled."""
    empty = tmp_path / "no_programs"
    empty.mkdir()
    return {"PATH": empty, "CXX": "no-such-compiler", "TORCH_EXTENSIONS_DIR": tmp_path / "no_extensions"}


# ----------------------------------------------------------------------------------------------------------- installed


def test_installed_library_is_loaded_and_nothing_is_compiled(
    checkout: Path, no_compiler: dict[str, str | Path], tmp_path: Path
) -> None:
    """In a copied checkout, whose sources are younger than the library: what is in them counts."""
    library = Path(shutil.copy(compiled_library(), checkout / "adderzoo" / "_C.abi3.so"))
    os.utime(library, (0, 0))
    printed = run_python(IMPORT, cwd=tmp_path, package=checkout, **no_compiler)
    assert "backend: compiled at installation, " in printed
    assert "value: -27.0" in printed
    assert "Warning" not in printed


def set_up(checkout: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=300)


def test_setup_without_a_compiler_installs_the_rest(
    checkout: Path, no_compiler: dict[str, str | Path], tmp_path: Path
) -> None:
    shutil.copy(CHECKOUT / "setup.py", checkout)
    (checkout / "pyproject.toml").write_text("")
    environment = os.environ | {name: str(value) for name, value in no_compiler.items()}
    environment["PATH"] = sysconfig.get_path(
        "scripts"
    )  # where pip's ninja is, whose failure setuptools does not expect
    done = set_up(checkout, environment | {"ADDERZOO_CUDA": "0"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(checkout.rglob("*.so"))
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("adderzoo: ")]
    assert line == (
        "adderzoo: compiling the operators for the CPU; those for NVIDIA GPUs are left out: ADDERZOO_CUDA is 0"
    )


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("1", r"ADDERZOO_CUDA=1 asks for kernels for NVIDIA GPUs, but (there is no CUDA toolkit|this PyTorch is not)"),
        ("yes", r"ADDERZOO_CUDA must be 0 or 1, or not set, got 'yes'"),
    ],
)
def test_setup_that_cannot_do_what_is_asked_of_it_ends_before_it_compiles(
    checkout: Path, no_compiler: dict[str, str | Path], tmp_path: Path, asked: str, message: str
) -> None:
    shutil.copy(CHECKOUT / "setup.py", checkout)
    (checkout / "pyproject.toml").write_text("")
    environment = os.environ | {name: str(value) for name, value in no_compiler.items()}
    done = set_up(checkout, environment | {"ADDERZOO_CUDA": asked, "CUDA_HOME": str(tmp_path)})
    assert done.returncode != 0
    assert re.search(message, done.stderr)
    assert "Traceback" not in done.stderr
    assert not list(checkout.rglob("*.o"))


# ADDERZOO_CUDA, whether a GPU is visible, and what comes of it.
@pytest.mark.parametrize(
    ("asked", "visible", "expected"),
    [
        (None, True, (True, "a GPU is visible")),
        (None, False, (False, "no GPU is visible (ADDERZOO_CUDA=1 compiles them all the same)")),
        ("", False, (False, "no GPU is visible (ADDERZOO_CUDA=1 compiles them all the same)")),
        ("1", False, (True, "ADDERZOO_CUDA is 1")),
        ("0", True, (False, "ADDERZOO_CUDA is 0")),
    ],
)
def test_kernels_for_gpus_are_compiled_where_one_is_visible_or_when_asked(
    monkeypatch: pytest.MonkeyPatch, asked: str | None, visible: bool, expected: tuple[bool, str]
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: visible)
    if asked is None:
        monkeypatch.delenv("ADDERZOO_CUDA", raising=False)
    else:
        monkeypatch.setenv("ADDERZOO_CUDA", asked)
    assert _library._build.cuda_is_wanted() == expected
    if not expected[0]:
        with pytest.raises(_library.LibraryNotFoundError, match=f"^{re.escape(expected[1])}$"):
            _library._load_built(_library.CUDA_OPERATORS)


@pytest.mark.parametrize("change", ["sources", "flags"])
def test_installed_library_of_other_sources_or_flags_is_not_used(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """However old they are: a copy, or a commit that was checked out, has times of its own."""
    shutil.copy(compiled_library(), checkout / "adderzoo" / "_C.abi3.so")
    header = checkout / "csrc" / "cpu" / "adder2d_loops.h"
    if change == "sources":
        header.write_text(header.read_text() + "\n")
        os.utime(header, (0, 0))
    else:
        monkeypatch.setattr(_library._build, "CXX_FLAGS", [*_library._build.CXX_FLAGS, "-DOTHER"])
    monkeypatch.setattr(_library, "PACKAGE", checkout / "adderzoo")
    monkeypatch.setattr(_library._build, "SOURCES", checkout / "csrc")
    with pytest.raises(_library.LibraryNotFoundError, match="the compiled library is of other sources or flags"):
        _library._load_installed(_library.OPERATORS)


def test_setup_and_first_use_mark_a_library_with_the_same_digest(tmp_path: Path) -> None:
    """setup.py runs the file by its path, before the package can be imported, perhaps in another folder."""
    shutil.copytree(CHECKOUT / "csrc", tmp_path / "csrc")
    copy = tmp_path / "adderzoo" / "ops" / "_build.py"
    copy.parent.mkdir(parents=True)
    shutil.copy(CHECKOUT / "adderzoo" / "ops" / "_build.py", copy)
    alone = runpy.run_path(str(copy))
    names = ["OPERATORS", "CUDA_OPERATORS", "BENCHMARK", "CUDA_BENCHMARK"]
    digests = [getattr(_library._build, name).digest() for name in names]
    assert [alone[name].digest() for name in names] == digests
    assert len(set(digests)) == 4
    assert _library._build.is_marked(compiled_library(), digests[0])
    assert not _library._build.is_marked(compiled_library(), digests[1])


def test_installed_library_that_does_not_load_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "_C.abi3.so"
    library.write_bytes(b"no library at all")
    monkeypatch.setattr(_library, "PACKAGE", tmp_path)
    monkeypatch.setattr(_library._build, "SOURCES", tmp_path / "csrc")
    with pytest.raises(_library.LibraryNotFoundError, match=re.escape(f"{library} does not load: ")):
        _library._load_installed(_library.OPERATORS)


# --------------------------------------------------------------------------------------------------- built on first use


def test_library_is_built_on_first_use_with_the_ninja_beside_python(first_build: Build) -> None:
    """pip's ninja is not on the PATH of a Python that was started by its full name."""
    assert "backend: compiled on first use, " in first_build.printed
    assert "value: -27.0" in first_build.printed
    assert "Warning" not in first_build.printed


def test_build_says_that_it_compiles_how_long_and_into_which_folder(first_build: Build) -> None:
    (line,) = [line for line in first_build.printed.splitlines() if "compiling" in line]
    folder = first_build.library.parent
    assert line == f"adderzoo: compiling its operators into {folder}, once; this takes about a minute"


def test_second_process_uses_the_build_of_the_first(
    checkout: Path, first_build: Build, no_compiler: dict[str, str | Path], tmp_path: Path
) -> None:
    """From another checkout of the same sources, where an installed library does not load, and with no compiler."""
    (checkout / "adderzoo" / "_C.abi3.so").write_bytes(b"no library at all")
    compiler = tmp_path / "no_programs" / "no-such-compiler"  # found, but it compiles nothing
    compiler.symlink_to(shutil.which("false") or "/bin/false")
    before = first_build.library.stat().st_mtime_ns
    environment = no_compiler | {"TORCH_EXTENSIONS_DIR": first_build.cache}
    printed = run_python(ALL_OF_IT, cwd=tmp_path, package=checkout, **environment)
    assert "backend: compiled on first use, " in printed
    assert "value: -27.0" in printed
    assert "Warning" not in printed
    assert "compiling" not in printed
    assert first_build.library.stat().st_mtime_ns == before


def test_build_that_was_killed_is_made_anew(first_build: Build, tmp_path: Path) -> None:
    """As SIGKILL leaves it while the linker writes: half a library, PyTorch's lock, objects and ninja's log of them."""
    build = first_build.copy(tmp_path / "torch_extensions")
    folder = build.library.parent
    (folder / "complete_C").unlink()
    (folder / "lock").touch()
    size = build.library.stat().st_size
    build.library.write_bytes(build.library.read_bytes()[: size // 2])
    log = (folder / ".ninja_log").read_text().splitlines(keepends=True)
    (folder / ".ninja_log").write_text("".join(line for line in log if build.library.name not in line))
    printed = build.run(cwd=tmp_path).printed
    assert "backend: compiled on first use, " in printed
    assert "value: -27.0" in printed
    assert build.library.stat().st_size == size
    assert (folder / "complete_C").exists()


def test_other_sources_never_take_an_old_build(
    checkout: Path, first_build: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They are built in a folder of their own, which here fails."""
    build = first_build.copy(tmp_path / "torch_extensions")
    with (checkout / "csrc" / "cpu" / "adder2d_loops.h").open("a") as header:
        header.write("#error another version\n")
    monkeypatch.setattr(_library._build, "SOURCES", checkout / "csrc")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(build.cache))
    with pytest.raises(_library.LibraryNotFoundError, match=r"building it failed: .*error: #error another version"):
        _library._load_built(_library.OPERATORS)
    assert not list(build.cache.glob("adderzoo_*/complete_C"))[1:]


# ------------------------------------------------------------------------------------------------------- the reference


def test_compiler_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -m64")
    with pytest.raises(_library.LibraryNotFoundError, match=r"no C\+\+ compiler, no-such-compiler -m64 is not found"):
        _library._load_built(_library.OPERATORS)


def test_sources_that_are_missing_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "csrc" / "other.cpp"  # another package's, beside ours in site-packages
    other.parent.mkdir()
    other.touch()
    monkeypatch.setattr(_library._build, "SOURCES", tmp_path / "csrc")
    with pytest.raises(_library.LibraryNotFoundError, match=r"the C\+\+ sources are not beside the package"):
        _library._load_built(_library.OPERATORS)


def test_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a_file"
    file.touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(file))
    with pytest.raises(_library.LibraryNotFoundError, match=f"building it failed: .*{re.escape(str(file))}"):
        _library._load_built(_library.OPERATORS)


def test_home_that_cannot_be_written_names_the_variable_that_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").touch()
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    remedy = "set TORCH_EXTENSIONS_DIR to a folder that can be written$"
    with pytest.raises(_library.LibraryNotFoundError, match=remedy):
        _library._load_built(_library.OPERATORS)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(_library, "_check_compiler", lambda compiled: None)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as for another user than root
    with pytest.raises(_library.LibraryNotFoundError, match=f"no right to write into {tmp_path}/.*; {remedy}"):
        _library._load_built(_library.OPERATORS)


def test_user_without_a_home_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(_library.LibraryNotFoundError, match=r"building it failed: Could not determine home directory"):
        _library._load_built(_library.OPERATORS)


def test_failure_without_words_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: Path) -> None:
        raise OSError

    monkeypatch.setattr(_library, "FileLock", fail)
    with pytest.raises(_library.LibraryNotFoundError, match=r"building it failed: OSError\(\)"):
        _library._load_built(_library.OPERATORS)


def test_without_a_compiler_the_reference_runs_and_one_warning_says_why(
    checkout: Path, no_compiler: dict[str, str | Path], tmp_path: Path
) -> None:
    lines = run_python(IMPORT, cwd=tmp_path, package=checkout, **no_compiler).splitlines()
    assert "backend: PyTorch reference" in lines
    assert "value: -27.0" in lines
    (warning,) = [line for line in lines if "Warning" in line]
    assert warning.startswith("RuntimeWarning: adderzoo's compiled operator is not available")
    assert "the package has no compiled library; there is no C++ compiler, no-such-compiler is not found" in warning
    assert "Install a C++ compiler (g++) and ninja (pip install ninja)" in warning


def test_reference_backend_trains_compiles_and_passes_opcheck(
    checkout: Path, no_compiler: dict[str, str | Path], tmp_path: Path
) -> None:
    script = """
import sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[1])
import torch, adderzoo.ops
from reference64 import Geometry, adder2d64_with_gradients
from samples import GEOMETRIES, FORMATS, DTYPES, sample
for name in GEOMETRIES:
    for memory_format in FORMATS:
        x, w, geometry = sample(name, torch.float64, "cpu", memory_format)
        y = adderzoo.ops.adder2d(x.requires_grad_(), w.requires_grad_(), *geometry, "sign", "sign")
        g = torch.randn_like(y)
        actual = y.detach(), *torch.autograd.grad(y, (x, w), g)
        for one, other in zip(actual, adder2d64_with_gradients(x, w, g, Geometry(*geometry), "sign", "sign")):
            torch.testing.assert_close(one, other)
for dtype in DTYPES:
    x, w, geometry = sample("grouped", dtype, "cpu", "channels_last")
    torch.library.opcheck(torch.ops.adderzoo.adder2d.default, (x.requires_grad_(), w.requires_grad_(), *geometry))
compiled = torch.compile(adderzoo.ops.adder2d, fullgraph=True, backend="aot_eager")
print("compiled:", compiled(x, w, *geometry).equal(adderzoo.ops.adder2d(x, w, *geometry)))
"""
    printed = run_python(script, Path(__file__).parent, cwd=tmp_path, package=checkout, **no_compiler)
    assert "compiled: True" in printed


# --------------------------------------------------------------------------------------------------------- the library


def test_python_and_cpp_define_the_same_schemas() -> None:
    compiled_library()
    for schema in _library.SCHEMAS:
        parsed = torch._C.parse_schema(f"adderzoo::{schema}")
        operator = getattr(torch.ops.adderzoo, parsed.name.removeprefix("adderzoo::"))
        assert str(operator.default._schema) == str(parsed)
    source = (CHECKOUT / "csrc" / "adder2d.cpp").read_text()
    assert source.count("m.def(") == len(_library.SCHEMAS)


def test_the_benchmarks_loops_are_no_part_of_the_operators_library(tmp_path: Path) -> None:
    script = "import torch, adderzoo.ops; print(hasattr(torch.ops.adderzoo_benchmark, 'cpu_ceiling'))"
    assert run_python(script, cwd=tmp_path) == "False\n"
    assert "ceiling" not in str(_library.SCHEMAS)
    assert "ceiling" not in subprocess.run(["nm", "-C", str(compiled_library())], capture_output=True, text=True).stdout


def test_the_benchmarks_loops_of_a_package_without_sources_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a wheel installs it."""
    monkeypatch.setattr(_library._build, "SOURCES", tmp_path)
    _library.load_ceilings.cache_clear()
    try:
        assert _library.load_ceilings("cpu") == "the C++ sources are not beside the package"
    finally:
        _library.load_ceilings.cache_clear()


def test_library_loaded_before_the_package_is_kept(tmp_path: Path) -> None:
    """A second definition of the schema would end the process."""
    library = compiled_library()
    printed = run_python(f"import torch; torch.ops.load_library({str(library)!r})" + IMPORT, cwd=tmp_path)
    assert "backend: compiled, loaded before the package, " in printed
    assert "value: -27.0" in printed
    assert "Warning" not in printed


def test_library_takes_no_symbol_from_pytorch_that_may_change() -> None:
    """at:: and c10:: change from release to release; the stable ABI is plain C."""
    library = compiled_library()
    if shutil.which("nm") is None:
        pytest.skip("no nm")
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", "-C", str(library)], capture_output=True, text=True, check=True
    ).stdout
    assert "aoti_torch_" in listed
    assert [line for line in listed.splitlines() if re.search(r"\b(at|c10|torch)::", line)] == []


# ------------------------------------------------------------------------------------------------------ NVIDIA GPUs


def test_installed_kernels_for_gpus_come_with_the_package() -> None:
    if not list(_library.PACKAGE.glob("_C_cuda.*so")):
        pytest.skip(
            "the kernels for GPUs were not compiled at installation: no GPU was visible, or no CUDA toolkit was there"
        )
    assert _library._Cuda.backend == "compiled at installation", _library._Cuda.reasons
    for schema in _library.SCHEMAS:
        name = schema.split("(")[0]
        expected = name not in ("_cpu_capability", "quantize_u8")  # of which torch.compile makes one for GPUs
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"adderzoo::{name}", "CUDA") == expected


@pytest.fixture
def cuda_pytorch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The CUDA version that PyTorch is built for; nothing is built yet."""
    if torch.version.cuda is None:
        pytest.skip("this PyTorch is not built for CUDA")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "torch_extensions"))
    monkeypatch.setenv("ADDERZOO_CUDA", "1")
    return torch.version.cuda


def test_pytorch_without_cuda_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ADDERZOO_CUDA", raising=False)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(_library.LibraryNotFoundError, match="this PyTorch is not built for CUDA"):
        _library._load_built(_library.CUDA_OPERATORS)


@pytest.mark.usefixtures("cuda_pytorch")
def test_cuda_toolkit_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", None)
    with pytest.raises(_library.LibraryNotFoundError, match="there is no CUDA toolkit: no nvcc is found"):
        _library._load_built(_library.CUDA_OPERATORS)


def test_cuda_toolkit_of_another_version_is_named(
    cuda_pytorch: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nvcc = tmp_path / "toolkit" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 9.1, V9.1.85'\n")
    nvcc.chmod(0o755)
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", str(tmp_path / "toolkit"))
    message = f"the CUDA toolkit in {tmp_path}/toolkit is 9.1, PyTorch is built for {cuda_pytorch}"
    with pytest.raises(_library.LibraryNotFoundError, match=f"^{re.escape(message)}$"):
        _library._load_built(_library.CUDA_OPERATORS)


def test_tensors_without_kernels_get_a_warning_that_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_library, "_warned_devices", set())
    monkeypatch.setattr(_library._Cuda, "reasons", ("the package has no compiled library", "there is no nvcc"))
    monkeypatch.setattr(_library._Triton, "reasons", {"cuda": "Triton does not work: no gcc"})
    words = (
        r"for cuda tensors \(the package has .*y; there is no nvcc; Triton does not work: no gcc\), so its PyTorch ref"
    )
    with pytest.warns(RuntimeWarning, match=words):
        _library._warn_about_device(torch.device("cuda"))


@pytest.fixture
def triton_of_cpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Triton's kernels, which a test may replace, on a CPU, where they have not been tried yet."""
    pytest.importorskip("triton")
    from adderzoo.ops import _triton

    monkeypatch.setattr(_library, "_warned_devices", set())
    monkeypatch.setattr(_library._Triton, "devices", ("cpu",))
    monkeypatch.setattr(_library._Triton, "reasons", {})
    kernels = {name: _library._ON_ANY_DEVICE[name] for name in _triton.KERNELS}
    monkeypatch.setattr(_triton, "KERNELS", kernels)
    return kernels


@pytest.mark.parametrize("there", [True, False])
def test_triton_runs_what_is_not_compiled_for_a_gpu_and_a_warning_says_why(
    triton_of_cpu: dict[str, object], monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    """On NVIDIA GPUs: for others nothing is compiled."""
    monkeypatch.setattr(torch.version, "cuda", "13.0" if there else None)
    assert _library.backend("cpu") == "Triton"
    calls = []
    operator = _library._on_device("adder2d", lambda *arguments: pytest.fail("the reference has run"))
    triton_of_cpu["adder2d"] = lambda *arguments: calls.append(arguments)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            operator(torch.zeros(1), "others")
    assert calls == [(torch.zeros(1), "others")] * 2
    words = (
        "adderzoo has no compiled operator for cpu tensors, so its Triton kernels run on that device, which are slower"
    )
    assert [str(warning.message) for warning in caught] == [words] * there


def test_triton_that_does_not_work_or_not_well_runs_nothing(
    triton_of_cpu: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    right = triton_of_cpu["_adder2d_backward_input"]
    wrong = lambda *arguments: right(*arguments) + 0.001  # noqa: E731
    for kernel, reason in (
        (fail, "Triton does not work: Failed to find C compiler."),
        (wrong, "Triton's results differ from the reference's"),
    ):
        triton_of_cpu["_adder2d_backward_input"] = kernel
        _library._Triton.reasons.clear()
        assert _library.backend("cpu") != "Triton"
        assert _library._Triton.reasons == {"cpu": reason}


@pytest.mark.parametrize("there", [True, False])
def test_threads_that_come_while_kernels_are_compiled_wait_for_them(
    monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    started, calls = threading.Event(), []

    def build(compiled: object) -> None:
        calls.append(compiled)
        started.set()
        time.sleep(0.2)
        if not there:
            raise _library.LibraryNotFoundError("no nvcc")

    for name, value in {"backend": None, "reasons": (), "tried_all": False}.items():
        monkeypatch.setattr(_library._Cuda, name, value)
    monkeypatch.setattr(_library, "_WAYS", (("compiled on first use", build),))
    monkeypatch.setattr(_library, "BACKEND", "compiled at installation")
    got: list[bool] = []
    threads = [threading.Thread(target=lambda: got.append(_library._Cuda.load(build=True))) for _ in range(4)]
    threads[0].start()
    assert started.wait(10)
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [there] * 4
    assert calls == [_library.CUDA_OPERATORS]


def test_toolkit_behind_a_wrapper_is_found(tmp_path: Path) -> None:
    """As compiler caches and package managers install nvcc, far from its libraries."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc")
    wrapper = tmp_path / "bin" / "nvcc"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec "{nvcc}" "$@"\n')
    wrapper.chmod(0o755)
    folders = _library._build.cuda_library_folders(str(tmp_path))
    assert any(list(Path(folder).glob("libcudart*")) for folder in folders)
