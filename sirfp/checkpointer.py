"""Training checkpoints: whole writes only, no pickled code, and no silent load of another model."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer

from .checkpoint import whole_file
from .errors import InputError

BEST = "model_best"


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, made strict and safe.

    A file is written beside its place and renamed. The best network does not become the one that `--resume` goes
    on from. Files of PyTorch are read as tensors and plain data only; Detectron2's model zoo keeps its `.pkl`.

    Attributes:
        strict: the next load must fill the model exactly. Off, as when weights are a start for fine-tuning, what
            does not fit is skipped with a warning.
    """

    strict = False

    def save(self, name: str, **kwargs: Any) -> None:
        """Writes `<name>.pth`: the model, what is registered, and `kwargs`."""
        if not self.save_dir or not self.save_to_disk:
            return
        content = {"model": self.model.state_dict()}
        content |= {key: part.state_dict() for key, part in self.checkpointables.items()} | kwargs
        file = Path(self.save_dir) / f"{name}.pth"
        self.logger.info(f"Saving checkpoint to {file}")
        with whole_file(file) as beside:
            torch.save(content, beside)
        if name != BEST:
            with whole_file(Path(self.save_dir) / "last_checkpoint") as beside:
                beside.write_text(file.name)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Goes on from the last checkpoint, or starts from the weights in `path` (none where it is "").

        Raises:
            InputError: the file is missing or broken, or for another model where that matters.
        """
        if not (resume and self.has_checkpoint()):
            return self.load(path, checkpointables=[])
        with self.strictly():
            return self.load(self.get_checkpoint_file())

    @contextmanager
    def strictly(self) -> Iterator[None]:
        """What is loaded inside must fill the model exactly."""
        before, self.strict = self.strict, True
        try:
            yield
        finally:
            self.strict = before

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """See `resume_or_load`."""
        if path and "://" not in path and not os.path.isfile(path):
            raise InputError(f"there is no checkpoint {path}; correct MODEL.WEIGHTS or OUTPUT_DIR")
        try:
            return super().load(path, checkpointables)
        finally:
            self._parsed_url_during_load = None

    def _load_file(self, filename: str) -> dict[str, Any]:
        try:
            return super()._load_file(filename)
        except (RuntimeError, EOFError, pickle.UnpicklingError, UnicodeDecodeError, TypeError) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(f"{filename} is not a whole checkpoint ({reason}); copy or make it again") from error

    def _torch_load(self, f: str) -> dict[str, Any]:
        if f.endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(f)
        return torch.load(f, map_location="cpu", weights_only=True)

    def _load_model(self, checkpoint: dict[str, Any]):
        if not isinstance(checkpoint.get("model"), dict):
            raise InputError("the checkpoint holds no weights")
        incompatible = super()._load_model(checkpoint)
        if self.strict:
            for problem, names in (
                ("lacks", incompatible.missing_keys),
                ("has other than this model", incompatible.unexpected_keys),
                ("has in another shape", [name for name, *_ in incompatible.incorrect_shapes]),
            ):
                if names:
                    raise InputError(
                        f"the checkpoint is for another model: it {problem} {names[0]!r} ({len(names)} such); "
                        "use the config it was made with"
                    )
        return incompatible
