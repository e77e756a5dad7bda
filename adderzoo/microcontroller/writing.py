"""Writes a network as a folder of C."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adderzoo.files.output import check_output_folder, write_atomically

from .conversion import integer_network
from .integer import IntegerNetwork, Layer
from .source import CSource

# Powers of two that make a multiplier where nothing is to be multiplied.
_TERMS = 3


def write_c(
    network: nn.Module,
    statistics: dict[str, Any],
    destination: Path | str,
    name: str,
    classes: Sequence[str] | None = None,
    about: Sequence[str] = (),
    images: Tensor | None = None,
    max_ram: int | None = None,
    multiply: bool = True,
    vectors: bool = False,
) -> CSource:
    """Write a quantized classifier as C99: NAME.h, NAME.c, NAME_test.c, bare.c (for qemu), Makefile and README.md.

    The logits are those of :func:`integer_network`, to the bit.

    Args:
        network: What :func:`adderzoo.inference.quantization.quantize` has made.
        statistics: Of it, as :func:`observe` gives them.
        destination: Folder, which is made if it is not there.
        name: Of the functions and files; what no identifier has becomes an underscore.
        classes: Names of the classes.
        about: Lines for the comment at the head of NAME.h.
        images: Golden images for the test, (N, C, H, W) in uint8; None for some of noise.
        max_ram: Bytes of RAM that the arena may take.
        multiply: Whether multipliers are numbers; else they are sums of three signed powers of two, and nothing is
            multiplied, but where there is SMLAD: products are differences of squares, from a table.
        vectors: Whether to write `vectors.npz` and a folder `vectors` of memory files (see the README there), for test
            benches of hardware: all numbers of the network, and what every layer makes of the golden images.

    Returns:
        The C, with its `ram` and `flash` in bytes.

    Raises:
        ValueError: as :func:`integer_network`, if the name has no letter, or the arena is larger than `max_ram`.
        OSError: if a file cannot be written.
    """
    destination = Path(destination)
    check_output_folder(destination, "destination")
    identifier = re.sub(r"\W", "_", name, flags=re.ASCII)
    if not re.search("[A-Za-z]", identifier):
        raise ValueError(f"name must have a letter, got {name!r}")
    identifier = identifier if identifier[0].isalpha() else f"net_{identifier}"
    integers = integer_network(network, statistics, None if multiply else _TERMS)
    if images is None:
        images = torch.randint(
            0, 256, (4, *integers.input_shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
    sizes = CSource(integers, identifier, classes, (), not multiply)
    if max_ram is not None and sizes.ram > max_ram:
        raise ValueError(f"max-ram must be at least {sizes.ram:,} bytes for {name}, got {max_ram:,}")
    costs = f"RAM {sizes.ram:,} bytes; flash {sizes.flash:,} bytes of numbers, and about {sizes.code:,} of code."
    instructions = f"About {sizes.instructions / 1e6:.2f} million instructions on a Cortex-M4, by a count under qemu."
    source = CSource(integers, identifier, classes, [*about, costs, instructions], not multiply)
    texts = {
        f"{identifier}.h": source.header,
        f"{identifier}.c": source.source,
        f"{identifier}_test.c": source.test(images),
        "bare.c": source.filled("bare.c"),
        "Makefile": source.filled("Makefile"),
        "README.md": source.filled("README.md"),
    }
    destination.mkdir(parents=True, exist_ok=True)
    for file, text in texts.items():
        _write_text(destination / file, text)
    if vectors:
        _write_vectors(integers, images, destination)
    return source


def _write_vectors(network: IntegerNetwork, images: Tensor, destination: Path) -> None:
    arrays: dict[str, Any] = {"images": images.numpy(), "logit_scale": np.array(network.logit_scale)}
    with torch.no_grad():
        for index, (step, made) in enumerate(network.tensors(images)):
            key = f"layer{index:02d}"
            arrays[f"{key}_output"] = made.numpy() if made.dtype == torch.uint8 else made.to(torch.int32).numpy()
            affine = getattr(step, "affine", None)
            if isinstance(step, Layer):
                arrays[f"{key}_weight"] = step.weight.numpy()
                arrays[f"{key}_geometry"] = np.array(
                    [*step.stride, *step.padding, *step.dilation, step.groups], dtype=np.int32
                )
            if affine is not None:
                arrays[f"{key}_multiplier"] = affine.multiplier.to(torch.int32).numpy()
                arrays[f"{key}_bias"] = affine.bias.to(torch.int32).numpy()
                top = -1 if affine.top is None else affine.top
                arrays[f"{key}_scalars"] = np.array(
                    [affine.shift, affine.drop, affine.low, top, affine.addend_multiplier], dtype=np.int32
                )
            planes = [other.output for other in network.steps]
            arrays[f"{key}_inputs"] = np.array([planes.index(plane) for plane in step.inputs], dtype=np.int32)
            arrays[f"{key}_padding"] = np.array(step.output.padding, dtype=np.uint8)

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, **arrays)

    write_atomically(destination / "vectors.npz", write)
    folder = destination / "vectors"
    folder.mkdir(exist_ok=True)
    for key, array in arrays.items():
        if array.dtype.itemsize in (1, 4):
            digits = 2 * array.dtype.itemsize
            unsigned = array.reshape(-1).view(f"u{array.dtype.itemsize}")
            text = "".join(f"{int(number):0{digits}x}\n" for number in unsigned)
            _write_text(folder / f"{key}.hex", text)
    _write_text(folder / "README.md", _VECTORS)


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text))


_VECTORS = """# Golden vectors

Every `.hex` file is an array of `../vectors.npz` in row-major order, a number a line, two hexadecimal digits for bytes
and eight for 32 bits (two's complement), as Verilog's `$readmemh` takes it.

- `images`: (N, C, H, W). `layerNN_output`: what step NN makes of them, (N, C, H, W).
- `layerNN_inputs`: the numbers of the steps that it reads, the addend last; none for the image.
- `layerNN_weight`: (O, C / groups, kH, kW), uint8 for an adder layer, int8 for a convolution.
- `layerNN_geometry`: stride (height, width), padding (top, left, bottom, right), dilation (height, width), groups.
- `layerNN_bias`, `layerNN_multiplier`: of every channel, 32 bits. `layerNN_scalars`: shift, drop, low, top (-1 for
  logits, which are neither shifted nor clamped), addend's multiplier.
- `layerNN_padding`: of every channel the byte that the output is padded with where a layer reads beyond it.

    A = sum |x - w|, or sum x * w
    y = clamp((bias + (A >> drop) * multiplier + addend * addend_multiplier) >> shift, low, top)

Shifts keep the sign (they round towards minus infinity). No product and no sum leaves 32 bits.
"""
