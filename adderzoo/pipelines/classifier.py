"""Classes of images, and embeddings, in one call."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, fx, nn

from adderzoo.catalogue import published_classes
from adderzoo.data.inputs import ImageLike, Input, each_input, is_single
from adderzoo.data.loaders import check_channels
from adderzoo.data.pixels import image_mode, opaque_image
from adderzoo.engine.evaluation import check_results
from adderzoo.engine.group import open_device
from adderzoo.files.weights import read_classes
from adderzoo.models import check_classifier
from adderzoo.models._state_dict import check_names

from ._network import check_preprocessing, for_inference, open_or_take


@dataclass(frozen=True)
class ClassProbability:
    """One class of an image.

    Attributes:
        index: Of the class, from 0.
        name: Of the class; its index, where nobody knows a name.
        probability: From 0 to 1.
    """

    index: int
    name: str
    probability: float

    def __str__(self) -> str:
        return f"{100 * self.probability:7.2f} %  {self.name}"


@dataclass(frozen=True)
class Prediction:
    """What is on an image.

    Attributes:
        classes: The likeliest first.
        file: Path of the image, where it is a file.
    """

    classes: tuple[ClassProbability, ...]
    file: str | None = None

    @property
    def name(self) -> str:
        """Of the likeliest class."""
        return self.classes[0].name

    @property
    def index(self) -> int:
        """Of the likeliest class."""
        return self.classes[0].index

    @property
    def probability(self) -> float:
        """Of the likeliest class."""
        return self.classes[0].probability

    def __str__(self) -> str:
        return "\n".join([*([self.file] if self.file else []), *map(str, self.classes)])

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"file": self.file, "classes": [asdict(each) for each in self.classes]}


class Classifier:
    """A classifier with all that it takes to ask it: preprocessing, names of the classes, a device.

    ::

        classifier = adderzoo.Classifier("adder_resnet20.cifar10")
        print(classifier("photo.jpg"))

    An image is

    - a path, of a file that Pillow decodes;
    - a PIL image of any mode;
    - an array (H, W) or (H, W, C), or a tensor (C, H, W): uint8 or uint16 from black, 0, to white, the largest value,
      or float from 0 to 1, as torchvision's `ToTensor` makes it, which is rounded to 8 bits. 1 channel is gray, 2 gray
      and alpha, 3 RGB, 4 RGB and alpha.

    All of them pass the same steps, those of `adderzoo predict`: EXIF orientation is applied, 16 bits become 8, behind
    transparent pixels is white, or black if what is visible is light, and then comes the network's own preprocessing.
    So the same image has the same result in every form. What is normalized already is for `model` itself.

    Several images are an array (N, H, W, C), a tensor (N, C, H, W), or a list, generator or other iterable of images,
    of folders, which are all images under them, and of further lists. What could be of another layout as well is
    refused.

    Args:
        model: A name, as `timm.create_model` takes it, with the published weights of its tag, without a tag the first;
            a file or folder of weights, as `adderzoo train` and `adderzoo quantize` write them; or a network that maps
            (N, C, H, W) to logits (N, classes), which is left as it is.
        checkpoint: File or folder of weights for the network by this name, in the place of published ones.
        random_weights: Take the network by this name as it is before any training.
        class_names: Names of the classes, in order; else those that the file has, or the network's `pretrained_cfg`,
            else their indices. Of a checkpoint that has none, the tag's count if the name has a tag.
        data_config: What is to be another than the network's own preprocessing, as timm names it: `input_size`, (C, H,
            W), `mean`, `std`, `crop_pct`, `crop_mode`, `interpolation`.
        device: As PyTorch names it; "auto" is a GPU if there is one, else the CPU.
        batch_size: Images that the network sees at once.
        fuse: Run the fused network (:func:`adderzoo.fuse`), whose results are the same but for rounding; one that
            cannot be traced runs as it is.
        arguments: Further ones for a network by name: `num_classes`, `in_chans`, `mean` and `std`, where they are to be
            others than those of the weights, and what `timm.create_model` takes.

    Attributes:
        model: What runs, in evaluation mode: (N, C, H, W), preprocessed, to logits.
        transform: Makes its input, (C, H, W), of a PIL image of its mode ("L" or "RGB").
        data_config: What the preprocessing is.
        class_names: Names of the classes.
        device: Where it runs.
        batch_size: As above; it can be set.

    Raises:
        ValueError: if there are no such network, weights or device, or one does not fit the other; naming it.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | nn.Module,
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        random_weights: bool = False,
        class_names: Sequence[str] | None = None,
        data_config: Mapping[str, Any] | None = None,
        device: str | torch.device = "auto",
        batch_size: int = 32,
        fuse: bool = True,
        **arguments: Any,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.device = open_device(str(device))
        given = check_preprocessing(data_config)
        found = open_or_take(model, {"checkpoint": checkpoint, "random_weights": random_weights, **arguments})
        check_classifier(found.network, found.name)
        self.name = found.name
        self.data_config = resolve_model_data_config(found.network) | given
        check_channels(self.data_config, found.name, arguments)
        self._channels = self.data_config["input_size"][0]
        if (channels := getattr(found.network, "in_chans", self._channels)) != self._channels:
            raise ValueError(f"data_config must be for the {channels} channels of {found.name}, got {self._channels}")
        self._mode = image_mode(self._channels)
        described = found.published or "." in found.name
        self.class_names = name_classes(found.network, class_names, found.checkpoint, described)
        self.transform: Callable[[Image.Image], Tensor] = create_transform(**self.data_config)
        self.model = for_inference(found.network, self.device, fuse)
        self.batch_size = batch_size
        self._embed: nn.Module | None = None

    def __repr__(self) -> str:
        return f"Classifier({self.name!r}, {len(self.class_names)} classes, device={str(self.device)!r})"

    @overload
    def __call__(self, images: str | os.PathLike[str] | Image.Image, topk: int = 5) -> Prediction: ...

    @overload
    def __call__(self, images: np.ndarray | Tensor, topk: int = 5) -> Any: ...

    @overload
    def __call__(self, images: Iterable[Any], topk: int = 5) -> list[Prediction]: ...

    def __call__(self, images: ImageLike | Iterable[Any], topk: int = 5) -> Prediction | list[Prediction]:
        """Classes and probabilities.

        Args:
            images: One image or several; of arrays and tensors, four dimensions are several.
            topk: How many classes to return of each, or all if there are no more.

        Returns:
            What is on the image, or a list of what is on each, in order.

        Raises:
            ValueError: naming the image, if one cannot be read or is not what is taken; if `topk` is less than 1, or
                results are not finite.
        """
        predictions = self.stream(images, topk)
        return next(predictions) if is_single(images) else list(predictions)

    def stream(
        self,
        images: ImageLike | Iterable[Any],
        topk: int = 5,
        failed: Callable[[ValueError], object] | None = None,
    ) -> Iterator[Prediction]:
        """The same, one after the other, for images without end: a batch is read when its results are asked for.

        Args:
            images: As above.
            topk: As above.
            failed: Called with the error of an image that cannot be read, which is left out then.

        Raises:
            ValueError: as above, but of images for `failed`.
        """
        if topk < 1:
            raise ValueError(f"topk must be at least 1, got {topk}")
        return self._stream(images, min(topk, len(self.class_names)), failed)

    def _stream(
        self, images: Any, topk: int, failed: Callable[[ValueError], object] | None = None
    ) -> Iterator[Prediction]:
        for inputs, batch in self._batches(images, failed):
            logits = self._run(self.model, batch)
            for each, top in zip(inputs, zip(*logits.softmax(1).cpu().topk(topk), strict=True), strict=True):
                classes = (
                    ClassProbability(index, self.class_names[index], probability)
                    for probability, index in zip(*(values.tolist() for values in top), strict=True)
                )
                yield Prediction(tuple(classes), each.path)

    def features(self, images: ImageLike | Iterable[Any], normalize: bool = False) -> Tensor:
        """Embeddings: what the network's classifier sees of an image, its pooled features.

        Args:
            images: As above; of one image N is 1.
            normalize: Divide each by its L2 norm, so that a product of two is their cosine similarity.

        Returns:
            (N, num_features), float32, on the CPU.

        Raises:
            ValueError: naming the image, if one cannot be read or is not what is taken; if the network does not say
                which layer its classifier is, or results are not finite.
        """
        if self._embed is None:
            self._embed = _without_classifier(self.model)
        embed = self._embed
        found = [self._run(embed, batch).cpu() for _, batch in self._batches(images)]
        if not found:
            size, device = self.data_config["input_size"], self.device
            found = [self._run(embed, torch.zeros(1, *size, device=device)).cpu()[:0]]
        features = torch.cat(found)
        return F.normalize(features) if normalize else features

    def _batches(
        self, images: Any, failed: Callable[[ValueError], object] | None = None
    ) -> Iterator[tuple[list[Input], Tensor]]:
        """Images, and what the network sees of them, (N, C, H, W)."""
        if isinstance(images, str | os.PathLike) and not is_single(images):
            raise ValueError(f"images must be a file, got the folder {images}: [folder] is all images under it")
        ready = self._preprocessed(images, failed)
        while batch := list(islice(ready, self.batch_size)):
            inputs, tensors = zip(*batch, strict=True)
            yield list(inputs), torch.stack(tensors).to(self.device).contiguous(memory_format=torch.channels_last)

    def _preprocessed(
        self, images: Any, failed: Callable[[ValueError], object] | None
    ) -> Iterator[tuple[Input, Tensor]]:
        for each in each_input(images, self._channels):
            try:
                image = opaque_image(each.read())
            except ValueError as error:
                if failed is None:
                    raise
                failed(error)
            else:
                yield each, self.transform(image.convert(self._mode))

    def _run(self, network: nn.Module, batch: Tensor) -> Tensor:
        with torch.inference_mode():
            results: Tensor = network(batch).float()
        check_results(results)
        return results


def name_classes(
    model: nn.Module,
    names: Sequence[str] | None = None,
    checkpoint: Path | None = None,
    described: bool = True,
    source: str = "class_names",
) -> list[str]:
    """A name for every class of a classifier.

    Args:
        model: The classifier.
        names: Those that the user gives.
        checkpoint: The file of its weights, whose names come next.
        described: Its `pretrained_cfg` is of these weights; its names come last, before the classes' indices. Other
            weights' classes need not be those of the tag that a network has by default.
        source: What `names` are called in messages.

    Raises:
        ValueError: if the names are not as many as the classes, or it is not known how many there are.
    """
    network: Any = model
    if isinstance(names, str):
        raise ValueError(f"{source} must be several names, got the text {names!r}")
    if names is None and checkpoint:
        names, source = read_classes(checkpoint), str(checkpoint)
    count = getattr(network, "num_classes", None)
    if names is not None:
        if count is not None:
            check_names(names, network, source)
        return list(names)
    if count is None:
        raise ValueError(f"{source} must be given: a {type(network).__name__} does not say how many classes it has")
    info = published_classes(network) if described and hasattr(network, "pretrained_cfg") else None
    return [info.index_to_description(index) if info else str(index) for index in range(count)]


# ----------------------------------------------------------------------------------------------------------- embeddings


class _Features(nn.Module):
    """A network of timm's interface up to its classifier."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.forward_head(self.network.forward_features(x), pre_logits=True).flatten(1)


def _without_classifier(network: nn.Module) -> nn.Module:
    """The part of a network that ends where its classifier begins, (N, C, H, W) to (N, num_features).

    Raises:
        ValueError: if it does not say where that is.
    """
    if hasattr(network, "forward_head") and hasattr(network, "forward_features"):
        return _Features(network)
    name = (getattr(network, "pretrained_cfg", None) or {}).get("classifier")
    if not isinstance(network, fx.GraphModule) or not isinstance(name, str):
        raise ValueError(
            "features must be those of a network with timm's forward_features and forward_head, or whose "
            f"pretrained_cfg names its classifier, got {type(network).__name__}"
        )
    calls = [node for node in network.graph.nodes if node.op == "call_module" and node.target == name]
    if len(calls) != 1:
        raise ValueError(f"features end where the classifier begins, but {name!r} is called {len(calls)} times")
    source = calls[0].all_input_nodes[0]
    if source.op == "call_module" and source.target == f"{name}_input":  # makes bytes of them
        source = source.all_input_nodes[0]
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.graph_copy(network.graph, copies)
    graph.output(graph.call_method("flatten", (copies[source], 1)))
    embed = fx.GraphModule(network, graph)
    embed.graph.eliminate_dead_code()
    embed.recompile()
    return embed
