"""Notes which modules of a model ask whether they are in training mode."""

from __future__ import annotations

from typing import Any

from torch import nn

from .steady import is_steady

KNOWN = ("torch.nn.modules.", f"{__package__}.multihead", f"{__package__}.window_attention")
"""Beginnings of the names of Python's modules whose classes do the same at every width in training."""


class TrainingReads:
    """Notes, while active, the modules whose attribute `training` is read.

    A model none of whose modules reads it runs the same code in both modes, so that a pass in training mode tells
    nothing more. The attribute is watched through a property of `nn.Module` that is deleted at exit.

    Attributes:
        modules: the modules.
    """

    def __init__(self) -> None:
        self.modules: set[nn.Module] = set()

    def __enter__(self) -> TrainingReads:
        self._before = nn.Module.__dict__.get("training")
        setattr(nn.Module, "training", _Watched(self.modules))  # noqa: B010  (mypy refuses the assignment)
        return self

    def of_unknown_code(self) -> list[nn.Module]:
        """Returns the modules whose code for training is not known to do the same at every width.

        Norms, dropouts and stochastic depth (`is_steady`) are not among them: they stay in evaluation mode whenever
        channels are followed or cuts are tried, so their code for training does not run.
        """
        return [m for m in self.modules if not type(m).__module__.startswith(KNOWN) and not is_steady(m)]

    def __exit__(self, *exc: Any) -> None:
        if self._before is None:
            delattr(nn.Module, "training")
        else:
            setattr(nn.Module, "training", self._before)  # noqa: B010


class _Watched:
    """The attribute `training` of every module, stored where it always is."""

    def __init__(self, readers: set[nn.Module]):
        self.readers = readers

    def __get__(self, module: nn.Module | None, kind: Any) -> Any:
        if module is None:
            raise AttributeError("training")
        self.readers.add(module)
        if "training" in module.__dict__:
            return module.__dict__["training"]
        return kind.__getattr__(module, "training")  # a ScriptModule keeps it elsewhere

    def __set__(self, module: nn.Module, value: bool) -> None:
        module.__dict__["training"] = value
