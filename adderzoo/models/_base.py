"""The part of timm's contract that is the same for every network."""

from typing import Any

import torch
from timm.layers import get_device_dtype
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from adderzoo.layers import ShiftConv2d
from adderzoo.layers.modules import Network


class ConvNet(Network):
    """A row of modules that ends in a head.

    A subclass sets `num_classes`, `num_features`, `head_hidden_size`, `feature_info` and `levels`, and has
    `forward_features`, `forward_head`, `reset_classifier` and `get_classifier`.

    Attributes:
        levels: For each entry of `feature_info`, the names of the modules that lead to it from the one before. All of
            them in order are `forward_features`.
    """

    levels: list[list[str]]
    feature_info: list[dict[str, Any]]
    num_features: int
    head_hidden_size: int
    grad_checkpointing: bool

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Initial values: N(0, 1) for adder filters as in the paper, Kaiming's for convolutions and binary layers."""
        for module in self.modules():
            if module is not self and hasattr(module, "reset_parameters"):
                module.reset_parameters()  # type: ignore[operator]
            if isinstance(module, nn.Conv2d) and not isinstance(module, ShiftConv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: recompute every block in the backward pass."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Shifts and signs of shift layers: their decay would not make weights small. The paper decays all others."""
        shifts = {name for name, module in self.named_modules() if isinstance(module, ShiftConv2d)}
        return {f"{name}.{part}" for name in shifts for part in ("shift", "sign")}

    def _run(self, name: str, x: Tensor) -> Tensor:
        module = getattr(self, name)
        if self.grad_checkpointing and isinstance(module, nn.Sequential):
            return checkpoint_seq(module, x)
        return module(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The features of several levels in one pass.

        Args:
            x: (N, in_chans, H, W).
            indices: Levels by number; an integer for as many of the last ones; None for all.
            norm: Taken for timm's sake; there is no final norm.
            stop_early: Compute nothing behind the last level that is asked for.
            output_fmt: "NCHW".
            intermediates_only: Return the list alone.

        Returns:
            The last features and the list of intermediate ones.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        taken, last = feature_take_indices(len(self.levels), indices)
        intermediates = []
        for index, names in enumerate(self.levels[: last + 1] if stop_early else self.levels):
            for name in names:
                x = self._run(name, x)
            if index in taken:
                intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the layers that the features of some levels do not need.

        Args:
            indices: Levels by number; an integer for as many of the last ones.
            prune_norm: Taken for timm's sake; there is no final norm.
            prune_head: Remove the head too. It goes in any case where a level goes.

        Returns:
            The levels by number.
        """
        taken, last = feature_take_indices(len(self.levels), indices)
        for names in self.levels[last + 1 :]:
            for name in names:
                setattr(self, name, nn.Sequential())
        if last + 1 < len(self.levels):
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
            prune_head = True
        if prune_head:
            self.reset_classifier(0, "")  # type: ignore[operator]
        return taken

    def _factory(self) -> dict[str, Any]:
        """Device and dtype of layers that are made later."""
        return get_device_dtype(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))  # type: ignore[operator]
