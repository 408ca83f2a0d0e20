"""The trained networks of the demo: where they are, that they are unchanged, and how they are trained from nothing."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from sirfp.checkpoint.dense import read_weights
from sirfp.config.reading import load_config
from sirfp.data.location import datasets_root
from sirfp.data.scenes import make_scenes
from sirfp.errors import InputError
from sirfp.files.whole import whole_file

HERE = Path(__file__).resolve().parent
PROJECTS = HERE.parent
NETWORKS = HERE / "networks"
RECORD = "networks.json"
"""What is known of each network: {task: {"sha256", "metric", "dense", "continued"}}."""
SCENES = 4000
"""Scenes that a network of the demo is trained on; the first of them are those that it is pruned on."""


@dataclass(frozen=True)
class Task:
    """A task of the demo.

    Attributes:
        project: the folder in projects/, and the task's name.
        network: the name of its configs in the project's folder configs/scenes.
        metric: the metric that networks are compared by, as runs name it.
        start: the task whose trained network the backbone starts from when the network is trained; "" for random
            weights.
    """

    project: str
    network: str
    metric: str
    start: str = ""

    @property
    def script(self) -> Path:
        """The project's training script."""
        return PROJECTS / self.project / "train_net.py"

    @property
    def training(self) -> Path:
        """The config by which the network is trained from nothing."""
        return PROJECTS / self.project / f"configs/scenes/{self.network}.yaml"

    @property
    def pruning(self) -> Path:
        """The config by which the trained network is pruned and fine-tuned."""
        return PROJECTS / self.project / f"configs/scenes/{self.network}_sirfp.yaml"

    @property
    def name(self) -> str:
        """The metric's name in tables."""
        return self.metric.rpartition("/")[2]


TASKS = {
    task.project: task
    for task in (
        Task("segmentation", "deeplab_v3_plus_test_resnet", "sem_seg/mIoU", start="classification"),
        Task("detection", "retinanet_test_resnet", "bbox/AP", start="classification"),
        Task("classification", "test_resnet", "classification/top1"),
    )
}


def record(folder: Path = NETWORKS) -> dict[str, dict[str, Any]]:
    """Returns what is recorded of each network, by task."""
    return json.loads((folder / RECORD).read_text())


def shipped(task: Task, folder: Path = NETWORKS) -> Path:
    """Returns the file of a task's trained network.

    Raises:
        InputError: the file is missing, or is not the one whose hash is recorded.
    """
    file = folder / f"{task.project}.safetensors"
    known = record(folder).get(task.project)
    again = f"train it from nothing by `make demo TASK={task.project} SCRATCH=1`"
    if known is None or not file.is_file():
        raise InputError(f"there is no trained network {file}; {again}")
    found = sha256(file)
    if found != known["sha256"]:
        raise InputError(f"{file} was changed: its SHA-256 is not the one in {RECORD}; get the file again, or {again}")
    return file


def start_of(task: Task) -> Path | None:
    """Returns the file of the trained network that a task's backbone starts from; None for random weights.

    Raises:
        InputError: the file is missing or was changed, see `shipped`.
    """
    return shipped(TASKS[task.start]) if task.start else None


def sha256(file: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal digits."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def train(task: Task, output: Path, start: Path | None = None) -> Path:
    """Trains a task's network, on more scenes than the demo prunes it on; takes tens of minutes.

    As backbones usually start from a classifier of ImageNet, those of segmentation and detection start from the
    classifier of the scenes' digits.

    Args:
        task: the task.
        output: the folder for the output folders of the runs.
        start: the file of the network that the backbone starts from, see `start_of`; None trains it from nothing first.

    Returns:
        The file of the trained network.
    """
    root, folder = datasets_root() / "demo", output / f"{task.project}_dense"
    shutil.rmtree(folder, ignore_errors=True)
    make_scenes(root / "scenes", train=SCENES)
    options = {"OUTPUT_DIR": folder}
    if task.start:
        options["MODEL.TIMM.WEIGHTS"] = start or train(TASKS[task.start], output)
    run_script(task, task.training, options, SIRFP_DATASETS=str(root))
    return write_weights(folder / "model_final.pth", folder / "dense.safetensors")


def config(task: Task) -> CfgNode:
    """Returns the config by which the demo prunes."""
    return load_config(str(task.pruning), [])


def continued(task: Task, weights: Path, output: Path) -> float:
    """Trains a network on without pruning, as long and on the same scenes as the demo's run; returns its metric.

    Args:
        task: the task.
        weights: the file of the trained network.
        output: the folder for the output folder of the run.
    """
    cfg, folder = config(task), output / f"{task.project}_continued"
    shutil.rmtree(folder, ignore_errors=True)
    rate = cfg.SOLVER.BASE_LR * cfg.SIRFP.LR_FACTOR
    run_script(task, task.pruning, {
        "OUTPUT_DIR": folder, "MODEL.WEIGHTS": weights, "SIRFP.KEEP_FLOPS": 1.0, "SIRFP.HOOKS": "[]",
        "SOLVER.BASE_LR": rate,
    })  # fmt: skip
    return metric(task, folder)


def metric(task: Task, folder: Path) -> float:
    """Returns the last value of a task's metric that a run has measured."""
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return next(line[task.metric] for line in reversed(lines) if task.metric in line)


def write_weights(checkpoint: Path, file: Path) -> Path:
    """Writes the weights of a training checkpoint to a safetensors file."""
    from safetensors.torch import save_file

    with whole_file(file) as beside:
        save_file({name: tensor.contiguous() for name, tensor in read_weights(checkpoint).items()}, str(beside))
    return file


def ship(task: Task, run: Path, measured: Mapping[str, float]) -> None:
    """Puts a network that `train` has trained in place of the one that the checkout has.

    Args:
        task: the task.
        run: the output folder of `train`.
        measured: the metric of "dense", the network, and of "continued", the network after further training.
    """
    file = NETWORKS / f"{task.project}.safetensors"
    shutil.copy(run / "dense.safetensors", file)
    shutil.copy(run / "log.txt", file.with_suffix(".log"))
    known = record() if (NETWORKS / RECORD).is_file() else {}
    known[task.project] = {"sha256": sha256(file), "metric": task.metric}
    known[task.project] |= {name: round(value, 2) for name, value in measured.items()}
    with whole_file(NETWORKS / RECORD) as beside:
        beside.write_text(json.dumps(known, indent=1) + "\n")


def run_script(task: Task, file: Path, options: Mapping[str, Any], **environment: str) -> None:
    """Runs a project's training script, and shows the command.

    Args:
        task: the task.
        file: the config.
        options: config keys that replace those of the file.
        environment: further environment variables.

    Raises:
        SystemExit: the script fails; it has said why.
    """
    words = [str(word) for option in options.items() for word in option]
    words = [str(task.script), "--config-file", str(file), *words]
    words = [os.path.relpath(word) if Path(word).is_absolute() else word for word in words]  # the run's log is shipped
    shown = [f"{name}={value}" for name, value in environment.items()]
    print("$", *shown, shlex.join(["python", *words]), flush=True)
    code = subprocess.run([sys.executable, *words], env=os.environ | environment, check=False).returncode
    if code:
        raise SystemExit(code)
