"""Builds the compiled operator; everything else about the package is in pyproject.toml."""

import runpy
from pathlib import Path

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

ROOT = Path(__file__).resolve().parent
build = runpy.run_path(str(ROOT / "adderzoo" / "ops" / "_build.py"))

setup(
    ext_modules=[
        CppExtension(
            "adderzoo._C",
            [str(path.relative_to(ROOT)) for path in build["source_files"]()],
            depends=[str(path.relative_to(ROOT)) for path in build["build_inputs"]()],
            extra_compile_args={"cxx": build["CXX_FLAGS"]},
            py_limited_api=True,
        )
    ],
    cmdclass={"build_ext": BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
