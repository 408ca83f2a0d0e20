"""The classification project: configs build; training on a folder, pruning and resuming work; timm loads the files."""

import csv
import io
import json
import shutil
import sys
import tarfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from detectron2.data import DatasetCatalog
from marks import slow_but
from PIL import Image
from scripts import loaded

import sirfp
from sirfp import engine
from sirfp.channels import find_groups
from sirfp.config import load_config, register_data
from sirfp.data.registration import register_images
from sirfp.errors import InputError

PROJECT = Path(__file__).resolve().parents[2] / "projects" / "classification"
CONFIGS = sorted(PROJECT.glob("configs/*/*.yaml"))
CLASSES = ["blue", "green", "red"]


@pytest.fixture(scope="module")
def project():
    with loaded("projects/classification/train_net.py") as module:
        yield module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight images a class, of one colour and noise."""
    root, random = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (root / "all" / name).mkdir(parents=True)
        for i in range(8):
            image = random.integers(0, 120, (36, 40, 3), np.uint8)
            image[..., 2 - label] += 120
            Image.fromarray(image).save(root / "all" / name / f"{i}.png")
    with tarfile.open(root / "all.tar", "w") as tar:
        tar.add(root / "all", "all")
    return root


def command(folder, place):
    """The command line for that folder: the generic config and a tiny network; it writes to `place/out`."""
    name = f"own-{place.name}"
    return [
        "--num-gpus", "0", "--config-file", str(PROJECT / "configs/folder/efficientnet_lite0.yaml"),
        "DATASETS.IMAGES.NAME", name, "DATASETS.TRAIN", f"('{name}_train',)", "DATASETS.TEST", f"('{name}_test',)",
        "DATASETS.IMAGES.TRAIN", str(folder / "all"), "DATASETS.IMAGES.TEST", str(folder / "all"),
        "MODEL.TIMM.NAME", "test_efficientnet", "MODEL.TIMM.WEIGHTS", "", "MODEL.CLASSIFIER.NUM_CLASSES", "3",
        "INPUT.SIZE", "32", "SOLVER.IMS_PER_BATCH", "4", "SOLVER.MAX_ITER", "2", "SOLVER.WARMUP_ITERS", "0",
        "TEST.EVAL_PERIOD", "1", "DATALOADER.NUM_WORKERS", "0", "OUTPUT_DIR", str(place / "out"),
    ]  # fmt: skip


def forget(place):
    """Forgets the data set of that command line."""
    for split in ("train", "test"):
        if f"own-{place.name}_{split}" in DatasetCatalog:
            DatasetCatalog.remove(f"own-{place.name}_{split}")


@pytest.fixture
def options(folder, tmp_path):
    """The command line of a test of its own."""
    yield command(folder, tmp_path)
    forget(tmp_path)


PRUNING = [
    "SIRFP.CRITERION", "sirfp_joint",
    "SIRFP.KEEP_FLOPS", "0.6", "SIRFP.STEPS", "2", "SIRFP.ACCUMULATE_ITERS", "2", "SIRFP.RECOVER_ITERS", "1",
    "SIRFP.ACCUMULATE_PERIOD", "1", "SOLVER.MAX_ITER", "5", "TEST.EVAL_PERIOD", "2",
    "SIRFP.HOOKS", "['Accumulate', 'Report', 'PruneSteps', 'Recover', 'AverageWeights', 'Redundancies']",
    "SIRFP.RECONSTRUCTION_ITERS", "1", "SIRFP.RECOVER_NORM_ITERS", "1", "SIRFP.WIDTHS", "ranking",
    "MODEL.TEACHER.WEIGHT", "0.5", "INPUT.AUGMENT.MIXUP", "0.2", "SOLVER.CHECKPOINT_PERIOD", "2",
]  # fmt: skip


@pytest.fixture(scope="module")
def pruned(project, folder, tmp_path_factory):
    """The folder of a finished run that pruned twice; no test changes it."""
    place = tmp_path_factory.mktemp("pruned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sirfp.session.find_groups", partial(find_groups, trial=False))  # as `untried` does
        run(project, command(folder, place), *PRUNING)
    yield place / "out"
    forget(place)


def configured(project, options):
    cfg = load_config(options[3], options[4:], project.add_classification_config)
    cfg.MODEL.DEVICE = "cpu"
    register_data(cfg)
    return cfg


def run(project, options, *more):
    return engine.run(project.ClassificationTrainer, project.add_classification_config, [*options, *more])


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_a_config_builds_its_network_and_optimizer(project, file):
    cfg = load_config(file, ["MODEL.TIMM.WEIGHTS", "", "MODEL.DEVICE", "meta"], project.add_classification_config)
    network = project.build_network(cfg)
    assert network.num_classes == cfg.MODEL.CLASSIFIER.NUM_CLASSES
    project.build_optimizer(cfg, network)


def test_a_new_classifier_on_trained_weights_begins_near_zero(project, options, tmp_path):
    file = tmp_path / "trained.pth"
    trained = timm.create_model("test_resnet")  # of a thousand classes
    torch.save(trained.state_dict(), file)
    given = ["MODEL.TIMM.NAME", "test_resnet", "MODEL.TIMM.WEIGHTS", str(file), "MODEL.CLASSIFIER.NUM_CLASSES"]
    new = project.build_network(configured(project, [*options, *given, "3"]))
    assert new.fc.weight.abs().max() < 0.06 and not new.fc.bias.any()
    assert torch.equal(new.conv1[0].weight, trained.conv1[0].weight)
    same = project.build_network(configured(project, [*options, *given, "1000"]))
    assert torch.equal(same.fc.weight, trained.fc.weight)


def test_a_folder_trains_evaluates_and_goes_on(project, options, tmp_path):
    run(project, options)
    out = tmp_path / "out"
    for name in ("model_final.pth", "model_best.pth", "metrics.json", "log.txt", "config.yaml"):
        assert (out / name).is_file(), name
    run(project, [*options[:4], "--eval-only", *options[4:]], "MODEL.WEIGHTS", str(out / "model_final.pth"))
    assert "top-1" in (out / "log.txt").read_text()
    run(project, [*options[:4], "--resume", *options[4:]], "SOLVER.MAX_ITER", "3")
    assert torch.load(out / "model_final.pth", weights_only=True)["iteration"] == 2


def test_predicted_classes_are_written_with_file_and_score(project, options, folder, tmp_path):
    run(project, options, "TEST.PREDICTIONS", "True", "SOLVER.MAX_ITER", "1")
    (table,) = (tmp_path / "out" / "predictions").glob("*/classes.csv")
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["file", "class", "score"]
    assert [row["file"] for row in rows] == [f"{name}/{i}.png" for name in CLASSES for i in range(8)]
    network = timm.create_model("test_efficientnet", num_classes=3).eval()
    network.load_state_dict(torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)["model"])
    cfg = configured(project, [*options, "SOLVER.IMS_PER_BATCH", "5"])
    with torch.no_grad():
        scores = torch.cat([network(images) for images, _ in project.test_loader(cfg, cfg.DATASETS.TEST[0])]).softmax(1)
    assert [row["class"] for row in rows] == [CLASSES[i] for i in scores.argmax(1)]
    assert [float(row["score"]) for row in rows] == pytest.approx(scores.amax(1).tolist(), abs=1e-4)


def test_a_stream_has_no_file_names_to_write(project, options):
    cfg = configured(project, [*options, "TEST.PREDICTIONS", "True"])
    DatasetCatalog.remove(cfg.DATASETS.TEST[0])
    DatasetCatalog.register(cfg.DATASETS.TEST[0], lambda: iter(()))
    with pytest.raises(InputError, match="TEST.PREDICTIONS is True, but data set .* no file names"):
        project.check_data(cfg, cfg.DATASETS.TEST)


def test_a_label_of_a_stream_that_is_no_class_is_said(project):
    endless = sys.modules[project.train_loader.__module__].endless
    stream = type("Loader", (list,), {"dataset": None})([(torch.zeros(2, 3, 8, 8), torch.tensor([0, 2]))])
    assert next(endless(stream, 0, 0, classes=3))[1].tolist() == [0, 2]
    with pytest.raises(InputError, match="NUM_CLASSES is 2, but a training image has label 2, counted from 0"):
        next(endless(stream, 0, 0, classes=2))


def test_a_pruned_network_is_plain_timm_and_holds_the_average(pruned):
    rows = json.loads((pruned / "pruning.json").read_text())
    assert list(rows) == ["dense", "pruned", "fine-tuned"]
    network = timm.create_model("test_efficientnet", num_classes=3)
    plan = sirfp.load(pruned / "pruned.safetensors", network)
    assert 0.55 < plan.flops[1] / plan.flops[0] <= 0.6
    assert network.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    assert Image.open(pruned / "predictions.png").width > 1000
    with np.load(pruned / "redundancies.npz") as found:
        name, before, after = found["names"][0], found["before0"], found["after0"]
        assert sorted(found["order0"]) == list(range(plan.channels[name])) and len(before) == plan.channels[name]
        assert tuple(found["kept0"]) == plan.kept[name] and after.shape == (len(plan.kept[name]),) * 2
        assert before.min() >= 0 and before.max() <= 1 and (before == before.T).all()
    checkpoint = torch.load(pruned / "model_final.pth", weights_only=True)
    state = network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in checkpoint["model"].items())
    hook = checkpoint["hooks"]["AverageWeights"] if "hooks" in checkpoint else checkpoint["trainer"]["hooks"]
    hook = hook.get("AverageWeights", hook)
    assert hook["swapped"] and all(value.shape == state[name].shape for name, value in hook["average"].items())


@pytest.mark.usefixtures("untried")
def test_a_run_that_was_cut_off_between_two_prunings_goes_on(project, options, pruned, tmp_path):
    out = shutil.copytree(pruned, tmp_path / "out")
    final = (out / "plan.json").read_text()
    (out / "last_checkpoint").write_text("model_0000001.pth")
    (out / "plan.json").unlink()
    run(project, [*options[:4], "--resume", *options[4:]], *PRUNING)
    plan = sirfp.PruningPlan.from_json((out / "plan.json").read_text())
    assert plan.flops[0] == sirfp.PruningPlan.from_json(final).flops[0]


def test_a_tar_file_holds_the_same_images_as_its_folder(project, options, folder):
    cfg = configured(project, options)
    images, labels = next(iter(project.test_loader(cfg, cfg.DATASETS.TEST[0])))
    name = f"{cfg.DATASETS.IMAGES.NAME}_tar"
    register_images(name, folder / "all.tar")
    same, also = next(iter(project.test_loader(cfg, name)))
    assert torch.equal(images, same) and torch.equal(labels, also)
    DatasetCatalog.remove(name)


def test_mixed_labels_are_shares_and_training_batches_never_end(project, options):
    cfg = configured(project, [*options, "INPUT.AUGMENT.CUTMIX", "1.0", "INPUT.AUGMENT.MIX_OFF_ITER", "6"])
    batches = iter(project.train_loader(cfg))
    drawn = [next(batches) for _ in range(8)]
    assert all(images.shape == (4, 3, 32, 32) for images, _ in drawn)
    assert all(labels.shape == (4, 3) and torch.allclose(labels.sum(1), torch.ones(4)) for _, labels in drawn[:6])


@pytest.mark.parametrize("policy", ["rand-m10-n9-inc1", "rand-m1-n9"])  # both posterize to no bits at all
def test_a_strong_policy_trains(project, options, policy):
    batches = iter(project.train_loader(configured(project, [*options, "INPUT.AUGMENT.POLICY", policy])))
    for _ in range(6):
        images, _ = next(batches)
        assert images.isfinite().all() and images.std() > 0.1


@pytest.mark.parametrize("policy", ["rnd-m9", "randm9", "originl", "augmix-q1"])
def test_a_policy_that_timm_does_not_have_is_named(project, options, policy):
    with pytest.raises(InputError, match=rf"^INPUT.AUGMENT.POLICY '{policy}' is no augmentation policy of timm"):
        project.check_config(configured(project, [*options, "INPUT.AUGMENT.POLICY", policy]))


MIXED = ["INPUT.AUGMENT.MIXUP", "0.5", "INPUT.AUGMENT.MIX_OFF_ITER", "12"]
RESUMED = [([], "0"), (MIXED, "0"), ([], "2"), (MIXED, "2")]


@pytest.mark.parametrize(("mixed", "workers"), slow_but(RESUMED, ([], "0"), (MIXED, "2")))
def test_a_resumed_run_sees_what_it_would_have(project, options, mixed, workers):
    cfg = configured(project, [*options, *mixed, "DATALOADER.NUM_WORKERS", workers, "SEED", "4"])
    whole, first, second = (project.train_loader(cfg) for _ in range(3))
    batches, again = iter(whole), iter(first)
    drawn = [next(batches) for _ in range(15)]  # of six an epoch
    for _ in range(8):
        next(again)
    second.load_state_dict(first.state_dict())
    for (images, labels), (same, also) in zip(drawn[8:], second, strict=False):
        assert torch.equal(images, same) and torch.equal(labels, also)


def test_accuracy_is_counted_over_all_batches(project):
    evaluator = project.AccuracyEvaluator("some")
    labels, sure = torch.arange(10) % 7, torch.eye(7)
    for part in (slice(0, 4), slice(4, 10)):
        evaluator.process((None, labels[part]), 9 * sure[(labels[part] + (part.start == 4)) % 7])
    found = evaluator.evaluate()["classification"]
    assert found["top1"] == 40.0 and found["top5"] >= 40.0 and found["loss"] > 4


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["MODEL.CLASSIFIER.NUM_CLASSES", "5"], "NUM_CLASSES is 5"),
        (["MODEL.TIMM.NAME", "resnet1"], "timm has no network 'resnet1'"),
        (["MODEL.CLASSIFIER.LOSS", "mse"], "MODEL.CLASSIFIER.LOSS must be one of"),
        (["SOLVER.OPTIMIZER", "sdg"], "SOLVER.OPTIMIZER 'sdg'"),
        (["SOLVER.IMS_PER_BATCH", "64"], "the training set has 24 images"),
        (["SOLVER.IMS_PER_BATCH", "3", "INPUT.AUGMENT.MIXUP", "1.0"], "even SOLVER.IMS_PER_BATCH"),
        (["MODEL.TEACHER.WEIGHT", "0.5"], "MODEL.TEACHER.WEIGHTS"),
        (["DATASETS.IMAGES.TEST", "nowhere", "DATASETS.IMAGES.NAME", "gone"], "there is no data set"),
        (["DATASETS.IMAGES.READER", "wds/", "DATASETS.IMAGES.TRAIN", "nowhere"], "no such folder"),
    ],
)
def test_mistakes_end_in_one_line_and_exit_code_2(project, options, change, says, capsys):
    with pytest.raises(SystemExit) as ended:
        run(project, options, *change)
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert ended.value.code == 2 and line.startswith("error: ") and says in line


def read_all(project, cfg, name):
    batches = list(project.test_loader(cfg, name))
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def test_a_folder_of_tar_files_holds_the_same_images(project, options, folder, tmp_path):
    cfg = configured(project, options)
    for name in CLASSES:
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            tar.add(folder / "all" / name, name)
    name = f"{cfg.DATASETS.IMAGES.NAME}_tars"
    register_images(name, tmp_path)
    same = zip(read_all(project, cfg, cfg.DATASETS.TEST[0]), read_all(project, cfg, name), strict=True)
    assert all(torch.equal(a, b) for a, b in same)
    DatasetCatalog.remove(name)


def test_shards_of_webdataset_train_and_hold_the_same_images(project, options, folder, tmp_path):
    pytest.importorskip("webdataset", reason="the reader wds/ needs: pip install webdataset")
    files = [(label, path) for label, name in enumerate(CLASSES) for path in sorted((folder / "all" / name).iterdir())]
    for shard, part in enumerate((files[:12], files[12:])):
        with tarfile.open(tmp_path / f"set-{shard}.tar", "w") as tar:
            for label, path in part:
                for suffix, content in (("png", path.read_bytes()), ("cls", str(label).encode())):
                    member = tarfile.TarInfo(f"{path.parent.name}{path.stem}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    name, shards = f"wds-{tmp_path.name}", "set-{0..1}.tar|24"
    given = [
        "DATASETS.IMAGES.READER", "wds/", "DATASETS.IMAGES.SPLITS", f"['{shards}', '{shards}']",
        "DATASETS.IMAGES.NAME", name, "DATASETS.TRAIN", f"('{name}_train',)", "DATASETS.TEST", f"('{name}_test',)",
        "DATASETS.IMAGES.TRAIN", str(tmp_path), "DATASETS.IMAGES.TEST", str(tmp_path),
    ]  # fmt: skip
    expected = read_all(project, configured(project, options), f"{options[5]}_test")
    found = read_all(project, configured(project, [*options, *given]), f"{name}_test")
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    run(project, options, *given)
    assert (tmp_path / "out/model_final.pth").is_file()
    for split in ("train", "test"):
        DatasetCatalog.remove(f"{name}_{split}")
