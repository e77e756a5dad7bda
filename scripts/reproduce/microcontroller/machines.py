"""Compilers for microcontrollers, and qemu, which runs what `adderzoo export --format c` writes and counts."""

import bisect
import itertools
import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

# What is no part of a network.
AROUND = {"main", "start", "puts", "semihosting", "leave"}
PLUGIN = Path(__file__).parent / "count.c"


@dataclass(frozen=True)
class Machine:
    """A processor under qemu.

    Attributes:
        compiler: With its flags.
        qemu: The emulator, with its machine.
        flash: Where code begins.
        ram: Where data begins.
    """

    compiler: tuple[str, ...]
    qemu: tuple[str, ...]
    flash: int
    ram: int


def _arm(cpu: str, board: str, flash: int = 0, ram: int = 0x20000000, abi: str = "soft") -> Machine:
    return Machine(
        ("arm-none-eabi-gcc", f"-mcpu={cpu}", "-mthumb", f"-mfloat-abi={abi}"),
        ("qemu-system-arm", "-M", board, "-semihosting", "-semihosting-config", "chardev=text"),
        flash,
        ram,
    )


def _riscv(march: str, abi: str = "ilp32") -> Machine:
    return Machine(
        ("riscv64-unknown-elf-gcc", f"-march={march}", f"-mabi={abi}"),
        ("qemu-system-riscv32", "-M", "virt", "-bios", "none", "-serial", "chardev:text"),
        0x80000000,
        0x81000000,
    )


MACHINES = {
    "cortex-m0plus": _arm("cortex-m0plus", "mps2-an385"),  # its code, on a Cortex-M3
    "cortex-m3": _arm("cortex-m3", "mps2-an385"),
    "cortex-m4": _arm("cortex-m4", "mps2-an386"),
    "cortex-m7": _arm("cortex-m7", "mps2-an500"),
    "cortex-m33": _arm("cortex-m33", "mps2-an505", 0x10000000, 0x38000000),
    "cortex-m55": _arm("cortex-m55", "mps3-an547", 0x10000000, 0x21000000, "hard"),
    "rv32e": _riscv("rv32e", "ilp32e"),
    "rv32i": _riscv("rv32i"),
    "rv32imc": _riscv("rv32imac"),
}


def build(folder: Path, machine: Machine, *flags: str, name: str = "net") -> Path:
    """The test program of a folder that was exported, for a machine."""
    program = folder / f"{machine.compiler[1].partition('=')[2]}.elf"
    sections = f"--section-start=.vectors={machine.flash:#x},-Ttext={machine.flash + 0x100:#x},-Tdata={machine.ram:#x}"
    command = [*machine.compiler, "-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror", "-O2"]
    command += ["-g", "-ffreestanding", "-nostdlib", "-nostartfiles", "-DBARE", *flags, f"{name}_test.c", f"{name}.c"]
    command += ["bare.c", "-lgcc", "-o", str(program)]
    command += [f"-Wl,-e,start,{sections},--defsym=stack_top={machine.ram + 0x100000:#x}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return program


@dataclass(frozen=True)
class Counts:
    """Instructions that were executed.

    Attributes:
        functions: By function.
        layers: By layer, as comments in NAME_run say them.
        cycles: Of a Cortex-M4 by the timings of its manual, an estimate (see `_cycles`); 0 of others.
    """

    functions: dict[str, int]
    layers: dict[str, int]
    cycles: int


def run(program: Path, machine: Machine, plugin: Path | None = None, name: str = "net") -> tuple[str, Counts]:
    """What a program prints, and with a plugin that counts: instructions."""
    text, counts = program.with_suffix(".txt"), program.with_suffix(".counts")
    command = [*machine.qemu, "-chardev", f"file,id=text,path={text}", "-display", "none", "-monitor", "none"]
    command += ["-kernel", str(program)]
    symbols = _functions(program, machine)
    if plugin is not None:
        ends = {function: (at, end) for (at, function), (end, _) in itertools.pairwise(symbols)}
        watched = "".join(f",function={at:#x}:{end:#x}" for at, end in (ends["main"], ends[f"{name}_run"]))
        command += ["-plugin", f"{plugin},base={machine.flash:#x},size=0x100000,out={counts}{watched}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"{program} ends with {done.returncode}: {text.read_text()}{done.stderr}")
    if plugin is None:
        return text.read_text(), Counts({}, {}, 0)
    lines = [line.split() for line in counts.read_text().splitlines()]
    executed = [(int(address, 16), int(count), int(spent)) for address, count, spent in lines]
    functions: Counter[str] = Counter()
    addresses = [address for address, _ in symbols]
    for address, count, _ in executed:
        functions[symbols[bisect.bisect_right(addresses, address) - 1][1]] += count
    begin, end = ends[f"{name}_run"]
    inside = {address: spent for address, _, spent in executed if begin <= address < end}
    cycles = 0
    if "-mcpu=cortex-m4" in machine.compiler:
        around = [ends[function] for function in AROUND if function in ends]
        network = {at: count for at, count, _ in executed if not any(low <= at < high for low, high in around)}
        cycles = _cycles(program, machine, network)
    return text.read_text(), Counts(functions, _by_layer(program, machine, inside, name), cycles)


def _cycles(program: Path, machine: Machine, executed: dict[int, int]) -> int:
    """Cycles of a Cortex-M4 for what was executed, by the instruction timings of its technical reference manual.

    A load takes 2 cycles, and 1 directly behind another load or a store; several registers take one more than their
    number; what jumps takes 1 and 3 for the pipeline, the most that the manual names, whether it jumps or not; a
    division 12, a multiplication with addition of 32 bits 2, all else 1. Memory answers at once: no waits for flash.
    """
    command = [machine.compiler[0].replace("gcc", "objdump"), "-d", "--no-show-raw-insn", str(program)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    total, before = 0, ""
    for address, operation, operands in re.findall(r"^ *([0-9a-f]+):\t([a-z0-9.]+)\t?(.*)$", listing, re.MULTILINE):
        count, kind = executed.get(int(address, 16), 0), operation.partition(".")[0]
        several = re.match(r"(ldm|stm|push|pop|vldm|vstm|vpush|vpop)", kind)
        jumps = re.match(r"(b|bl|bx|blx|cbn?z|tb[bh])$|b(eq|ne|cs|cc|hs|lo|mi|pl|vs|vc|hi|ls|ge|lt|gt|le)$", kind)
        cycles = 1
        if several:
            ranges = re.findall(r"(?:r|s|d)?(\d+)-(?:r|s|d)?(\d+)", operands)
            registers = operands.partition("{")[2].count(",") + 1 + sum(int(high) - int(low) for low, high in ranges)
            cycles = 1 + registers
        elif kind in ("ldrd", "strd"):
            cycles = 3
        elif kind.startswith("ldr"):
            cycles = 1 if re.match(r"(ldr|str)", before) else 2
        elif re.match(r"[su]div", kind):
            cycles = 12
        elif kind in ("mla", "mls"):
            cycles = 2
        if jumps or ("pc" in operands and kind.startswith(("ldr", "pop", "ldm")) and "[pc" not in operands):
            cycles += 3
        total += count * cycles
        before = kind
    return total


def _functions(program: Path, machine: Machine) -> list[tuple[int, str]]:
    """Where functions begin."""
    nm = machine.compiler[0].replace("gcc", "nm")
    lines = subprocess.run([nm, "-n", program], capture_output=True, text=True, check=True).stdout.splitlines()
    symbols = [(int(line.split()[0], 16) & ~1, line.split()[2]) for line in lines if line.split()[1] in "tTwW"]
    return [(address, name.partition(".")[0]) for address, name in symbols if name[0] not in "$."]


def _by_layer(program: Path, machine: Machine, spent: dict[int, int], name: str) -> dict[str, int]:
    """Instructions of every layer: of the lines in NAME_run behind the comment that says its name."""
    tool = machine.compiler[0].replace("gcc", "addr2line")
    command = [tool, "-a", "-i", "-s", "-e", str(program), *(hex(address) for address in spent)]
    blocks = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("0x")[1:]
    # The outermost of inlined functions comes last; it is NAME_run.
    numbers = [int(re.match(r"\d+", block.split()[-1].rpartition(":")[2])[0]) for block in blocks]  # type: ignore[index]
    source = (program.parent / f"{name}.c").read_text().splitlines()
    begin = next(index for index, line in enumerate(source) if line.startswith(f"int {name}_run("))
    comments = [
        (index, match[1])
        for index, line in enumerate(source, 1)
        if index > begin and (match := re.match(r" *\/\* (\w+): ", line))
    ]
    total: Counter[str] = Counter()
    for number, count in zip(numbers, spent.values(), strict=True):
        total[([layer for index, layer in comments if index <= number] or [comments[0][1]])[-1]] += count
    return total


def compiled_plugin(folder: Path) -> Path:
    """The plugin that counts."""
    plugin = folder / "libcount.so"
    command = ["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Werror", str(PLUGIN)]
    subprocess.run([*command, "-o", str(plugin)], check=True)
    return plugin
