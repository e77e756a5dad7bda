"""The C that is written: compiled strictly and run on this machine, and under qemu on others."""

import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quantized_networks import quantized
from random_networks import SANITIZERS, STRICT, check
from toolchains import MACHINES, build, compiled_plugin, need, run

from adderzoo.microcontroller import integer_network, write_c
from adderzoo.microcontroller.source import _parts

pytestmark = pytest.mark.usefixtures("one_thread")


def compile_and_run(folder: Path, *flags: str, compiler: str = "gcc") -> None:
    command = [compiler, *STRICT, "-O1", *flags, "net.c", "net_test.c", "-o", "net_test"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    done = subprocess.run([folder / "net_test"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "PASS\n"), done


def sanitizers_link(compiler: str) -> bool:
    command = [compiler, "-fsanitize=address,undefined", "-x", "c", "-", "-o", "/dev/null"]
    return subprocess.run(command, input="int main(void) { return 0; }", text=True, capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def lenet5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lenet5")
    write_c(*quantized("adder_lenet5.digits"), folder, "net", multiply=False)
    return folder


@pytest.fixture(scope="module")
def resnet8_network() -> Any:
    return quantized("adder_resnet8")


@pytest.fixture(scope="module")
def resnet8(resnet8_network: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resnet8")
    write_c(*resnet8_network, folder, "net")
    return folder


@pytest.fixture(scope="module")
def resnet8_shifts(resnet8_network: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resnet8_shifts")
    write_c(*resnet8_network, folder, "net", multiply=False)
    return folder


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_the_c_is_clean_and_equal_to_python(compiler: str, lenet5: Path, resnet8: Path) -> None:
    need(compiler)
    if compiler == "clang" and not sanitizers_link(compiler):
        pytest.skip("not installed: clang's sanitizers (Debian's libclang-rt-dev; .ci/run installs it)")
    for folder in (lenet5, resnet8):
        compile_and_run(folder, *SANITIZERS, compiler=compiler)
        compile_and_run(folder, *SANITIZERS, "-DADDER_KERNEL=0", compiler=compiler)


@pytest.mark.parametrize("name", ["adder_resnet20.cifar10", "adder_resnet32", "adder_vgg_small"])
def test_larger_networks(name: str, tmp_path: Path) -> None:
    network, statistics = quantized(name)
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    write_c(network, statistics, tmp_path, "net", images=images)
    compile_and_run(tmp_path, "-O2")


@pytest.mark.parametrize("seed", range(20, 28))
def test_random_networks(seed: int, tmp_path: Path) -> None:
    check(seed, tmp_path)


@pytest.mark.parametrize(("seed", "size"), [(21, (5, 70)), (26, (3, 131)), (33, (40, 33))])
def test_wide_images(seed: int, size: tuple[int, int], tmp_path: Path) -> None:
    """Rows of more words than a tile has."""
    check(seed, tmp_path, size=size)


def test_lists_are_the_filters() -> None:
    """Where words have four points: what is added up, where, and no byte and no sum of 16 bits that overflows."""
    random = torch.Generator().manual_seed(7)
    for share, count in ((0.5, 300), (0.02, 900), (1.0, 1500), (0.0, 9)):
        places = torch.randperm(3 * count, generator=random)[:count].sort().values.tolist()
        weights = torch.randint(1, 128, (count,), generator=random) * (torch.rand(count, generator=random) < share)
        found, at = {}, 0
        for part in _parts(places, weights.tolist()):
            in_bytes = in_part = 0
            for number in part:
                at, weight = at + (number >> 9), number >> 2 & 127
                found[at] = found.get(at, 0) + weight
                in_bytes, in_part = in_bytes + weight, in_part + weight
                assert max(in_bytes << 8, in_part, number) < 2**16
                assert not number & 2
                in_bytes = 0 if number & 1 else in_bytes
        expected = {place: weight for place, weight in zip(places, weights.tolist(), strict=True) if weight}
        assert {place: weight for place, weight in found.items() if weight} == expected


def test_a_difference_fails_the_self_check(lenet5: Path, tmp_path: Path) -> None:
    for file in lenet5.glob("net*.[ch]"):
        text = file.read_text()
        if file.name == "net_test.c":
            text = re.sub(r"(golden\[.*\] = \{\n    )(-?\d+)", lambda m: f"{m[1]}{int(m[2]) + 1}", text)
        (tmp_path / file.name).write_text(text)
    with pytest.raises(AssertionError, match="FAIL"):
        compile_and_run(tmp_path)


def test_the_header_says_what_the_arena_takes(resnet8: Path) -> None:
    said = int(re.search(r"NET_ARENA_BYTES (\d+)", (resnet8 / "net.h").read_text())[1])  # type: ignore[index]
    subprocess.run(["gcc", "-O2", "-c", "net.c"], cwd=resnet8, check=True)
    sizes = subprocess.run(["size", "net.o"], cwd=resnet8, capture_output=True, text=True, check=True).stdout
    data, bss = (int(number) for number in sizes.splitlines()[1].split()[1:3])
    assert data + bss - said in range(700)  # the host's pointers to names among them
    assert said <= 41_000


def test_cpp_calls_it(lenet5: Path) -> None:
    """As sketches of Arduino do."""
    need("g++")
    (lenet5 / "main.cpp").write_text(
        '#include "net.h"\nint main() { static uint8_t image[NET_HEIGHT * NET_WIDTH]; int32_t logits[NET_CLASSES];\n'
        "return net_class_names[net_run(image, logits)][0] == 0; }\n"
    )
    subprocess.run(["gcc", "-std=c99", "-O1", "-c", "net.c", "-o", "cpp.o"], cwd=lenet5, check=True)
    command = ["g++", "-std=c++11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "main.cpp", "cpp.o", "-o", "main"]
    subprocess.run(command, cwd=lenet5, check=True)
    subprocess.run([lenet5 / "main"], check=True)


def test_too_little_ram_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    network, statistics = quantized("adder_lenet5.digits")
    with pytest.raises(ValueError, match="max-ram must be at least 12,672 bytes for net, got 10,000"):
        write_c(network, statistics, tmp_path / "out", "net", max_ram=10_000)
    assert not any(tmp_path.iterdir())
    write_c(network, statistics, tmp_path / "out", "net", max_ram=12_672)


def test_vectors_are_what_every_layer_makes(tmp_path: Path) -> None:
    network, statistics = quantized("adder_lenet5.digits")
    images = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    write_c(network, statistics, tmp_path, "net", images=images, vectors=True)
    arrays = np.load(tmp_path / "vectors.npz")
    integers = integer_network(network, statistics)
    for index, (step, made) in enumerate(integers.tensors(images)):
        assert np.array_equal(arrays[f"layer{index:02d}_output"], made.numpy()), step.output.name
    # The first adder layer as a test bench would compute it, from the memory files.
    x = _hex(tmp_path / "vectors" / "layer00_output.hex").reshape(2, 1, 32, 32)
    w = _hex(tmp_path / "vectors" / "layer01_weight.hex").reshape(6, 1, 5, 5)
    bias, times = (_hex(tmp_path / "vectors" / f"layer01_{name}.hex") for name in ("bias", "multiplier"))
    shift, drop, low, top, _ = _hex(tmp_path / "vectors" / "layer01_scalars.hex")
    distance = np.abs(x[0, :, 3:8, 4:9] - w).sum((1, 2, 3))
    y = np.clip((bias + (distance >> drop) * times) >> shift, low, top)
    assert arrays["layer01_output"][0, :, 3, 4].tolist() == y.tolist()


def _hex(path: Path) -> np.ndarray:
    lines = path.read_text().split()
    numbers = np.array([int(line, 16) for line in lines])
    return np.where(numbers >= 2**31, numbers - 2**32, numbers) if len(lines[0]) == 8 else numbers


# ---------------------------------------------------------------------------------------------------------- under qemu

# Millions of instructions for one image of ResNet-8, at most, and of LeNet-5 without multiplication: GCC 12's code has
# the first number of each, and a tenth more may be another compiler's.
CEILINGS: dict[str, tuple[float, float]] = {
    "cortex-m4": (6.94, 0.88),
    "cortex-m3": (16.8, 2.06),
    "cortex-m55": (3.11, 0.56),
    "rv32i": (31.1, 2.07),
    "rv32imc": (17.3, 2.07),
}


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled_plugin(tmp_path_factory.mktemp("plugin"))


@pytest.mark.parametrize("name", CEILINGS)
def test_other_processors_give_the_same_bits_in_as_many_instructions(
    name: str, plugin: Path, resnet8: Path, lenet5: Path
) -> None:
    machine = MACHINES[name]
    need(machine.compiler[0], machine.qemu[0])
    for folder, ceiling in zip((resnet8, lenet5), CEILINGS[name], strict=True):
        text, counts = run(build(folder, machine), machine, plugin)
        assert text == "PASS\n"
        counted = sum(counts.functions.values()) / 4 / 1e6  # golden images
        assert 0.5 * ceiling < counted <= 1.1 * ceiling, counts


def test_the_plugin_counts_a_loop_of_known_length(plugin: Path, tmp_path: Path) -> None:
    machine = MACHINES["cortex-m4"]
    need(machine.compiler[0], machine.qemu[0])
    (tmp_path / "bare.c").write_text((Path(write_c.__code__.co_filename).parent / "c" / "bare.c").read_text())
    loop = '__asm__ volatile("1: subs %0, %0, #1\\n\\tbne 1b" : "+r"(n) : : "cc");'
    (tmp_path / "net.c").write_text(
        "int net_run(void);\n__attribute__((noinline)) static void called(int n)\n{\n" + loop + "\n}\n"
        "int net_run(void)\n{\n    int n = 123456;\n    /* a: */\n    " + loop + "\n    n += 1000;\n    called(n);\n"
        "    /* b: */\n    called(5000);\n    return n;\n}\n"
    )
    (tmp_path / "net_test.c").write_text(
        "int net_run(void);\nint main(void) { int n = net_run() + 100; " + loop + " return n; }\n"
    )
    _, counts = run(build(tmp_path, machine), machine, plugin)
    around = range(1, 16)  # what loads numbers, calls and returns
    assert counts.functions["called"] - 2 * (1000 + 5000) in around
    assert counts.functions["net_run"] - 2 * 123456 in around
    assert counts.layers["a"] - 2 * (123456 + 1000) in around
    assert counts.layers["b"] - 2 * 5000 in around


def test_without_a_multiplier_nothing_is_multiplied(lenet5: Path, resnet8_shifts: Path) -> None:
    """Not even in the first convolution and the classifier of ResNet-8."""
    need("riscv64-unknown-elf-gcc")
    compiler = ("riscv64-unknown-elf-gcc", "-mabi=ilp32", "-O2", "-ffreestanding", "-std=c99", "-c", "net.c")
    for folder, march in ((lenet5, "rv32im"), (resnet8_shifts, "rv32i"), (resnet8_shifts, "rv32im")):
        subprocess.run([*compiler, f"-march={march}", "-o", f"{march}.o"], cwd=folder, check=True)
        tools = [("nm", "-u"), ("objdump", "-d")]
        found = [
            subprocess.run(
                [f"riscv64-unknown-elf-{tool}", flag, f"{march}.o"], cwd=folder, capture_output=True, text=True
            ).stdout
            for tool, flag in tools
        ]
        assert "__mul" not in found[0]
        assert not re.search(r"\tmulh?[su]*\t", found[1]), march


def test_squares_give_products(resnet8: Path, resnet8_shifts: Path) -> None:
    compile_and_run(resnet8, *SANITIZERS, "-DADDER_SQUARES=1")
    compile_and_run(resnet8_shifts, *SANITIZERS)
    compile_and_run(resnet8_shifts, *SANITIZERS, "-DADDER_SQUARES=0")


def test_the_kernels_of_a_processor_give_the_same_bits(plugin: Path, lenet5: Path) -> None:
    """Words, and USADA8, on a processor that has Helium."""
    machine = MACHINES["cortex-m55"]
    need(machine.compiler[0], machine.qemu[0])
    taken = {}
    for kernel in (1, 2, 3):
        text, counts = run(build(lenet5, machine, f"-DADDER_KERNEL={kernel}"), machine, plugin)
        assert text == "PASS\n"
        taken[kernel] = sum(counts.functions.values())
    assert taken[3] < taken[2] < taken[1]


@pytest.mark.parametrize(("cpu", "abi"), [("cortex-m4", "soft"), ("cortex-m33", "soft"), ("cortex-m55", "hard")])
def test_clang_compiles_it_for_boards(cpu: str, abi: str, resnet8: Path, lenet5: Path) -> None:
    need("clang")
    command = ["clang", "--target=arm-none-eabi", f"-mcpu={cpu}", "-mthumb", f"-mfloat-abi={abi}"]
    command += [*STRICT, "-O2", "-ffreestanding", "-c", "net.c"]
    for folder in (resnet8, lenet5):
        done = subprocess.run([*command, "-o", f"{cpu}.o"], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]


def test_code_for_boards_is_small(resnet8: Path) -> None:
    """Numbers and code of ResNet-8: 90 KiB."""
    need("arm-none-eabi-gcc", "arm-none-eabi-size")
    command = ["arm-none-eabi-gcc", "-mcpu=cortex-m4", "-mthumb", "-O2", "-ffreestanding", "-c", "net.c"]
    subprocess.run([*command, "-o", "m4.o"], cwd=resnet8, check=True)
    size: Any = subprocess.run(["arm-none-eabi-size", "m4.o"], cwd=resnet8, capture_output=True, text=True)
    assert int(size.stdout.splitlines()[1].split()[0]) <= 90 * 1024
