"""The option `--device`: where the networks of a command run."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

from ..errors import InputError, near

if TYPE_CHECKING:  # `sirfp --help` does not import PyTorch
    from ..sources.source import Source


def add_device(group: argparse.ArgumentParser | argparse._ArgumentGroup, what: str) -> None:
    """Adds `--device` to a command; `what` says what runs there."""
    group.add_argument(
        "--device",
        default="cpu",
        metavar="DEVICE",
        help=f"where {what}: cpu, cuda, or cuda:N for the N-th of several GPUs, counted from 0 (default %(default)s)",
    )


def add_trial_device(group: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Adds `--trial-device` to a command that prunes."""
    group.add_argument(
        "--trial-device",
        metavar="DEVICE",
        help="where a copy of the network runs to find which channels go together and to try cuts: with cpu, a GPU's "
        "libraries need not plan the many new shapes of these cuts (default: that of --device)",
    )


def check_device(name: str, flag: str = "--device") -> None:
    """Checks the value of `--device`, or of another flag; call it before anything is built.

    Raises:
        InputError: there is no such device, or PyTorch sees no such GPU on this machine.
    """
    import torch

    if name == "cpu":
        return
    number = re.fullmatch(r"cuda(?::([0-9]{1,9}))?", name)
    if number is None:
        raise InputError(f"{flag} {name!r}: networks run on cpu, cuda or cuda:N{near(name.lower(), ('cpu', 'cuda'))}")
    count = torch.cuda.device_count()
    if not count:
        built = "" if torch.version.cuda else f"; this PyTorch ({torch.__version__}) is built without CUDA"
        raise InputError(f"{flag} {name}: PyTorch finds no GPU on this machine{built}; leave {flag} out")
    if int(number[1] or 0) >= count:
        raise InputError(f"{flag} {name}: this machine has {count} GPU{'s' * (count > 1)}, counted from cuda:0")


def place(source: Source, name: str) -> Source:
    """Moves a source's model to the device of `--device`, where it then makes its inputs; returns the source."""
    source.to(name)
    return source
