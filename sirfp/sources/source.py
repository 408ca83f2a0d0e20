"""The dense model of a command, and its inputs: random ones, or images of a folder.

A timm network is called with a batch of tensors, preprocessed as its own configuration says; a model of
Detectron2 with `list[dict]`, images in INPUT.FORMAT with their shorter side at INPUT.MIN_SIZE_TEST.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoint.dense import fill, read_weights
from ..errors import InputError, near, one_line
from ..network.forward import call, inference, random_images
from ..network.proposals import random_proposals
from .images import find_images, read_image

NAMED_WEIGHTS = ("timm", "pypi://")


@dataclass
class Source:
    """A dense model on the processor, and how to call it.

    Attributes:
        name: the name that the user gave, for messages.
        model: the dense model.
        size: (height, width) of the example inputs in pixels.
        weights: where its weights came from, None for random ones.
    """

    name: str
    model: nn.Module
    size: tuple[int, int]
    weights: str | None = None

    def example(self, batch: int = 1, seed: int = 0) -> Any:
        """Random inputs, of `batch` images."""
        raise NotImplementedError

    def read(self, paths: Sequence[Path]) -> Any:
        """Inputs from image files."""
        raise NotImplementedError

    def raw(self, inputs: Any) -> list[torch.Tensor]:
        """Each image of inputs as it was before normalisation, (C, H, W) from 0 to 255."""
        raise NotImplementedError

    @property
    def colours(self) -> str:
        """The order of the images' colours, "RGB", "BGR" or "L"."""
        raise NotImplementedError

    def fresh(self) -> nn.Module:
        """A copy of the dense model."""
        return copy.deepcopy(self.model)

    def batches(self, folder: str, count: int, batch: int, seed: int = 0) -> Iterator[Any]:
        """Inputs from images drawn from a folder and what is below it, each once.

        Args:
            folder: of images, with subfolders or without.
            count: most batches; fewer where there are fewer images.
            batch: images in each.
            seed: of the draw.

        Raises:
            InputError: there is no folder or no image in it, at once; or an image cannot be read.
        """
        paths = find_images(folder)
        random.Random(seed).shuffle(paths)
        paths = paths[: count * batch]
        return (self.read(paths[i : i + batch]) for i in range(0, len(paths), batch))

    def check(self) -> None:
        """Calls the model once.

        Raises:
            InputError: it cannot be called with images of this size.
        """
        try:
            with inference(self.model):
                call(self.model, self.example())
        except (RuntimeError, AssertionError, ValueError, IndexError, ZeroDivisionError) as error:
            height, width = self.size
            reason = one_line(error, 200) or type(error).__name__
            raise InputError(
                f"{self.name} cannot be run on {height} x {width} pixels ({reason}); choose another --size"
            ) from None


@dataclass
class TimmSource(Source):
    """A timm network."""

    preprocessing: dict[str, Any] = field(default_factory=dict)

    def example(self, batch: int = 1, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(batch, self.preprocessing["input_size"][0], *self.size, generator=generator)

    def read(self, paths: Sequence[Path]) -> torch.Tensor:
        from timm.data import create_transform

        transform = create_transform(**self.preprocessing, is_training=False)
        mode = "L" if self.preprocessing["input_size"][0] == 1 else "RGB"
        return torch.stack([transform(read_image(path).convert(mode)) for path in paths])

    def raw(self, inputs: torch.Tensor) -> list[torch.Tensor]:
        mean, std = (torch.tensor(self.preprocessing[key]).reshape(-1, 1, 1) for key in ("mean", "std"))
        return list((inputs * std + mean) * 255)

    @property
    def colours(self) -> str:
        return "L" if self.preprocessing["input_size"][0] == 1 else "RGB"


@dataclass
class DetectronSource(Source):
    """A model of Detectron2."""

    cfg: Any = None

    def example(self, batch: int = 1, seed: int = 0) -> list[dict]:
        generator = torch.Generator().manual_seed(seed)
        inputs = random_images(self.size, batch, generator)
        if self.cfg.MODEL.LOAD_PROPOSALS:
            count = self.cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST
            for given in inputs:
                given["proposals"] = random_proposals(*self.size, count, generator)
        return inputs

    def read(self, paths: Sequence[Path]) -> list[dict]:
        import numpy as np
        from detectron2.data.detection_utils import _apply_exif_orientation, convert_PIL_to_numpy
        from detectron2.data.transforms import ResizeShortestEdge

        side = self.cfg.INPUT.MIN_SIZE_TEST
        resize = ResizeShortestEdge([side, side], self.cfg.INPUT.MAX_SIZE_TEST)
        inputs = []
        for path in paths:
            image = convert_PIL_to_numpy(_apply_exif_orientation(read_image(path)), self.cfg.INPUT.FORMAT)
            height, width = image.shape[:2]
            image = resize.get_transform(image).apply_image(image)
            tensor = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32))
            inputs.append({"image": tensor, "height": height, "width": width})
        return inputs

    def raw(self, inputs: list[dict]) -> list[torch.Tensor]:
        return [one["image"] for one in inputs]

    @property
    def colours(self) -> str:
        return self.cfg.INPUT.FORMAT


BuildSource = Callable[[Any, str, "tuple[int, int] | None"], Source]
SOURCES: dict[str, BuildSource] = {}
"""What builds the dense model of a project whose models Detectron2 does not build, or calls with `list[dict]`."""


def register_source(project: str) -> Callable[[BuildSource], BuildSource]:
    """Registers what builds the dense model of a project's configs.

    It is called with the config, a file of weights or "", and (height, width) of the inputs or None.

    Args:
        project: the PROJECT of the configs.
    """

    def add(function: BuildSource) -> BuildSource:
        SOURCES[project] = function
        return function

    return add


def from_timm(
    name: str,
    *,
    weights: str = "",
    size: tuple[int, int] | None = None,
    num_classes: int | None = None,
    preprocessing: dict[str, Any] | None = None,
) -> Source:
    """A timm network.

    Args:
        name: one of `timm.list_models()`.
        weights: a file, "timm" for timm's own download, "pypi://efficientnet-lite0", or "" for random ones.
        size: (height, width); by default as the network was trained.
        num_classes: of its classifier; 0 for none.
        preprocessing: of images, as timm has it; by default the network's own.

    Raises:
        InputError: there is no such network, or the weights are not its own.
    """
    from timm.data import resolve_data_config

    from ..models.timm_weights import create_timm

    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if weights.startswith(NAMED_WEIGHTS) and not Path(weights).is_file():
        model = create_timm(name, weights, **options)
    else:
        model = create_timm(name, **options)
        if weights:
            fill(model, read_weights(weights), weights)
    preprocessing = preprocessing or resolve_data_config({}, model=model)
    channels, *usual = preprocessing["input_size"]
    size = tuple(size or usual)
    preprocessing["input_size"] = (channels, *size)
    return TimmSource(f"timm {name}", model.eval(), size, weights or None, preprocessing)


def from_config(
    path: str | Sequence[str],
    opts: Sequence[str] = (),
    *,
    weights: str = "",
    size: tuple[int, int] | None = None,
    name: str = "",
) -> Source:
    """The model of a config file, Detectron2's or a project's.

    Args:
        path: the config file, of Detectron2 or of a project (`sirfp.config.projects`), or several, each laid over those
            before it; a lazy config, one that ends in .py, is run as the program that it is.
        opts: KEY VALUE pairs that win over the file; MODEL.WEIGHTS among them is taken as `weights`.
        weights: a file, or "" for random ones.
        size: (height, width); by default SIRFP.INPUT_SIZE, or as the config's INPUT says.
        name: what to call it.

    Raises:
        InputError: something in the config is wrong, or the weights are not the model's.
    """
    from detectron2.projects.deeplab import add_deeplab_config

    from ..config.reading import input_size, load_config
    from ..models.deformable import provide_deformable

    provide_deformable()
    files = [path] if isinstance(path, str) else list(path)
    path = files[0]
    if path.endswith(".py"):
        if len(files) > 1:
            raise InputError(f"{path} is a program: no other config is laid over it; give KEY VALUE pairs")
        model, cfg = _lazy(path, opts)
    else:
        cfg = load_config(files, opts, add_deeplab_config)
        cfg.MODEL.DEVICE = "cpu"
        if not weights and "MODEL.WEIGHTS" in opts[::2]:
            weights = cfg.MODEL.WEIGHTS
        if cfg.PROJECT in SOURCES:
            return replace(SOURCES[cfg.PROJECT](cfg, weights, size), name=name or path)
        model = _built(cfg, path)
    if weights:
        fill(model, read_weights(weights), weights)
    return DetectronSource(name or path, model.eval(), size or input_size(cfg), weights or None, cfg)


def _lazy(path: str, opts: Sequence[str]) -> tuple[nn.Module, Any]:
    """The model of a lazy config, and a config that holds the format and size of its inputs."""
    from ..config.reading import load_config
    from .lazy import build_lazy

    model, inputs = build_lazy(path, opts)
    return model, load_config("", [word for key, value in inputs.items() for word in (f"INPUT.{key}", str(value))])


def _built(cfg: Any, path: str) -> nn.Module:
    """The model that Detectron2 builds of a config.

    Raises:
        InputError: it cannot.
    """
    from detectron2.modeling import build_model

    try:
        return build_model(cfg)
    except InputError:
        raise
    except (KeyError, ValueError, AssertionError, TypeError, AttributeError) as error:
        reason = " ".join(str(error.args[0] if error.args else error).split()) or type(error).__name__
        raise InputError(f"the model cannot be built from {path}: {reason}") from None


def from_zoo(config: str, opts: Sequence[str] = (), **kwargs: Any) -> Source:
    """A model of Detectron2's model zoo, by its config, e.g. "COCO-Detection/retinanet_R_50_FPN_1x.yaml" or a lazy .py.

    Raises:
        InputError: the zoo has no such config; see also `from_config`.
    """
    from detectron2 import model_zoo

    folder = Path(model_zoo.__file__).parent / "configs"
    known = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.suffix in (".yaml", ".py")}
    wanted = config if config.endswith((".yaml", ".py")) else f"{config}.yaml"
    if wanted not in known:
        tails = {Path(k).name: k for k in sorted(known, reverse=True)}
        hint = f"; did you mean {tails[wanted]}?" if wanted in tails else near(wanted, known)
        hint = hint or "; e.g. COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"
        raise InputError(f"Detectron2's model zoo has no config {config!r}{hint}")
    return from_config(str(folder / wanted), opts, name=f"zoo {wanted}", **kwargs)
