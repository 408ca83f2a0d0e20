"""What a `train_net.py` does before it imports Detectron2."""

from __future__ import annotations

import sys
import warnings

from ..errors import InputError
from ..network.detectron import check_detectron2


def begin() -> None:
    """Silences warnings that Detectron2 causes at each start; ends the program in one line if Detectron2 is missing.

    Raises:
        SystemExit: Detectron2, or a package that it needs, is not installed.
    """
    warnings.filterwarnings("ignore", "`torch.jit.script", FutureWarning)
    warnings.filterwarnings("ignore", "`torch.jit.script", DeprecationWarning)
    try:
        check_detectron2("train_net.py")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
