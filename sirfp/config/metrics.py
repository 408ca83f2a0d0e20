"""Names of metrics in configs and studies, which are checked before a run that would only look for them at its end."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode

from ..errors import InputError, near, suggested

METRICS = {
    "segmentation": ("sem_seg/mIoU", "sem_seg/pACC", "sem_seg/mBoundaryIoU", "speed/FPS"),
    "detection": ("bbox/AP", "bbox/AP50", "segm/AP", "keypoints/AP"),
    "classification": ("classification/top1", "classification/top5", "classification/loss"),
}
"""{project: its usual metrics}; the part before the slash is the task."""


def check_metric(name: str, project: str, at: str) -> None:
    """Checks the name of a metric of one of sirfp's projects.

    A class's metric is not looked up, nor is one of another task, which an evaluator of the user's may give.

    Raises:
        InputError: the name has no task and slash, is another project's, or is like a usual one.
    """
    known = METRICS.get(project, ())
    if not known or any(name.startswith(usual.partition("/")[0] + "/") for usual in known):
        return
    tail = name.rpartition("/")[2].lower()
    meant = [usual for usual in known if usual.rpartition("/")[2].lower() == tail]
    hint = suggested(meant) or near(name, known)
    if hint or "/" not in name or any(name in others for others in METRICS.values()):
        raise InputError(f"{at}: there is no metric {name!r}; usual ones are {', '.join(known)}{hint}")


def check_metrics(cfg: CfgNode, project: str) -> None:
    """Checks `TEST.BEST_METRIC` and `SIRFP.METRICS` of a config of one of sirfp's projects.

    Raises:
        InputError: see `check_metric`.
    """
    for key, names in (("TEST.BEST_METRIC", [cfg.TEST.BEST_METRIC]), ("SIRFP.METRICS", cfg.SIRFP.METRICS)):
        for name in filter(None, names):
            sets = cfg.DATASETS.TEST if len(cfg.DATASETS.TEST) > 1 else ()
            check_metric(_without_set(name, sets), project, key)


def _without_set(name: str, sets: Sequence[str]) -> str:
    """Removes the name of a data set, which precedes the metrics of runs with several test sets: set/sem_seg/mIoU."""
    owner = next((owner for owner in sets if name.startswith(f"{owner}/")), None)
    return name if owner is None else name.removeprefix(f"{owner}/")
