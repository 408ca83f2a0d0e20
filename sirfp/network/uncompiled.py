"""Runs `flex_attention` without compiling it, so that dispatch modes see it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_MODULE, _SWITCH = "torch.nn.attention.flex_attention", "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"


@contextmanager
def uncompiled() -> Iterator[None]:
    """Turns off, while active, the compilation of calls of `flex_attention` in eager mode. Gradients must be off.

    PyTorch compiles these calls for eager mode too, to code that is as slow, and would compile the methods of active
    dispatch modes along. Functions that the user has compiled stay compiled.
    """
    module = sys.modules.get(_MODULE)
    before = getattr(module, _SWITCH, None)
    if before is None:
        yield
        return
    setattr(module, _SWITCH, True)
    try:
        yield
    finally:
        setattr(module, _SWITCH, before)
