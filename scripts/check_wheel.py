"""Builds source distribution and wheel, and shows that both install and work where there is nothing but a PyTorch."""

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import Distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.tags import Tag
from packaging.utils import canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).resolve().parent.parent

# Run in an installation; prints what it is, fails where it is not what it should be.
SMOKE = """
import warnings
warnings.simplefilter("error", RuntimeWarning)  # the package warns where its library is missing
import timm, torch, adderzoo
from adderzoo.ops import adder2d, backend
assert backend().startswith("compiled at installation"), backend()
x, w = torch.randn(2, 6, 9, 9), torch.randn(8, 6, 3, 3)
patches = torch.nn.functional.unfold(x, 3).transpose(1, 2)
expected = -torch.cdist(patches, w.flatten(1)[None], p=1).transpose(1, 2).reshape(2, 8, 7, 7)
torch.testing.assert_close(adder2d(x, w), expected)
model = timm.create_model("adder_lenet5.digits", pretrained=True).eval()
images = torch.randn(4, 1, 32, 32)
with torch.inference_mode():
    torch.testing.assert_close(adderzoo.fuse(model)(images), model(images), rtol=1e-3, atol=1e-3)
print(f"  PyTorch {torch.__version__}: {backend()}, {adderzoo.__file__}")
"""


def run(*command: str | Path, cwd: Path) -> None:
    """Runs a command that has the environment's programs, and no other adderzoo on its path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PATH": f"{Path(command[0]).parent}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    subprocess.run([str(part) for part in command], cwd=cwd, env=environment, check=True)


def check_wheel(wheel: Path) -> None:
    """Raises AssertionError with what is wrong: the tag, the files, a symbol or a path in a library."""
    _, _, _, tags = parse_wheel_filename(wheel.name)
    assert tags == {Tag("cp311", "abi3", f"linux_{platform.machine()}")}, wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        package = ROOT / "adderzoo"
        files = [
            *package.rglob("*.py"),
            package / "py.typed",
            *(package / "weights").iterdir(),
            *package.rglob("*.csv"),
        ]
        files += [package / "networks.json", package / "publish" / "card.md"]
        files += (package / "microcontroller" / "c").iterdir()
        missing = {str(path.relative_to(ROOT)) for path in files} - set(names)
        assert not missing, f"files of the package are missing: {sorted(missing)}"
        libraries = [name for name in names if name.endswith(".so")]
        assert "adderzoo/_C.abi3.so" in libraries, "the operator was not compiled"
        others = [name for name in names if not (ROOT / name).is_file() and name not in libraries]
        assert not others, f"files that the checkout does not have: {others}"
        for name in libraries:
            content = archive.read(name)
            paths = re.findall(rb"(?<![\w./-])/[\w.+/-]+\.(?:c|cpp|cu|cuh|h|hpp)\b", content)
            paths += [path for path in (sys.prefix, str(ROOT)) if path.encode() in content]
            assert not paths, f"{name} has paths of this machine: {paths[:5]}"
            with tempfile.NamedTemporaryFile(suffix=".so") as file:
                file.write(content)
                file.flush()
                nm = ["nm", "--dynamic", "--undefined-only", "--demangle", file.name]
                symbols = subprocess.run(nm, capture_output=True, text=True, check=True).stdout
            unstable = re.findall(r"^.*(?:\b(?:at|c10|torch)::|\b_?Py[A-Z_]).*$", symbols, re.MULTILINE)
            assert not unstable, f"{name} takes symbols outside PyTorch's stable ABI: {unstable[:5]}"
            print(f"  {name}: {len(symbols.splitlines())} symbols from outside, all of a stable ABI", flush=True)


def closure(site_packages: str, *names: str) -> list[Distribution]:
    """Distributions that lie in a folder, with all that they need there."""
    wanted = [Requirement(name) for name in names]
    found: dict[str, Distribution] = {}
    asked: set[tuple[str, str]] = set()
    while wanted:
        requirement = wanted.pop()
        name = canonicalize_name(requirement.name)
        distribution = next(iter(Distribution.discover(name=name, path=[site_packages])), None)
        if distribution is None:
            raise SystemExit(f"{requirement} is not in {site_packages}: give a Python whose environment has a PyTorch")
        found[name] = distribution
        for extra in {"", *requirement.extras}:
            if (name, extra) not in asked:
                asked.add((name, extra))
                needs = [Requirement(line) for line in distribution.requires or ()]
                wanted += [need for need in needs if not need.marker or need.marker.evaluate({"extra": extra})]
    return list(found.values())


def empty_environment(folder: Path, python: Path) -> Path:
    """A virtual environment with the PyTorch of another one, 5 GB, as links; returns its Python."""
    run(python, "-m", "venv", folder / "venv", cwd=folder)
    ask = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site_packages = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    # Outside the new environment, so that pip cannot write into the old one.
    links = folder / "pytorch"
    links.mkdir()
    for distribution in closure(site_packages, "torch", "torchvision"):
        for entry in {Path(file).parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (links / entry).exists():
                (links / entry).symlink_to(Path(site_packages) / entry)
    (own,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (own / "pytorch.pth").write_text(f"{links}\n")
    return folder / "venv" / "bin" / "python"


def install_and_use(distribution: Path, python: Path, folder: Path, documentation: bool) -> None:
    folder.mkdir()
    installed = empty_environment(folder, python)
    pip = (installed, "-m", "pip", "install", "-q")
    if distribution.suffix != ".whl":
        run(*pip, "setuptools>=77", "ninja", cwd=folder)
    run(*pip, "--no-build-isolation", f"{distribution}[demo,onnx]" if documentation else distribution, cwd=folder)
    run(installed, "-m", "pip", "check", cwd=folder)
    run(installed, "-c", SMOKE, cwd=folder)
    run(installed.parent / "adderzoo", "list", "--pretrained", cwd=folder)
    if documentation:
        run(*pip, "pytest", "pytest-timeout", cwd=folder)
        run(installed.parent / "pytest", "-q", ROOT / "tests" / "test_documentation.py", cwd=folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "pythons",
        nargs="*",
        default=[sys.executable],
        help="Pythons with a PyTorch, in whose company the distributions are installed; the last one gets the "
        "documentation's blocks as well (default: this Python)",
    )
    pythons = [Path(os.path.abspath(python)) for python in parser.parse_args().pythons]
    with tempfile.TemporaryDirectory(prefix="check_wheel_") as temporary:
        folder = Path(temporary)
        run(sys.executable, "-m", "build", "--quiet", "--no-isolation", "--outdir", folder / "dist", ROOT, cwd=ROOT)
        (source,), (wheel,) = (folder / "dist").glob("*.tar.gz"), (folder / "dist").glob("*.whl")
        print(wheel.name, flush=True)
        check_wheel(wheel)
        for distribution in (source, wheel):
            print(f"pip install {distribution.name}", flush=True)
            for number, python in enumerate(pythons):
                last = distribution == wheel and number == len(pythons) - 1
                install_and_use(distribution, python, folder / f"{distribution.stem}_{number}", last)
        (ROOT / "dist").mkdir(exist_ok=True)
        for distribution in (source, wheel):
            shutil.copy(distribution, ROOT / "dist")
            print(f"dist/{distribution.name}: right")


if __name__ == "__main__":
    main()
