"""Networks to compare, each in a process of its own.

So each has its peak memory to itself, none leaves compiled code or settings behind for the next, and one that needs
more memory than there is ends alone. The processes run in turns, never at the same time.
"""

import gc
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adderzoo.engine.optimization import create_optimizer
from adderzoo.inference.fusion import fuse
from adderzoo.inference.quantization import calibrate, quantize
from adderzoo.ops._pytorch import has_vnni, inductor_cache, inductor_config

from .devices import is_gpu, leave, peak_rise, runner
from .expressions import EXPRESSIONS, replace_operator
from .layers import FORMATS, image_size, is_super_resolution
from .timing import Local, RunError, Timing, interleave

# The parts of a network's benchmark.
PARTS = ("inference", "training", "threads")

# A single run, or the compilation of a network, that takes longer is given up.
LIMIT = 300.0

# Seconds for a process to end by itself.
_PATIENCE = 5.0

# torch.compile's modes, by what contenders call it.
_MODES = {"default": "default", "freezing": "default", "reduce-overhead": "reduce-overhead"}

# Runs before a compiled network is at its speed: with CUDA graphs, one that compiles, one that records, one that plays.
_COMPILED_RUNS = {"default": 1, "freezing": 1, "reduce-overhead": 3}

# Patches of a batch that `adderzoo train` takes for super-resolution.
_PATCHES = 16

# Of images beyond 64x64, what adder layers in PyTorch's own operations fill a GPU with and still fit into its memory.
_NAIVE_IMAGES = 8


@dataclass(frozen=True)
class Contender:
    """A network and how it is run.

    Attributes:
        model: Name of the network.
        batch: Images of a batch.
        training: Whether a training step is run, or inference.
        form: "plain" as it is; "fused" by `adderzoo.fuse`; "u8" by :mod:`adderzoo.inference.quantization`, for adder
            networks; "int8" by torchao, for CNNs; "authors" and "cdist" with the adder layers in PyTorch's own
            operations (:mod:`.expressions`).
        compiled: "" for not, "default" by torch.compile, "freezing" with inductor's freezing, which folds BatchNorm,
            "reduce-overhead" into CUDA graphs.
        dtype: "float32"; "tf32", the same with PyTorch's convolutions and matrix products in TF32, on a GPU; "bfloat16"
            under autocast; what `form` has quantized is not affected.
        memory_format: Of the images and the parameters.
        threads: PyTorch's.
        device: "cpu", "cuda" or one of several GPUs.
        input_size: (C, H, W) of the images, if not the network's own.
    """

    model: str
    batch: int
    training: bool = False
    form: str = "plain"
    compiled: str = ""
    dtype: str = "float32"
    memory_format: str = "channels_last"
    threads: int = 1
    device: str = "cpu"
    input_size: tuple[int, int, int] | None = None

    @property
    def label(self) -> str:
        """What a reader calls it, the memory format aside."""
        parts = ["adder network" if self.model.startswith("adder_") else "CNN"]
        forms = {"plain": "", "u8": "uint8", "authors": "authors' expression", "cdist": "unfold + cdist"}
        dtypes = {"float32": "", "tf32": "TF32"}
        parts += [forms.get(self.form, self.form), dtypes.get(self.dtype, self.dtype)]
        modes = {
            "": "",
            "default": "compiled",
            "freezing": "compiled, frozen",
            "reduce-overhead": "compiled, CUDA graphs",
        }
        parts += [modes[self.compiled]]
        return ", ".join(part for part in parts if part)


def usable_cores() -> int:
    """Of this process, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def twin_of(name: str) -> str:
    """The CNN of the same architecture.

    Raises:
        ValueError: if `name` is no adder network of this package, or has no such twin.
    """
    from adderzoo.catalogue import network_names

    names = network_names()
    adders = [known for known in names if known.startswith("adder_")]
    if name not in adders:
        raise ValueError(f"models must be adder networks ({', '.join(adders)}), got {name!r}")
    twin = name.replace("adder_", "cnn_", 1)
    if twin not in names:
        raise ValueError(f"models must have a CNN twin to be compared with, but for {name!r} there is no {twin!r}")
    return twin


def default_batches(name: str | None, part: str, device: str = "cpu") -> list[int]:
    """Batch sizes that a part, or "operator", is run with if the user names none.

    For super-resolution one image, or in training a usual number of patches. Layers of many kinds have no name.
    """
    if name and is_super_resolution(name):
        return [_PATCHES if part == "training" else 1]
    large = 64 if is_gpu(device) else 8  # so that a run takes long enough to be timed, but not for minutes
    if part == "operator" or name is None:
        return [large]
    if part == "inference":
        return [1, 8, 128]
    return [large if _has_large_images(name) else 128]


def _has_large_images(name: str) -> bool:
    return timm.get_pretrained_cfg(name).input_size[1] > 64


def contenders(
    name: str, part: str, batch: int, naive: bool, compiled: bool, precision: str = "float32", device: str = "cpu"
) -> list[Contender]:
    """What is compared with what.

    torch.compile gets channels_last images only: on a CPU it computes convolutions in this format whatever it gets, and
    on a GPU mostly too.

    Args:
        name: An adder network.
        part: One of `PARTS`.
        batch: Images of a batch.
        naive: Whether to compare with the layers in PyTorch's own operations too. On a CPU they run on the smallest
            batch, which is the best for them: their memory grows with it, and soon leaves caches and machine behind.
            A GPU has to be filled first. Networks for super-resolution are not: an image is gigabytes of |x - w|.
        compiled: Whether to compare with what torch.compile makes of the networks too.
        precision: "float32"; "u8" for the adder network in bytes, which is not trained, and on a CPU the CNN in int8.
        device: "cpu", "cuda" or one of several GPUs.
    """
    twin, threads, training = twin_of(name), torch.get_num_threads(), part == "training"
    naive = naive and not is_super_resolution(name)

    def make(model: str, form: str = "plain", compiled: str = "", dtype: str = "float32", **others: Any) -> Contender:
        return Contender(**{
            "model": model, "batch": batch, "training": training, "form": form, "compiled": compiled, "dtype": dtype,
            "threads": threads, "device": device, "input_size": image_size(name, training), **others,
        })  # fmt: skip

    def both(model: str, form: str = "plain", dtype: str = "float32") -> list[Contender]:
        return [make(model, form, dtype=dtype, memory_format=memory_format) for memory_format in FORMATS]

    if is_gpu(device):
        found = _contenders_on_gpu(name, part, batch, naive, precision, make, both)
        return [contender for contender in found if compiled or not contender.compiled]
    if part == "threads":
        counts = sorted({1, 2, threads} & set(range(1, usable_cores() + 1)))
        return [make(name, "u8" if precision == "u8" else "fused", threads=count) for count in counts]
    found = both(twin)
    if training:
        found += [make(twin, compiled="default"), make(twin, dtype="bfloat16"), *both(name)]
        found += [make(name, compiled="default")]
        # BatchNorm on the logits needs two images.
        found += [make(name, "authors", memory_format="contiguous", batch=2)] if naive else []
    else:
        found += [*both(twin, "fused"), make(twin, compiled="default"), make(twin, compiled="freezing")]
        found += [make(twin, dtype="bfloat16"), make(twin, compiled="freezing", dtype="bfloat16")]
        if precision == "u8":
            # What torchao makes computes in float32 until inductor compiles it.
            found += [make(twin, "int8", "freezing")]
            found += [*both(name, "fused"), make(name, "u8"), make(name, "u8", "default")]
        else:
            found += [*both(name), make(name, compiled="default")]
            found += [*both(name, "fused"), make(name, "fused", "default")]
            for form, how in (("cdist", ""), ("authors", ""), ("authors", "default")) if naive else ():
                found.append(make(name, form, how, memory_format="contiguous", batch=1))
    return [contender for contender in found if compiled or not contender.compiled]


def _contenders_on_gpu(
    name: str,
    part: str,
    batch: int,
    naive: bool,
    precision: str,
    make: Callable[..., Contender],
    both: Callable[..., list[Contender]],
) -> list[Contender]:
    """Beside float32 the CNN in TF32, which PyTorch computes convolutions in unless it is told not to."""
    twin, modes = twin_of(name), ("default", "reduce-overhead")
    found = [*both(twin), *both(twin, dtype="tf32"), make(twin, dtype="bfloat16")]
    if part == "training":
        found += [make(twin, compiled=mode) for mode in modes]
        found += [make(twin, compiled="reduce-overhead", dtype=dtype) for dtype in ("tf32", "bfloat16")]
        # In TF32 and bfloat16, an adder network's first layer and the gradients of its filters.
        found += [*both(name), make(name, dtype="tf32"), make(name, dtype="bfloat16")]
        found += [make(name, compiled=mode) for mode in modes]
        expressions = [("authors", ""), ("authors", "default")]
    else:
        found += [*both(twin, "fused"), *(make(twin, "fused", mode) for mode in modes)]
        found += [make(twin, "fused", "reduce-overhead", dtype) for dtype in ("tf32", "bfloat16")]
        if precision == "u8":
            found += [*both(name, "fused"), make(name, "u8"), *(make(name, "u8", mode) for mode in modes)]
            return found
        found += [*both(name), *both(name, "fused"), make(name, "fused", dtype="bfloat16")]
        found += [make(name, "fused", mode) for mode in modes]
        found += [make(name, "fused", "reduce-overhead", "bfloat16")]
        expressions = [("cdist", ""), ("authors", ""), ("authors", "default")]
    images = min(batch, _NAIVE_IMAGES) if _has_large_images(name) else batch
    for form, how in expressions if naive else ():
        found.append(make(name, form, how, memory_format="contiguous", batch=images))
    return found


@dataclass
class _Built:
    """A contender, ready to run (to logits, or the loss), and the bytes of what it keeps between runs."""

    run: Callable[[], Tensor]
    kept: Callable[[], int]


def build(contender: Contender) -> _Built:
    """Random weights, random images. What it sets for torch.compile, and of TF32, holds for the whole process."""
    torch.manual_seed(0)
    memory_format, device = FORMATS[contender.memory_format], torch.device(contender.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = contender.dtype == "tf32"
    model: Any = timm.create_model(contender.model)
    size = contender.input_size or model.pretrained_cfg["input_size"]
    images = torch.randn(contender.batch, *size).to(device).contiguous(memory_format=memory_format)
    context: AbstractContextManager[Any] = nullcontext()
    if contender.dtype not in ("float32", "tf32"):
        context = torch.autocast(device.type, getattr(torch, contender.dtype))
    samples = torch.randn(4, *size)
    # Networks for super-resolution have the same statistics on a part of an image, which takes less time.
    parts = samples if model.num_classes else samples[..., :32, :32].contiguous()
    if not contender.training:
        settle(model, parts)
    model = model.to(memory_format=memory_format).train(contender.training)
    if contender.form in EXPRESSIONS:
        model = replace_operator(model, contender.form)
    elif contender.form == "fused":
        model = fuse(model)
    elif contender.form == "u8":
        model = quantize(calibrate(model, [(parts,)], bits=8))
    elif contender.form == "int8":
        model = _quantize_cnn(model, samples.contiguous(memory_format=memory_format))
    called = model = model.to(device)
    if contender.compiled:
        capability, default = os.environ.get("ATEN_CPU_CAPABILITY"), inductor_cache()
        # Importing torchvision has set the variable already.
        if capability and os.environ.get("TORCHINDUCTOR_CACHE_DIR", default) == default:
            # The cache has code of wider vectors for the same network, and that would write past the ends of tensors.
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{default}_{capability}"
        config = inductor_config()
        # As an option of torch.compile it comes too late: the parameters are no constants by then.
        config.freezing = contender.compiled == "freezing"
        config.compile_threads = 1  # several contenders are built at once
        called = torch.compile(model, dynamic=False, mode=_MODES[contender.compiled])

    if not contender.training:

        def infer() -> Tensor:
            with torch.inference_mode(), context:
                return called(images)

        return _Built(infer, lambda: _bytes(images, *model.parameters(), *model.buffers()))

    loss_of: Callable[[Tensor, Tensor], Tensor]
    if model.num_classes:
        optimizer, loss_of = create_optimizer(model, lr=1e-3), F.cross_entropy
        targets = torch.randint(model.num_classes, (contender.batch,)).to(device)
    else:
        optimizer, loss_of = create_optimizer(model, "adam", lr=1e-3), F.l1_loss
        targets = torch.rand(contender.batch, size[0], *(model.scale * length for length in size[1:])).to(device)

    def step() -> Tensor:
        with context:
            loss = loss_of(called(images), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    def kept() -> int:
        state = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
        return _bytes(images, *model.parameters(), *model.buffers(), *state)

    return _Built(step, kept)


@torch.no_grad()
def settle(model: nn.Module, images: Tensor) -> None:
    """Give BatchNorm the statistics of these images, without which no adder layer's output would pass a ReLU."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    model.train()(images)
    for norm in norms:
        norm.momentum = 0.1
    model.eval()


@torch.no_grad()
def _quantize_cnn(model: nn.Module, samples: Tensor) -> nn.Module:
    """In int8, for inductor's freezing to compile into oneDNN's convolutions: what PyTorch recommends on x86.

    Raises:
        ImportError: if torchao is not installed.
        RuntimeError: if it has found nothing to quantize.
    """
    try:
        from torchao.quantization.pt2e import move_exported_model_to_eval
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer
    except ImportError as error:
        raise ImportError("a CNN in int8 needs torchao: pip install 'adderzoo[int8]'") from error
    # Without VNNI two products of a full byte are added up in 16 bits, and saturate.
    config = x86_inductor_quantizer.get_default_x86_inductor_quantization_config(reduce_range=not has_vnni())
    quantizer = x86_inductor_quantizer.X86InductorQuantizer().set_global(config)
    # Strictly, or torchao finds no convolutions in what PyTorch 2.11 exports, and says nothing.
    batch = {0: torch.export.Dim.AUTO}
    program = torch.export.export(model, (samples,), dynamic_shapes=(batch,), strict=True)
    prepared = prepare_pt2e(program.module(), quantizer)
    prepared(samples)
    converted = convert_pt2e(prepared)
    if not any("dequantize" in str(node.target) for node in converted.graph.nodes):
        raise RuntimeError("torchao has found nothing to quantize")
    used = {node.target for node in converted.graph.nodes}
    for name in [name for name, _ in converted.named_parameters() if name not in used]:
        module, _, attribute = name.rpartition(".")
        delattr(converted.get_submodule(module), attribute)  # the float filters, which are no part of its memory
    return move_exported_model_to_eval(converted)


def _bytes(*tensors: Tensor) -> int:
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def _serve(connection: Connection, contender: Contender) -> None:
    """The contender's process: does what it is asked until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's business
    gc.freeze()  # a collection need not look through all of PyTorch
    torch.set_num_threads(contender.threads)
    local, built = Local(lambda: None), None
    try:
        while True:
            request, *arguments = connection.recv()
            if request == "build":
                built = build(contender)
                local = runner(built.run, contender.device)
                for _ in range(_COMPILED_RUNS.get(contender.compiled, 0)):
                    built.run()
                answer: Any = None
            elif request == "memory":
                assert built is not None
                # A CUDA graph's memory is its own, and does not rise.
                rise = None if contender.compiled == "reduce-overhead" else peak_rise(built.run, contender.device)
                answer = None if rise is None else built.kept() + rise
            else:
                answer = getattr(local, request)(*arguments)
            leave(contender.device)
            connection.send((None, answer))
    except EOFError:
        pass
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        connection.send((f"{type(error).__name__}: {lines[0] if lines else ''}", None))


class Remote:
    """A contender in its process, timed from here."""

    def __init__(self, contender: Contender) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, contender))
        self.process.start()
        theirs.close()

    def _ask(self, *request: Any) -> Any:
        try:
            self.connection.send(request)
            if not self.connection.poll(LIMIT):
                self.process.kill()
                raise RunError(f"given up after {LIMIT:.0f} s")
            error, answer = self.connection.recv()
        except (EOFError, ConnectionError) as broken:
            self.process.join()
            code = self.process.exitcode or 0
            killed = " (out of memory?)" if code == -signal.SIGKILL else ""
            raise RunError(f"its process ended with exit status {code}{killed}") from broken
        if error:
            raise RunError(error)
        return answer

    def build(self) -> None:
        self._ask("build")

    def warm_up(self) -> float:
        return self._ask("warm_up")

    def visit(self, seconds: float) -> list[float]:
        return self._ask("visit", seconds)

    def memory(self) -> int | None:
        return self._ask("memory")

    def hang_up(self) -> None:
        """At which the process ends, unless it is in the middle of something."""
        self.connection.close()

    def kill(self) -> None:
        self.process.join(_PATIENCE)
        self.process.kill()
        self.process.join()


@dataclass(frozen=True)
class Row:
    """What was measured of a contender.

    Attributes:
        contender: What ran.
        error: Why there is nothing measured; "" where there is.
        seconds: Of one run, median of the rounds.
        quartiles: Of the rounds, in seconds.
        runs: How many were timed.
        images_per_second: By the median.
        peak_memory: Bytes: parameters, what else is kept between runs, and what a run needs beside it. None where it
            cannot be measured.
        speed: Images a second, as a multiple of the reference's, compared in each round.
        memory: `peak_memory` as a multiple of the reference's; None for another batch size.
    """

    contender: Contender
    error: str = ""
    seconds: float | None = None
    quartiles: tuple[float, float] | None = None
    runs: int = 0
    images_per_second: float | None = None
    peak_memory: int | None = None
    speed: float | None = None
    memory: float | None = None


@dataclass(frozen=True)
class Section:
    """What was compared in one go.

    Attributes:
        model: The adder network.
        part: One of `PARTS`.
        batch: Images of a batch; a row may have fewer.
        reference: Index of the row that the others are compared with: the faster memory format of the uncompiled
            float32 CNN, or in the part "threads" one thread. None if neither could be run.
        rows: What was measured.
        precision: "float32", or "u8" where adder networks in bytes are among them.
    """

    model: str
    part: str
    batch: int
    reference: int | None
    rows: tuple[Row, ...]
    precision: str = "float32"

    @property
    def title(self) -> str:
        precision = "" if self.precision == "float32" else f" in {self.precision}"
        size = next((row.contender.input_size for row in self.rows), None)
        images = f" of {size[1]}x{size[2]}" if size else ""
        return f"{self.model}{precision}, {self.part}, batch {self.batch}{images}"


def measure_networks(
    name: str,
    part: str,
    batch: int,
    naive: bool,
    compiled: bool,
    seconds: float,
    note: Callable[[str], object] = lambda text: None,
    precision: str = "float32",
    device: str = "cpu",
) -> Section:
    """Time the contenders of :func:`contenders`, `seconds` each, and take their peak memory.

    Args:
        name: An adder network.
        part: One of `PARTS`.
        batch: Images of a batch.
        naive: Whether to compare with the layers in PyTorch's own operations too.
        compiled: Whether to compare with what torch.compile makes of the networks too.
        seconds: Time for each.
        note: Called with what is being done, now and then.
        precision: "float32" or "u8".
        device: "cpu", "cuda" or one of several GPUs.
    """
    title = f"{name}, {part}, batch {batch}"
    keys = contenders(name, part, batch, naive, compiled, precision, device)
    timings, peaks, errors = measure(keys, seconds, lambda text: note(f"{title}: {text}"))
    reference = _reference(part, [key for key in timings if key not in errors], timings)
    rows = [Row(key, errors[key]) if key in errors else _row(key, timings, peaks, reference) for key in keys]
    return Section(name, part, batch, keys.index(reference) if reference else None, tuple(rows), precision)


def measure(
    keys: Sequence[Contender], seconds: float, note: Callable[[str], object], memory: bool = True
) -> tuple[dict[Contender, Timing], dict[Contender, int | None], dict[Contender, str]]:
    """Time contenders in turns, and take their peak memory.

    Args:
        keys: What to measure.
        seconds: Time for each.
        note: Called with what is being done, now and then.
        memory: Whether to take the peak memory.

    Returns:
        Timings, peak memory in bytes, and why there is nothing measured of those that could not be run.
    """
    remotes: dict[Contender, Remote] = {}
    try:
        for key in keys:
            remotes[key] = Remote(key)
        note("building")
        errors = _build(remotes)
        ready = {key: remote for key, remote in remotes.items() if key not in errors}
        timings, failed = interleave(ready, seconds, lambda key: note(key.label))
        errors |= failed
        peaks = {}
        for key in timings if memory else ():
            note(f"peak memory, {key.label}")
            try:
                peaks[key] = remotes[key].memory()
            except RunError as error:
                errors[key] = str(error)
    finally:
        for remote in remotes.values():
            remote.hang_up()
        for remote in remotes.values():
            remote.kill()
    return timings, peaks, errors


def _build(remotes: dict[Contender, Remote]) -> dict[Contender, str]:
    """Build all, and say why some could not be. Compiling takes long and uses one core: several at once."""

    def build(remote: Remote) -> str:
        try:
            remote.build()
        except RunError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(usable_cores()) as pool:
        try:
            results = dict(zip(remotes, pool.map(build, remotes.values()), strict=True))
        except BaseException:  # such as KeyboardInterrupt; the pool waits for its threads, and these for answers
            for remote in remotes.values():
                remote.process.kill()
            raise
    return {key: error for key, error in results.items() if error}


def _reference(part: str, keys: list[Contender], timings: dict[Contender, Timing]) -> Contender | None:
    if part == "threads":
        candidates = [key for key in keys if key.threads == 1]
    else:
        candidates = [key for key in keys if key.label == "CNN"]
    return min(candidates, key=lambda key: timings[key].median, default=None)


def _row(
    key: Contender, timings: dict[Contender, Timing], peaks: dict[Contender, int | None], reference: Contender | None
) -> Row:
    timing, peak = timings[key], peaks[key]
    speed = memory = None
    if reference:
        speed = (timing / key.batch).speedup_over(timings[reference] / reference.batch)
        least = peaks[reference]
        memory = peak / least if peak and least and key.batch == reference.batch else None
    return Row(
        contender=key,
        seconds=timing.median,
        quartiles=timing.quartiles,
        runs=timing.runs,
        images_per_second=key.batch / timing.median,
        peak_memory=peak,
        speed=speed,
        memory=memory,
    )
