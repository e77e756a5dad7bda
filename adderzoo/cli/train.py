"""`adderzoo train`."""

import argparse
import json
import math
import shlex
import sys
import time
from pathlib import Path
from typing import Any

_CALIBRATION_IMAGES = 512


def add_arguments(parser: argparse.ArgumentParser) -> None:
    recipe = (
        "The defaults are the paper's recipe for CIFAR-10: SGD, cosine schedule, weight decay on all parameters, and "
        "the adaptive learning rate for adder filters. Options are named as in timm's training script."
    )
    parser.description = f"{parser.description} {recipe}"
    parser.add_argument("--model", metavar="NAME", required=True, help="network, as timm.create_model takes it")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--pretrained", action="store_true", help="start from the published weights of its tag")
    weights.add_argument(
        "--initial-checkpoint",
        metavar="FILE",
        type=Path,
        help="start from these weights, in either format; the classifier starts anew if it has other classes",
    )
    parser.add_argument("--num-classes", metavar="N", type=int, help="classes of the network (those of the data set)")

    data = parser.add_argument_group("data")
    data.add_argument(
        "--data-dir",
        metavar="DIR",
        help="folder of the data set. A folder of images has one folder a class inside train/, and inside "
        "validation/, val/ or test/; without these, one folder a class, and nothing is validated",
    )
    data.add_argument(
        "--dataset", metavar="NAME", default="", help="data set as timm names it: torch/cifar10, torch/mnist, hfds/..."
    )
    data.add_argument("--train-split", metavar="NAME", default="train", help="training images (%(default)s)")
    data.add_argument(
        "--val-split", metavar="NAME", help='validation images ("validation", or the folder that is there); "" for none'
    )
    data.add_argument("--dataset-download", action="store_true", help="let torchvision download the data set")
    data.add_argument("--input-key", metavar="KEY", help="column of the images, of a hfds/ data set")
    data.add_argument("--target-key", metavar="KEY", help="column of the labels, of a hfds/ data set")
    data.add_argument("--img-size", metavar="N", type=int, help="height and width of the input (the network's)")
    data.add_argument("-b", "--batch-size", metavar="N", type=int, default=256, help="images a batch (%(default)s)")
    data.add_argument("-j", "--workers", metavar="N", type=int, default=2, help="loading processes (%(default)s)")

    augment = parser.add_argument_group("augmentation")
    augment.add_argument(
        "--train-crop-mode",
        choices=("pad", "rrc", "rkrc", "rkrr"),
        help="pad: shifted by up to an eighth (the default up to 64x64); rrc: random area and aspect (the default "
        "beyond); rkrc, rkrr: timm's in between",
    )
    augment.add_argument(
        "--hflip", metavar="P", type=float, default=0.5, help="probability of a flip (%(default)s); 0 for digits"
    )
    augment.add_argument("--color-jitter", metavar="X", type=float, default=0.0, help="strength (%(default)s)")
    augment.add_argument("--no-aug", action="store_true", help="none of these: only resize")
    augment.add_argument("--smoothing", metavar="X", type=float, default=0.0, help="of the labels (%(default)s)")

    step = parser.add_argument_group("optimiser and schedule")
    step.add_argument("--epochs", metavar="N", type=int, default=400, help="passes over the data (%(default)s)")
    step.add_argument("--opt", metavar="NAME", default="momentum", help="optimiser, as timm names it (%(default)s)")
    step.add_argument("--lr", metavar="X", type=float, help="learning rate (0.1 for SGD, else the optimiser's default)")
    step.add_argument("--momentum", metavar="X", type=float, default=0.9, help="(%(default)s)")
    step.add_argument("--weight-decay", metavar="X", type=float, default=5e-4, help="(%(default)s)")
    step.add_argument(
        "--eta", metavar="X", type=float, default=0.2, help="adaptive rate of adder filters (%(default)s); 0 for none"
    )
    step.add_argument(
        "--sched", metavar="NAME", default="cosine", help="schedule, as timm names it; none for none (%(default)s)"
    )
    step.add_argument("--warmup-epochs", metavar="N", type=int, default=0, help="with a rising rate (%(default)s)")

    step.add_argument(
        "--quantize-bits",
        metavar="N",
        type=int,
        help="fine-tune with what bytes of N bits (4 to 8) can hold. Ranges come from the first images and stay; "
        "accuracies are those with N bits. The files hold float weights and the ranges: `adderzoo quantize` makes "
        "integer networks of them",
    )

    machine = parser.add_argument_group("machine")
    machine.add_argument("--seed", metavar="N", type=int, default=42, help="of everything random (%(default)s)")
    machine.add_argument("--device", default="cpu", help="such as cuda (%(default)s)")
    machine.add_argument("--amp", action="store_true", help="run under autocast")
    machine.add_argument(
        "--amp-dtype", choices=("bfloat16", "float16"), default="bfloat16", help="of autocast (%(default)s)"
    )
    machine.add_argument("--channels-last", action="store_true", help="use the channels_last memory format")

    output = parser.add_argument_group("output")
    output.add_argument(
        "--output", metavar="DIR", type=Path, default=Path("output/train"), help="folder of trainings (%(default)s)"
    )
    output.add_argument(
        "--experiment",
        metavar="NAME",
        help="folder in it (time and network), for best.safetensors, last.safetensors, summary.csv and args.yaml",
    )


def run(args: argparse.Namespace) -> None:
    import torch
    from timm.data import resolve_model_data_config
    from timm.utils import random_seed
    from torch import nn
    from tqdm import tqdm

    from adderzoo.checkpoints import create_model, load_checkpoint
    from adderzoo.data import check_classes, class_indices, open_loader, open_training_data, open_training_loader
    from adderzoo.engine import Training, create_optimizer, create_scheduler, evaluate, train, write_epoch
    from adderzoo.engine.training import best_epoch
    from adderzoo.quantization import calibrate, ranges

    from ._network import open_device

    _check(args)
    device = open_device(args.device)
    amp_dtype = getattr(torch, args.amp_dtype) if args.amp else None
    random_seed(args.seed)

    def network(**arguments: Any) -> Any:
        return create_model(args.model, **arguments)

    # What the network is fed with does not depend on its classes, which come from the data.
    config = resolve_model_data_config(network())
    if args.img_size:
        config["input_size"] = (config["input_size"][0], args.img_size, args.img_size)
    keys = {key: getattr(args, key) for key in ("input_key", "target_key") if getattr(args, key)}
    train_set, val_set = open_training_data(
        args.dataset,
        args.data_dir,
        args.train_split,
        args.val_split,
        config["input_size"][0],
        args.dataset_download,
        **keys,
    )
    indices = class_indices(train_set)
    num_classes = args.num_classes or (max(indices.values()) + 1 if indices else None)
    random_seed(args.seed)
    model = network(pretrained=args.pretrained, **({} if num_classes is None else {"num_classes": num_classes}))
    check_classes(train_set, model)
    if args.initial_checkpoint:
        load_checkpoint(model, args.initial_checkpoint, other_classes=True)
    memory_format = torch.channels_last if args.channels_last else torch.contiguous_format
    model = model.to(device).to(memory_format=memory_format)

    loader = open_training_loader(
        train_set,
        config,
        args.batch_size,
        args.workers,
        device,
        args.train_crop_mode,
        args.hflip,
        args.color_jitter,
        not args.no_aug,
    )
    if args.quantize_bits is not None:
        model = calibrate(model, loader, args.quantize_bits, batches=math.ceil(_CALIBRATION_IMAGES / args.batch_size))
    val_loader = open_loader(val_set, config, args.batch_size, args.workers, device) if val_set else None
    optimizer = create_optimizer(model, args.opt, args.lr, args.momentum, args.weight_decay, args.eta)
    scheduler = create_scheduler(optimizer, args.sched, args.epochs, args.warmup_epochs)
    scaler = torch.amp.GradScaler(device.type, enabled=amp_dtype == torch.float16)
    training = Training(model, optimizer, scheduler, scaler)

    def validate(model: nn.Module) -> Any:
        assert val_loader is not None
        return evaluate(model, val_loader, device, amp_dtype, args.channels_last, description="validation")

    metadata = {
        "architecture": args.model.partition(".")[0],
        "num_classes": str(model.num_classes),
        "data_config": json.dumps(config),
        "command": shlex.join(["adderzoo", *args.arguments]),
    }
    if args.quantize_bits is not None:
        metadata["ranges"] = json.dumps(ranges(model))
    if len(indices) == model.num_classes:
        metadata["classes"] = json.dumps(sorted(indices, key=lambda name: indices[name]))
    folder = _make_folder(args)
    print(
        f"{args.model}: {len(train_set)} training images, {len(val_set) if val_set else 'no'} validation images, "
        f"{model.num_classes} classes; to {folder}",
        flush=True,
    )
    try:
        for epoch in train(
            training,
            loader,
            args.epochs,
            validate if val_loader else None,
            nn.CrossEntropyLoss(label_smoothing=args.smoothing),
            device,
            amp_dtype,
            args.channels_last,
            description=args.model,
        ):
            write_epoch(folder, training, metadata)
            tqdm.write(str(epoch))
    except KeyboardInterrupt:
        print(f"stopped after {len(training.history)} of {args.epochs} epochs; their weights are in {folder}")
        sys.exit(130)
    best = best_epoch(training.history)
    print(
        f"best: epoch {best.epoch}, top-1 {best.eval_top1:.2f} ± {best.eval_top1_se:.2f} %" if best else "done", folder
    )


def _check(args: argparse.Namespace) -> None:
    """Refuse numbers that nothing checks later."""
    least = {"batch_size": 2, "epochs": 1, "num_classes": 1, "img_size": 1, "workers": 0, "warmup_epochs": 0, "seed": 0}
    for name, minimum in least.items():
        value = getattr(args, name)
        if value is not None and value < minimum:
            raise ValueError(f"{name.replace('_', '-')} must be at least {minimum}, got {value}")
    for name in ("hflip", "smoothing"):
        if not 0 <= getattr(args, name) <= 1:
            raise ValueError(f"{name} must be from 0 to 1, got {getattr(args, name)}")
    for name in ("color_jitter", "eta"):
        if not 0 <= getattr(args, name) < float("inf"):
            raise ValueError(f"{name.replace('_', '-')} must be a finite number from 0, got {getattr(args, name)}")
    if args.quantize_bits not in (None, *range(4, 9)):
        raise ValueError(f"quantize-bits must be from 4 to 8, got {args.quantize_bits}")
    if args.quantize_bits is not None and not (args.pretrained or args.initial_checkpoint):
        raise ValueError("quantize-bits is for trained weights: give --pretrained or --initial-checkpoint")
    if args.warmup_epochs >= args.epochs:
        raise ValueError(f"warmup-epochs must be fewer than the {args.epochs} epochs, got {args.warmup_epochs}")


def _make_folder(args: argparse.Namespace) -> Path:
    """The folder of this training, with its arguments in it; never that of another."""
    import yaml

    from adderzoo.checkpoints import write_atomically

    folder = args.output / (args.experiment or f"{time.strftime('%Y%m%d-%H%M%S')}-{args.model.replace('/', '_')}")
    if (folder / "summary.csv").exists():
        raise ValueError(f"{folder} has a training already: choose another --experiment, or remove it")
    values = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in vars(args).items()
        if key not in {"command", "arguments"}
    }
    write_atomically(folder / "args.yaml", lambda path: path.write_text(yaml.safe_dump(values, sort_keys=False)))
    return folder
