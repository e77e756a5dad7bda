"""Builds the compiled operator; everything else about the package is in pyproject.toml.

The kernels for NVIDIA GPUs are compiled where a GPU is visible; `ADDERZOO_CUDA=1` asks for them anywhere, `=0` nowhere.
"""

import os
import runpy
from pathlib import Path
from typing import Any

from setuptools import setup
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension, include_paths

ROOT = Path(__file__).resolve().parent
build = runpy.run_path(str(ROOT / "adderzoo" / "ops" / "_build.py"))

# PyTorch's macros keep __FILE__: a wheel would tell where it was built, and be another one in every folder.
NO_PATHS = [f"-ffile-prefix-map={folder}/=" for folder in (ROOT, *include_paths())]


class OptionalBuild(BuildExtension):
    """What cannot be compiled, the package installs without, and says so when it is imported."""

    def build_extensions(self) -> None:
        print(f"adderzoo: compiling the operators for the CPU; those for NVIDIA GPUs {fate}", flush=True)
        if wanted and lacking and os.environ.get("ADDERZOO_CUDA"):
            raise SystemExit(f"ADDERZOO_CUDA=1 asks for kernels for NVIDIA GPUs, but {lacking}")
        everything = self.extensions
        for extension in everything:
            self.extensions = [extension]
            try:
                super().build_extensions()
            except Exception as error:  # whatever PyTorch's build raises: more than setuptools' `optional` expects
                self.warn(f"adderzoo installs without {extension.name}: {error}")
        self.extensions = everything


def extension(kind: Any, library: Any, **link: list[str]) -> Any:
    return kind(
        f"adderzoo.{library.name}",
        [str(path.relative_to(ROOT)) for path in library.sources()],
        depends=[str(path.relative_to(ROOT)) for path in build["build_inputs"]()]
        + ["setup.py", "adderzoo/ops/_build.py"],
        extra_compile_args={
            "cxx": build["CXX_FLAGS"] + NO_PATHS,
            "nvcc": build["NVCC_FLAGS"] + [f"-Xcompiler={flag}" for flag in NO_PATHS],
        },
        extra_link_args=build["mark_flags"](library.digest()),
        py_limited_api=True,
        optional=True,
        **link,
    )


try:
    wanted, why = build["cuda_is_wanted"]()
except ValueError as error:
    raise SystemExit(str(error)) from error
lacking = build["cuda_is_lacking"](CUDA_HOME) if wanted else why
fate = f"are left out: {lacking}" if lacking else f"too, which takes minutes: {why}"

extensions = [extension(CppExtension, build["OPERATORS"])]
if not lacking:
    folders = build["cuda_library_folders"](CUDA_HOME)
    extensions.append(extension(CUDAExtension, build["CUDA_OPERATORS"], library_dirs=folders))

setup(
    ext_modules=extensions,
    cmdclass={"build_ext": OptionalBuild},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
