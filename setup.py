"""Builds the compiled operator; everything else about the package is in pyproject.toml."""

import runpy
from pathlib import Path

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

ROOT = Path(__file__).resolve().parent
build = runpy.run_path(str(ROOT / "adderzoo" / "ops" / "_build.py"))


class OptionalBuild(BuildExtension):
    """Where nothing can be compiled, the package installs without it and says so when it is imported."""

    def build_extensions(self) -> None:
        try:
            super().build_extensions()
        except Exception as error:  # whatever PyTorch's build raises, which is more than setuptools' `optional` expects
            self.warn(f"adderzoo installs without its compiled operator: {error}")


setup(
    ext_modules=[
        CppExtension(
            "adderzoo._C",
            [str(path.relative_to(ROOT)) for path in build["source_files"]()],
            depends=[str(path.relative_to(ROOT)) for path in build["build_inputs"]()],
            extra_compile_args={"cxx": build["CXX_FLAGS"]},
            py_limited_api=True,
            optional=True,
        )
    ],
    cmdclass={"build_ext": OptionalBuild},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
