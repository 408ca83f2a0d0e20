"""Training checkpoints: whole writes only, no pickled code, and no silent load of another model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine.hooks import BestCheckpointer
from safetensors import SafetensorError
from torch import nn

from .arrays import BROKEN, read_arrays
from .branches import training_only, within
from .checkpoint import read_safetensors, whole_file
from .errors import InputError
from .plan import PruningPlan
from .surgery import apply
from .weights import read_torch

BEST = "model_best"


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, made strict and safe.

    A file is written beside its place and renamed. The best network does not become the one that `--resume` goes
    on from. Files of PyTorch are read as tensors and plain data only, `.pkl` of Detectron2's model zoo as arrays.

    A pruned network's file carries its plan as text; the dense model that it is loaded into is cut first.

    Attributes:
        strict: the next load must fill the model exactly. Off, as when weights are a start for fine-tuning, what
            does not fit is skipped with a warning.
    """

    strict = False

    def __init__(self, model: nn.Module, save_dir: str = "", **checkpointables: Any):
        super().__init__(model, save_dir, **checkpointables)
        self.plan: PruningPlan | None = None  # what the model was pruned by
        self.optimizer: torch.optim.Optimizer | None = None  # cut along when a plan is loaded

    def save(self, name: str, **kwargs: Any) -> None:
        """Writes `<name>.pth`: the model, what is registered, and `kwargs`."""
        if not self.save_dir or not self.save_to_disk:
            return
        content = {"model": self.model.state_dict(), "plan": self.plan.to_json() if self.plan else ""}
        content["training_only"] = list(training_only(self.model))
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
        except InputError:
            raise
        except (LookupError, TypeError, AttributeError, ValueError, AssertionError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise InputError(f"{path} does not hold what this run needs ({type(error).__name__}: {reason})") from error
        except OSError as error:  # whatever a download raises
            raise InputError(
                f"{path} cannot be had ({type(error).__name__}); give MODEL.WEIGHTS a local file, or '' for none"
            ) from error
        finally:
            self._parsed_url_during_load = None

    def get_checkpoint_file(self) -> str:
        """The file that `last_checkpoint` names, which must lie beside it; "" where there is none."""
        try:
            name = (Path(self.save_dir) / "last_checkpoint").read_text().strip()
        except OSError:
            return ""
        if not name or Path(name).name != name:
            raise InputError(f"{self.save_dir}/last_checkpoint names {name!r}, which is no file beside it")
        return str(Path(self.save_dir) / name)

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):
            return _from_zoo(read_arrays(Path(filename)), filename)
        if filename.endswith(".pyth"):
            raise InputError(f"{filename}: pycls's files are not read; save its model_state as a .pth")
        try:
            return super()._load_file(filename)
        except InputError:
            raise
        except (*BROKEN, SafetensorError) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(f"{filename} is not a whole checkpoint ({reason}); copy or make it again") from error

    def _torch_load(self, f: str) -> dict[str, Any]:
        if f.endswith(".safetensors"):
            plan, state = read_safetensors(f)
            return {"model": state, "plan": plan.to_json() if plan else ""}
        return read_torch(f)

    def _load_model(self, checkpoint: dict[str, Any]):
        if not isinstance(checkpoint.get("model"), dict):
            raise InputError("the checkpoint holds no weights")
        text = checkpoint.pop("plan", "")
        if text:
            plan = PruningPlan.from_json(text)
            if plan != self.plan:
                apply(self.model, plan, self.optimizer)
                self.plan = plan
        incompatible = super()._load_model(checkpoint)
        if self.strict:
            branches = training_only(self.model)  # exported files are without them
            for problem, names in (
                ("lacks", [name for name in incompatible.missing_keys if not within(name, branches)]),
                ("has other than this model", incompatible.unexpected_keys),
                ("has in another shape", [name for name, *_ in incompatible.incorrect_shapes]),
            ):
                if names:
                    raise InputError(
                        f"the checkpoint is for another model: it {problem} {names[0]!r} ({len(names)} such); "
                        "use the config it was made with"
                    )
        return incompatible


def _from_zoo(content: Any, filename: str) -> dict[str, Any]:
    """What a `.pkl` holds, in the format of Detectron2's model zoo; one of Caffe2 has names that must be matched."""
    if not isinstance(content, dict):
        raise InputError(f"{filename} holds no weights by name")
    if "model" in content and "__author__" in content:
        return content
    blobs = content.get("blobs", content)
    model = {name: value for name, value in blobs.items() if not str(name).endswith("_momentum")}
    return {"model": model, "__author__": "Caffe2", "matching_heuristics": True}


class BestCheckpoint(BestCheckpointer):
    """Keeps the best network as `model_best.pth`, and remembers how good it was when a run is resumed."""

    def __init__(self, period: int, checkpointer: Checkpointer, metric: str):
        super().__init__(period, checkpointer, metric, file_prefix=BEST)

    def forget(self) -> None:
        """What was best counts no longer, as the network is another one now."""
        self.best_metric = self.best_iter = None

    def state_dict(self) -> dict[str, Any]:
        return {"metric": self.best_metric, "iter": self.best_iter}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best_metric, self.best_iter = state["metric"], state["iter"]
