"""The machine code of the GPU's kernels: what the design claims of their inner loops. It needs nvcc, but no GPU."""

import os
import re
import shutil
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from adderzoo.ops import _build

ARCHITECTURES = ["sm_80", "sm_90"]

pytestmark = pytest.mark.timeout(1800)  # three minutes of a processor that is idle


def find_program(name: str) -> str:
    """Of the CUDA toolkit, or of what Triton brings with it."""
    path = shutil.which(name)
    if path is None:
        triton = pytest.importorskip("triton")
        path = shutil.which(name, path=str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin"))
    if path is None:
        pytest.skip(f"there is no {name}")
    return path


class Code:
    """Kernels by their mangled names: their machine code, and what ptxas says of each."""

    def __init__(self, reports: list[str], disassembly: str) -> None:
        self.reports = reports
        parts = disassembly.split("Function : ")[1:]
        self.count = len(parts)
        self.kernels = {part.split("\n", 1)[0].strip(): part for part in parts}

    def inner_loop(self, kernel: str) -> Counter[str]:
        """How often each instruction occurs in the loop with most arithmetic of the kernel with this in its name."""
        (name,) = (name for name in self.kernels if kernel in name)
        lines = re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]+);", self.kernels[name])
        places = {int(address, 16): index for index, (address, _) in enumerate(lines)}
        loops = []
        for index, (address, text) in enumerate(lines):
            target = re.search(r"\bBRA\b.*\b0x([0-9a-f]+)\s*$", text)
            if target and int(target[1], 16) <= int(address, 16):
                body = [re.sub(r"^@!?U?P\w+\s+", "", line) for _, line in lines[places[int(target[1], 16)] : index + 1]]
                loops.append(Counter(line.split()[0] for line in body))
        return max(loops, key=lambda loop: loop["FADD"] + loop["FFMA"] + loop["VABSDIFF4.U8.ACC"])


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Code]:
    """By architecture. Compiling takes minutes, nearly all of them in ptxas: every source once, on all processors."""
    nvcc, cuobjdump, nvdisasm = map(find_program, ("nvcc", "cuobjdump", "nvdisasm"))
    folder = tmp_path_factory.mktemp("cuda_code")
    flags = [flag for flag in _build.NVCC_FLAGS if not flag.startswith("-gencode")]
    flags += [f"-gencode=arch={name.replace('sm', 'compute')},code={name}" for name in ARCHITECTURES]
    environment = os.environ | {"PATH": os.pathsep.join([str(Path(nvdisasm).parent), os.environ["PATH"]])}

    def run(*command: object) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=1700, env=environment)
        assert done.returncode == 0, done.stderr
        return done

    def disassemble(source: Path) -> tuple[str, str]:
        path = folder / f"{source.stem}.fatbin"
        report = run(
            *(nvcc, "-fatbin", *flags, "-Xptxas=-v", "-Werror", "all-warnings"),
            *(f"-I{Path(torch.__file__).parent / 'include'}", source, "-o", path),
        ).stderr
        return report, run(cuobjdump, "-sass", path).stdout

    libraries = _build.CUDA_OPERATORS, _build.CUDA_BENCHMARK
    sources = [path for library in libraries for path in library.sources() if path.suffix == ".cu"]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        results = list(pool.map(disassemble, sources))
    codes = {}
    for name in ARCHITECTURES:
        reports, parts = [], []
        for report, disassembly in results:
            reports += [text for text in report.split("Compiling entry function ")[1:] if f" for '{name}'" in text]
            parts += [text for text in disassembly.split("Fatbin elf code:")[1:] if f"arch = {name}\n" in text]
        assert len(parts) == len(sources)
        codes[name] = Code(reports, "".join(parts))
    return codes


@pytest.fixture(scope="module", params=ARCHITECTURES)
def code(request: pytest.FixtureRequest, compiled: dict[str, Code]) -> Code:
    return compiled[request.param]


def test_no_kernel_spills_or_uses_local_memory_but_two_registers_of_the_widest(code: Code) -> None:
    """Two blocks of the widest tiles take all registers of a multiprocessor."""
    frame = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
    found = [(report.split("\n", 1)[0], frame.search(report)) for report in code.reports]
    frames = [(name, *map(int, match.groups())) for name, match in found if match]
    assert len(frames) == code.count > 50  # several sources have the kernels that pack filters
    for name, stack, stores, loads in frames:
        if mangled((128, 128, 8, 8, 8)) in name:
            assert (stack <= 8, stores <= 8, loads <= 12) == (True, True, True), (name, stack, stores, loads)
        else:
            assert (stack, stores, loads) == (0, 0, 0), name


# Tiles: points and filters of a block, of a thread, and steps. A turn of the loop takes all steps.
Tile = tuple[int, int, int, int, int]


def mangled(tile: Tile) -> str:
    return "INS0_4TileI" + "".join(f"Li{number}E" for number in tile) + "EE"


def elements(tile: Tile) -> int:
    _, _, points, filters, steps = tile
    return points * filters * steps


def loads(tile: Tile) -> int:
    """Points and filters come by fours."""
    _, _, points, filters, steps = tile
    return (points // 4 + filters // 4) * steps


def fours(tile: Tile) -> int:
    """Of a thread's sums. Their totals are read, and outputs written, four at once."""
    _, _, points, filters, _ = tile
    return points * filters // 4


@pytest.mark.parametrize(
    "tile", [(128, 128, 8, 8, 8), (64, 64, 8, 4, 8), (128, 32, 8, 4, 8), (128, 16, 4, 4, 8)], ids=str
)
@pytest.mark.parametrize("source", ["f", "NS0_4HalfE", "NS0_8BFloat16E"])
@pytest.mark.parametrize("vector", [0, 1])
def test_a_distance_is_two_additions(code: Code, tile: Tile, source: str, vector: int) -> None:
    loop = code.inner_loop(f"distances{mangled(tile)}{source}Lb{vector}EfE")
    totals = 4 * fours(tile)  # which sums join once in a while
    assert loop["FADD"] == 2 * elements(tile) + totals
    assert loop["FMUL"] == loop["FFMA"] == 0
    assert loop["LDS.128"] == loads(tile) + fours(tile)


@pytest.mark.parametrize("tile", [(64, 64, 8, 4, 16), (128, 32, 8, 4, 16), (128, 16, 4, 4, 16)], ids=str)
@pytest.mark.parametrize("vector", [0, 1])
def test_a_slope_is_a_saturating_addition_and_a_multiply_add(code: Code, tile: Tile, vector: int) -> None:
    loop = code.inner_loop(f"slopes{mangled(tile)}fLb{vector}EffE")
    assert loop["FADD.SAT"] == elements(tile)
    others = loop["FFMA"] - elements(tile)  # that look whether filters are finite
    assert 0 <= others <= 16
    assert loop["LDS.128"] == loads(tile) + fours(tile)


@pytest.mark.parametrize("tile", [(128, 128, 8, 8, 8), (64, 64, 8, 4, 16), (128, 32, 8, 4, 16)], ids=str)
@pytest.mark.parametrize("vector", [0, 1])
def test_four_bytes_are_one_instruction(code: Code, tile: Tile, vector: int) -> None:
    loop = code.inner_loop(f"byte_distances{mangled(tile)}Lb{vector}E")
    assert loop["VABSDIFF4.U8.ACC"] == elements(tile)
    assert loop["LDS.128"] == loads(tile)


@pytest.mark.parametrize("kernel", ["distances", "byte_distances"])
@pytest.mark.parametrize("vector", [0, 1])
def test_channels_or_points_that_lie_side_by_side_are_stored_by_fours(code: Code, kernel: str, vector: int) -> None:
    tile = (128, 128, 8, 8, 8)
    (name,) = (
        name
        for name in code.kernels
        if f"{len(kernel)}{kernel}{mangled(tile)}" in name
        and ("EfEEv" in name) == (kernel == "distances")
        and f"{'f' if kernel == 'distances' else ''}Lb{vector}E" in name
    )
    assert code.kernels[name].count("STG.E.128 ") == 2 * fours(tile)  # the one or the other


@pytest.mark.parametrize("source", ["f", "NS0_4HalfE", "NS0_8BFloat16E"])
@pytest.mark.parametrize("vector", [0, 1])
def test_a_multiprocessor_has_registers_for_two_of_the_widest_tiles(code: Code, source: str, vector: int) -> None:
    kernel = f"9distances{mangled((128, 128, 8, 8, 8))}{source}Lb{vector}EfE"
    (report,) = (report for report in code.reports if kernel in report.split("\n", 1)[0])
    found = re.search(r"Used (\d+) registers", report)
    assert found
    assert 2 * 256 * int(found[1]) <= 65536


# What the operators are measured against: the same instructions, and beside these only what counts the turns.
@pytest.mark.parametrize(
    ("form", "instructions"),
    [
        ("12MultiplyAdds", {"FFMA": 256}),
        ("9Distances", {"FADD": 512}),
        ("6Slopes", {"FADD.SAT": 256, "FFMA": 256}),
        ("13ByteDistances", {"VABSDIFF4.U8.ACC": 256}),
    ],
)
def test_a_ceiling_is_a_loop_of_nothing_else(code: Code, form: str, instructions: dict[str, int]) -> None:
    (kernel,) = (name for name in code.kernels if f"ceilingINS1_{form}E" in name)
    loop = code.inner_loop(kernel)
    assert {name: loop[name] for name in instructions} == instructions
    assert loop.total() - sum(instructions.values()) <= 16
