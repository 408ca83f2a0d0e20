"""All code in the documentation runs: Python in one namespace a page, commands with less to do, YAML by its reader."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

import pytest
import stand_ins
from pages import LANGUAGES, PAGES, blocks, inline_code, links, script
from reader import Reader, linked
from registrations import temporary
from scripts import ROOT, loaded

from sirfp import cli
from sirfp.config import load_config
from sirfp.criteria import CRITERIA
from sirfp.criteria.registry import described

HERE = r"/(scenes|folder|own)/\w+\.yaml"
"""Configs whose data a reader has."""
NOT_RUN = {
    r"^make ": "sets up .venv and runs for minutes",
    r"^pip install ": "needs a network",
    r"^pre-commit ": "works on a repository of git's, which a reader's folder is not",
    r"^python projects/demo/demo\.py .*--ship": "trains a network for minutes",
    r"^python (-m cProfile .*)?benchmarks/": "takes minutes; most need real data",
    r"/configs/(camvid|cifar10|bccd|cityscapes|coco|imagenet)/": "needs a data set; its config is loaded and checked",
    r"^pytest ": "these tests",
    r"^trtexec ": "TensorRT's, which is not here",
    r"^sirfp export ": "tests/exporting exports; a minute each",
    r"^sirfp report .*--runtimes ": "tests/exporting times runtimes",
    r"^sirfp data (check|prepare) \w": "needs a data set",
    r"^(for|rm) ": "the shell's; its syntax is checked",
}
"""Commands that are parsed, by the very parser they have, but not run: why."""
SLOW = {rf"^python projects/\w+/train_net\.py .*{HERE}": "a minute each, even with less to do"}
"""Commands that are run where slow tests are, and otherwise only parsed, their configs loaded and checked."""
SHORT = (
    "SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 4 SOLVER.WARMUP_ITERS 0 DATALOADER.NUM_WORKERS 0 TEST.EVAL_PERIOD 0 "
    "SIRFP.STEPS 1 SIRFP.START_ITER 2 SIRFP.ACCUMULATE_ITERS 2 SIRFP.RECOVER_ITERS 0 SIRFP.RECONSTRUCTION_ITERS 1 "
    "SIRFP.CURVE_IMAGES 2 SIRFP.WIDTHS ranking"
)
FEW = "model.head.conv_dims [64]"
"""What gives the page's FCOS a head of one layer."""
LESS = [
    (r"^sirfp data scenes$", "--train 8 --val 16 --size 64"),
    (r"^sirfp study ", "--list"),
    (r"^sirfp prune --zoo ", f"{FEW} --criterion magnitude --reconstruction 0 --size 64 64"),
    (r"^sirfp verify .*--zoo ", f"{FEW} --size 64 64"),
    (r"^sirfp prune .*--(images|config-file)", "--batches 1 --batch 2 --widths ranking --reconstruction 0"),
    (r"^sirfp sensitivity .*--(images|config-file|zoo)", "--batches 1 --batch 2"),
    (r"^sirfp verify .*--images", "--batches 1"),
    (r"^python (my_train\w*|share/train_net)\.py ", SHORT),
    (r"^python projects/classification/.*/resnet18", f"{SHORT} MODEL.TIMM.NAME test_resnet"),
    (r"^python projects/\w+/train_net\.py ", f"{SHORT} MODEL.TIMM.WEIGHTS ''"),
]
"""What is added to a command so that it is quick."""
SMALLER = [
    (r'(--timm |create_model\(")resnet18\b', r"\1test_resnet"),
    (r"zeros\(1, 3, 224, 224\)", "zeros(1, 3, 64, 64)"),
    (r"\*\*resolve_model_data_config\(model\)", r'\g<0> | {"input_size": (3, 64, 64)}'),
    (r"rand\(3, 128, 160\)", "rand(3, 64, 64)"),
    (r"described\.num_classes = 3\n", "described.num_classes, described.head.conv_dims = 3, [64]\n"),
    (r"\[128, 160, 192\], MIN_SIZE_TEST: 160", "[64, 80, 96], MIN_SIZE_TEST: 80"),
    (r"in \(16, 32, 48, 64\)", "in (8, 8, 16, 16)"),
    (r"Conv2d\(48, 64, 1\)", "Conv2d(16, 16, 1)"),
    (r"ShapeSpec\(channels=64,", "ShapeSpec(channels=16,"),
    (r"NUM_CLASSES: 2, NUM_CONVS: 2,", "NUM_CLASSES: 2, NUM_CONVS: 1,"),
    (r"(batches = list\(itertools.islice\(.*), 16\)\)", r"\1, 3))"),
    (r"INPUT_SIZE: \[160, 224\]", "INPUT_SIZE: [64, 96]"),
    (r'("(sirfp_joint|spread)", keep_flops=0\.5, calibration=batches)\)', r'\1, widths="ranking", reconstruction=0)'),
    (r"(model, batch, keep_flops=0\.4, calibration=batches)\)", r'\1, widths="ranking", steps=1)'),
]
"""(pattern, replacement) of what is smaller in the pages' code as it is run than as it is printed."""
STAND_INS = {
    "README.md": stand_ins.weights_and_detector,
    "docs/own_loop.md": stand_ins.labelled_batches,
    "docs/device.md": stand_ins.weights_and_detector,
    "docs/predict.md": stand_ins.pruned_networks,
    "docs/tutorial.md": stand_ins.cats_and_dogs,
    "projects/classification/README.md": stand_ins.pruned_digits,
}
"""What else a page's reader has: writes files, gives the names that the page's code takes for granted."""
UNTRIED = {"projects/detection/README.md"}
"""Pages whose large networks are cut on trial by other tests: FCOS by tests/models."""


@pytest.fixture
def folder(tmp_path, monkeypatch, clean_catalogs):
    """Makes the reader's folder the current one; removes afterwards what the page's code has registered."""
    stand_ins.files(tmp_path)
    linked(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in ("SIRFP_DATASETS", "DETECTRON2_DATASETS"):
        monkeypatch.setenv(name, str(tmp_path / "datasets"))
    monkeypatch.syspath_prepend(str(tmp_path))
    with temporary(tmp_path):
        yield tmp_path


def read(page: str, not_run, monkeypatch) -> Reader:
    """Runs all code of a page."""
    reader = Reader(STAND_INS.get(page, dict)(), LESS, SMALLER, not_run, monkeypatch)
    for block in blocks(page):
        try:
            reader.read(block)
        except Exception as error:
            error.add_note(f"in the block of code at {block.place}")
            raise
    return reader


def with_code(pattern: str = "") -> list[str]:
    return [page for page in PAGES if any(b.language != "text" and re.search(pattern, b.text) for b in blocks(page))]


@pytest.mark.usefixtures("found_again", "undrawn")
@pytest.mark.parametrize("page", with_code())
def test_the_code_of_a_page_runs(page, folder, monkeypatch, request):
    if page in UNTRIED:
        request.getfixturevalue("untried")
    read(page, [*NOT_RUN, *SLOW], monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("page", with_code(rf"train_net\.py (.*\\\n)*.*{HERE}"))
def test_the_training_runs_of_a_page_run(page, folder, monkeypatch):
    reader = read(page, NOT_RUN, monkeypatch)
    assert any(re.search(pattern, line) for line in reader.ran for pattern in SLOW)


def test_what_is_made_smaller_is_on_a_page():
    text = "\n".join(block.text for page in PAGES for block in blocks(page))
    assert [pattern for pattern, _ in SMALLER if not re.search(pattern, text)] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_its_language(page):
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{block.place}: begin it with ``` and one of {', '.join(LANGUAGES)}"


@pytest.mark.parametrize("page", PAGES)
def test_links_to_files_are_whole(page):
    for target in links(page):
        if not re.match(r"[a-z]+:", target):
            file = target.partition("#")[0]
            assert not file or (ROOT / page).parent.joinpath(file).exists(), f"{page} points to {target}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_keys_in_the_text_exist(page, keys):
    _, parts = cli.build_parser()
    for code in inline_code(page):
        words = code.split()
        if re.fullmatch(r"benchmarks/\w+\.py", words[0]):
            words = ["python", *words]
        if script(words):
            file = ROOT / words[1]
            assert file.is_file() or not words[1].startswith(("benchmarks", "projects")), f"there is no {words[1]}"
        elif words[0] == "sirfp" and len(words) > 1 and words[1] != "COMMAND":
            assert words[1] in parts, f"there is no command {code!r}"
        elif words[0] == "make" and len(words) > 1:
            assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(), f"the Makefile has no {words[1]}"
        for flag in re.findall(r"(?<![\w-])--[a-z][\w-]+", code) if words[0] == "sirfp" else ():
            assert flag in parts[words[1]].format_help() or words[1] == "data", f"{code!r}: there is no {flag}"
        for key in named_keys(words[0]):
            assert any(known == key or known.startswith(f"{key}.") for known in keys), f"there is no config key {key}"


@pytest.fixture(scope="module")
def keys() -> set[str]:
    """All config keys: Detectron2's, sirfp's and the projects'."""
    found = set()
    for task in ("segmentation", "classification"):
        with loaded(f"projects/{task}/train_net.py") as module:
            found |= set(flat_keys(load_config("", (), getattr(module, f"add_{task}_config"))))
    options = {name for criterion in CRITERIA.values() for name in criterion.options()}
    return found | {f"SIRFP.OPTIONS.{name.upper()}" for name in options}


def test_the_table_of_options_is_what_criteria_say():
    page = (ROOT / "docs/criteria.md").read_text(encoding="utf-8")
    told = [line for line in page.splitlines() if re.match(r"\| `\w+` \| [\w, ]+ \| .* \| .* \| .* \|$", line)]
    assert told == [f"| `{name}` | {' | '.join(rest)} |" for name, *rest in described()]


def flat_keys(node, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from flat_keys(value, f"{prefix}{key}.")


def named_keys(word: str) -> list[str]:
    """The config keys that a word of the text names, with `A.{B,C}` for two."""
    if not re.fullmatch(r"[A-Z][A-Z_]+(\.([A-Z][A-Z0-9_]*|\{[A-Z0-9_,]+\}))+", word):
        return []
    parts = [part.strip("{}").split(",") for part in re.split(r"\.", word)]
    return [".".join(choice) for choice in itertools.product(*parts)]
