"""Which pruned models work with `torch.compile`, TorchScript and export to ONNX, compared with eager PyTorch.

    python benchmarks/compilers.py [--models NAME ...] [--ways WAY ...] [--results output/compilers.jsonl] [--table]

The models are small networks of each family, with random weights, cut to half of their FLOPs by random scores. Every
attempt runs in its own process with a time limit. Attempts in the results file are not repeated. `--table` prints the
results as Markdown and tries nothing.

| way | what is tried |
| --- | --- |
| eager | the pruned model, called in the usual way |
| compile | `torch.compile(model)`, called in the same way; its graph breaks are counted |
| static | if that fails: `torch.compile(model, dynamic=False)`, with fixed sizes |
| trace | `torch.jit.trace`, with TracingAdapter for Detectron2's models; also at another image size |
| script | `torch.jit.script`, with `scripting_with_instances` for Detectron2's detectors |
| onnx | the file of `sirfp export`, with open batch and size if that is the default, run in onnxruntime |
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from prunability import Row, add_row, in_own_process, one_line, read_rows
from randomised import randomised
from torch import nn

import sirfp
from sirfp.exporting import agreement, build_graph, export
from sirfp.exporting.writing import reason
from sirfp.network.forward import call, tensors
from sirfp.sources.source import Source, from_config, from_timm, from_zoo
from sirfp.verify import furthest
from sirfp.verify.detectors import is_detector

PROJECTS = Path(__file__).resolve().parents[1] / "projects"
WAYS = ("eager", "compile", "trace", "script", "onnx")
SECOND = {"compile": "static"}  # {way: what is tried if it fails}
HALF, SIZE, OTHER = 0.5, (64, 96), (96, 128)
TOLERANCE = 1e-3
TINY = "MODEL.WEIGHTS", "", *"MODEL.TIMM.NAME test_resnet MODEL.TIMM.WEIGHTS".split(), ""
BACKBONE = "MODEL.BACKBONE.NAME", "build_timm_backbone"
CONVS = "MODEL.SEM_SEG_HEAD.CONVS_DIM", "32"
ASPP = "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", "32", *CONVS
COARSE = (
    *("MODEL.TIMM.OUT_FEATURES", "['stride32']", "MODEL.SEM_SEG_HEAD.IN_FEATURES", "['stride32']"),
    *("MODEL.SEM_SEG_HEAD.COMMON_STRIDE", "32"),
)
STRIDES = "['stride4', 'stride8', 'stride16', 'stride32']"
PYRAMID = "MODEL.TIMM.OUT_FEATURES", STRIDES, "MODEL.FPN.IN_FEATURES", STRIDES, "MODEL.FPN.OUT_CHANNELS", "32"
BOXES = (
    "MODEL.FPN.OUT_CHANNELS 32 MODEL.ROI_BOX_HEAD.FC_DIM 64 MODEL.RPN.POST_NMS_TOPK_TEST 50 "
    "TEST.DETECTIONS_PER_IMAGE 20"
).split()
MODELS: dict[str, tuple[str, tuple[str, ...]]] = {
    "timm ResNet": ("timm test_resnet", ()),
    "timm EfficientNet": ("timm test_efficientnet", ()),
    "timm ConvNeXt": ("timm test_convnext", ()),
    "timm ViT": ("timm test_vit", ()),
    "DeepLabV3+": ("segmentation/scenes/deeplab_v3_plus_r18.yaml", (*TINY, *ASPP)),
    "DeepLabV3": ("segmentation/camvid/deeplab_v3_R_50_os8.yaml", (*TINY, *BACKBONE, *COARSE, *ASPP)),
    "PSPNet": ("segmentation/camvid/pspnet_R_50_os8.yaml", (*TINY, *BACKBONE, *COARSE, *CONVS)),
    "Semantic FPN": (
        "segmentation/camvid/semantic_fpn_R_50.yaml",
        (*TINY, "MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", *PYRAMID, *CONVS),
    ),
    "SegFormer, MiT-B0": ("segmentation/camvid/mit_b0_mlp.yaml", ("MODEL.MIT.WEIGHTS", "", *CONVS)),
    "RetinaNet": ("detection/scenes/retinanet_r18.yaml", TINY),
    "FCOS, ResNet-50": ("zoo COCO-Detection/fcos_R_50_FPN_1x.py", ()),
    "Faster R-CNN": ("detection/bccd/faster_rcnn_r18.yaml", (*TINY, *BOXES)),
    "Mask R-CNN": ("detection/bccd/faster_rcnn_r18.yaml", (*TINY, *BOXES, "MODEL.MASK_ON", "True")),
    "DeepLabV3+, EfficientNet-Lite0": (
        "segmentation/camvid/deeplab_v3_plus_lite0.yaml",
        ("MODEL.TIMM.WEIGHTS", "", *ASPP),
    ),
    "RetinaNet, EfficientNet-Lite0": ("detection/bccd/retinanet_lite0.yaml", ("MODEL.TIMM.WEIGHTS", "")),
    "timm RegNetY": ("timm regnety_002", ()),
    "PVTv2-B0": ("segmentation/camvid/pvt_v2_b0_mlp.yaml", ("MODEL.TIMM.WEIGHTS", "", *CONVS)),
    "HRNet-W18": ("segmentation/camvid/hrnet_w18.yaml", ("MODEL.TIMM.WEIGHTS", "")),
}
"""{name: (config below `projects` or name, KEY VALUE pairs that make the model small)}; slow ones last."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS), metavar="NAME")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS, metavar="WAY")
    parser.add_argument("--results", type=Path, default=Path("output/compilers.jsonl"))
    parser.add_argument("--table", action="store_true", help="print what is in the results file as Markdown")
    parser.add_argument("--seconds", type=int, default=600, help="limit of one try (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    rows = {(row["model"], row["way"]): row for row in read_rows(args.results)}
    if args.table:
        print(table(rows))
        return 0
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # no pool of processes for each attempt
    for name in args.models:
        add_tries(rows, name, args.ways, args)
        failed = [way for way in args.ways if way in SECOND and not rows[name, way].get("ok")]
        add_tries(rows, name, [SECOND[way] for way in failed], args)
    return 0


def add_tries(rows: dict[tuple[str, str], Any], name: str, ways: Sequence[str], args: argparse.Namespace) -> None:
    """Tries the ways of one model that were not tried before, and adds them to `rows` and to the results file."""
    for row in tries(name, [way for way in ways if (name, way) not in rows], args.seconds, args.threads):
        rows[name, row["way"]] = row
        add_row(args.results, row)
        print(f"{name:32}{row['way']:8}{row['seconds']:6.0f} s  {in_words(row)}", flush=True)


def tries(name: str, ways: Sequence[str], seconds: float, threads: int) -> Iterator[dict[str, Any]]:
    """Tries some ways for one model, each in its own process, forked after the model has been pruned."""
    if not ways:
        return
    try:
        source, model, kept = pruned(name)
    except Exception as error:  # whatever a model's own code raises
        yield from ({"model": name, "way": way, "seconds": 0.0, "error": one_line(error)} for way in ways)
        return
    for way in ways:
        start = time.perf_counter()
        found = in_own_process(partial(error_as_row, TRIES[way], source, model), seconds=seconds, threads=threads)
        yield {"model": name, "way": way, "kept": kept, "seconds": time.perf_counter() - start} | found


def error_as_row(attempt: Callable[[Source, nn.Module], Row], source: Source, model: nn.Module) -> Row:
    """The result of one attempt; an exception becomes the row's "error"."""
    try:
        with torch.no_grad():
            return attempt(source, model)
    except Exception as error:  # whatever a compiler raises
        return {"error": f"{type(error).__name__}: {reason(error)}"}


def pruned(name: str) -> tuple[Source, nn.Module, float]:
    """A dense model, its pruned copy in evaluation mode, and the share of FLOPs that the copy keeps."""
    place, options = MODELS[name]
    kind, _, rest = place.partition(" ")
    torch.manual_seed(0)
    if kind == "timm":
        source = from_timm(rest, size=None if "vit" in rest else SIZE)
    elif kind == "zoo":
        source = from_zoo(rest, options, size=SIZE)
    else:
        project, _, config = place.partition("/")
        source = from_config(str(PROJECTS / project / "configs" / config), options, size=SIZE)
    model = randomised(source.fresh())
    plan = sirfp.prune(model, source.example(), "random", keep_flops=HALF)
    return source, keep_all_detections(model.eval()), plan.flops[1] / plan.flops[0]


def keep_all_detections(model: nn.Module) -> nn.Module:
    """Lowers thresholds so that a detector with random weights returns detections, which can be compared."""
    for module in model.modules():
        for name in ("test_score_thresh", "test_topk_candidates"):
            if hasattr(module, name):
                setattr(module, name, 0.0 if name == "test_score_thresh" else 50)
    return model


def eager(source: Source, model: nn.Module) -> dict[str, Any]:
    """Calls the model in the usual way."""
    found = outputs(model, source.example())
    if not all(tensor.isfinite().all() for tensor in found.values()):
        return {"ok": False, "why": "outputs are not finite"}
    return {"ok": True}


def compiled(source: Source, model: nn.Module, dynamic: bool | None = None) -> dict[str, Any]:
    """`torch.compile` with its defaults, or with fixed sizes."""
    from torch._dynamo.utils import counters

    counters.clear()
    row = same(model, torch.compile(model, dynamic=dynamic), source.example())
    return row | {"breaks": sum(counters["graph_break"].values())}


def traced(source: Source, model: nn.Module) -> dict[str, Any]:
    """`torch.jit.trace`, called at the size of tracing and at another."""
    first, second = without_sizes(source), without_sizes(replace(source, size=OTHER))
    if isinstance(first, torch.Tensor):
        work = torch.jit.trace(model, first, check_trace=False)
        row = same(model, work, first)
        return row if "vit" in source.name else row | at_other_size(model, work, second)
    from detectron2.export import TracingAdapter

    two_stages = hasattr(model, "roi_heads")
    ask = (lambda net, given: net.inference(given, do_postprocess=False)) if two_stages else None
    adapter = TracingAdapter(model, first, ask)
    work = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
    row = same(adapter, work, adapter.flattened_inputs)
    return row | at_other_size(adapter, work, TracingAdapter(model, second, ask).flattened_inputs)


def scripted(source: Source, model: nn.Module) -> dict[str, Any]:
    """`torch.jit.script`; for detectors Detectron2's `scripting_with_instances`."""
    given = without_sizes(source)
    if not is_detector(call(model, given)):
        return same(model, torch.jit.script(model), given)
    from detectron2.export import scripting_with_instances
    from detectron2.structures import Boxes

    fields: dict[str, Any] = dict.fromkeys(("pred_boxes", "proposal_boxes"), Boxes)
    fields |= dict.fromkeys(("scores", "pred_classes", "objectness_logits", "pred_masks"), torch.Tensor)
    work = scripting_with_instances(model, fields)
    if hasattr(model, "roi_heads"):
        ours, theirs = (net.inference(given, do_postprocess=False)[0] for net in (model, work))
    else:
        ours, theirs = call(model, given)[0]["instances"], call(work, given)[0]
    return difference({"scores": ours.scores}, {"scores": theirs.scores})


def exported(source: Source, model: nn.Module) -> dict[str, Any]:
    """The export of `sirfp export`."""
    graph = build_graph(source, model)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "small.onnx"
        written = export(graph, file, source.size)
        sizes = [source.size, *([OTHER] if "size" in written.free else [])]
        batch = 2 if "batch" in written.free else 1
        found = agreement(graph, file, [torch.rand(batch, len(graph.mean), *size) * 255 for size in sizes])
    same_boxes = found.unmatched <= TOLERANCE * (found.detections or 0)
    return {
        "ok": found.relative <= TOLERANCE and same_boxes,
        "difference": found.relative,
        "detections": found.detections,
        "unmatched": found.unmatched,
        "open": list(written.free),
    }


STATIC = partial(compiled, dynamic=False)
TRIES = {"eager": eager, "compile": compiled, "static": STATIC, "trace": traced, "script": scripted, "onnx": exported}


def without_sizes(source: Source) -> Any:
    """An example without "height" and "width", to which Detectron2 would scale its results."""
    given = source.example()
    return given if isinstance(given, torch.Tensor) else [{"image": one["image"]} for one in given]


def outputs(work: Any, given: Any) -> dict[str, torch.Tensor]:
    """Every tensor that a call returns, by its position in the result."""
    return dict(tensors(call(work, given)))


def same(ours: nn.Module, theirs: Any, given: Any) -> dict[str, Any]:
    """Compares the outputs of two ways of calling a model."""
    return difference(outputs(ours, given), outputs(theirs, given))


def at_other_size(ours: nn.Module, theirs: Any, given: Any) -> dict[str, Any]:
    """Compares at another image size; a difference there is no failure."""
    try:
        return {"other_size": same(ours, theirs, given)["ok"]}
    except RuntimeError:
        return {"other_size": False}


def difference(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The largest relative difference of outputs; different shapes are reported as the reason."""
    if [tensor.shape for tensor in ours.values()] != [tensor.shape for tensor in theirs.values()]:
        return {"ok": False, "why": f"gives {_shapes(theirs)} where eager gives {_shapes(ours)}"}
    found = furthest(dict(enumerate(ours.values())), dict(enumerate(theirs.values()))).relative
    return {"ok": found <= TOLERANCE, "difference": found, "why": "" if found <= TOLERANCE else "another result"}


def _shapes(found: Mapping[str, torch.Tensor]) -> str:
    return ", ".join("x".join(map(str, tensor.shape)) for tensor in found.values())


def in_words(row: Mapping[str, Any]) -> str:
    """A row as short text."""
    if row.get("error") or not row.get("ok"):
        return f"no: {(row.get('error') or row.get('why')).rstrip(':').partition(' (This attribute')[0]}"
    parts = [f"differs by {row['difference']:.0e}"] if row.get("difference") else []
    if row.get("breaks"):
        parts.append(f"{row['breaks']} graph breaks")
    if "other_size" in row:
        parts.append("any size" if row["other_size"] else "only the size that it was traced with")
    if "open" in row:
        parts.append(f"{' and '.join(row['open']) or 'nothing'} open")
    if row["way"] == "eager":
        parts.append(f"{row['kept']:.0%} of FLOPs")
    return "yes" + (f" ({', '.join(parts)})" if parts else "")


def table(rows: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    """All results as a Markdown table."""
    lines = [("model", *WAYS), ("---",) * (1 + len(WAYS))]
    for name in MODELS:
        found = {way: rows.get((name, way)) for way in WAYS}
        if not any(found.values()):
            continue
        cells = {way: in_words(row) if row else "not tried" for way, row in found.items()}
        for way, second in SECOND.items():
            if (name, second) in rows:
                cells[way] += f"; with `dynamic=False` {in_words(rows[name, second])}"
        lines.append((name, *(cell.replace("|", "\\|") for cell in cells.values())))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    raise SystemExit(main())
