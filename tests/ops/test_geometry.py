"""The one formula for the size of an output, against convolutions and poolings of PyTorch's."""

import random

import torch
import torch.nn.functional as F

from adderzoo.ops.geometry import output_size

SEED = 7


def test_sizes_are_those_of_a_convolution() -> None:
    chance = random.Random(SEED)
    scripted = torch.jit.script(output_size)
    for _ in range(200):
        kernel, stride, dilation = ([chance.randint(1, 4) for _ in range(2)] for _ in range(3))
        padding = [chance.randint(0, 3) for _ in range(2)]
        size = [d * (k - 1) + 1 + chance.randint(0, 9) for k, d in zip(kernel, dilation, strict=True)]
        weight = torch.empty(1, 1, *kernel, device="meta")
        expected = F.conv2d(torch.empty(1, 1, *size, device="meta"), weight, None, stride, padding, dilation).shape[2:]
        assert output_size(size, kernel, stride, padding, dilation) == list(expected), (SEED, size, kernel)
        assert scripted(size, kernel, stride, padding, dilation) == list(expected)


def test_sizes_are_those_of_a_pooling() -> None:
    pooled = F.avg_pool2d(torch.empty(1, 1, 11, 8), (3, 2), (2, 3))
    assert output_size([11, 8], [3, 2], [2, 3], [0, 0], [1, 1]) == list(pooled.shape[2:])
