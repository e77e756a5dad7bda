"""Print the norm of the gradient of each layer's filters in the first iteration of LeNet-5-BN on MNIST.

    python scripts/reproduce/gradient_norms.py MNIST

CVPR 2020, Table 1: why adder filters need a learning rate of their own. The batch is the first that the training of
`scripts/reproduce/mnist.sh` with seed 0 takes; MNIST is a folder as there.
"""

import sys

import timm
import torch.nn.functional as F
from timm.data import resolve_model_data_config
from timm.utils import random_seed
from torch import nn

from adderzoo.data import Loading, open_dataset, open_training_loader
from adderzoo.layers import Adder2d

images = open_dataset("torch/mnist", sys.argv[1], "train", channels=1)
for name in ("adder_lenet5.mnist", "cnn_lenet5.mnist"):
    random_seed(0)
    model = timm.create_model(name).train()
    loading = Loading(batch_size=256, workers=2, seed=0)
    loader = open_training_loader(images, resolve_model_data_config(model), loading, augmentation=None)
    loader.set_epoch(1)
    batch, labels = next(iter(loader))
    F.cross_entropy(model(batch), labels).backward()
    norms = {
        key: layer.weight.grad.norm().item()
        for key, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d | Adder2d)
    }
    print(name, ", ".join(f"{key} {norm:.4f}" for key, norm in norms.items()))
