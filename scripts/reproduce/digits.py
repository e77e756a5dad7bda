"""Train `adder_lenet5.digits` and `cnn_lenet5.digits` on scikit-learn's handwritten digits: two minutes on a CPU.

    python scripts/reproduce/digits.py [--out DIR]

Writes DIR/{adder,cnn}_lenet5.digits.safetensors, their rows of results.json, and SHA256SUMS (DIR: adderzoo/weights,
where `pretrained=True` finds them). Both networks have the same recipe and budget; nothing is chosen on the held-out
half, which is measured once.
"""

import argparse
import hashlib
import tempfile
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.data import create_dataset, resolve_model_data_config
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader
from torchvision.transforms import Compose, InterpolationMode, Normalize, RandomAffine, Resize, ToTensor
from tqdm import trange

import adderzoo.models
from adderzoo.checkpoints import write_atomically
from adderzoo.data import open_dataset, open_loader, write_digits
from adderzoo.engine import evaluate
from adderzoo.hub import RESULTS, Measurement, write_result
from adderzoo.optim import adaptive_lr

SEED = 0
EPOCHS = 60
BATCH_SIZE = 64
LR = 0.1
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
ETA = 0.2


def train(name: str, digits: Path) -> torch.nn.Module:
    torch.manual_seed(SEED)
    model = timm.create_model(name).to(memory_format=torch.channels_last)
    config = resolve_model_data_config(model)
    dataset = create_dataset("", root=str(digits / "train"), input_img_mode="L")
    dataset.transform = Compose(
        [
            Resize(config["input_size"][1:], InterpolationMode.BICUBIC),
            RandomAffine(degrees=10, translate=(0.1, 0.1), scale=(0.9, 1.1), interpolation=InterpolationMode.BILINEAR),
            ToTensor(),
            Normalize(config["mean"], config["std"]),
        ]
    )
    loader = DataLoader(dataset, BATCH_SIZE, shuffle=True, drop_last=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY)
    if name.startswith("adder"):
        adaptive_lr(optimizer, eta=ETA)
    scheduler = CosineAnnealingLR(optimizer, EPOCHS)
    with trange(EPOCHS, desc=name, unit="epoch") as epochs:
        for _ in epochs:
            for images, labels in loader:
                loss = F.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            scheduler.step()
            epochs.set_postfix_str(f"loss {loss.item():.4f}")
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=adderzoo.models.WEIGHTS)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # the sums of a weight gradient depend on it
    with tempfile.TemporaryDirectory() as folder:
        digits = Path(folder)
        write_digits(digits)
        for name in ("adder_lenet5", "cnn_lenet5"):
            model = train(name, digits)
            config = resolve_model_data_config(model)
            test = open_dataset("", str(digits / "test"), "test", channels=1)
            result = evaluate(model, open_loader(test, config, 128, 0, torch.device("cpu")))
            print(f"{name}: {result}")
            measured = Measurement(
                dataset="scikit-learn digits, held-out half",
                images=result.images,
                top1=round(result.top1, 2),
                top1_se=round(result.top1_se, 2),
                command="python scripts/reproduce/digits.py",
            )
            metadata = {
                "format": "pt",
                "architecture": name,
                "tag": "digits",
                "license": "Apache-2.0",
                "command": measured.command,
                "top1": f"{measured.top1:.2f}",
                "top1_se": f"{measured.top1_se:.2f}",
                "dataset": f"{measured.dataset} ({measured.images} images)",
            }
            weights = {key: value.contiguous() for key, value in model.state_dict().items()}
            write_atomically(
                out / f"{name}.digits.safetensors", lambda path, w=weights, m=metadata: save_file(w, path, m)
            )
            write_result(f"{name}.digits", measured, out / RESULTS.name)
    sums = "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(out.glob("*.safetensors"))
    )
    write_atomically(out / "SHA256SUMS", lambda path: path.write_text(sums))


if __name__ == "__main__":
    main()
