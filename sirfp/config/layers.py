"""The output folder of a run for which none was given: named after its config files and what they change."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

PathLike = str | os.PathLike[str]


class Pruning(NamedTuple):
    """What tells the prunings of one network apart.

    Attributes:
        criterion: SIRFP.CRITERION.
        flops, params, latency: SIRFP.KEEP_*, each a share in (0, 1].
    """

    criterion: str
    flops: float
    params: float
    latency: float

    @classmethod
    def of(cls, cfg: Any) -> Pruning:
        """Reads a config."""
        return cls(cfg.SIRFP.CRITERION, cfg.SIRFP.KEEP_FLOPS, cfg.SIRFP.KEEP_PARAMS, cfg.SIRFP.KEEP_LATENCY)


def output_folder(files: Sequence[PathLike], stages: Sequence[Pruning]) -> str:
    """Where a run writes when neither its config nor its command line gives OUTPUT_DIR.

    `configs/<data set>/<network>.yaml` writes into `output/<data set>_<network>`, a file that lies in no folder
    `configs` into `output/<its name>`. Then follow the name of each further file that changes neither criterion nor
    budget, the criterion, and the budget in per cent (`_keep40`, `_keep40_params`, `_keep40_latency`); criterion and
    budget only where they are not the first file's own. So prunings of one network to several budgets, or by several
    criteria, do not write into one folder.

    Args:
        files: the config and what is laid over it.
        stages: what each file asks for together with those before it, and last what the options make of it.
    """
    first, last = stages[0], stages[-1]
    words = _place(files[0])
    words += [Path(file).stem for file, a, b in zip(files[1:], stages, stages[1:], strict=False) if a == b]
    if last.criterion != first.criterion:
        words.append(last.criterion)
    for quantity in ("flops", "params", "latency"):
        share = getattr(last, quantity)
        if share != getattr(first, quantity):
            words.append(f"keep{100 * share:.10g}" + ("" if quantity == "flops" else f"_{quantity}"))
    return f"output/{'_'.join(words)}"


def _place(file: PathLike) -> list[str]:
    """A config's folders below the last one that is called `configs`, and its name."""
    path = Path(os.path.abspath(file))
    folders = path.parent.parts
    below = folders[len(folders) - folders[::-1].index("configs") :] if "configs" in folders else ()
    return [*below, path.stem]
