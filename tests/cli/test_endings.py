"""How commands end that something from outside ends: signals, too little memory, a full disk, a killed process."""

import ctypes
import importlib
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from fork_server import CONTEXT
from PIL import Image

from adderzoo.cli import main
from adderzoo.files.weights import save_weights
from adderzoo.inference.export import FORMATS

CLASSIFIER = ("--model", "adder_lenet5.digits")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """Where the commands below run."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "digits").symlink_to(digits)
    (folder / "some").mkdir()
    for index in range(100):
        Image.effect_noise((32, 32), 50).save(folder / "some" / f"{index}.png")
    for index in range(16):
        path = folder / "few" / "train" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((32, 32), 50).save(path)
    Image.effect_noise((96, 96), 50).convert("RGB").save(folder / "photo.png")
    save_weights(timm.create_model("adder_lenet5"), folder / "in.safetensors", {})
    return folder


# A command line each, with what it writes to.
COMMANDS = {
    "list": ("list",),
    "profile": ("profile", *CLASSIFIER, "--plots", "out/plots", "--json", "out/a.json"),
    "train": ("train", "--model", "adder_lenet5", "--data-dir", "few", "--batch-size", 4, "--output", "out"),
    "validate": ("validate", *CLASSIFIER, "--data-dir", "digits", "--split", "test", "--json", "out/a.json"),
    "predict": ("predict", "some", *CLASSIFIER),
    "upscale": ("upscale", "photo.png", "-o", "out/a.png", "--model", "adder_vdsr.bsds400", "--tile", 32),
    "quantize": ("quantize", "out/a.safetensors", *CLASSIFIER, "--data-dir", "digits", "-j", 0),
    "export": ("export", "out/a.pt2", *CLASSIFIER, "--format", "pt2"),
    "convert": ("convert", "in.safetensors", "out/a.safetensors", "--model", "adder_lenet5"),
    "benchmark": (
        "benchmark",
        "--no-compile",
        "--seconds",
        0.01,
        "--json",
        "out/a.json",
        "--parts",
        "operator",
        "--models",
        "adder_lenet5",
    ),
}
# Functions of the commands' different stages, which all of them call there.
STAGES = {
    "opens": "torch.nn.modules.module.Module.__init__",
    "computes": "torch.nn.modules.module.Module.__call__",
    "writes": "os.fsync",
}
NEVER = {
    ("list", "opens"),
    ("list", "computes"),
    ("list", "writes"),
    ("predict", "writes"),
    ("convert", "computes"),
    ("benchmark", "computes"),
}


def _run(arguments: list[str], folder: Path, hook: Callable[..., None] | None, *hook_arguments: Any) -> None:
    os.setpgrp()
    os.chdir(folder)
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"std{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as a terminal's shell starts it
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of loading processes; not that of this process
    try:
        if hook:
            hook(*hook_arguments)
        status = main(arguments)
    except SystemExit as error:
        status = int(str(error.code))
    except BaseException:
        traceback.print_exc()
        status = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def start(arguments: tuple[object, ...], folder: Path, hook: Any = None, *hook_arguments: Any) -> Any:
    """The command, in a process and process group of its own."""
    process = CONTEXT.Process(target=_run, args=([str(each) for each in arguments], folder, hook, *hook_arguments))
    process.start()
    return process


def ended(process: Any, folder: Path) -> tuple[int, list[str]]:
    """Its status, and its lines on standard error but for progress bars and the steps of a training."""
    process.join(120)
    if process.exitcode is None:
        os.killpg(process.pid, signal.SIGKILL)
    text = (folder / "stderr").read_text().replace("\r", "\n")
    lines = [line for line in text.splitlines() if line.strip() and not ("|" in line and "[" in line)]
    return process.exitcode, lines


def left(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".adderzoo-*") if path.is_dir()]


def _signal_in(target: str, number: int) -> None:
    """Have a function of this process send it a signal, ahead of what it does."""
    module, *names = target.rsplit(".", 2 if target.startswith("torch.") else 1)
    owner: Any = importlib.import_module(module)
    for name in names[:-1]:
        owner = getattr(owner, name)
    original, process = getattr(owner, names[-1]), os.getpid()

    def function(*arguments: Any, **options: Any) -> Any:
        if os.getpid() == process:  # no loading process, whose transforms are modules too
            setattr(owner, names[-1], original)
            os.kill(process, number)
        return original(*arguments, **options)

    setattr(owner, names[-1], function)


@pytest.mark.parametrize(
    ("command", "stage"),
    [(command, stage) for command in COMMANDS for stage in STAGES if (command, stage) not in NEVER],
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_any_command_in_one_line_wherever_it_is(
    folder: Path, command: str, stage: str, number: signal.Signals
) -> None:
    process = start(COMMANDS[command], folder, _signal_in, STAGES[stage], number)
    status, lines = ended(process, folder)
    assert status == 128 + number, lines
    assert left(folder) == []
    *before, line = lines  # what images there are may have been said before
    said = (f"adderzoo {command}: ", "adderzoo: compiling its ")
    assert all(each.startswith(said) and "error" not in each for each in before), lines
    word = "interrupted" if number == signal.SIGINT else "terminated"
    assert line.startswith(f"adderzoo {command}: {'stopped after 0 of 400 epochs' if 'stopped' in line else word}")


def _is_there(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("whom", ["group", "first"])
def test_a_training_ends_with_its_loading_processes(folder: Path, number: signal.Signals, whom: str) -> None:
    """A terminal's Ctrl-C reaches all processes of a group, a supervisor's SIGTERM mostly the first alone."""
    name = f"{number.name}-{whom}"
    command = ("train", "--model", "adder_lenet5", "--data-dir", "few", "--batch-size", 4, "--no-in-memory")
    process = start((*command, "--output", "out", "--experiment", name, "--epochs", 2000), folder)
    until = time.monotonic() + 100
    while not (folder / "out" / name / "state.pt").exists() and time.monotonic() < until:
        time.sleep(0.02)
    (os.killpg if whom == "group" else os.kill)(process.pid, number)
    status, lines = ended(process, folder)
    assert status == 128 + number, lines
    assert len(lines) == 1, lines
    assert "adderzoo train: stopped after " in lines[0]
    assert f"epochs; their weights are in out/{name}, and --resume goes on" in lines[0]
    assert left(folder) == []
    until = time.monotonic() + 30  # a loading process looks for its parent every five seconds
    while _is_there(process.pid) and time.monotonic() < until:
        time.sleep(0.1)
    assert not _is_there(process.pid)


def _hang_up() -> None:
    """Have a signal come while images are handed over, and the loading process notice before it is ended."""

    def answer(connection: Any, key: bytes) -> None:
        connection.close()
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGINT)

    module: Any = importlib.import_module("multiprocessing.connection")
    module.answer_challenge = answer


def test_a_signal_while_images_are_handed_over_ends_the_training_in_one_line(folder: Path) -> None:
    command = (*COMMANDS["train"], "--no-in-memory", "--experiment", "hangs-up")
    status, lines = ended(start(command, folder, _hang_up), folder)
    assert status == 130, lines
    (line,) = lines
    assert line.startswith("adderzoo train: stopped after 0 of 400 epochs")


def _end_with_loading(lost: bool) -> None:
    """Have a signal and the death of a loading process that got it too come at once; a library may lose the first."""
    from torch.utils.data import dataloader

    class Group:
        def __init__(self, *processes: int) -> None:
            self.processes = processes

        def end(self) -> None:
            kills = [f"kill -TERM {process}" for process in self.processes]
            with subprocess.Popen(["sh", "-c", "; ".join(["sleep 0.2", *kills])]):
                ctypes.PyDLL(None).usleep(900_000)  # in which no handler runs

        def __del__(self) -> None:
            if lost:
                self.end()

    def get(loader: Any, *arguments: Any) -> Any:
        group = Group(loader._workers[0].pid, os.getpid())
        if not lost:
            group.end()
        del group
        time.sleep(10)
        raise AssertionError("still here")

    iterator: Any = dataloader._MultiProcessingDataLoaderIter
    iterator._try_get_data = get


@pytest.mark.parametrize("lost", [False, True])
def test_a_signal_that_ends_a_loading_process_too_ends_the_training_in_one_line(folder: Path, lost: bool) -> None:
    command = (*COMMANDS["train"], "--no-in-memory", "--experiment", f"both-{lost}")
    status, lines = ended(start(command, folder, _end_with_loading, lost), folder)
    assert status == 143, lines
    (line,) = lines
    assert line.startswith("adderzoo train: stopped after 0 of 400 epochs")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("way", ["python -m adderzoo.cli", "adderzoo"])
def test_a_signal_during_the_imports_ends_the_command_in_one_line(
    tmp_path: Path, number: signal.Signals, way: str
) -> None:
    package = Path(sys.modules["adderzoo"].__file__ or "").parent.parent
    (tmp_path / "torch.py").write_text(f"import os, time\nos.kill(os.getpid(), {int(number)})\ntime.sleep(60)\n")
    (tmp_path / "adderzoo").write_text("import sys\nfrom adderzoo.cli import main\nsys.exit(main())\n")
    command = ["-m", "adderzoo.cli"] if way.startswith("python") else [str(tmp_path / "adderzoo")]
    done = subprocess.run(
        [sys.executable, *command, "profile", "--model", "adder_lenet5"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(package)])},
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=_reset,
    )
    words = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "terminal closed"}
    assert (done.returncode, done.stderr) == (128 + number, f"adderzoo profile: {words[number]}\n")


def _reset() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup


def _ignore(number: int) -> None:
    signal.signal(number, signal.SIG_IGN)
    _signal_in(STAGES["opens"], number)


def test_a_signal_that_nohup_ignores_stays_ignored(folder: Path) -> None:
    status, lines = ended(start(("profile", "--model", "adder_lenet5"), folder, _ignore, signal.SIGHUP), folder)
    assert (status, lines) == (0, ["adderzoo profile: adder_lenet5.mnist, published weights"])


def _lose(again: bool) -> None:
    """Have a library lose the exception of a signal, in a place that none leaves or by a handler of all."""
    import adderzoo.catalogue

    class Finalized:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0)

    def networks(*arguments: object, **options: object) -> None:
        if not again:
            Finalized()
        for _ in range(2):
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0)
            except BaseException:
                pass
        raise AssertionError("still here")

    adderzoo.catalogue.networks = networks  # type: ignore[assignment]


@pytest.mark.parametrize("again", [False, True])
def test_a_signal_that_a_library_loses_ends_the_command_at_once_or_the_second_time(folder: Path, again: bool) -> None:
    status, lines = ended(start(("list",), folder, _lose, again), folder)
    assert (status, lines) == (130, ["adderzoo list: interrupted"])


def _lose_and_fail() -> None:
    """Have a library lose the exception of a signal, and fail before it comes again, as where others got it too."""
    import adderzoo.catalogue

    class Finalized:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)

    def networks(*arguments: object, **options: object) -> None:
        Finalized()
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")

    adderzoo.catalogue.networks = networks  # type: ignore[assignment]


def test_a_failure_between_a_signal_that_a_library_loses_and_its_return_is_the_signals(folder: Path) -> None:
    status, lines = ended(start(("list",), folder, _lose_and_fail), folder)
    assert (abs(status) % 128, lines) == (signal.SIGTERM, ["adderzoo list: terminated"])  # or it came as Python ended


def _fork_at_a_signal() -> None:
    """Have a signal come while a process is forked whose hooks then fail, as those of libraries with locks do."""
    import adderzoo.catalogue

    def signal_once() -> None:
        if not done:
            done.append(True)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)

    def networks(*arguments: object, **options: object) -> None:
        os.register_at_fork(before=signal_once, after_in_child=lambda: 1 / 0)
        if (child := os.fork()) == 0:
            os._exit(0)
        os.waitpid(child, 0)
        time.sleep(10)

    done: list[bool] = []
    adderzoo.catalogue.networks = networks  # type: ignore[assignment]


def test_a_signal_while_a_process_is_forked_ends_the_command_in_one_line(folder: Path) -> None:
    status, lines = ended(start(("list",), folder, _fork_at_a_signal), folder)
    assert (status, lines) == (143, ["adderzoo list: terminated"])


def test_handlers_are_those_of_the_caller_again_behind_a_command(adderzoo: Callable[..., Any]) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert adderzoo("list", "adder_lenet5").status == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


# -------------------------------------------------------------------------------------------------- memory, processes


def _allocate_torch() -> None:
    torch.empty(2**60, dtype=torch.uint8)


def _allocate_numpy() -> None:
    np.empty(2**60, np.uint8)


def _gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the docs")


def _fork() -> None:
    raise OSError(12, "Cannot allocate memory")


@pytest.mark.parametrize("allocate", [_allocate_torch, _allocate_numpy, _gpu, _fork, lambda: bytearray(2**62)])
@pytest.mark.parametrize(
    ("command", "where", "remedy"),
    [
        ("validate", "adderzoo.engine.evaluate", "; a smaller --batch-size or --tile needs less"),
        ("upscale", "adderzoo.pipelines.upscaler.upscale", "; a smaller --tile needs less"),
        ("predict", "adderzoo.pipelines.classifier.opaque_image", "; a smaller --batch-size needs less"),
        ("train", "adderzoo.engine.train", "; a smaller --batch-size or --img-size needs less"),
    ],
)
def test_too_little_memory_ends_in_one_line_with_what_needs_less(
    folder: Path,
    adderzoo: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    where: str,
    remedy: str,
    allocate: Callable[[], Any],
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(where, lambda *arguments, **options: allocate())
    done = adderzoo(*COMMANDS[command])
    (line,) = [line for line in done.err.splitlines() if "error" in line]
    assert done.status == 1
    assert line.startswith(f"adderzoo {command}: error: not enough memory{remedy}")
    assert "Traceback" not in done.err


def _kill_loading(parent: int) -> None:
    from PIL import Image

    original = Image.open

    def open_image(*arguments: Any, **options: Any) -> Any:
        if os.getppid() == parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    Image.open = open_image


def _kill_own_loading() -> None:
    _kill_loading(os.getpid())


def test_a_killed_loading_process_ends_in_one_line_with_a_remedy(folder: Path) -> None:
    status, lines = ended(start(COMMANDS["validate"], folder, _kill_own_loading), folder)
    assert status == 1
    line = lines[-1]
    network, *others = lines[:-1]
    assert network == "adderzoo validate: adder_lenet5.digits, published weights, on cpu"
    assert others == ["adderzoo validate: 10 classes by name, 899 images in digits/test"]
    remedy = "a loading process was killed, or lacks shared memory: try --workers 0, or a larger /dev/shm"
    assert line.startswith(f"adderzoo validate: error: {remedy} (DataLoader worker (pid")


def test_what_nobody_has_foreseen_keeps_its_traceback(
    adderzoo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("a fault of the program")

    monkeypatch.setattr("adderzoo.catalogue.networks", fail)
    with pytest.raises(RuntimeError, match="a fault of the program"):
        adderzoo("list")


# ------------------------------------------------------------------------------------------------------------ the disk


def _fill_disk() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))


@pytest.mark.parametrize("format", ["pt2", "torchscript", "onnx"])
def test_an_export_to_a_full_disk_ends_in_one_line_and_leaves_nothing(folder: Path, format: str) -> None:
    out = Path("out") / f"full{FORMATS[format]}"
    command = ("export", out, *CLASSIFIER, "--format", format)
    status, lines = ended(start(command, folder, _fill_disk), folder)
    assert status == 1, lines
    assert lines[-1] == f"adderzoo export: error: [Errno 27] File too large: '{out}'"
    assert len(lines) == 2 + (format == "torchscript")  # which network, and that TorchScript is deprecated
    assert not (folder / out).exists()
    assert left(folder) == []


@pytest.mark.parametrize("command", ["train", "quantize"])
def test_a_full_disk_ends_other_commands_in_one_line_too(folder: Path, command: str) -> None:
    experiment = ("--experiment", "full", "--epochs", 1) if command == "train" else ()
    status, lines = ended(start((*COMMANDS[command], *experiment), folder, _fill_disk), folder)
    file = "full/last.safetensors" if command == "train" else "a.safetensors"
    assert (status, lines[-1]) == (1, f"adderzoo {command}: error: [Errno 27] File too large: 'out/{file}'")
    assert len(lines) == 1 + 2 * (command == "quantize")  # which says first what network and images there are
    assert left(folder) == []


def _no_output() -> None:
    sys.stdout = open("/dev/full", "w", buffering=1)  # noqa: SIM115


@pytest.mark.parametrize(
    ("command", "file"),
    [
        ("validate", "out/a.json"),
        ("profile", "out/plots/ranges.png"),
        ("profile", "out/a.json"),
        ("upscale", "out/a.png"),
        ("benchmark", "out/a.json"),
    ],
)
def test_files_are_written_ahead_of_what_cannot_be_printed(folder: Path, command: str, file: str) -> None:
    (folder / file).unlink(missing_ok=True)
    hook = _no_table if command == "benchmark" else _no_output  # which prints its machine first
    status, lines = ended(start(COMMANDS[command], folder, hook), folder)
    assert (status, lines[-1]) == (1, f"adderzoo {command}: error: [Errno 28] No space left on device")
    said = {"profile": 1, "upscale": 1, "validate": 2}  # what network and images there are
    assert len(lines) == 1 + said.get(command, 0)
    assert (folder / file).stat().st_size > 0


def _no_table() -> None:
    from adderzoo.cli import benchmark

    original = benchmark._operator_text

    def text(*arguments: Any) -> str:
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
        return original(*arguments)

    benchmark._operator_text = text
