"""Train `adder_lenet5.digits` and `cnn_lenet5.digits` on scikit-learn's handwritten digits: two minutes on a CPU.

    python scripts/reproduce/digits.py [--out DIR]

Writes DIR/{adder,cnn}_lenet5.digits.safetensors, their rows of results.json, their lines of SHA256SUMS and their model
cards (DIR: adderzoo/weights, where `pretrained=True` finds them). Both networks have the same recipe and budget;
nothing is chosen on the held-out half, which is measured once.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from timm.data import create_dataset, resolve_model_data_config
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader
from torchvision.transforms import Compose, InterpolationMode, Normalize, RandomAffine, Resize, ToTensor
from tqdm import trange

import adderzoo.models
from adderzoo.catalogue import Accuracy
from adderzoo.data import Loading, class_indices, open_dataset, open_loader
from adderzoo.engine import evaluate
from adderzoo.files.weights import save_weights
from adderzoo.optim import adaptive_lr
from adderzoo.publish.weights import add_weights

sys.path.append(str(Path(__file__).resolve().parent.parent))
from example_data import write_digits

SEED = 0
EPOCHS = 60
BATCH_SIZE = 64
LR = 0.1
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
ETA = 0.2


def train(name: str, digits: Path) -> torch.nn.Module:
    torch.manual_seed(SEED)
    model = timm.create_model(f"{name}.digits").to(memory_format=torch.channels_last)
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


def recipe(name: str) -> str:
    """What :func:`train` does, in words."""
    rate = f", adaptive learning rate of adder filters (eta {ETA:g})" if name.startswith("adder") else ""
    return (
        f"SGD on the first half of scikit-learn's digits (898 images), {EPOCHS} epochs in batches of {BATCH_SIZE}: "
        f"learning rate {LR:g} to 0 on a cosine, Nesterov momentum {MOMENTUM:g}, weight decay {WEIGHT_DECAY:g}{rate}. "
        "Images are resized to 32x32, turned by up to 10 degrees, shifted and scaled by up to a tenth, at random; "
        f"seed {SEED}, nothing chosen on the other half."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=adderzoo.models.WEIGHTS)
    out = parser.parse_args().out
    torch.set_num_threads(1)  # the sums of a weight gradient depend on it
    with tempfile.TemporaryDirectory() as folder:
        digits = Path(folder)
        write_digits(digits)
        for name in ("adder_lenet5", "cnn_lenet5"):
            model = train(name, digits)
            config = resolve_model_data_config(model)
            test = open_dataset("", str(digits / "test"), "test", channels=1)
            result = evaluate(model, open_loader(test, config, Loading(batch_size=128)))
            print(f"{name}: {result}")
            measured = Accuracy(
                dataset="scikit-learn digits, held-out half",
                images=result.images,
                top1=result.top1,
                top1_se=result.top1_se,
                command="python scripts/reproduce/digits.py",
                recipe=recipe(name),
            )
            indices = class_indices(test)
            metadata = {
                "architecture": name,
                "num_classes": str(model.num_classes),
                "data_config": json.dumps(config),
                "classes": json.dumps(sorted(indices, key=lambda label: indices[label])),
            }
            checkpoint = digits / f"{name}.safetensors"
            save_weights(model, checkpoint, metadata)
            add_weights(f"{name}.digits", checkpoint, measured, out)


if __name__ == "__main__":
    main()
