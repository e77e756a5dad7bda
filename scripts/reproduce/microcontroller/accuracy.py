"""What integers cost a classifier in accuracy, and whether the C gives their logits, on all images of a folder.

    python scripts/reproduce/microcontroller/accuracy.py NETWORK DATA [--images 200] [--bits 7 8]

NETWORK is a name with its tag, or a checkpoint. DATA has images in train/CLASS, of which some give the ranges, and in
test/CLASS, which are all classified: in float32, by the network of bytes, by that of integers, with and without
multipliers, and by the C of the latter two, which is compiled here (cc -O2). The C's logits must be those of the
integers in Python, every one.
"""

import argparse
import os
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor

import adderzoo
from adderzoo.data import Loading, open_dataset, open_loader, spread
from adderzoo.microcontroller import integer_network, observe, write_c

# Pixels on standard input, logits on standard output.
_MAIN = """
#include <stdio.h>
#include "net.h"
static uint8_t image[NET_HEIGHT * NET_WIDTH * NET_CHANNELS];
static int32_t logits[NET_CLASSES];
int main(void)
{
    while (fread(image, sizeof image, 1, stdin) == 1) {
        (void)net_run(image, logits);
        fwrite(logits, sizeof logits, 1, stdout);
    }
    return 0;
}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("network", metavar="NETWORK")
    parser.add_argument("data", metavar="DATA", type=Path)
    parser.add_argument("--images", metavar="N", type=int, default=200, help="that ranges are taken from (200)")
    parser.add_argument("--bits", metavar="N", type=int, nargs="+", default=[7, 8], help="of a byte (7 and 8)")
    args = parser.parse_args()
    from_file = Path(args.network).is_file()
    model = adderzoo.load(args.network) if from_file else timm.create_model(args.network, pretrained=True)
    model.eval()
    config = resolve_model_data_config(model)
    some = list(
        open_loader(
            spread(open_dataset("", args.data, "train", 3), args.images), config, Loading(batch_size=64, workers=0)
        )
    )
    test = list(open_loader(open_dataset("", args.data, "test", 3), config, Loading(batch_size=250, workers=0)))
    labels = torch.cat([labels for _, labels, *_ in test])
    mean, std = (torch.tensor(config[key]).view(-1, 1, 1) for key in ("mean", "std"))
    pixels = torch.cat([((batch * std + mean) * 255).round().clamp(0, 255).to(torch.uint8) for batch, *_ in test])

    def logits_of(network: Callable[[Tensor], Tensor], images: Any) -> Tensor:
        with torch.inference_mode():
            return torch.cat([network(batch) for batch in images])

    in_float = logits_of(model, (batch for batch, *_ in test))

    def say(what: str, logits: Tensor) -> None:
        right = int((logits.argmax(1) == labels).sum())
        same = int((logits.argmax(1) == in_float.argmax(1)).sum())
        print(f"{what:34} {right:6,} of {len(labels):,} right, the class of float32 on {same:,}", flush=True)

    say("float32", in_float)
    for bits in args.bits:
        network = adderzoo.quantize(adderzoo.calibrate(model, some, bits))
        statistics = observe(network, some)
        say(f"bytes of {bits} bits", logits_of(network, (batch for batch, *_ in test)))
        for terms, what in ((None, "integers"), (3, "integers, no multiplication")):
            integers = logits_of(integer_network(network, statistics, terms), pixels.split(250))
            say(f"{what}, {bits} bits", integers)
            in_c = _run_c(network, statistics, pixels, multiply=terms is None)
            different = int((in_c != integers).sum())
            print(f"    the C: {different:,} of {in_c.numel():,} logits differ", flush=True)
            if different:
                raise SystemExit(1)


def _run_c(network: Any, statistics: Any, pixels: Tensor, multiply: bool) -> Tensor:
    """Logits by the C, compiled for this machine, one process a core."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_c(network, statistics, folder, "net", multiply=multiply)
        (folder / "main.c").write_text(_MAIN)
        subprocess.run(["cc", "-std=c99", "-O2", "main.c", "net.c", "-o", "main"], cwd=folder, check=True)

        def logits(part: Tensor) -> Tensor:
            read = part.permute(0, 2, 3, 1).contiguous().numpy().tobytes()
            done = subprocess.run([folder / "main"], input=read, capture_output=True, check=True)
            return torch.from_numpy(np.frombuffer(done.stdout, dtype=np.int32).reshape(len(part), -1).copy())

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return torch.cat(list(pool.map(logits, pixels.chunk(os.cpu_count() or 1))))


if __name__ == "__main__":
    main()
