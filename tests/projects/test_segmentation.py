"""The segmentation project: training on a user's folder works, mistakes give one line. Configs: test_recipes.py."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from PIL import Image
from scripts import loaded

from sirfp import cli, engine
from sirfp.config import load_config, register_data, validate
from sirfp.errors import InputError

PROJECT = Path(__file__).resolve().parents[2] / "projects" / "segmentation"
CLASSES = ["left", "right", "stripe"]


@pytest.fixture(scope="module")
def project():
    with loaded("projects/segmentation/train_net.py") as module:
        yield module


@pytest.fixture
def folder(tmp_path):
    """Six images of two halves and a stripe, of several sizes; value 9 is ignored."""
    random = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for i in range(6):
        height, width = 40 + 8 * i, 80 - 4 * i
        label = np.zeros((height, width), np.uint8)
        label[:, width // 2 :] = 1
        label[: height // 4] = 2
        label[-4:] = 9
        image = np.stack([label * 60, 255 - label * 20, random.integers(0, 255, label.shape)], -1)
        Image.fromarray(image.astype(np.uint8)).save(tmp_path / "images" / f"{i}.png")
        Image.fromarray(label).save(tmp_path / "labels" / f"{i}.png")
    return tmp_path


@pytest.fixture
def options(folder):
    """The command line for that folder: the generic config and a tiny network."""
    name = f"own-{folder.name}"
    images, labels = str(folder / "images"), str(folder / "labels")
    yield [
        "--num-gpus", "0", "--config-file", str(PROJECT / "configs/folder/deeplab_v3_plus_r18.yaml"),
        "DATASETS.FOLDER.NAME", name, "DATASETS.FOLDER.CLASSES", str(CLASSES), "DATASETS.FOLDER.IGNORE", "9",
        "DATASETS.FOLDER.TRAIN_IMAGES", images, "DATASETS.FOLDER.TRAIN_LABELS", labels,
        "DATASETS.FOLDER.TEST_IMAGES", images, "DATASETS.FOLDER.TEST_LABELS", labels,
        "DATASETS.TRAIN", f"('{name}_train',)", "DATASETS.TEST", f"('{name}_test',)",
        "MODEL.TIMM.NAME", "test_resnet", "MODEL.TIMM.WEIGHTS", "", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "3",
        "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", "8", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "8",
        "INPUT.TRAIN_SIZE", "[48, 64]", "INPUT.MIN_SIZE_TRAIN", "(32, 96)", "SOLVER.IMS_PER_BATCH", "2",
        "SOLVER.MAX_ITER", "2", "SOLVER.WARMUP_ITERS", "0", "TEST.EVAL_PERIOD", "1", "DATALOADER.NUM_WORKERS", "0",
        "OUTPUT_DIR", str(folder / "out"),
    ]  # fmt: skip
    for split in ("train", "test"):
        if f"{name}_{split}" in DatasetCatalog:
            DatasetCatalog.remove(f"{name}_{split}")


def test_the_config_for_a_folder_that_prunes_is_valid():
    cfg = load_config(PROJECT / "configs/folder/deeplab_v3_plus_r18_sirfp.yaml")
    validate(cfg)
    assert cfg.SIRFP.KEEP_FLOPS == 0.5 and cfg.SIRFP.START_ITER + cfg.SIRFP.RECOVER_ITERS < cfg.SOLVER.MAX_ITER


def configured(project, options):
    cfg = load_config(options[3], options[4:], project.add_segmentation_config)
    cfg.MODEL.DEVICE = "cpu"
    register_data(cfg)
    return cfg


def last_error(capsys) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_folder_trains_evaluates_and_goes_on(project, options, folder, capsys):
    run = [project.SegmentationTrainer, project.add_segmentation_config]
    engine.run(*run, options)
    out = folder / "out"
    for name in ("model_final.pth", "model_best.pth", "metrics.json", "log.txt", "config.yaml", "events.*"):
        assert list(out.glob(name)), name
    capsys.readouterr()
    engine.run(*run, [*options[:4], "--eval-only", *options[4:], "MODEL.WEIGHTS", str(out / "model_final.pth")])
    table = capsys.readouterr().out
    assert all(word in table for word in (*CLASSES, "IoU", "mean", "all pixels"))
    engine.run(*run, [*options[:4], "--resume", *options[4:], "SOLVER.MAX_ITER", "3"])
    assert torch.load(out / "model_final.pth", weights_only=True)["iteration"] == 2


@pytest.mark.usefixtures("undrawn", "untried")
def test_a_run_with_all_that_only_training_needs_prunes_and_goes_on(project, options, folder):
    run, out = [project.SegmentationTrainer, project.add_segmentation_config], folder / "out"
    options += [
        "SOLVER.GSRL.WHEN", "pruned", "DATALOADER.SAMPLER_TRAIN", "ClassResampling",
        "SOLVER.AUXILIARY.FEATURE", "stage3", "SOLVER.AUXILIARY.CHANNELS", "8",
        "MODEL.TIMM.OUT_FEATURES", "['stride4', 'stage3', 'stride16']",
        "SIRFP.KEEP_FLOPS", "0.5", "SIRFP.CRITERION", "magnitude", "SIRFP.START_ITER", "1",
        "SIRFP.ACCUMULATE_ITERS", "1", "SIRFP.RECONSTRUCTION_ITERS", "1",
        "SIRFP.HOOKS", "['Accumulate', 'Report', 'PruneSteps', 'Recover']",
        "SOLVER.MAX_ITER", "2", "TEST.EVAL_PERIOD", "0", "TEST.BEST_METRIC", "",
    ]  # fmt: skip
    engine.run(*run, options)
    engine.run(*run, [*options[:4], "--resume", *options[4:], "SOLVER.MAX_ITER", "3"])
    assert "auxiliary_head.conv.weight" in torch.load(out / "model_final.pth", weights_only=True)["model"]
    small = str(out / "pruned.safetensors")
    windows = ["TEST.WINDOW", "[48, 48]", "TEST.AUG.ENABLED", "True", "TEST.AUG.SCALES", "[0.75]"]
    engine.run(*run, [*options[:4], "--eval-only", *options[4:], "MODEL.WEIGHTS", small, *windows])
    assert any("loss_auxiliary" in json.loads(line) for line in (out / "metrics.json").read_text().splitlines())
    assert cli.main(["verify", small, "--config-file", str(out / "config.yaml"), "--size", "48", "64"]) == 0


def test_crops_have_one_size_and_labels_stay_on_their_pixels(project, options):
    cfg = configured(project, [*options, "INPUT.COLOR_JITTER", "0.0", "INPUT.RANDOM_FLIP", "horizontal"])
    mapper = project.SegmentationMapper(cfg, is_train=True)
    seen = set()
    for record in DatasetCatalog.get(cfg.DATASETS.TRAIN[0]) * 3:
        mapped = mapper(record)
        image, label = mapped["image"], mapped["sem_seg"]
        assert image.shape == (3, 48, 64) and image.dtype == torch.uint8
        assert label.shape == (48, 64) and label.dtype == torch.int64
        seen |= set(label.unique().tolist())
        inside = label < 3
        wrong = (image[0].int() - 60 * label).abs() > 20  # red is 60 * label, but for edges that resizing blurs
        assert (wrong & inside).sum() < 0.2 * inside.sum()
    assert seen == {0, 1, 2, 255}, "the set's own ignore value 9 became the head's"


def test_test_images_are_whole_and_have_no_labels(project, options):
    cfg = configured(project, options)
    mapper = project.SegmentationMapper(cfg, is_train=False)
    for record in DatasetCatalog.get(cfg.DATASETS.TEST[0]):
        mapped = mapper(record)
        assert mapped["image"].shape == (3, record["height"], record["width"])
        assert "sem_seg" not in mapped


def test_evaluation_counts_what_is_not_ignored(project, options):
    cfg = configured(project, options)
    name = cfg.DATASETS.TEST[0]
    evaluator = project.SegmentationEvaluator(name)
    for right, miou in ((True, 100.0), (False, 0.0)):
        evaluator.reset()
        for record in DatasetCatalog.get(name):
            label = torch.from_numpy(np.array(Image.open(record["sem_seg_file_name"]))).long()
            label[label == 9] = 0  # a class where the truth is ignored: neither right nor wrong
            label = label if right else (label + 1) % 3
            logits = torch.nn.functional.one_hot(label, 3).permute(2, 0, 1).float()
            evaluator.process([record], [{"sem_seg": logits}])
        results = evaluator.evaluate()["sem_seg"]
        assert results["mIoU"] == results["pACC"] == results["IoU-stripe"] == miou


def test_degenerate_scales_and_windows_give_the_plain_result(project, options):
    cfg = configured(project, options)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    plain = project.SegmentationTrainer.test(cfg, model)
    for one in (
        ["TEST.AUG.ENABLED", "True", "TEST.AUG.SCALES", "[1.0]", "TEST.AUG.FLIP", "False"],
        ["TEST.WINDOW", "[96, 96]"],
    ):
        assert project.SegmentationTrainer.test(configured(project, [*options, *one]), model) == plain
    flipped = ["TEST.AUG.ENABLED", "True", "TEST.AUG.SCALES", "[1.0]"]
    assert project.SegmentationTrainer.test(configured(project, [*options, *flipped]), model) != plain


def test_evaluation_measures_boundaries_and_speed_and_writes_files_where_asked(project, options, folder):
    asked = ["TEST.BOUNDARY_RATIO", "0.02", "TEST.PREDICTIONS", "True", "TEST.FPS", "True"]
    cfg = configured(project, [*options, *asked])
    model = build_model(cfg).eval()
    results = project.SegmentationTrainer.test(cfg, model)
    assert 0 <= results["sem_seg"]["mBoundaryIoU"] <= 100 and results["speed"]["FPS"] > 0
    plain = project.SegmentationTrainer.test(configured(project, options), model)
    assert set(results["sem_seg"]) - set(plain["sem_seg"]) == {"mBoundaryIoU", *(f"BoundaryIoU-{c}" for c in CLASSES)}
    mapper = project.SegmentationMapper(cfg, is_train=False)
    for record in DatasetCatalog.get(cfg.DATASETS.TEST[0]):
        with torch.no_grad():
            expected = model([mapper(record)])[0]["sem_seg"].argmax(0)
        written = Image.open(folder / "out/predictions" / cfg.DATASETS.TEST[0] / Path(record["file_name"]).name)
        assert written.mode == "L" and np.array_equal(np.array(written), expected)


def test_what_is_predicted_right_has_a_boundary_iou_of_one_and_what_servers_judge_none(project, options, folder):
    cfg = configured(project, options)
    evaluator = project.SegmentationEvaluator(cfg.DATASETS.TEST[0], boundary_ratio=0.02)
    for void in (False, True):
        evaluator.reset()
        for record in DatasetCatalog.get(cfg.DATASETS.TEST[0]):
            label = torch.from_numpy(np.array(Image.open(record["sem_seg_file_name"]))).long() % 9
            if void:
                Image.fromarray(np.full(label.shape, 9, np.uint8)).save(record["sem_seg_file_name"])
            evaluator.process([record], [{"sem_seg": torch.nn.functional.one_hot(label, 3).permute(2, 0, 1).float()}])
        results = evaluator.evaluate()
        assert results == {} if void else results["sem_seg"]["mBoundaryIoU"] == 100


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "5"], "NUM_CLASSES is 5"),
        (["INPUT.TRAIN_SIZE", "[50, 64]"], "INPUT.TRAIN_SIZE: both sides must be multiples of 16"),
        (["INPUT.CROP.ENABLED", "True"], "INPUT.TRAIN_SIZE is the size"),
        (["TEST.BOUNDARY_RATIO", "2.0"], "TEST.BOUNDARY_RATIO must lie in [0, 1), got 2.0"),
        (["MODEL.SEM_SEG_HEAD.NAME", "DeepLabV4Head"], "DeepLabV4Head"),
        (["MODEL.SEM_SEG_HEAD.IN_FEATURES", "['stride4', 'stride8', 'stride16']"], "cannot be built"),
        (["DATASETS.FOLDER.TRAIN_LABELS", "nowhere", "DATASETS.FOLDER.NAME", "vanished"], "there is no data set"),
        (["MODEL.WEIGHTS", "nowhere.pth"], "there is no checkpoint nowhere.pth"),
    ],
)
def test_mistakes_end_in_one_line_and_exit_code_2(project, options, change, says, capsys):
    with pytest.raises(SystemExit) as ended:
        engine.run(project.SegmentationTrainer, project.add_segmentation_config, [*options, *change])
    line = last_error(capsys)
    assert ended.value.code == 2 and line.startswith("error: ") and says in line


def test_a_label_outside_the_classes_is_found_before_training(project, options, folder, capsys):
    Image.fromarray(np.full((40, 80), 7, np.uint8)).save(folder / "labels" / "0.png")
    with pytest.raises(SystemExit):
        engine.run(project.SegmentationTrainer, project.add_segmentation_config, options)
    line = last_error(capsys)
    assert "0.png" in line and "label 7" in line


def test_a_network_of_another_width_is_not_evaluated(project, options, folder, capsys):
    weights = folder / "other.pth"
    torch.save({"model": build_model(configured(project, options)).state_dict()}, weights)
    other = ["MODEL.WEIGHTS", str(weights), "MODEL.SEM_SEG_HEAD.CONVS_DIM", "16"]
    with pytest.raises(SystemExit):
        engine.run(
            project.SegmentationTrainer,
            project.add_segmentation_config,
            [*options[:4], "--eval-only", *options[4:], *other],
        )
    assert "is for another model" in last_error(capsys)


def test_a_mistaken_value_is_refused_by_the_model_check(project, options):
    cfg = configured(project, [*options, "INPUT.TRAIN_SIZE", "[0, 0]"])
    with pytest.raises(InputError, match="TRAIN_SIZE"):
        project.check_model(cfg, build_model(cfg))
