#!/usr/bin/env python3
"""Makes the files of this folder; runs on the commit that README.md names, and on no later one.

    OMP_NUM_THREADS=1 PYTHONPATH=. python tests/old_files/make.py NEW_FOLDER

The runs train for a few iterations on the four pictures of `tests/tiny_tasks.py`, all paths relative to the folder
that a run is started in.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import nn

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))

import networks  # noqa: E402
import tiny_tasks  # noqa: E402

import sirfp  # noqa: E402

SCHEDULE = (
    "SEED 3 SIRFP.STEPS 2 SIRFP.START_ITER 6 SIRFP.ACCUMULATE_ITERS 5 SIRFP.ACCUMULATE_PERIOD 1 SIRFP.RECOVER_ITERS 4 "
    "SIRFP.RECOVER_NORM_ITERS 2 SIRFP.RECONSTRUCTION_ITERS 2 SOLVER.MAX_ITER 12 SOLVER.CHECKPOINT_PERIOD 4 "
    "SOLVER.LR_SCHEDULER_NAME PhasedPolyLR SOLVER.BASE_LR 0.002 SOLVER.AMP.ENABLED False"
).split()
NARROW = {"channels": [8, 8, 12, 16], "stem_width": 8}
"""Options of timm's `test_resnet`."""
RUNS = {
    "segmentation": (
        3,  # while redundancies are accumulated
        ["SIRFP.CRITERION", "sirfp_joint", "SIRFP.KEEP_FLOPS", "0.4", "SOLVER.MOMENTUM", "0.0",
         "SIRFP.HOOKS", "['Accumulate', 'Report', 'PruneSteps', 'Recover', 'Redundancies']"],
    ),
    "classification": (
        7,  # between the two prunings
        ["SIRFP.CRITERION", "taylor", "SIRFP.KEEP_FLOPS", "0.25", "MODEL.TIMM.NAME", "test_efficientnet",
         "INPUT.SIZE", "64", "SOLVER.IMS_PER_BATCH", "4",
         "SIRFP.HOOKS", "['Accumulate', 'PruneSteps', 'Recover', 'AverageWeights']",
         "TEST.EVAL_PERIOD", "4", "TEST.BEST_METRIC", "classification/top1"],
    ),
}  # fmt: skip
"""Project: the last iteration that its checkpoint has seen, and its options."""
REPORTED = (
    "done.json", "failed.json", "metrics.json", "plan.json", "pruning.json", "redundancies.npz", "predictions.png",
    "model_final.pth",
)  # fmt: skip
"""Files of a study's run that are kept; the others name folders of the machine, or are large and not read again."""


def call(*words: object, check: bool = True) -> None:
    """Runs Python with arguments."""
    subprocess.run([sys.executable, *map(str, words)], check=check, env=os.environ | {"PYTHONPATH": str(ROOT)})


def narrow(config: str, path: Path) -> Path:
    """Writes a config of a narrow network over a config of the project."""
    path.write_text(yaml.safe_dump({"_BASE_": config, "MODEL": {"TIMM": {"OPTIONS": NARROW}}}))
    return path


def make_run(project: str, folder: Path) -> None:
    """A run's folder as it is when the run is stopped, and the plan that it goes on to."""
    last, options = RUNS[project]
    tiny_tasks.make_data(Path("."))
    words = tiny_tasks.command(project, Path("."), f"old_{project}")
    if project == "segmentation":
        words[3] = str(narrow(words[3], Path("narrow.yaml").absolute()))
    script = tiny_tasks.PROJECTS / project / "train_net.py"
    call(script, *words, *SCHEDULE, *options)
    whole = end(Path("out"))
    folder.mkdir(parents=True)
    name = f"model_{last:07d}.pth"
    for kept in (name, "config.yaml"):
        shutil.copy(Path("out") / kept, folder)
    (folder / "last_checkpoint").write_text(name)
    shutil.rmtree("out")
    shutil.copytree(folder, "out")
    call(script, "--num-gpus", "0", "--config-file", "out/config.yaml", "--resume")
    plan = end(Path("out"))
    assert plan == whole, "a resumed run does as one that was never stopped"
    (folder / "plan_at_end.json").write_text(plan + "\n")


def end(folder: Path) -> str:
    """The plan in a run's last checkpoint."""
    return torch.load(folder / "model_final.pth", weights_only=True)["plan"]


def make_pruned(name: str, folder: Path) -> None:
    """A pruned network's file and what it answers."""
    torch.manual_seed(0)
    model, inputs = networks.dense(name), networks.inputs(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # some of timm's begin with scales of zero
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    for head in (model.head.cls_score, model.head.bbox_pred) if name == "detectron2_retinanet" else ():
        nn.init.normal_(head.weight, std=0.1)
    model.train()
    for _ in range(50):  # until the norms' statistics are those of the image
        networks.answers(model, inputs)
    model.eval()
    plan = sirfp.prune(model, inputs, "sirfp", 0.4, calibration=[inputs])
    folder.mkdir(parents=True, exist_ok=True)
    sirfp.save(folder / f"{name}.safetensors", model, plan)
    np.savez(folder / f"{name}.npz", *[answer.numpy() for answer in networks.answers(model, inputs)])


def make_study(name: str, folder: Path) -> None:
    """A finished study of a real project, or of the fake script with a run that fails."""
    if name == "finished":
        tiny_tasks.make_data(Path("."))
        words = tiny_tasks.command("segmentation", Path("."), "old_study")
        pairs = dict(zip(words[4::2], words[5::2], strict=True))
        decided = ("OUTPUT_DIR", "SOLVER.MAX_ITER")
        content = {
            "iterations": {"dense": 4, "accumulate": 4, "recover": 2, "finetune": 2}, "steps": 2, "budgets": [0.5],
            "criteria": ["sirfp_joint", "taylor"], "seeds": [1],
            "overrides": {"SOLVER.MOMENTUM": 0.0} | {key: pairs[key] for key in pairs if key not in decided},
            "pruning_overrides": {"SIRFP.RECONSTRUCTION_ITERS": 2, "SIRFP.ACCUMULATE_PERIOD": 1},
            "tasks": {
                "squares": {"project": "segmentation", "metric": "sem_seg/mIoU", "models": {"narrow": "net.yaml"}},
            },
        }  # fmt: skip
        wide = narrow(words[3], Path("wide.yaml").absolute())
        call("-c", "import sys; from sirfp.config import load_config; sys.path.insert(0, sys.argv[1]); "
             "from segmentation import add_segmentation_config as add; "
             "print(load_config(sys.argv[2], [], add).dump(), file=open('net.yaml', 'w'))",
             tiny_tasks.PROJECTS / "segmentation", wide)  # fmt: skip
    else:
        shutil.copy(HERE.parent / "study/fake_train_net.py", "train_net.py")
        Path("net.yaml").write_text("SOLVER:\n  BASE_LR: 0.1\n")
        Path("fail").write_text("magnitude-0.75")
        content = {
            "iterations": {"dense": 10, "accumulate": 4, "recover": 2, "finetune": 6},
            "steps": 2,
            "seeds": [1, 3],
            "criteria": ["sirfp", "magnitude"],
            "budgets": [0.5, 0.75],
            "tasks": {"task": {"script": "train_net.py", "metric": "task/score", "models": {"net": "net.yaml"}}},
        }
    Path("study.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    call("-m", "sirfp.cli", "study", "study.yaml", "--folder", "out", check=name == "finished")
    for file in Path("out").glob("*/*/*"):
        if file.name not in REPORTED:
            file.unlink()
    folder.mkdir(parents=True)
    for kept in ("study.yaml", "net.yaml", "train_net.py"):
        if Path(kept).exists():
            shutil.copy(kept, folder)
    shutil.copytree("out", folder / "out", ignore=shutil.ignore_patterns("lock", "report.html"))


def main(folder: Path) -> None:
    """Makes all."""
    work = [(make_run, name, folder / "runs" / name) for name in RUNS]
    work += [(make_pruned, name, folder / "pruned") for name in networks.NAMES]
    work += [(make_study, name, folder / "studies" / name) for name in ("finished", "failed")]
    for make, name, place in work:
        with tempfile.TemporaryDirectory() as scratch:
            os.chdir(scratch)
            make(name, place)
            os.chdir(ROOT)
    print(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()), "bytes in", folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]).absolute())
