"""Where a pruned file's model comes from, recorded in the file: commands need not be told again.

The record is a description, no code, and it may be wrong: a file of someone else is checked like any other input, and
flags of the command line override it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..data.pixels import LARGEST_SIDE
from ..errors import InputError
from ..files.nearby import nearby

ORIGIN_KEY = "sirfp_model"
"""Key of the record in a file's metadata."""
NUMBERS = ("mean", "std", "input_size")
WORDS = ("interpolation", "crop_mode")
PREPROCESSING = (*NUMBERS, *WORDS, "crop_pct")
"""Keys of timm's data config that are recorded."""


@dataclass(frozen=True)
class Origin:
    """Where a dense model comes from: a network of timm, a config of Detectron2's model zoo, or config files.

    Attributes:
        timm: name of a timm network, or "".
        zoo: name of a config of Detectron2's model zoo, or "".
        config_files: config files; a relative path is looked up beside the pruned file, then in the working folder.
        opts: KEY VALUE pairs that override the config.
        size: (height, width) of the images in pixels on which FLOPs were counted; None if not known.
        num_classes: number of classes of a timm network; None for the network's own number.
        colours: order of the colour channels, e.g. "RGB"; for readers of the file, not used by commands.
        preprocessing: timm's data config of the network, with the keys `PREPROCESSING`; empty for the network's own.
    """

    timm: str = ""
    zoo: str = ""
    config_files: tuple[str, ...] = ()
    opts: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    num_classes: int | None = None
    colours: str = ""
    preprocessing: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The model in words, for messages."""
        if self.timm:
            classes = "" if self.num_classes is None else f", {self.num_classes} classes"
            return f"timm {self.timm}{classes}"
        return f"zoo {self.zoo}" if self.zoo else " ".join(self.config_files)

    def to_json(self) -> str:
        """Returns the record as JSON, without fields that say nothing."""
        return json.dumps(
            {key: value for key, value in dataclasses.asdict(self).items() if value not in ("", (), {}, None)}
        )

    @classmethod
    def from_json(cls, text: str) -> Origin:
        """Reads what `to_json` returns; unknown keys, which a later version may write, are left out.

        Raises:
            InputError: the text is no such record.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            raise InputError("the record of its model is no JSON") from None
        if not isinstance(content, dict):
            raise InputError("the record of its model is no JSON object")
        for key, fits in _FITS.items():
            if key in content and not fits(content[key]):
                raise InputError(f"the record of its model is damaged: {key} is {content[key]!r:.80}")
        values: dict[str, Any] = {key: content[key] for key in _FITS if key in content}
        for key in ("config_files", "opts", "size"):
            if key in values:
                values[key] = tuple(values[key])
        if "preprocessing" in values:
            values["preprocessing"] = {key: _plain(value) for key, value in values["preprocessing"].items()}
        origin = cls(**values)
        if sum(map(bool, (origin.timm, origin.zoo, origin.config_files))) != 1:
            raise InputError("the record of its model is damaged: it must name one of timm, zoo and config_files")
        return origin


def read_origin(path: str | os.PathLike) -> Origin | None:
    """Reads where the model of a pruned file comes from; None if the file has no record.

    Raises:
        InputError: the file is missing or damaged, or the record is.
    """
    if not Path(path).is_file():
        raise InputError(f"there is no file {path}{nearby(path)}")
    try:
        with safe_open(str(path), framework="pt") as file:
            text = (file.metadata() or {}).get(ORIGIN_KEY)
    except (SafetensorError, OSError, ValueError) as error:
        raise unreadable(path, error) from None
    try:
        return Origin.from_json(text) if text else None
    except InputError as error:
        raise InputError(f"{path}: {error}; name the model: --timm NAME, --config-file PATH or --zoo CONFIG") from None


def unreadable(path: str | os.PathLike, error: Exception) -> InputError:
    """The error for a file that safetensors cannot read: one of PyTorch, of another kind, or a damaged one."""
    if zipfile.is_zipfile(path):  # as torch.save writes
        return InputError(
            f"{path} is a PyTorch checkpoint, not a pruned file (*.safetensors); for a dense model use --weights"
        )
    if Path(path).suffix != ".safetensors":
        return InputError(f"{path} is not a pruned file (*.safetensors), as `sirfp prune` writes it")
    return InputError(f"{path} is not a complete safetensors file ({error}); copy it or write it again")


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _word(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and len(value) < 4096


def _words(value: Any) -> bool:
    return isinstance(value, list) and all(map(_word, value))


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _count(value: Any, least: int = 1, most: int = LARGEST_SIDE) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_count, value))


def _preprocessing(value: Any) -> bool:
    """True for a data config whose sizes, means and deviations agree in the number of channels."""
    if not isinstance(value, dict) or set(value) != set(PREPROCESSING):
        return False
    size = value["input_size"]
    if not isinstance(size, list) or len(size) != 3 or not all(map(_count, size)):
        return False
    for key in ("mean", "std"):
        if not isinstance(value[key], list) or len(value[key]) != size[0] or not all(map(_number, value[key])):
            return False
    return min(value["std"]) > 0 and all(_word(value[key]) for key in WORDS) and _number(value["crop_pct"])


_FITS = {
    "timm": _word,
    "zoo": _word,
    "config_files": _words,
    "opts": lambda value: _words(value) and len(value) % 2 == 0,
    "size": _size,
    "num_classes": lambda value: _count(value, 0, 10**7),
    "colours": _word,
    "preprocessing": _preprocessing,
}
"""{key: check of its value}."""
