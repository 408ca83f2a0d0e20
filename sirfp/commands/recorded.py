"""Pruned files in commands: the model that a file records, where flags name none; loading it; the record to write."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..files.config_files import config_files

if TYPE_CHECKING:  # `sirfp --help` does not import PyTorch
    import torch
    from torch import nn

    from ..checkpoint.origin import Origin
    from ..sources.source import Source
    from ..structure.plan import PruningPlan

MODELS = ("timm", "config_file", "zoo")
"""Options that name a model, as attributes of the command line."""


def complete(
    args: argparse.Namespace, opts: list[str], file: str
) -> tuple[argparse.Namespace, list[str], dict[str, Any]]:
    """Adds what a pruned file records of its model to what the command line says, which takes precedence.

    The record is not used if flags name another model.

    Args:
        args: the command line; not changed.
        opts: its KEY VALUE pairs.
        file: the pruned file, or "".

    Returns:
        The arguments, the KEY VALUE pairs, and timm's data config (empty if not recorded).

    Raises:
        InputError: the record is damaged, its config file is missing, or its config is Python code.
    """
    from ..checkpoint.origin import read_origin

    named = any((args.timm, args.config_file, args.zoo))
    try:
        origin = read_origin(file) if file else None
    except InputError:
        if not named:
            raise
        origin = None  # flags that name the model override a damaged record
    if origin is None or not _same_model(args, origin):
        return args, opts, {}
    lazy = origin.zoo.endswith(".py") or "".join(origin.config_files[:1]).endswith(".py")
    if lazy and not named and (origin.config_files or origin.opts):
        flag = "--zoo" if origin.zoo else "--config-file"
        raise InputError(
            f"{file} records the lazy config {origin.name}, which would be executed: if you trust it, name it, "
            f"{flag} {origin.name}, with its KEY VALUE pairs"
        )
    args = copy(args)
    if not named:
        args.timm, args.zoo = origin.timm or None, origin.zoo or None
        if origin.config_files:
            args.config_file, *args.layers = (_found(path, file) for path in origin.config_files)
    args.size = args.size or origin.size
    if args.num_classes is None and origin.timm:
        args.num_classes = origin.num_classes
    recorded = [] if lazy else list(_without_weights(origin.opts))
    known = opts[: len(recorded)] == recorded  # completed before
    return args, opts if known else [*recorded, *opts], origin.preprocessing


def origin_of(args: argparse.Namespace, opts: list[str], source: Source) -> Origin:
    """The record of a command's model. Keys of weights are left out, as the file holds the weights."""
    from ..checkpoint.origin import PREPROCESSING, Origin

    about: dict[str, Any] = {"opts": _without_weights(opts), "size": source.size, "colours": source.colours}
    if args.zoo:
        return Origin(zoo=args.zoo, **about)
    if args.config_file:
        return Origin(config_files=tuple(config_files(args)), **about)
    known, classes = getattr(source, "preprocessing", {}), getattr(source.model, "num_classes", None)
    complete = {key: known[key] for key in PREPROCESSING} if all(key in known for key in PREPROCESSING) else {}
    return Origin(
        timm=args.timm, num_classes=classes if isinstance(classes, int) else None, preprocessing=complete, **about
    )


def restore_as_named(
    model: nn.Module, plan: PruningPlan, state: Mapping[str, torch.Tensor], file: str, args: argparse.Namespace
) -> None:
    """Turns the dense model that the command line names into a file's pruned model.

    Args:
        model: the dense model; changed in place.
        plan, state: what `sirfp.checkpoint.pruned.read` returns.
        file: the pruned file, for messages.
        args: the command line, without what the file records.

    Raises:
        InputError: the file is for another model; the message names the option to give or to leave out.
    """
    from ..checkpoint.pruned import CLASSES, restore

    try:
        restore(model, plan, state, file)
    except InputError as error:
        text = str(error).removesuffix(f"; {CLASSES}")
        raise InputError(f"{text}; {_other_options(file, args)}") from None


def _other_options(file: str, args: argparse.Namespace) -> str:
    """Says which options name the model of a file, for messages."""
    from ..checkpoint.origin import read_origin

    try:
        origin = read_origin(file)
    except InputError:
        origin = None
    if origin is None:
        return "name the network that was pruned, and its number of classes (with --timm by --num-classes)"
    given = [f"--{name.replace('_', '-')}" for name in (*MODELS, "num_classes") if getattr(args, name) is not None]
    given += args.words[1::2]  # the keys of KEY VALUE pairs, which come after the file
    return f"it records {origin.name}" + (f": leave out {' and '.join(given)}" if given else "")


def is_of_weights(key: str) -> bool:
    """True if a config key names a file of weights."""
    return key.endswith("WEIGHTS")


def _without_weights(opts: Sequence[str]) -> tuple[str, ...]:
    """KEY VALUE pairs without those that name files of weights."""
    pairs = zip(opts[::2], opts[1::2], strict=True)
    return tuple(word for pair in pairs if not is_of_weights(pair[0]) for word in pair)


def _same_model(args: argparse.Namespace, origin: Origin) -> bool:
    """True if the command line names no model, or the recorded one."""
    given = {name: getattr(args, name) for name in MODELS if getattr(args, name) is not None}
    if not given:
        return True
    if "config_file" in given:
        return tuple(config_files(args)) == origin.config_files
    return given == {"timm": origin.timm} or given == {"zoo": origin.zoo}


def _found(path: str, file: str) -> str:
    """Returns the path of a recorded config file, which lies beside the pruned file or in the working folder."""
    for place in (Path(file).parent / path, Path(path)):
        if place.is_file():
            return str(place)
    raise InputError(f"{file} records the config {path}, which is missing here; name it: --config-file PATH")
