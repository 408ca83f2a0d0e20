"""Training checkpoints: written completely or not at all, read without pickled code, and only into their own model."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from safetensors import SafetensorError
from torch import nn

from ..checkpoint.dense import read_torch
from ..checkpoint.pruned import read_safetensors
from ..errors import InputError, one_line
from ..files.pickles import BROKEN, read_arrays
from ..files.whole import whole_file
from ..network.branches import training_only, within
from ..processes import decide_once
from ..structure.plan import PruningPlan
from ..surgery.cut import apply

BEST = "model_best"
FINAL = "model_final"
_NUMBERED = re.compile(r"model_(\d{7,})\.pth")


class BrokenFile(InputError):
    """A checkpoint is missing or broken; an earlier one can be used instead."""


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, made strict and safe.

    A file is written under a temporary name and renamed. `--resume` continues from the last checkpoint, not from the
    best network; if the last one is broken, from the one before it. PyTorch's files are read as tensors and plain data
    only, `.pkl` files of Detectron2's model zoo as arrays.

    The file of a pruned network holds its plan as text; the dense model that it is loaded into is cut first.

    Attributes:
        strict: if True, the next load must fill the model exactly. If False, as for weights to fine-tune from, entries
            that do not fit are skipped with a warning.
    """

    strict = False

    def __init__(self, model: nn.Module, save_dir: str = "", **checkpointables: Any):
        super().__init__(model, save_dir, **checkpointables)
        self.plan: PruningPlan | None = None  # the plan by which the model was pruned
        self.optimizer: torch.optim.Optimizer | None = None  # cut along when a plan is loaded

    def save(self, name: str, **kwargs: Any) -> None:
        """Writes `<name>.pth`: the model, the state of the registered checkpointables, and `kwargs`."""
        if not self.save_dir or not self.save_to_disk:
            return
        content = {"model": self.model.state_dict(), "plan": self.plan.to_json() if self.plan else ""}
        content["training_only"] = list(training_only(self.model))
        content |= {key: part.state_dict() for key, part in self.checkpointables.items()} | kwargs
        file = Path(self.save_dir) / f"{name}.pth"
        self.logger.info(f"Saving checkpoint to {file}")
        with whole_file(file) as beside:
            try:
                torch.save(content, beside)
            except RuntimeError as error:  # PyTorch's writer wraps the system's error
                reason = str(error).rpartition(" . ")[2]
                raise OSError(f"the file could not be written completely ({reason}); is the disk full?") from error
        if name != BEST:
            with whole_file(Path(self.save_dir) / "last_checkpoint") as beside:
                beside.write_text(file.name)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Continues from the last intact checkpoint, or starts from the weights in `path` ("" for none).

        Args:
            path: the file of weights to start from, if the run does not continue.
            resume: True to continue from a checkpoint, if there is one.

        Returns:
            What else the file holds beside the model.

        Raises:
            InputError: on every process: the file is missing or broken, or a checkpoint to continue from is for
                another model.
        """
        files = decide_once(self.resumable) if resume else []
        if not files:
            return self.load(path, checkpointables=[])
        read: dict[str, Any] = {}
        with self.strictly():
            file = decide_once(lambda: self._load_first(files, read))
            if not comm.is_main_process():
                try:
                    read = self.load(str(file))
                except BrokenFile as error:
                    raise InputError(f"{error}; all machines of a run need one OUTPUT_DIR on a shared disk") from error
        return read

    def _load_first(self, files: list[Path], read: dict[str, Any]) -> Path:
        """Loads the first intact file into `read`, logs a warning if it is not the first one, and returns its path."""
        broken = []
        for file in files:
            try:
                _check_whole(file)
                read |= self.load(str(file))
            except BrokenFile as error:
                self.logger.warning(f"{error}; looking for an earlier checkpoint")
                broken.append(error)
                continue
            if broken:
                self.logger.warning(f"Going on from {file}, as the later checkpoints are broken")
            return file
        before = ", and no earlier one is whole" if len(files) > 1 else ""
        raise InputError(f"{broken[0]}{before}; to begin anew, empty {self.save_dir} or give OUTPUT_DIR another folder")

    def resumable(self) -> list[Path]:
        """Lists the run's checkpoints, newest first: the one that `last_checkpoint` names, then earlier ones.

        Raises:
            InputError: `last_checkpoint` names a file in another folder.
        """
        folder = Path(self.save_dir)
        numbered = sorted((f for f in folder.glob("model_*.pth") if _NUMBERED.fullmatch(f.name)), reverse=True)
        last = self.get_checkpoint_file()
        if not last:  # the run was killed before it wrote `last_checkpoint`, or the file was lost
            ended = [file for file in (folder / f"{FINAL}.pth",) if file.is_file()]
            return sorted([*ended, *numbered], key=lambda file: file.stat().st_mtime, reverse=True)
        named = Path(last)
        earlier = [f for f in numbered if not _NUMBERED.fullmatch(named.name) or f.name < named.name]
        return [named, *earlier]

    def has_checkpoint(self) -> bool:
        """True if there is a checkpoint to continue from."""
        return bool(self.resumable())

    @contextmanager
    def strictly(self) -> Iterator[None]:
        """While active, a file must fill the model exactly; a file that does not raises InputError."""
        before, self.strict = self.strict, True
        try:
            yield
        finally:
            self.strict = before

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Loads one file; see `resume_or_load`.

        Args:
            path: the file, or "" for none.
            checkpointables: names of the registered objects to load too; all by default.

        Raises:
            InputError: the file cannot be read, or does not hold what the run needs; `BrokenFile` if it is missing.
        """
        if path and "://" not in path and not os.path.isfile(path):
            raise BrokenFile(f"there is no checkpoint {path}; correct MODEL.WEIGHTS or OUTPUT_DIR")
        try:
            return super().load(path, checkpointables)
        except InputError:
            raise
        except (LookupError, TypeError, AttributeError, ValueError, AssertionError, RuntimeError) as error:
            reason = one_line(error, 160)
            raise InputError(f"{path} does not hold what this run needs ({type(error).__name__}: {reason})") from error
        except OSError as error:  # a download failed
            raise InputError(
                f"{path} cannot be downloaded or read ({type(error).__name__}); "
                "give MODEL.WEIGHTS a local file, or '' for none"
            ) from error
        finally:
            self._parsed_url_during_load = None

    def get_checkpoint_file(self) -> str:
        """Returns the file in the run's folder that `last_checkpoint` names, "" if it names none."""
        try:
            name = (Path(self.save_dir) / "last_checkpoint").read_text().strip("\0 \n")
        except (OSError, UnicodeDecodeError):
            return ""
        if not name:
            return ""
        if Path(name).name != name:
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
            raise BrokenFile(f"{filename} is not a whole checkpoint ({reason}); copy or make it again") from error

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
            branches = training_only(self.model)  # exported files do not hold them
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


def _check_whole(file: Path) -> None:
    """Raises BrokenFile if a checkpoint's checksums do not match its content; PyTorch does not check them."""
    if not file.is_file():
        return
    try:
        with zipfile.ZipFile(file) as archive:
            bad = archive.testzip()
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise BrokenFile(f"{file} is not a whole checkpoint ({error}); copy or make it again") from error
    if bad:
        raise BrokenFile(f"{file} is not a whole checkpoint ({bad} is not what was written); copy or make it again")


def _from_zoo(content: Any, filename: str) -> dict[str, Any]:
    """Brings the content of a `.pkl` into the format of Detectron2's model zoo; marks Caffe2's names to be matched."""
    if not isinstance(content, dict):
        raise InputError(f"{filename} holds no weights by name")
    if "model" in content and "__author__" in content:
        return content
    blobs = content.get("blobs", content)
    model = {name: value for name, value in blobs.items() if not str(name).endswith("_momentum")}
    return {"model": model, "__author__": "Caffe2", "matching_heuristics": True}
