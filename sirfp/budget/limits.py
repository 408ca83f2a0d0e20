"""Limits of every plan, whatever its budget, with the defaults of `sirfp.prune`, `sirfp prune` and the config."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral, Real
from typing import Any

from ..errors import InputError


def check_share(name: str, value: float, zero: bool = False) -> None:
    """Raises InputError unless a number is in (0, 1], or in [0, 1] if `zero` is True."""
    ok = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not ok or not (0 <= value <= 1 if zero else 0 < value <= 1):
        hint = f"; for {value:g}% write {value / 100:g}" if ok and 2 <= value <= 100 else ""
        raise InputError(f"{name} must lie in {'[' if zero else '('}0, 1], got {value!r}{hint}")


def check_count(name: str, value: Any, least: int) -> None:
    """Raises InputError unless a value is a whole number of at least `least`."""
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < least:
        raise InputError(f"{name} must be a whole number of at least {least}, got {value!r:.80}")


@dataclass(frozen=True)
class Limits:
    """Limits of a plan: the channels that may be removed, and the partitions in which they are ranked.

    The defaults apply to the function `sirfp.prune`, the command `sirfp prune` and the config keys `SIRFP.PARTITIONS`,
    `MIN_KEEP`, `ROUND_TO`, `IGNORE` and `KEEP`.

    Attributes:
        partitions: prefixes of group names. The first prefix that matches any group makes one partition of the matching
            groups; all other groups make a second one. Each partition is ranked on its own and loses the same share of
            the channels that it has before this pruning. "*" makes every group a partition. Without prefixes there is
            one partition. Stored as a tuple, like `ignore`. `sirfp.budget.widths.choose_widths` says what they mean
            where widths come from loss curves.
        min_keep: minimum share of its channels in the dense model that every group keeps, in [0, 1]. A group always
            keeps a channel.
        round_to: every width that this pruning reduces is a multiple of this number. Other widths of the kernels that
            it changes become multiples too where that costs little (`sirfp.budget.aligned`).
        ignore: names or patterns of modules that stay whole: all channels that they make and read are kept.
        keep: {name or pattern of layers: the channels that they keep}, a share in (0, 1] as a float, or a number of
            channels as an int. `sirfp.budget.given_widths` says what it means. Stored as a tuple of pairs.
        given: (group, number of atoms) of the groups of one model whose width `keep` decides.
        dense: (group, number of atoms in the dense model) of the groups of a model that was cut before; `min_keep` is a
            share of these. Groups that are missing are dense.

    Raises:
        InputError: `min_keep`, `round_to` or a value of `keep` is out of range, or a name is no text.
    """

    partitions: Iterable[str] = ("backbone.bottom_up", "backbone")
    min_keep: float = 0.02
    round_to: int = 1
    ignore: Iterable[str] = ()
    keep: Mapping[str, float] | Iterable[tuple[str, float]] = ()
    given: tuple[tuple[str, int], ...] = ()
    dense: tuple[tuple[str, int], ...] = ()

    def __post_init__(self):
        for name in ("partitions", "ignore"):
            object.__setattr__(self, name, _texts(name, getattr(self, name)))
        object.__setattr__(self, "keep", _pairs(self.keep))
        check_share("min_keep", self.min_keep, zero=True)
        check_count("round_to", self.round_to, 1)

    @property
    def entries(self) -> tuple[tuple[str, float], ...]:
        """The entries of `keep`."""
        return _pairs(self.keep)

    @cached_property
    def widths(self) -> dict[str, int]:
        """{group: number of atoms to keep}, of the groups whose width `keep` decides."""
        return dict(self.given)

    @cached_property
    def dense_sizes(self) -> dict[str, int]:
        """{group: number of atoms in the dense model}, of the groups whose number `dense` says."""
        return dict(self.dense)

    @staticmethod
    def from_config(cfg) -> Limits:
        """Reads the limits from cfg.SIRFP."""
        node = cfg.SIRFP
        return Limits(node.PARTITIONS, node.MIN_KEEP, node.ROUND_TO, node.IGNORE, node.KEEP)


def _texts(name: str, value: Any) -> tuple[str, ...]:
    """Returns names of modules as a tuple; a single one may be given alone.

    Raises:
        InputError: they are no texts.
    """
    texts = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else (value,)
    wrong = [text for text in texts if not isinstance(text, str)]
    if wrong:
        raise InputError(f"{name} must be names of modules, such as [\"layer4*\"], got {type(wrong[0]).__name__}")
    return texts


def _pairs(keep: Mapping[str, float] | Iterable[tuple[str, float]]) -> tuple[tuple[str, float], ...]:
    """Returns the entries of `keep` as pairs.

    Raises:
        InputError: it is no mapping, or a value is neither a share nor a number of channels.
    """
    if not isinstance(keep, (Mapping, tuple)):
        raise InputError(f"KEEP must map names of layers to shares or numbers of channels, got {keep!r:.80}")
    pairs: list[tuple[str, float]] = []
    for name, value in keep.items() if isinstance(keep, Mapping) else keep:
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if whole and int(value) >= 1:
            pairs.append((str(name), int(value)))
        elif isinstance(value, Real) and not isinstance(value, Integral) and 0 < float(value) <= 1:
            pairs.append((str(name), float(value)))
        else:
            raise InputError(
                f"KEEP of {name!r} must be a share of its channels in (0, 1] such as 0.5 (1.0 for all), or a whole "
                f"number of channels such as 64, got {value!r:.80}"
            )
    return tuple(pairs)


DEFAULT = Limits()
