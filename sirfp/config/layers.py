"""Names the output folder of a run if OUTPUT_DIR is not given, after the config files and the pruning they set."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

PathLike = str | os.PathLike[str]


class Pruning(NamedTuple):
    """The criterion and the budget of a config, in which prunings of one network differ.

    Attributes:
        criterion: SIRFP.CRITERION.
        flops, params, latency: SIRFP.KEEP_FLOPS, KEEP_PARAMS and KEEP_LATENCY, each a share in (0, 1].
    """

    criterion: str
    flops: float
    params: float
    latency: float

    @classmethod
    def of(cls, cfg: Any) -> Pruning:
        """Reads criterion and budget from a config."""
        return cls(cfg.SIRFP.CRITERION, cfg.SIRFP.KEEP_FLOPS, cfg.SIRFP.KEEP_PARAMS, cfg.SIRFP.KEEP_LATENCY)


def output_folder(files: Sequence[PathLike], stages: Sequence[Pruning]) -> str:
    """Returns the output folder of a run if neither its config nor its command line gives OUTPUT_DIR.

    The name consists of these parts, joined by "_":

    1. `<data set>_<network>` for a first file `configs/<data set>/<network>.yaml`; only the file's name for a file
       outside a folder `configs`;
    2. the name of each further file that changes neither criterion nor budget;
    3. the criterion, if it differs from that of the first file;
    4. the budget in per cent, if it differs from that of the first file: `keep40`, `keep40_params`, `keep40_latency`.

    Thus prunings of one network to several budgets, or by several criteria, write into different folders.

    Args:
        files: the config files; each later file overrides keys of the earlier ones.
        stages: criterion and budget after reading each file, and after applying the command line's options.

    Returns:
        `output/<name>`.
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
    """Returns the names of a config's folders below the last folder `configs`, and the config's own name."""
    path = Path(os.path.abspath(file))
    folders = path.parent.parts
    below = folders[len(folders) - folders[::-1].index("configs") :] if "configs" in folders else ()
    return [*below, path.stem]
