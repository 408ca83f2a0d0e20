"""The detection project: its configs build, a COCO-format set trains and prunes, mistakes end in one line."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from PIL import Image
from scripts import loaded

from sirfp import engine
from sirfp.config import load_config
from sirfp.training import launch

PROJECT = Path(__file__).resolve().parents[2] / "projects" / "detection"


@pytest.fixture(scope="module")
def project():
    with loaded("projects/detection/train_net.py") as module:
        yield module


@pytest.fixture
def folder(tmp_path):
    """Four images of a bright and a dark square each."""
    random = np.random.default_rng(0)
    images, annotations = [], []
    (tmp_path / "images").mkdir()
    for i in range(4):
        image = random.integers(100, 140, (64, 64, 3)).astype(np.uint8)
        for kind, (x, y) in enumerate([(4 + 3 * i, 4), (6, 34 + i)], 1):
            image[y : y + 24, x : x + 24] = 250 if kind == 1 else 5
            annotations.append({"id": len(annotations) + 1, "image_id": i, "category_id": kind, "iscrowd": 0,
                                "bbox": [x, y, 24, 24], "area": 576})  # fmt: skip
        Image.fromarray(image).save(tmp_path / "images" / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": 64, "width": 64})
    categories = [{"id": 1, "name": "bright"}, {"id": 2, "name": "dark"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    return tmp_path


@pytest.fixture
def options(folder):
    """The command line for that set: the generic config and a tiny network."""
    name = f"own-{folder.name}"
    boxes, images = str(folder / "boxes.json"), str(folder / "images")
    yield [
        "--num-gpus", "0", "--config-file", str(PROJECT / "configs/own/retinanet_r18.yaml"),
        "DATASETS.COCO.NAME", name,
        "DATASETS.COCO.TRAIN_ANNOTATIONS", boxes, "DATASETS.COCO.TRAIN_IMAGES", images,
        "DATASETS.COCO.TEST_ANNOTATIONS", boxes, "DATASETS.COCO.TEST_IMAGES", images,
        "DATASETS.TRAIN", f"('{name}_train',)", "DATASETS.TEST", f"('{name}_test',)",
        "MODEL.TIMM.NAME", "test_resnet", "MODEL.TIMM.WEIGHTS", "", "MODEL.FPN.OUT_CHANNELS", "16",
        "MODEL.RETINANET.NUM_CLASSES", "2", "MODEL.RETINANET.NUM_CONVS", "1",
        "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "SOLVER.IMS_PER_BATCH", "2",
        "SOLVER.MAX_ITER", "2", "SOLVER.WARMUP_ITERS", "0", "TEST.EVAL_PERIOD", "0", "DATALOADER.NUM_WORKERS", "0",
        "OUTPUT_DIR", str(folder / "out"),
    ]  # fmt: skip
    for split in ("train", "test"):
        if f"{name}_{split}" in DatasetCatalog:
            DatasetCatalog.remove(f"{name}_{split}")
            MetadataCatalog.remove(f"{name}_{split}")


@pytest.mark.parametrize("name", ["coco/fcos_R_50_FPN_1x", "scenes/retinanet_r18", "bccd/faster_rcnn_r18"])
def test_configs_build(name):
    cfg = load_config(PROJECT / "configs" / f"{name}.yaml")
    cfg.MODEL.DEVICE, cfg.MODEL.TIMM.WEIGHTS = "cpu", ""
    model = build_model(cfg)
    assert model.backbone.output_shape()


@pytest.mark.usefixtures("untried")
def test_a_set_of_ones_own_trains_prunes_and_is_evaluated(project, options, folder):
    pruning = [
        "SIRFP.WIDTHS", "ranking", "SIRFP.RECONSTRUCTION_ITERS", "1",
        "SIRFP.KEEP_FLOPS", "0.6", "SIRFP.ACCUMULATE_ITERS", "2", "SIRFP.ACCUMULATE_PERIOD", "1",
        "SIRFP.INPUT_SIZE", "[64, 64]", "SIRFP.HOOKS", "['Accumulate', 'Report', 'PruneSteps', 'Recover']",
        "SOLVER.MAX_ITER", "4", "TEST.BEST_METRIC", "",
    ]  # fmt: skip
    engine.run(project.DetectionTrainer, argv=options + pruning)
    assert Image.open(folder / "out" / "predictions.png").height > 1000  # four images of two detectors and the truth
    rows = json.loads((folder / "out" / "pruning.json").read_text())
    assert rows["pruned"]["flops"] / rows["dense"]["flops"] == pytest.approx(0.6, abs=0.01)
    for key in ("AP", "AP50", "AP75", "APl", "AP-bright", "AP-dark"):
        assert f"bbox/{key}" in rows["fine-tuned"]["metrics"]


RESUMING = [
    "SIRFP.CRITERION", "sirfp_joint",
    "SIRFP.KEEP_FLOPS", "0.6", "SIRFP.STEPS", "2", "SIRFP.START_ITER", "4", "SIRFP.ACCUMULATE_ITERS", "3",
    "SIRFP.RECOVER_ITERS", "4", "SIRFP.ACCUMULATE_PERIOD", "1", "SIRFP.INPUT_SIZE", "[64, 64]",
    "SIRFP.HOOKS", "['Accumulate', 'Report', 'PruneSteps', 'Recover']", "SOLVER.MAX_ITER", "14",
    "SOLVER.CHECKPOINT_PERIOD", "1", "TEST.BEST_METRIC", "", "SEED", "3", "SOLVER.AMP.ENABLED", "False",
]  # fmt: skip


@pytest.mark.slow
def test_killed_runs_end_with_the_same_plan(options, folder):
    """SIGKILL while statistics accumulate, after the first cut, and after the second; `--resume` goes on."""
    command = [sys.executable, "-W", "ignore", str(PROJECT / "train_net.py"), *options, *RESUMING]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    whole = folder / "whole"
    done = subprocess.run([*command, "OUTPUT_DIR", str(whole)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    out = folder / "out"
    for iteration in (3, 6, 10):
        process = subprocess.Popen(
            [*command[:4], "--resume", *command[4:]], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        while not (out / f"model_{iteration:07d}.pth").exists():
            assert process.poll() is None, process.stderr.read().decode()[-2000:]
            time.sleep(0.01)
        process.kill()
        process.wait()
    subprocess.run([*command[:4], "--resume", *command[4:]], env=environment, check=True, capture_output=True)
    plans = [json.loads((place / "plan.json").read_text()) for place in (whole, out)]
    assert plans[0] == plans[1] and plans[0]["cuts"]
    assert json.loads((out / "pruning.json").read_text())["fine-tuned"]["metrics"]


def edited(folder, change):
    path = folder / "boxes.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c["annotations"][0].update(category_id=7), "unknown category 7"),
        (lambda c: c["annotations"][0].update(bbox=[50, 4, 24, 24]), "outside its image"),
        (lambda c: c["annotations"].clear(), "lists no annotations"),
        (lambda c: c["images"][0].update(file_name="9.png"), "no such image"),
    ],
)
def test_mistakes_in_the_data_end_in_one_line(project, options, folder, capsys, change, says):
    edited(folder, change)
    assert says in error_of(project, options, capsys)


def test_an_image_that_cannot_be_read(project, options, folder, capsys):
    (folder / "images" / "2.png").write_bytes(b"no image")
    assert "2.png" in error_of(project, options, capsys)


def test_the_number_of_classes_must_be_the_datas(project, options, capsys):
    said = error_of(project, [*options, "MODEL.RETINANET.NUM_CLASSES", "5"], capsys)
    assert "MODEL.RETINANET.NUM_CLASSES is 5" in said and "set it to 2" in said


def test_masks_must_be_in_the_data(project, options, folder, capsys):
    masks = [*options, "MODEL.MASK_ON", "True"]
    assert "no segmentations" in error_of(project, masks, capsys)
    encoded = {"size": [64, 64], "counts": [0, 4096]}
    edited(folder, lambda c: c["annotations"][0].update(segmentation=encoded))
    again(project, masks, capsys, "objects of data set")
    edited(folder, lambda c: [one.update(segmentation=encoded) for one in c["annotations"]])
    again(project, masks, capsys, "INPUT.MASK_FORMAT is 'polygon'")


def again(project, options, capsys, says):
    """Checks the same files again under another name, because each data set is checked once."""
    name = options[options.index("DATASETS.COCO.NAME") + 1]
    assert says in error_of(project, [word.replace(name, f"{name}-{len(says)}") for word in options], capsys)


def test_keypoints_need_names(project, options, capsys):
    said = error_of(project, [*options, "MODEL.KEYPOINT_ON", "True"], capsys)
    assert "has no keypoint_names" in said


def test_keypoints_are_those_of_the_data(project, options, folder, capsys):
    """A set of two keypoints per object, registered as Detectron2 does; a perfect detector has an AP of 100."""
    edited(folder, lambda c: [one.update(keypoints=[*one["bbox"][:2], 2, 9, 9, 1]) for one in c["annotations"]])
    edited(folder, lambda c: c["annotations"][-1].update(iscrowd=1) or c["annotations"][-1].pop("keypoints"))
    name = f"points-{folder.name}"
    metadata = {"keypoint_names": ["a", "b"], "keypoint_flip_map": []}
    register_coco_instances(name, metadata, str(folder / "boxes.json"), str(folder / "images"))
    unset = [f"DATASETS.COCO.{split}_{part}" for split in ("TRAIN", "TEST") for part in ("ANNOTATIONS", "IMAGES")]
    points = [*options, *(word for key in unset for word in (key, "")), "MODEL.KEYPOINT_ON", "True"]
    points += ["DATASETS.TRAIN", f"('{name}',)", "DATASETS.TEST", f"('{name}',)"]
    number = ["MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", "2"]
    sigmas = ["TEST.KEYPOINT_OKS_SIGMAS", "[0.05, 0.1]"]
    assert "NUM_KEYPOINTS is 17, data set" in error_of(project, points, capsys)
    assert "KEYPOINT_OKS_SIGMAS has 17 values, data set" in error_of(project, [*points, *number], capsys)
    cfg = engine.setup(launch.argument_parser().parse_args([*points, *number, *sigmas]))
    evaluator = project.DetectionTrainer.build_evaluator(cfg, name)
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        instances = true_objects(record)
        given = [one.get("keypoints", [0] * 6) for one in record["annotations"]]
        instances.pred_keypoints = torch.tensor(given, dtype=torch.float32).view(-1, 2, 3)
        evaluator.process([record], [{"instances": instances}])
    assert evaluator.evaluate()["keypoints"]["AP"] == pytest.approx(100)
    edited(folder, lambda c: c["annotations"][0].update(keypoints=[1, 2, 2]))
    said = error_of(project, [*points, *number, *sigmas], capsys)
    assert "0.png has 3 numbers as keypoints, 2 keypoints have 6" in said


def test_a_panoptic_network_needs_label_maps(project, options, capsys):
    panoptic = [*options, "MODEL.META_ARCHITECTURE", "PanopticFPN", "MODEL.ROI_HEADS.NUM_CLASSES", "2"]
    assert "has no label maps" in error_of(project, panoptic, capsys)
    segmentor = [*options, "MODEL.META_ARCHITECTURE", "SemanticSegmentor"]
    assert "is trained by projects/segmentation" in error_of(project, segmentor, capsys)


def test_training_and_test_set_have_the_same_classes(project, options, folder, capsys):
    content = json.loads((folder / "boxes.json").read_text())
    for one in content["categories"]:
        one["id"] = 3 - one["id"]
    (folder / "turned.json").write_text(json.dumps(content))
    said = error_of(project, [*options, "DATASETS.COCO.TEST_ANNOTATIONS", str(folder / "turned.json")], capsys)
    assert "have other classes: class 0 is 'bright' and 'dark'" in said


def test_sets_that_others_registered_are_checked_too(project, options, folder, capsys):
    name = f"theirs-{folder.name}"
    register_coco_instances(name, {"thing_classes": ["bright", "dark"]}, str(folder / "boxes.json"), str(folder))
    said = error_of(project, [*options, "DATASETS.TRAIN", f"('{name}',)"], capsys)
    assert "0.png: no such image" in said and not (folder / "out").exists()
    (folder / "boxes.json").unlink()
    register_coco_instances(f"{name}-2", {}, str(folder / "boxes.json"), str(folder / "images"))
    said = error_of(project, [*options, "DATASETS.TRAIN", f"('{name}-2',)"], capsys)
    assert f"data set '{name}-2' cannot be read" in said


def test_evaluating_needs_no_training_data(project, options, folder):
    (folder / "no.json").write_text("[]")
    alone = [*options, "DATASETS.COCO.TRAIN_ANNOTATIONS", str(folder / "no.json")]
    engine.run(project.DetectionTrainer, argv=["--eval-only", *alone])


def test_detections_are_written_with_the_ids_of_the_annotation_file(project, options, folder):
    """Without any detection the file is an empty list."""
    edited(folder, lambda c: [one.update(id=10 * one["id"]) for one in c["categories"]])
    edited(folder, lambda c: [one.update(category_id=10 * one["category_id"]) for one in c["annotations"]])
    cfg = engine.setup(launch.argument_parser().parse_args([*options, "TEST.PREDICTIONS", "True"]))
    (name,) = cfg.DATASETS.TEST
    evaluator = project.DetectionTrainer.build_evaluator(cfg, name)
    written = folder / "out" / "predictions" / name / "coco_instances_results.json"
    truth = json.loads((folder / "boxes.json").read_text())["annotations"]
    for found in (True, False):
        evaluator.reset()
        for record in DatasetCatalog.get(name):
            evaluator.process([record], [{"instances": true_objects(record) if found else true_objects(record)[[]]}])
        evaluator.evaluate()
        keys = ("image_id", "category_id", "bbox", "score")
        expected = [[one["image_id"], one["category_id"], one["bbox"], 1.0] for one in truth] if found else []
        assert [[one[key] for key in keys] for one in json.loads(written.read_text())] == expected


def test_a_training_run_and_an_evaluation_write_detections(project, options, folder):
    name = options[options.index("DATASETS.TEST") + 1].strip("(',)")
    file = folder / "out" / "predictions" / name / "coco_instances_results.json"
    options = [*options, "TEST.PREDICTIONS", "True", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"]
    engine.run(project.DetectionTrainer, argv=options)
    trained = json.loads(file.read_text())
    assert trained and {one["category_id"] for one in trained} <= {1, 2}
    file.unlink()
    weights = ["MODEL.WEIGHTS", str(folder / "out" / "model_final.pth")]
    engine.run(project.DetectionTrainer, argv=["--eval-only", *options, *weights])
    assert json.loads(file.read_text()) == trained


def true_objects(record):
    """The objects of a record as detections of score 1."""
    boxes = Boxes([[x, y, x + w, y + h] for x, y, w, h in (one["bbox"] for one in record["annotations"])])
    instances = Instances((64, 64), pred_boxes=boxes, scores=torch.ones(len(boxes)))
    instances.pred_classes = torch.tensor([one["category_id"] for one in record["annotations"]])
    return instances


def test_average_precision_of_annotations_without_area_that_count_from_zero(project, options, folder):
    edited(folder, lambda c: [(one.update(id=one["id"] - 1), one.pop("area")) for one in c["annotations"]])
    cfg = engine.setup(launch.argument_parser().parse_args(options))
    (name,) = cfg.DATASETS.TEST
    records = DatasetCatalog.get(name)
    evaluator = project.DetectionTrainer.build_evaluator(cfg, name)
    for found, expected in ((True, 100), (False, 0)):
        evaluator.reset()
        for record in records:
            instances = true_objects(record)
            evaluator.process([record], [{"instances": instances if found else instances[[]]}])
        results = evaluator.evaluate()["bbox"]
        assert [results[key] for key in ("AP", "AP50", "AP-bright", "AP-dark")] == pytest.approx([expected] * 4)
        assert results["APs"] == pytest.approx(expected) and np.isnan(results["APl"])  # all boxes are small


def error_of(project, options, capsys):
    with pytest.raises(SystemExit) as raised:
        engine.run(project.DetectionTrainer, argv=options)
    said = capsys.readouterr().err.strip().splitlines()
    assert raised.value.code == 2 and said[-1].startswith("error: ")
    return said[-1]
