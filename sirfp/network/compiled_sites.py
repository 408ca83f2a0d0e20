"""Knows the call sites of code that PyTorch's compiler follows or has rewritten.

The compiler does not run the functions that it follows, so they are not on Python's stack. PyTorch has no public
interface that tells which they are. Where the private one is missing, calls are known by their number only.
"""

from __future__ import annotations

import os
import sys
from types import CodeType
from typing import Any

from .call_sites import Stack, of_the_model, site_mark

_REPLACING = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sizes.py")
_REST = "torch_dynamo_resume"
"""How names of functions begin that are the rest of one that the compiler has broken in two."""


def is_rewritten(stack: Stack) -> bool:
    """True if PyTorch's compiler has rewritten some of the functions, so that the mark of the site does not hold."""
    rewritten = getattr(sys.modules.get("torch._dynamo.convert_frame"), "output_codes", ())
    return any(code in rewritten or code.co_name.startswith(_REST) for code, _ in stack)


def compiled_level() -> int:
    """Returns how many forwards of modules whose sizes are replaced run, in code that PyTorch's compiler follows."""
    return sum(_replaces(code) for code, _ in _compiled_frames())


def compiled_mark(level: int) -> str:
    """Returns the second half of the mark of the site that PyTorch's compiler is at.

    Where it cannot be known, as in the rest of a function that the compiler has broken in two, the result begins with
    "?", and tells one site from another only; it is empty if not even that is known.

    Args:
        level: how many forwards of modules whose sizes are replaced run at the module's own (`compiled_level`).
    """
    frames = _compiled_frames()
    broken = any(code.co_name.startswith(_REST) for code, _ in frames)
    forwards = [i for i, (code, _) in enumerate(frames) if _replaces(code)]
    if broken or not 0 < level <= len(forwards):
        return "?" + site_mark(of_the_model(frames)) if frames else ""
    return site_mark(of_the_model(frames[: forwards[-level]]))


def _replaces(code: CodeType) -> bool:
    """True for the forward that `sirfp.network.sizes` gives to modules whose sizes are replaced."""
    return code.co_name == "forward" and code.co_filename == _REPLACING


def _compiled_frames() -> Stack:
    """Returns the functions that PyTorch's compiler follows, from the innermost; nothing if this version hides them."""
    try:
        from torch._dynamo.symbolic_convert import InstructionTranslator

        translator: Any = InstructionTranslator.current_tx().output.current_tx
        frames: Stack = []
        while translator is not None:
            frames.append((translator.f_code, translator.current_instruction.offset or 0))
            translator = getattr(translator, "parent", None)
        return frames
    except Exception:  # no public interface gives them
        return []


# The compiler runs these while it follows a model, and takes what they return as constants. This is what
# `torch.compiler.assume_constant_result` does, which would load the compiler: a second for each `import sirfp`.
compiled_level._dynamo_marked_constant = True  # type: ignore[attr-defined]
compiled_mark._dynamo_marked_constant = True  # type: ignore[attr-defined]
