"""Writes and reads training checkpoints: complete files only, no pickled code, and with checks of the model."""

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
from ..files.nearby import nearby
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
    """A checkpoint is missing or damaged; an earlier checkpoint can be used instead."""


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with complete writes, safe reading and checks of the model.

    - A file is written under a temporary name and then renamed.
    - `--resume` continues from the last checkpoint, not from the best network. If the last checkpoint is damaged, it
      continues from an earlier one.
    - PyTorch's files may hold only tensors and plain data; `.pkl` files of Detectron2's model zoo may hold only arrays.
    - The file of a pruned network holds its plan as text. Loading it into a dense model first cuts the model.

    Args:
        model: the model, without a distributed wrapper.
        save_dir: folder of the checkpoints.
        first_plan: a file with a plan (plan.json) by which a new run cuts its model; "" for none.
        checkpointables: objects whose states are part of a checkpoint.

    Attributes:
        strict: if True, a file must fill the model exactly. If False, entries that do not fit are skipped with a
            warning, as for initial weights.
        plan: the plan by which the model was pruned; None for a dense model.
        optimizer: the optimizer whose state is cut when a plan is loaded; or None.
    """

    strict = False

    def __init__(self, model: nn.Module, save_dir: str = "", first_plan: str = "", **checkpointables: Any):
        super().__init__(model, save_dir, **checkpointables)
        self.first_plan = first_plan
        self.plan: PruningPlan | None = None
        self.optimizer: torch.optim.Optimizer | None = None

    def save(self, name: str, **kwargs: Any) -> None:
        """Writes the model, the states of the registered checkpointables and `kwargs` to `<name>.pth`."""
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
            except RuntimeError as error:  # PyTorch's writer wraps the error of the system
                reason = str(error).rpartition(" . ")[2]
                raise OSError(f"the file could not be written completely ({reason}); is the disk full?") from error
        if name != BEST:
            with whole_file(Path(self.save_dir) / "last_checkpoint") as beside:
                beside.write_text(file.name)

    def remove_earlier(self, iteration: int, keep: int) -> None:
        """Removes numbered checkpoints of earlier iterations; the best and the final one always stay.

        Args:
            iteration: the present iteration. Checkpoints of later ones, which belong to a run that was abandoned, stay.
            keep: number of checkpoints up to this iteration that stay.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        until = f"model_{iteration:07d}"
        for file in [file for file in self._numbered() if file.stem <= until][keep:]:
            file.unlink(missing_ok=True)

    def _numbered(self) -> list[Path]:
        """The checkpoints that are named after their iteration, newest first."""
        found = (file for file in Path(self.save_dir).glob("model_*.pth") if _NUMBERED.fullmatch(file.name))
        return sorted(found, reverse=True)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Continues from the last undamaged checkpoint, or starts from the weights in `path`, cut by `first_plan`.

        Args:
            path: the file of weights to start from if no checkpoint is used; "" for random weights.
            resume: True to continue from a checkpoint, if the folder has one.

        Returns:
            The entries of the file other than the model.

        Raises:
            InputError: the file is missing or damaged, or the checkpoint or the plan is for another model. Raised on
                every process.
        """
        files = decide_once(self.resumable) if resume else []
        if not files:
            loaded = self.load(path, checkpointables=[])
            self._cut_by_first_plan()
            return loaded
        read: dict[str, Any] = {}
        with self.strictly():
            file = decide_once(lambda: self._load_first(files, read))
            if not comm.is_main_process():
                try:
                    read = self.load(str(file))
                except BrokenFile as error:
                    raise InputError(f"{error}; all machines of a run must share OUTPUT_DIR on one disk") from error
        return read

    def _cut_by_first_plan(self) -> None:
        if not self.first_plan:
            return
        plan = read_plan(self.first_plan)
        if self.plan is None:
            apply(self.model, plan, self.optimizer)
            self.plan = plan
        elif plan != self.plan:
            raise InputError(f"SIRFP.PLAN {self.first_plan}: MODEL.WEIGHTS are pruned already; remove one of the two")

    def _load_first(self, files: list[Path], read: dict[str, Any]) -> Path:
        """Loads the first undamaged file of a list; logs a warning for each damaged file before it.

        Args:
            files: the files, in the order in which they are tried.
            read: a dict to fill with the entries of the file other than the model.

        Returns:
            The path of the loaded file.

        Raises:
            InputError: all files are damaged.
        """
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
                self.logger.warning(f"Continuing from {file}, because the later checkpoints are damaged")
            return file
        before = ", and all earlier ones are damaged" if len(files) > 1 else ""
        raise InputError(f"{broken[0]}{before}; to start a new run, empty {self.save_dir} or change OUTPUT_DIR")

    def resumable(self) -> list[Path]:
        """Lists the run's checkpoints, newest first: the file that `last_checkpoint` names, then earlier files.

        Raises:
            InputError: `last_checkpoint` names a file in another folder.
        """
        folder = Path(self.save_dir)
        numbered = self._numbered()
        last = self.get_checkpoint_file()
        if not last:  # the run was killed before writing `last_checkpoint`, or the file was lost
            ended = [file for file in (folder / f"{FINAL}.pth",) if file.is_file()]
            return sorted([*ended, *numbered], key=lambda file: file.stat().st_mtime, reverse=True)
        named = Path(last)
        earlier = [f for f in numbered if not _NUMBERED.fullmatch(named.name) or f.name < named.name]
        return [named, *earlier]

    def has_checkpoint(self) -> bool:
        """Returns True if the folder has a checkpoint to continue from."""
        return bool(self.resumable())

    @contextmanager
    def strictly(self) -> Iterator[None]:
        """While active, loading a file that does not fill the model exactly raises InputError."""
        before, self.strict = self.strict, True
        try:
            yield
        finally:
            self.strict = before

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Loads one file; see `resume_or_load`.

        Args:
            path: the file, or "" to load nothing.
            checkpointables: names of the registered objects whose states are loaded too; by default all.

        Raises:
            BrokenFile: the file is missing or damaged.
            InputError: the file cannot be read, or lacks data that the run needs.
        """
        if path and "://" not in path and not os.path.isfile(path):
            raise BrokenFile(f"there is no checkpoint {path}{nearby(path)}; correct MODEL.WEIGHTS or OUTPUT_DIR")
        try:
            return super().load(path, checkpointables)
        except InputError as error:
            if path in str(error):
                raise
            other = "; use the config of the run that wrote it" if "for another model" in str(error) else ""
            raise InputError(f"{path}: {error}{other}") from error
        except (LookupError, TypeError, AttributeError, ValueError, AssertionError, RuntimeError) as error:
            reason = one_line(error, 160)
            raise InputError(f"{path} does not fit this run ({type(error).__name__}: {reason})") from error
        except OSError as error:  # a download failed
            raise InputError(
                f"{path} cannot be downloaded or read ({type(error).__name__}); "
                "set MODEL.WEIGHTS to a local file, or to '' for random weights"
            ) from error
        finally:
            self._parsed_url_during_load = None

    def get_checkpoint_file(self) -> str:
        """Returns the path of the file that `last_checkpoint` names, "" if it does not exist or is empty."""
        try:
            name = (Path(self.save_dir) / "last_checkpoint").read_text().strip("\0 \n")
        except (OSError, UnicodeDecodeError):
            return ""
        if not name:
            return ""
        if Path(name).name != name:
            raise InputError(f"{self.save_dir}/last_checkpoint names {name!r}, which is not a file in the same folder")
        return str(Path(self.save_dir) / name)

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):
            return _from_zoo(read_arrays(Path(filename)), filename)
        if filename.endswith(".pyth"):
            raise InputError(f"{filename}: files of pycls are not supported; save their model_state as a .pth file")
        try:
            return super()._load_file(filename)
        except InputError:
            raise
        except (*BROKEN, SafetensorError) as error:
            reason = str(error).partition("\n")[0]
            raise BrokenFile(f"{filename} is not a complete checkpoint ({reason}); copy or create it again") from error

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
            branches = training_only(self.model)  # exported files do not contain these branches
            for problem, names in (  # fvcore counts a tensor of another shape as missing, too
                ("has another shape, maybe for other classes, of", [one[0] for one in incompatible.incorrect_shapes]),
                ("lacks", [name for name in incompatible.missing_keys if not within(name, branches)]),
                ("has the additional", incompatible.unexpected_keys),
            ):
                if names:
                    first = f"it {problem} {names[0]!r} ({len(names)} in all)"
                    raise InputError(f"the checkpoint is for another model: {first}")
        return incompatible


def read_plan(path: str) -> PruningPlan:
    """Reads a plan from a file, such as the plan.json of a run.

    Raises:
        InputError: the file is missing or holds no plan.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"SIRFP.PLAN {path} cannot be read ({one_line(error, 160)}); it must be a plan.json") from None
    try:
        return PruningPlan.from_json(text)
    except InputError as error:
        raise InputError(f"SIRFP.PLAN {path}: {error}") from None


def _check_whole(file: Path) -> None:
    """Raises BrokenFile if a checkpoint's content does not match its checksums, which PyTorch does not check."""
    if not file.is_file():
        return
    try:
        with zipfile.ZipFile(file) as archive:
            bad = archive.testzip()
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise BrokenFile(f"{file} is not a complete checkpoint ({error}); copy or create it again") from error
    if bad:
        raise BrokenFile(f"{file} is not a complete checkpoint ({bad} is damaged); copy or create it again")


def _from_zoo(content: Any, filename: str) -> dict[str, Any]:
    """Converts the content of a `.pkl` file to the format of Detectron2's model zoo.

    Weights with Caffe2's names are marked, so that Detectron2 matches them to the names of the model.
    """
    if not isinstance(content, dict):
        raise InputError(f"{filename} holds no weights by name")
    if "model" in content and "__author__" in content:
        return content
    blobs = content.get("blobs", content)
    model = {name: value for name, value in blobs.items() if not str(name).endswith("_momentum")}
    return {"model": model, "__author__": "Caffe2", "matching_heuristics": True}
