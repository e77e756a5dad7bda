"""Knowledge distillation: a student that learns from a teacher as well as from the labels, as tasks of timm's."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from timm import task
from timm.utils import unwrap_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from adderzoo.layers import Adder2d

from .training import checked_loss


class EnsembleTeacher(task.DistillationTeacher):
    """Several trained networks as one teacher, whose class probabilities are the mean of theirs.

    At another temperature the mean of logits and the mean of probabilities are not the same thing; the mean here is of
    what the members say at `temperature`, the sum over them of softmax(logits / temperature) divided by their number.
    The ensemble's logits are those that give it at that temperature: temperature * log(mean).

    Args:
        members: At least one network, each for images (N, C, H, W) normalized as its `pretrained_cfg` says (timm's
            `mean` and `std`), and all for the same classes.
        temperature: Above 0; that of the distillation.
        device: Of the members.
    """

    def __init__(
        self, members: Sequence[nn.Module], temperature: float = 1.0, device: torch.device | None = None
    ) -> None:
        super().__init__(_MeanProbabilities(members, temperature, device), device=device)


class _MeanProbabilities(nn.Module):
    """The networks of an :class:`EnsembleTeacher`; images are normalized for the first."""

    def __init__(self, members: Sequence[nn.Module], temperature: float, device: torch.device | None) -> None:
        super().__init__()
        self.members = nn.ModuleList(task.DistillationTeacher(member, device=device) for member in members)
        self.temperature = temperature
        self.pretrained_cfg = members[0].pretrained_cfg

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to logits (N, classes)."""
        members: list[Any] = list(self.members)
        mean, std = members[0].mean_kd, members[0].std_kd
        logits = [member(member.normalize_input(x, mean, std)).float() for member in members]
        log_p = (torch.stack(logits) / self.temperature).log_softmax(2)
        return self.temperature * (log_p.logsumexp(0) - math.log(len(logits)))


class LogitDistillationTask(task.LogitDistillationTask):
    """timm's distillation of logits ("Distilling the Knowledge in a Neural Network", 2015), losses in float32.

    The loss is `task_loss_weight` times the criterion, plus `distill_loss_weight` times temperature^2 times the mean
    Kullback-Leibler divergence of the student's class probabilities from the teacher's, both at the temperature. Where
    timm's own would compute it in the type of autocast, its networks alone run in that here, as in other trainings.
    Arguments are timm's; so is all but :meth:`forward`.
    """

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The losses of a batch.

        Args:
            input: (N, C, H, W), normalized for the student.
            target: As the criterion takes it.

        Returns:
            "loss", whose gradients train; "output", the student's logits (N, classes); "task_loss" and "kd_loss",
            of which the loss is made.
        """
        output = self.trainable_module(input)
        with torch.no_grad():
            taught = self.teacher(self.teacher.normalize_input(input, self.student_mean, self.student_std))
        return self._losses(output.float(), taught.float(), target)

    def _losses(self, output: Tensor, taught: Tensor, target: Tensor) -> dict[str, Tensor]:
        task_loss = checked_loss(self.criterion, output, target)
        log_p, log_q = ((logits / self.temperature).log_softmax(1) for logits in (output, taught))
        kd_loss = self.temperature**2 * F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
        loss = self.task_loss_weight * task_loss + self.distill_loss_weight * kd_loss
        return {"loss": loss, "output": output, "task_loss": task_loss, "kd_loss": kd_loss}


class KernelDistillationTask(LogitDistillationTask):
    """Progressive kernel-based knowledge distillation, PKKD (NeurIPS 2020, arXiv:2009.13044), of an adder network.

    Student and teacher, a CNN with a convolution in the place of each adder layer, are trained together: the teacher by
    the criterion alone, the student also by the teacher's logits, as in :class:`LogitDistillationTask`, and by the
    outputs of its layers. Those of both networks are brought to a common space by kernels of patch x and filter w. Up
    to factors of x and of w alone, these are functions of what the layers compute anyway:

    - of a convolution, the Gaussian kernel exp(-||x - w||^2 / (2 sigma^2)) ~ exp(x.w / sigma^2);
    - of an adder layer, the Laplace kernel exp(-||x - w||_1 / (2 sigma^2)) = exp(y / (2 sigma^2)).

    With one sigma for a layer the second would say nothing: in a trained `adder_resnet20` the outputs of a channel
    deviate from their mean by 2 to 19, but these means lie between -13 and -3,200, with deviations of 46 to 650 within
    a layer. So each channel's sigma^2 is measured in its standard deviation s over the batch, a bandwidth taken from
    the data, and factors that are common to a channel (exp of its mean) are left out: both kernels become k = exp((y -
    mean) / (width s)). A learned 1x1 convolution maps the student's channels to the teacher's, and their mean squared
    error, averaged over the layers, is the feature loss. (Without a projection of the teacher's: a pair of them would
    make the error small by mapping to nothing.) Compared is width (k - 1), the normalized output itself for large
    widths, so that the loss has the same size for all. A width of 1 is too narrow: the largest outputs of convolutions
    lie 6 to 14 deviations above the mean, and their exp is all that the loss sees.

    No gradient of what the student learns by reaches the teacher. Its parameters and those of the 1x1 convolutions are
    in :meth:`get_trainable_module` with the student's, for one optimizer of all; its steps are those of the CNN trained
    alone, with any optimizer that treats parameters one by one.

    Args:
        student_model: Network with adder layers.
        teacher_model: Network with a convolution of the same name and stride for each of them.
        feature_loss_weight: Of the feature loss, beside timm's `task_loss_weight` and `distill_loss_weight`. In
            ResNet-20, trained or not, the gradient that it gives adder filters is 0.03 to 0.05 times that of the
            labels' loss (the median of the layers) at a weight of 1.
        width: Of the kernels, above.
        options: Arguments of timm's task.

    Raises:
        ValueError: if the networks are none such.
    """

    def __init__(
        self,
        student_model: nn.Module,
        teacher_model: nn.Module,
        feature_loss_weight: float = 10.0,
        width: float = 4.0,
        **options: Any,
    ) -> None:
        super().__init__(student_model, teacher_model, **options)
        self.feature_loss_weight = feature_loss_weight
        self.trainable_module: nn.Module = _Networks(student_model, teacher_model, width).to(self.device)

    def train(self, mode: bool = True) -> "KernelDistillationTask":
        """Set the mode of both networks."""
        super().train(mode)
        self.teacher.train(mode)
        return self

    def prepare_distributed(self, device_ids: list[Any] | None = None, **ddp_kwargs: Any) -> "KernelDistillationTask":
        """Have the gradients of all that is trained averaged over the processes."""
        self.trainable_module = DistributedDataParallel(self.trainable_module, device_ids=device_ids, **ddp_kwargs)
        return self

    def compile(self, *arguments: Any, **options: Any) -> None:
        """Refused, with a RuntimeError: compiled code keeps no outputs of layers, which the feature loss is made of."""
        raise RuntimeError("the networks of PKKD cannot be compiled: its loss reads the outputs of their layers")

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module:
        """The student."""
        return unwrap_model(module or self.trainable_module).student

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """What belongs to the training beside the student: teacher and 1x1 convolutions."""
        networks = unwrap_model(module or self.trainable_module)
        return {"teacher": networks.teacher.state_dict(), "projections": networks.projections.state_dict()}

    def load_task_state(
        self, state: dict[str, Any] | None, strict: bool = True, module: nn.Module | None = None, ema: bool = False
    ) -> None:
        """Load what :meth:`get_task_state` gave."""
        if state:
            networks = unwrap_model(module or self.trainable_module)
            networks.teacher.load_state_dict(state["teacher"], strict)
            networks.projections.load_state_dict(state["projections"], strict)

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The losses of a batch: those of :meth:`LogitDistillationTask.forward`, "feature_loss" and "teacher_loss"."""
        output, taught, feature_loss = self.trainable_module(input)
        losses = self._losses(output, taught.detach(), target)
        teacher_loss = self.criterion(taught, target)
        losses["loss"] = losses["loss"] + self.feature_loss_weight * feature_loss + teacher_loss
        return losses | {"feature_loss": feature_loss, "teacher_loss": teacher_loss}


class _Networks(nn.Module):
    """All that :class:`KernelDistillationTask` trains, in one module: DistributedDataParallel takes no more."""

    def __init__(self, student: nn.Module, teacher: nn.Module, width: float) -> None:
        super().__init__()
        self.student, self.teacher, self.width = student, teacher, width
        filters = {name: module for name, module in student.named_modules() if isinstance(module, Adder2d)}
        if not filters:
            raise ValueError(f"student_model must have adder layers, {type(student).__name__} has none")
        convolutions = {name: module for name, module in teacher.named_modules() if isinstance(module, nn.Conv2d)}
        others = [name for name in filters if filters[name].stride != getattr(convolutions.get(name), "stride", None)]
        if others:
            raise ValueError(
                "teacher_model must have a convolution of the same name and stride for each adder layer of the "
                f"student, {type(teacher).__name__} has none for {len(others)}: {', '.join(others[:4])}"
            )
        self.layers = list(filters)
        self.projections = nn.ModuleList(
            nn.Conv2d(filters[name].out_channels, convolutions[name].out_channels, 1) for name in filters
        )

    def no_weight_decay(self) -> set[str]:
        parts = {"student": self.student, "teacher": self.teacher}
        return {
            f"{part}.{name}"
            for part, network in parts.items()
            for name in (network.no_weight_decay() if hasattr(network, "no_weight_decay") else ())  # type: ignore[operator]
        }

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, C, H, W) to the logits of student and teacher, and the mean feature loss of the layers."""
        with _outputs(self.student, self.layers) as given, _outputs(self.teacher, self.layers) as wanted:
            logits, taught = self.student(x), self.teacher(x)
        losses = [
            F.mse_loss(projection(_kernel(given[name], self.width)).float(), _kernel(wanted[name].detach(), self.width))
            for name, projection in zip(self.layers, self.projections, strict=True)
        ]
        return logits.float(), taught.float(), torch.stack(losses).mean()


@contextmanager
def _outputs(network: nn.Module, layers: list[str]) -> Iterator[dict[str, Tensor]]:
    """A dictionary that has the outputs of layers, by their names, after a call of the network.

    (Hooks that stayed would be in the network's copies too, and see what is validated.)
    """
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: outputs.__setitem__(name, output)

    handles = [network.get_submodule(name).register_forward_hook(keep(name)) for name in layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _kernel(y: Tensor, width: float) -> Tensor:
    """width (k - 1), k = exp((y - mean) / (width s)), of a layer's outputs (N, C, H, W) with each channel's mean, s."""
    return width * (F.batch_norm(y.float(), None, None, training=True) / width).expm1()
