"""Builds the compiled operator; everything else about the package is in pyproject.toml."""

import runpy
from pathlib import Path
from typing import Any

import torch
from setuptools import setup
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension, include_paths

ROOT = Path(__file__).resolve().parent
build = runpy.run_path(str(ROOT / "adderzoo" / "ops" / "_build.py"))

# PyTorch's macros keep __FILE__: a wheel would tell where it was built, and be another one in every folder.
NO_PATHS = [f"-ffile-prefix-map={folder}/=" for folder in (ROOT, *include_paths())]


class OptionalBuild(BuildExtension):
    """What cannot be compiled, the package installs without, and says so when it is imported."""

    def build_extensions(self) -> None:
        everything = self.extensions
        for extension in everything:
            self.extensions = [extension]
            try:
                super().build_extensions()
            except Exception as error:  # whatever PyTorch's build raises: more than setuptools' `optional` expects
                self.warn(f"adderzoo installs without {extension.name}: {error}")
        self.extensions = everything


def extension(kind: Any, name: str, sources: list[Path], cuda: bool = False, **link: list[str]) -> Any:
    return kind(
        name,
        [str(path.relative_to(ROOT)) for path in sources],
        depends=[str(path.relative_to(ROOT)) for path in build["build_inputs"]()]
        + ["setup.py", "adderzoo/ops/_build.py"],
        extra_compile_args={
            "cxx": build["CXX_FLAGS"] + NO_PATHS,
            "nvcc": build["NVCC_FLAGS"] + [f"-Xcompiler={flag}" for flag in NO_PATHS],
        },
        extra_link_args=build["mark_flags"](build["build_digest"](cuda)),
        py_limited_api=True,
        optional=True,
        **link,
    )


extensions = [extension(CppExtension, "adderzoo._C", build["source_files"]())]
if torch.version.cuda is not None and CUDA_HOME is not None and Path(CUDA_HOME, "bin", "nvcc").is_file():
    folders = build["cuda_library_folders"](CUDA_HOME)
    sources = build["cuda_source_files"]()
    extensions.append(extension(CUDAExtension, "adderzoo._C_cuda", sources, cuda=True, library_dirs=folders))

setup(
    ext_modules=extensions,
    cmdclass={"build_ext": OptionalBuild},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
