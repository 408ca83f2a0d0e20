"""Every run's config fits its name, and its network is built, counted and pruned to its budget, without data."""

import functools
import pickle
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from scripts import loaded

from sirfp.config import load_config, register_data
from sirfp.config.checks import validate
from sirfp.config.options import criterion_options
from sirfp.criteria import CRITERIA
from sirfp.criteria.calibration import default_criterion
from sirfp.files import yaml_files
from sirfp.files.config_files import config_files
from sirfp.training.launch import argument_parser
from sirfp.training.schedule import Schedule

ROOT = Path(__file__).resolve().parents[2]
PENALTIES = {"slimming": "SlimmingPenalty", "depgraph": "GroupRegularization"}
RIVALS = {"slimming", "taylor", "fpgm", "depgraph", "dcfp", "magnitude", "random"}
TABLES = [  # the comparisons of the paper
    *[f"segmentation/configs/cityscapes/deeplab_v3{plus}_R_50_os8" for plus in ("", "_plus")],
    *[f"segmentation/configs/{data}/deeplab_v3_R_50_os8" for data in ("ade20k", "coco_stuff", "pascal_context")],
    "segmentation/configs/camvid/deeplab_v3_R_50_os8",
    *[f"detection/configs/coco/{name}_R_50_FPN_1x" for name in ("faster_rcnn", "mask_rcnn", "retinanet", "fcos")],
    "classification/configs/imagenet/resnet50",
]
COUNTED = {"scenes/deeplab_v3_plus_test_resnet", "imagenet/resnet50"}
"""A network with a config of its own that prunes it, and one of the tables; the networks of others are larger."""

with loaded("benchmarks/model_zoo.py") as zoo, loaded("benchmarks/prunability_detectron2.py") as prunability:
    pass
with loaded("projects/segmentation/train_net.py") as segmentation:
    pass
with loaded("projects/classification/train_net.py") as classification:
    pass
ADD = {
    "segmentation": segmentation.add_segmentation_config,
    "classification": classification.add_classification_config,
}


def ids(file: Path) -> str:
    return f"{file.parent.name}/{file.stem}"


FILES = sorted((ROOT / "projects").rglob("*.yaml"))
CONFIGS = sorted((ROOT / "projects").glob("*/configs/*/*.yaml"))
DENSE = [file for file in CONFIGS if not file.stem.endswith(zoo.OWN)]
FAMILIES = zoo.families(sorted({file.parent.name for file in CONFIGS}))
RUNS = {
    f"{family.task}/{family.folder}/{name}": (family, run)
    for family in FAMILIES
    for name, run in {family.network: family.dense, **family.pruned}.items()
}


def task(file: Path) -> str:
    return file.parts[len(ROOT.parts) + 1]


@pytest.fixture(autouse=True, scope="module")
def files_read_once():
    """Parses each file once: most configs share their bases."""

    @functools.cache
    def parsed(path: str, what: str) -> bytes:
        return pickle.dumps(own(path, what))

    own = yaml_files.read_yaml
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml_files, "read_yaml", lambda path, what="config file": pickle.loads(parsed(str(path), what)))
        yield


def read(file: Path, *options: str) -> CfgNode:
    return load_config(file, options, ADD.get(task(file)))


def resolved(run) -> CfgNode:
    """The config of a run of the zoo."""
    return unchanged(run).clone()


def unchanged(run) -> CfgNode:
    """The config of a run of the zoo, for reading."""
    return loaded_once(tuple(ROOT / file for file in run.files), tuple(run.options))


@functools.cache
def loaded_once(files: tuple[Path, ...], options: tuple[str, ...]) -> CfgNode:
    """A config that no test changes."""
    return load_config(files, options, ADD.get(task(files[0])))


def run_of(network: str, criterion: str = "sirfp", budget: int = 40) -> CfgNode:
    """The config of a pruning of a dense config, e.g. "segmentation/configs/cityscapes/deeplab_v3_R_50_os8"."""
    project, _, folder, name = network.split("/")
    return resolved(RUNS[f"{project}/{folder}/{name}_{criterion}_keep{budget}"][1])


def sizes(cfg: CfgNode) -> CfgNode:
    """The keys of a config that determine the network's layers, without the number of classes."""
    cfg = cfg.clone()
    for node in (cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.RETINANET, cfg.MODEL.FCOS, cfg.MODEL.ROI_HEADS):
        node.NUM_CLASSES = 0
    cfg.MODEL.WEIGHTS = cfg.MODEL.TIMM.WEIGHTS = cfg.MODEL.MIT.WEIGHTS = ""
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.pop("TEACHER", None)
    return cfg.MODEL


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_every_file_can_be_read_and_says_something(file):
    loaded_once((file,), ())
    content = yaml.safe_load(file.read_text())
    assert set(content) - {"_BASE_", "OUTPUT_DIR"}, "a command can name these files itself"


@pytest.mark.parametrize("place", RUNS)
def test_a_name_says_what_a_run_does(place):
    family, run = RUNS[place]
    cfg, name = resolved(run), place.rpartition("/")[2]
    validate(cfg)
    Schedule.from_config(cfg)
    assert f"output/{family.folder}_{name}" == cfg.OUTPUT_DIR
    if name == family.network:
        assert cfg.SIRFP.KEEP_FLOPS == 1 and not cfg.SIRFP.HOOKS
        return
    ours = {default_criterion(), "sirfp_joint", "sirfp"}  # of which configs named "sirfp" take the best one measured
    assert cfg.SIRFP.KEEP_FLOPS < 1
    assert cfg.SIRFP.CRITERION in (ours if run.criterion == "sirfp" else {run.criterion})
    assert run.keep == cfg.SIRFP.KEEP_FLOPS
    percent = name.partition("_keep")[2]
    assert percent == ("" if name.endswith(zoo.OWN) else f"{100 * run.keep:g}")
    assert name.partition("_keep")[0] == f"{family.network}_{run.criterion}"
    assert sizes(unchanged(family.dense)) == sizes(cfg), "the network is that of the dense config"


def test_no_two_runs_write_into_one_folder():
    folders = [unchanged(run).OUTPUT_DIR for _, run in RUNS.values()]
    assert len(folders) > 150 and len(set(folders)) == len(folders)


@pytest.mark.parametrize("network", TABLES)
def test_every_rival_differs_from_ours_in_its_criterion_alone(network):
    project, _, folder, name = network.split("/")
    ours = run_of(network)
    (family,) = (f for f in FAMILIES if (f.task, f.folder, f.network) == (project, folder, name))
    beside = {run.criterion: resolved(run) for run in family.pruned.values() if run.keep == 0.4}
    assert RIVALS | {"sirfp"} == set(beside)
    for criterion, cfg in beside.items():
        hooks = [hook for hook in cfg.SIRFP.HOOKS if hook != PENALTIES.get(criterion)]
        assert hooks == ours.SIRFP.HOOKS and len(cfg.SIRFP.HOOKS) == len(hooks) + (criterion in PENALTIES)
        assert criterion == cfg.SIRFP.CRITERION
        cfg.SIRFP.CRITERION, cfg.SIRFP.HOOKS, cfg.OUTPUT_DIR = "sirfp", hooks, ours.OUTPUT_DIR
        assert cfg == ours, criterion


@pytest.mark.parametrize("budget", [40, 50])
@pytest.mark.parametrize(
    ("data", "phases", "crop", "rate", "batch", "decays", "warmup", "grid", "edge"),
    [
        ("cityscapes", (4000, 8000, 36000), 768, 0.01, 8, (5e-4, 1e-3), 1000, [1, 2, 4], 0.3),
        ("ade20k", (16000, 144000), 512, 0.01, 16, (1e-4, 5e-4), 2000, [1, 1, 1], 0.0),
        ("coco_stuff", (6000, 6000, 54000), 512, 0.001, 16, (1e-4, 5e-4), 1000, [1, 1, 1], 0.0),
    ],
)
def test_the_paper_s_settings(data, phases, crop, rate, batch, decays, warmup, grid, edge, budget):
    """docs/method.md, sections 2 to 4 and the released scripts."""
    cfg = run_of(f"segmentation/configs/{data}/deeplab_v3_R_50_os8", budget=budget)
    schedule, solver, ours, resnets = Schedule.from_config(cfg), cfg.SOLVER, cfg.SIRFP, cfg.MODEL.RESNETS
    assert schedule.lengths == phases and [crop, crop] == cfg.INPUT.TRAIN_SIZE
    assert (rate, batch, warmup) == (solver.BASE_LR, solver.IMS_PER_BATCH, solver.WARMUP_ITERS)
    assert (solver.MOMENTUM, solver.POLY_LR_POWER, solver.LR_SCHEDULER_NAME) == (0.9, 0.9, "PhasedPolyLR")
    assert decays == pytest.approx((solver.WEIGHT_DECAY, solver.WEIGHT_DECAY * ours.WEIGHT_DECAY_FACTOR))
    assert (solver.GSRL.WHEN, cfg.DATALOADER.SAMPLER_TRAIN) == ("pruned", "ClassResampling")
    assert (solver.GSRL.BETA, solver.GSRL.WINDOW, solver.GSRL.GAMMA) == (0.9999, 9, 9.0)
    assert (solver.AUXILIARY.FEATURE, solver.AUXILIARY.WEIGHT) == ("res4", 0.4)
    assert (resnets.DEPTH, resnets.STEM_TYPE, resnets.RES4_DILATION, resnets.RES5_DILATION) == (50, "deeplab", 2, 4)
    assert grid == resnets.RES5_MULTI_GRID
    options = CRITERIA["sirfp"].defaults() | criterion_options(cfg)
    assert ("sirfp", 0.99, edge, 0.02) == (ours.CRITERION, options["ema"], options["edge_weight"], ours.MIN_KEEP)
    assert ours.BIAS_CORRECTION and not options["per_position"] and not ours.RECONSTRUCTION_ITERS
    steps, goes = [schedule.target(step).share for step in range(schedule.steps)], 1 - budget / 100
    assert steps == pytest.approx([1 - goes / 2, 1 - goes] if len(phases) == 3 else [1 - goes])  # 30%, then 60%


@pytest.mark.parametrize("file", [f for f in DENSE if task(f) == "segmentation"], ids=ids)
def test_a_segmentor_fits_its_data(file):
    cfg = loaded_once((file,), ())
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    register_data(loaded_once((CONFIGS[0],), ()))
    if all(name in DatasetCatalog for name in names):
        segmentation.check_data(cfg, names)
    dilated = re.search("_os(8|16)$", file.stem) or cfg.MODEL.TIMM.OUTPUT_STRIDE == 16
    stride = 16 if dilated else 32
    assert all(side > 0 and side % stride == 0 for side in cfg.INPUT.TRAIN_SIZE)


def slow_but(quick: set[str], files: list[Path]) -> list:
    """Parameters for configs; `make test` runs only some of them."""
    return [pytest.param(f, marks=[] if ids(f) in quick else pytest.mark.slow, id=ids(f)) for f in files]


@pytest.mark.parametrize("file", slow_but(COUNTED, DENSE))
def test_a_network_is_counted_and_planned_to_its_budgets(file):
    (family,) = (f for f in FAMILIES if ROOT / f.config == file)
    row = zoo.measure(family, (256, 320) if family.task == "detection" else None)  # those need values: slow
    assert set(row["pruned"]) == {name for name, run in family.pruned.items() if run.criterion == "sirfp"}
    for name, found in row["pruned"].items():
        asked = resolved(family.pruned[name]).SIRFP.KEEP_FLOPS * row["flops"]
        assert 0.995 * asked <= found["flops"] <= asked and found["params"] < row["params"], name
    if family.task != "detection" and family.folder in zoo.TITLES:
        dense = zoo.page({family.config: row}).splitlines()
        (line,) = (line for line in dense if line.startswith(f"| `{family.network}` "))
        assert cells(line) in map(cells, (ROOT / "MODEL_ZOO.md").read_text().splitlines())


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")]


def test_the_model_zoo_lists_every_run():
    text = (ROOT / "MODEL_ZOO.md").read_text()
    for family in zoo.families():
        section = text.partition(f"## {zoo.TITLES[family.folder]}: {family.task}\n")[2].partition("\n## ")[0]
        for name, criterion in {family.network: "", **{n: run.criterion for n, run in family.pruned.items()}}.items():
            row = f"`{name}`"
            if criterion in RIVALS:
                row = rf"`{family.network}_\{{([a-z_]+,)*{criterion}(,[a-z_]+)*\}}{name.partition(criterion)[2]}`"
            assert re.search(rf"^\| {row} ", section, re.M), f"{name}: see benchmarks/model_zoo.py"


def test_each_command_of_the_model_zoo_writes_where_its_row_says(monkeypatch):
    """The commands on the page, parsed as by a training script; a shared row gives one command per criterion."""
    monkeypatch.chdir(ROOT)
    found = {}
    for section in (ROOT / "MODEL_ZOO.md").read_text().split("\n## ")[1:]:
        project = re.search(r"^`P=(projects/(\w+))`$", section, re.M)
        for name, command in re.findall(r"^\| `([^`]+)` .*\| +`(python [^`]+)` \|$", section, re.M):
            shared = re.search(r"\{(.+)\}", name)
            for rival in shared[1].split(",") if shared else [""]:
                script, *words = shlex.split(command.replace("$P", project[1]).replace("RIVAL", rival))[1:]
                args = argument_parser().parse_args(words)
                folder = loaded_once(tuple(ROOT / file for file in config_files(args)), tuple(args.opts)).OUTPUT_DIR
                assert Path(script).is_file()
                assert folder.endswith(f"_{name.replace(shared[0], rival) if shared else name}")
                found.setdefault(folder, []).append(command)
    assert all(len(commands) == 1 for commands in found.values()), "no two rows write into one folder"
    assert set(found) == {unchanged(r).OUTPUT_DIR for f in zoo.families() for r in (f.dense, *f.pruned.values())}


NAMING = ("*.md", "docs/**/*.md", "projects/**/*.md", "projects/**/*.py", "studies/*.yaml", "benchmarks/*.py")


@pytest.mark.parametrize("place", NAMING)
def test_configs_that_are_named_exist(place):
    folders = [ROOT, *(ROOT / "projects").iterdir()]
    files = list(ROOT.glob(place))
    assert files
    for file in files:
        for name in re.findall(r"(?<![\w/])((?:projects/\w+/)?(?:\$configs|configs)/[\w/]+\.yaml)", file.read_text()):
            named = name.replace("$configs", "configs")
            assert any((folder / named).is_file() for folder in folders), f"{file.name}: there is no {name}"


def distinct(files: list) -> list:
    """The dense configs with different networks."""
    found = {}
    for file in files:
        cfg = loaded_once((file,), ())
        auxiliary = cfg.SOLVER.AUXILIARY if task(file) == "segmentation" else None
        found.setdefault((str(sizes(cfg)), str(auxiliary)), file)
    return list(found.values())


@pytest.mark.slow
@pytest.mark.parametrize("file", distinct([f for f in DENSE if task(f) != "classification"]), ids=ids)
def test_a_network_is_cut_equal_to_the_masked_one_and_trains(file):
    none = [word for key in ("MODEL", "MODEL.TIMM", "MODEL.MIT") for word in (f"{key}.WEIGHTS", "")]
    cfg = read(file, "MODEL.DEVICE", "cpu", *none)
    torch.manual_seed(0)
    model = build_model(segmentation.with_supervised_segmentor(cfg) if task(file) == "segmentation" else cfg).eval()
    inputs = [{"image": torch.rand(3, 64, 64) * 255, "height": 64, "width": 64} for _ in range(2)]
    prunability.shorten(model, inputs)
    row = prunability.prune(prunability.randomised(model), inputs)
    assert prunability.good(row), row
