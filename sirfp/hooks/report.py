"""The trainer hook that evaluates before and after the prunings and reports the results."""

from __future__ import annotations

import json
import logging
import os
from typing import Any

import torch
from detectron2.engine.hooks import HookBase
from detectron2.utils import comm

from ..checkpoint.origin import Origin
from ..checkpoint.pruned import save
from ..files.whole import whole_file
from ..training.schedule import Schedule
from .registry import HOOKS, rebuilt, session, unwrapped

logger = logging.getLogger(__name__)

TIMED = 2.0
"""Seconds that the calls for the latencies of the report take together at least."""


@HOOKS.register()
class Report(HookBase):
    """Evaluates before and after the prunings; at the end writes the pruned model, its plan, tables and figures.

    The table has three rows:

    - `dense`: just before the first pruning. In a run that starts from a pruned network its name is `start`.
    - `pruned`: just after the last pruning.
    - `fine-tuned`: at the end of the run.

    Files in the output folder: `dense.safetensors` or `start.safetensors`, `pruned.safetensors`, `plan.json`,
    `pruning.json` (the numbers), `pruning.md` (the table), `metrics.md` (all metrics), `kept_channels.png`, and
    `predictions.png` if the task draws predictions. This hook comes before PruneSteps in SIRFP.HOOKS.
    """

    def __init__(self, cfg):
        self.schedule = Schedule.from_config(cfg)
        self.folder = cfg.OUTPUT_DIR
        self.rows: dict[str, dict[str, Any]] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"rows": json.dumps(self.rows)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = json.loads(state["rows"])

    def after_step(self) -> None:  # runs before that of PruneSteps
        if self.trainer.iter + 1 == self.schedule.iterations[0] and session(self.trainer).steps == 0:
            self._row("start" if session(self.trainer).plan else "dense")

    def before_step(self) -> None:
        if self.trainer.iter == self.schedule.iterations[-1] and "pruned" not in self.rows:
            self._row("pruned")

    def after_train(self) -> None:
        plan = session(self.trainer).plan
        if plan is None or self.trainer.iter < self.trainer.max_iter:
            return
        self._row("fine-tuned")
        if comm.is_main_process():
            self._write(plan)

    def _row(self, name: str) -> None:
        found = session(self.trainer).find()
        results = self.trainer.evaluate()
        self.rows[name] = {"metrics": _flat(results), "flops": found.flops(), "params": found.params()}
        if name in ("dense", "start") and comm.is_main_process():
            plan = session(self.trainer).plan
            save(self._path(f"{name}.safetensors"), unwrapped(self.trainer.model), plan)

    def _write(self, plan) -> None:
        from ..network.latency import measure
        from ..reporting import figures, tables

        model, inputs = unwrapped(self.trainer.model), self.trainer.example_inputs()
        save(self._path("pruned.safetensors"), model, plan, origin=Origin(config_files=("config.yaml",)))
        first = next(iter(self.rows))
        before = rebuilt(self.trainer, self._path(f"{first}.safetensors"))
        latency = measure({first: (before, inputs), "pruned": (model, inputs)}, seconds=TIMED)
        for name, row in self.rows.items():
            row["latency"] = latency[first if name == first else "pruned"].median
        table = tables.stages(self.rows, self.trainer.cfg.SIRFP.METRICS)
        every = tables.metrics(self.rows).markdown()
        texts = {
            "plan.json": plan.to_json(),
            "pruning.json": json.dumps(self.rows, indent=1),
            "pruning.md": "\n\n".join([table, *tables.budget_line(tables.summary(plan))]),
            "metrics.md": every,
        }
        for name, text in texts.items():
            with whole_file(self._path(name)) as beside:
                beside.write_text(text + "\n")
        figures.kept_channels(plan, self._path("kept_channels.png"))
        if self.trainer.cfg.DATASETS.TEST:
            self.trainer.draw({first: before, "fine-tuned": model}, self._path("predictions.png"))
        logger.info("Results of the run:\n%s", table)

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, name)


def _flat(results: Any, prefix: str = "") -> dict[str, float]:
    """Flattens nested evaluation results to {"sem_seg/mIoU": value}."""
    flat: dict[str, float] = {}
    for key, value in (results or {}).items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}/"))
        elif isinstance(value, (int, float, torch.Tensor)):
            flat[f"{prefix}{key}"] = float(value)
    return flat
