"""Compares predictions of exported pruned networks in onnxruntime with those in PyTorch, on real images.

    python benchmarks/export_predictions.py RUN [RUN ...] [--images 20] [--fixed] [--json]

A RUN is the output folder of a training run with pruning. The benchmark uses its `config.yaml` and
`pruned.safetensors`, and images spread over its test set, which must be below the folder that DETECTRON2_DATASETS
names. Each network is exported as by `sirfp export`, with open batch and size if the network allows, and both versions
process the same images one by one. Exit code 1 if logits, scores or boxes differ by more than a thousandth of the
largest value, if more than a thousandth of the detections has no equal of its class, or if more than one of 10,000
pixels has another class.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from detectron2.data import DatasetCatalog
from subjects import machine

import sirfp
from sirfp.checkpoint import read
from sirfp.data.registration import register_all
from sirfp.errors import InputError
from sirfp.exporting import agreement, build_graph, export
from sirfp.reporting.tables import Table
from sirfp.sources.source import DetectronSource, from_config

TOLERANCE, PIXELS = 1e-3, 1e-4
NEEDED = ("config.yaml", "pruned.safetensors")
COLUMNS = ("network", "FLOPs kept", "open", "images", "compared", "different", "largest difference", "export, s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="output folders of runs with pruning")
    parser.add_argument("--images", type=int, default=20, help="images of each test set (default %(default)s)")
    parser.add_argument("--fixed", action="store_true", help="fix batch and size, at the first image's")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.disable(logging.WARNING)
    try:
        register_all()
        rows = [compare_predictions(run, args.images, fixed=args.fixed) for run in args.runs]
    except InputError as error:
        parser.error(str(error))
    result = {"rows": rows, "machine": machine(), "within_bounds": all(row["within_bounds"] for row in rows)}
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        print(Table(COLUMNS, tuple(map(cells, rows))).markdown())
        print(", ".join(f"{name} {value}" for name, value in result["machine"].items()))
    return 0 if result["within_bounds"] else 1


def compare_predictions(run: Path, count: int, *, fixed: bool) -> dict[str, Any]:
    """Exports a run's pruned network and compares predictions.

    Args:
        run: the output folder.
        count: largest number of images.
        fixed: whether to fix the size at that of the first image, and the batch at one.

    Raises:
        InputError: the folder is not that of a run with pruning, or its test set is missing.
    """
    for name in NEEDED:
        if not (run / name).is_file():
            raise InputError(f"{run} has no {name}: is it the output folder of a run with pruning?")
    plan, _ = read(run / NEEDED[1])
    source = dense(run / NEEDED[0])
    model = source.fresh()
    sirfp.load(run / NEEDED[1], model)
    graph = build_graph(source, model)
    images = [source.raw(source.read([path]))[0] for path in evenly_spaced(source.cfg.DATASETS.TEST[0], count)]
    size = tuple(images[0].shape[1:])
    if fixed:
        images = [image for image in images if tuple(image.shape[1:]) == size]
    with TemporaryDirectory() as folder:
        start = time.process_time()
        written = export(graph, Path(folder) / "small.onnx", size, free=() if fixed else ("batch", "size"))
        seconds = time.process_time() - start
        found = agreement(graph, written.path, [image[None] for image in images])
    same = found.unmatched <= TOLERANCE * (found.detections or 0) and found.other_pixels <= PIXELS * (found.pixels or 0)
    return {
        "run": source.name,
        "model": type(model).__name__,
        "kept_flops": plan.flops[1] / plan.flops[0],
        "open": list(written.free),
        "notes": list(written.notes),
        "images": found.images,
        "sizes": sorted({tuple(image.shape[1:]) for image in images}),
        "pixels": found.pixels,
        "other_pixels": found.other_pixels,
        "detections": found.detections,
        "unmatched_detections": found.unmatched,
        "largest_difference": found.largest,
        "largest_value": found.scale,
        "relative_difference": found.relative,
        "export_s": seconds,
        "within_bounds": same and found.relative <= TOLERANCE and bool(found.pixels or found.detections),
    }


def dense(config: Path) -> DetectronSource:
    """The dense model of a run, without weights; keys of pruning, which may be another version's, are not read."""
    keys = yaml.safe_load(config.read_text())
    keys.pop("SIRFP", None)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(yaml.safe_dump(keys))
        return from_config(str(file), ["MODEL.TIMM.WEIGHTS", "", "MODEL.WEIGHTS", ""], name=config.parent.name)


def evenly_spaced(name: str, count: int) -> list[Path]:
    """Image files of a registered data set, spread evenly over it."""
    files = [Path(record["file_name"]) for record in DatasetCatalog.get(name)]
    return files[:: max(1, len(files) // count)][:count]


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of the table."""
    if row["detections"] is None:
        compared, other = f"{row['pixels']} pixels", f"{row['other_pixels']} pixels"
    else:
        compared, other = f"{row['detections']} detections", f"{row['unmatched_detections']} detections"
    gaps = ", ".join(
        f"{key} {gap:.1e} of {row['largest_value'][key]:.3g}" for key, gap in row["largest_difference"].items()
    )
    opened = " and ".join(row["open"]) or "nothing"
    return (
        row["run"],
        f"{row['kept_flops']:.1%}",
        opened,
        str(row["images"]),
        compared,
        other,
        gaps,
        f"{row['export_s']:.0f}",
    )


if __name__ == "__main__":
    raise SystemExit(main())
