"""Arguments that several subcommands share: the dense model, a pruned file, images."""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from ..files.config_files import AddConfigFile, config_files
from ..files.nearby import nearby
from ..files.own_code import add_import
from ..reporting.progress import note, stage
from .recorded import complete, is_of_weights

if TYPE_CHECKING:
    from ..sources.source import Source

MODEL_USAGE = "(--timm NAME | --config-file PATH | --zoo CONFIG)"
OPTS_USAGE = "[KEY VALUE ...]"
_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*|model(\.(?!safetensors$)\w+)+")  # model.* in lazy configs


def at_least(least: int):
    """Makes an argparse type for whole numbers of at least `least`."""

    def read(text: str) -> int:
        if not re.fullmatch(r"[+-]?\d+", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text}")
        return int(text)

    return read


def share(text: str) -> float:
    """Reads a share of the command line; an argparse type."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"takes a share such as 0.5, got {text!r}") from None


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that select the dense model."""
    group = parser.add_argument_group("the dense model")
    group.add_argument("--timm", metavar="NAME", help="a network of timm, e.g. resnet50")
    group.add_argument(
        "--config-file",
        metavar="PATH",
        action=AddConfigFile,
        help="a config of Detectron2 or of one of sirfp's projects; repeatable: later files override earlier ones. "
        "A lazy config (.py) is executed, so only use one that you trust",
    )
    group.add_argument("--zoo", metavar="CONFIG", help="a config of Detectron2's model zoo")
    group.add_argument(
        "--weights",
        metavar="FILE",
        default="",
        help="the dense model's weights: .pth, .safetensors, Detectron2's .pkl; "
        "'timm' for timm's own download; without it the weights are RANDOM",
    )
    group.add_argument(
        "--size",
        nargs=2,
        type=at_least(1),
        metavar=("H", "W"),
        help="image size (height width) used to count FLOPs; by default the model's own",
    )
    group.add_argument("--num-classes", type=at_least(0), metavar="N", help="classes of a timm network")
    add_import(group)
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=at_least(0), default=0, help="seed of all random numbers (default %(default)s)")


def add_images(parser: argparse.ArgumentParser | argparse._ArgumentGroup, why: str, count: int, batch: int) -> None:
    """Adds a folder of images, and the number of images to read."""
    parser.add_argument("--images", metavar="FOLDER", help=why)
    parser.add_argument(
        "--batches",
        type=at_least(1),
        default=count,
        metavar="N",
        help="number of batches (default %(default)s)",
    )
    parser.add_argument(
        "--batch",
        type=at_least(1),
        default=batch,
        metavar="N",
        help="images in a batch (default %(default)s)",
    )


def file_and_pairs(args: argparse.Namespace, *, file: bool) -> tuple[str, list[str]]:
    """Splits a command's words into the pruned file, which comes first if it is given, and KEY VALUE pairs.

    Args:
        args: the command line.
        file: True if the command takes a pruned file.

    Raises:
        InputError: a word is neither, a value is missing, or weights are given beside the pruned file, which has them.
    """
    found, pairs = "", list(args.words)
    if file and pairs and not _KEY.fullmatch(pairs[0]):
        found = pairs.pop(0)
    if pairs and not file and pairs[0].endswith(".safetensors"):
        raise InputError(f"{pairs[0]}: this command takes no FILE; a dense model's weights are given by --weights")
    if pairs and not _KEY.fullmatch(pairs[0]):
        raise InputError(f"{pairs[0]!r} is not understood; after the options come KEY VALUE pairs of the config")
    if len(pairs) % 2:
        raise InputError(f"options of the config are KEY VALUE pairs; {pairs[-1]!r} is left over")
    given = ["--weights"] * bool(args.weights) + [
        key for key, value in zip(pairs[::2], pairs[1::2], strict=True) if is_of_weights(key) and value
    ]
    if found and given:
        raise InputError(
            f"{found} has the weights of the pruned model, beside which {' and '.join(given)} would have no effect: "
            f"leave {' and '.join(given)} out, or leave FILE out to work on the dense model"
        )
    if found and not Path(found).suffix and not Path(found).exists():
        raise InputError(f"there is no file {found}{nearby(found)}; a network of timm is given by --timm {found}")
    if found.endswith((".yaml", ".py")):
        raise InputError(f"{found} is a config, not a pruned file: give --config-file {found}")
    return found, pairs


def build_source(args: argparse.Namespace, opts: list[str], file: str = "") -> Source | None:
    """Builds the dense model that the arguments select, or that a pruned file records; returns None without either.

    Args:
        args: the command line.
        opts: its KEY VALUE pairs.
        file: the pruned file, or "".

    Raises:
        InputError: the arguments select more than one model, or the model cannot be built.
    """
    given = [name for name in ("timm", "config_file", "zoo") if getattr(args, name) is not None]
    if len(given) > 1:
        raise InputError(f"give one of --timm, --config-file and --zoo, not {len(given)}")
    args, opts, preprocessing = complete(args, opts, file)
    given = given or [name for name in ("timm", "config_file", "zoo") if getattr(args, name) is not None]
    if opts and given in ([], ["timm"]):
        raise InputError(f"{opts[0]!r}: KEY VALUE pairs are for --config-file and --zoo")
    if not given:
        return None
    _check_pairs(args)
    size = tuple(args.size) if args.size else None
    from ..data.pixels import LARGEST_SIDE
    from ..sources import source

    if size and max(size) > LARGEST_SIDE:
        raise InputError(f"--size must be at most {LARGEST_SIDE} pixels, got {max(size)}")

    stage("building the model")
    if given == ["timm"]:
        with in_flags(MODEL__TIMM__WEIGHTS="--weights", MODEL__TIMM__NAME="--timm"):
            return source.from_timm(
                args.timm,
                weights=args.weights,
                size=size,
                num_classes=args.num_classes,
                channels=preprocessing["input_size"][0] if preprocessing else 0,
                preprocessing=preprocessing or None,
            )
    if args.num_classes is not None:
        raise InputError(
            "--num-classes is for --timm; write MODEL.ROI_HEADS.NUM_CLASSES N, MODEL.RETINANET.NUM_CLASSES N or "
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES N instead"
        )
    if given == ["zoo"]:
        return source.from_zoo(args.zoo, opts, weights=args.weights, size=size)
    return source.from_config(config_files(args), opts, weights=args.weights, size=size)


def _check_pairs(args: argparse.Namespace) -> None:
    """Raises InputError if KEY VALUE pairs of the command line set what a command takes from its flags."""
    for key, value in zip(args.words, args.words[1:], strict=False):
        if key == "MODEL.DEVICE" and value != "cpu":
            raise InputError(f"MODEL.DEVICE {value} is for training runs; commands run on the CPU or on --device")
        name = key.removeprefix("SIRFP.")
        if key.startswith("SIRFP.") and name != "INPUT_SIZE" and _KEY.fullmatch(key):
            option = "option" if name.startswith("OPTIONS.") else name.partition(".")[0].lower()
            flag = f"; give --{option.replace('_', '-')}" if hasattr(args, option) else ""
            raise InputError(f"{key} is for training runs and has no effect here{flag}")


def check_untouched(args: argparse.Namespace, flag: str, **defaults: object) -> None:
    """Raises InputError if an option that needs a flag was given without it.

    Args:
        args: the command line.
        flag: the flag, for the message.
        **defaults: the options that need it, with their values if they are not given.
    """
    for name, default in defaults.items():
        if getattr(args, name) != default:
            raise InputError(f"--{name.replace('_', '-')} is for {flag}: give that, too")


@contextmanager
def in_flags(**flags: str) -> Iterator[None]:
    """In messages of InputErrors, replaces config keys by the command line's flags for them.

    In keyword names, `__` is a dot.
    """
    try:
        yield
    except InputError as error:
        text = str(error)
        for key, flag in flags.items():
            text = text.replace(key.replace("__", "."), flag)
        raise InputError(text) from None


def note_if_random(source: Source) -> None:
    """Says, while a long command works, that a dense model has no trained weights."""
    if source.weights is None:
        note("the weights are random: give --weights FILE for a trained model")


def need_model(source: Source | None) -> Source:
    """Returns the dense model; raises InputError if it is None."""
    if source is None:
        raise InputError("name the dense model: --timm NAME, --config-file PATH or --zoo CONFIG")
    return source


def add_tolerance(parser: argparse.ArgumentParser, default: float, other: str) -> None:
    """Adds `--tolerance`, the largest allowed difference of outputs; `other` says from what, e.g. "from PyTorch"."""
    text = f"largest relative difference {other} that passes (default %(default)s)"
    parser.add_argument("--tolerance", type=float, default=default, help=text)


def check_tolerance(value: float) -> None:
    """Raises InputError unless a tolerance is larger than 0."""
    if not value > 0:
        raise InputError(f"--tolerance must be above 0, got {value}")


def check_writable(path: str) -> None:
    """Raises InputError if a file cannot be created; call it before the work whose result is written."""
    target = Path(path)
    if target.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; name a file in it")
    parent = target.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise InputError(f"cannot write {path}: {parent} is not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"cannot write {path}: the folder {parent} allows no writing")
    try:
        tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:  # a full disk, or a file system of another kind
        raise InputError(f"cannot write {path}: {error.strerror}") from None
