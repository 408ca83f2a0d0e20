"""What every plan has to respect, whatever its budget; the defaults of `sirfp.prune`, `sirfp prune` and the config."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import InputError


def check_share(name: str, value: float, zero: bool = False) -> None:
    """Raises InputError unless a number lies in (0, 1], or in [0, 1] with `zero`."""
    ok = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not ok or not (0 <= value <= 1 if zero else 0 < value <= 1):
        raise InputError(f"{name} must lie in {'[' if zero else '('}0, 1], got {value!r}")


@dataclass(frozen=True)
class Limits:
    """Which channels may go, and how they are ranked.

    Its defaults are those of the function `sirfp.prune`, of the command `sirfp prune` and of the config keys
    `SIRFP.PARTITIONS`, `MIN_KEEP`, `ROUND_TO` and `IGNORE`.

    Attributes:
        partitions: prefixes of group names. The groups that match the first prefix that matches any make one
            partition, all others another; each is ranked on its own and loses the same share of its channels. "*" makes
            every group a partition; with no prefix there is one. Stored as a tuple, as is `ignore`.
        min_keep: the share of its channels, in [0, 1], that every group keeps at least (and at least one channel).
        round_to: every width that is reduced is a multiple of this.
        ignore: names or patterns of modules whose channels all stay.

    Raises:
        InputError: `min_keep` or `round_to` is out of its range.
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
        """Reads cfg.SIRFP."""
        node = cfg.SIRFP
        return Limits(node.PARTITIONS, node.MIN_KEEP, node.ROUND_TO, node.IGNORE)


DEFAULT = Limits()
