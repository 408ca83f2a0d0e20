"""Limits of every plan, whatever its budget, with the defaults of `sirfp.prune`, `sirfp prune` and the config."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import InputError


def check_share(name: str, value: float, zero: bool = False) -> None:
    """Raises InputError unless a number is in (0, 1], or in [0, 1] if `zero` is True."""
    ok = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not ok or not (0 <= value <= 1 if zero else 0 < value <= 1):
        raise InputError(f"{name} must lie in {'[' if zero else '('}0, 1], got {value!r}")


@dataclass(frozen=True)
class Limits:
    """Limits of a plan: the channels that may be removed, and the partitions in which they are ranked.

    The defaults apply to the function `sirfp.prune`, the command `sirfp prune` and the config keys `SIRFP.PARTITIONS`,
    `MIN_KEEP`, `ROUND_TO` and `IGNORE`.

    Attributes:
        partitions: prefixes of group names. The first prefix that matches any group makes one partition of the matching
            groups; all other groups make a second one. Each partition is ranked on its own and loses the same share of
            its channels. "*" makes every group a partition. Without prefixes there is one partition. Stored as a tuple,
            like `ignore`. `sirfp.budget.widths.choose_widths` says what they mean where widths come from loss curves.
        min_keep: minimum share of its channels that every group keeps, in [0, 1]. A group always keeps a channel.
        round_to: every reduced width is a multiple of this number.
        ignore: names or patterns of modules that keep all their channels.

    Raises:
        InputError: `min_keep` or `round_to` is out of range.
    """

    partitions: Iterable[str] = ("backbone.bottom_up", "backbone")
    min_keep: float = 0.02
    round_to: int = 1
    ignore: Iterable[str] = ()

    def __post_init__(self):
        for name in ("partitions", "ignore"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        check_share("min_keep", self.min_keep, zero=True)
        if not isinstance(self.round_to, int) or self.round_to < 1:
            raise InputError(f"round_to must be a whole number of at least 1, got {self.round_to!r}")

    @staticmethod
    def from_config(cfg) -> Limits:
        """Reads the limits from cfg.SIRFP."""
        node = cfg.SIRFP
        return Limits(node.PARTITIONS, node.MIN_KEEP, node.ROUND_TO, node.IGNORE)


DEFAULT = Limits()
