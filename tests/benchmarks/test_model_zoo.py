"""The model zoo's script counts each network once, repeats failed ones, and shows both on the page."""

import json
import sys

import pytest
from scripts import loaded

CONFIG = "projects/classification/configs/imagenet/resnet50.yaml"
ROW = {"size": [224, 224], "flops": 4_000_000_000, "params": 25_000_000, "seconds": 0.1}
PRUNED = {"resnet50_sirfp_keep40": {"keep": 0.4, "flops": 1_600_000_000, "params": 10_000_000}}


@pytest.fixture
def zoo(monkeypatch, tmp_path):
    with loaded("benchmarks/model_zoo.py") as module:
        argv = ["--results", tmp_path / "zoo.jsonl", "--page", tmp_path / "zoo.md", "--configs", CONFIG]
        monkeypatch.setattr(sys, "argv", ["model_zoo.py", *map(str, argv)])
        yield module


def fails(family):
    raise RuntimeError("no memory")


def counts(family):
    return ROW | {"pruned": PRUNED}


def test_it_goes_on_where_it_was_stopped(zoo, monkeypatch, tmp_path, capsys):
    ends = []
    for measure in (fails, counts, fails):  # the last is not asked
        monkeypatch.setattr(zoo, "measure", measure)
        ends.append(zoo.main())
    assert ends == [True, False, False]
    rows = [json.loads(line) for line in (tmp_path / "zoo.jsonl").read_text().splitlines()]
    assert [row.get("error") for row in rows] == ["RuntimeError: no memory", None]
    assert "no memory" in capsys.readouterr().out


def test_the_page_has_dense_pruned_and_shared_rows(zoo):
    lines = [line for line in zoo.page({CONFIG: counts(None)}).splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    dense = "python $P/train_net.py --config-file $P/configs/imagenet/resnet50.yaml"
    pruned = f"{dense} --config-file $P/configs/base/recipe/prune_imagenet.yaml"
    rival = f"{pruned} --config-file projects/criteria/RIVAL.yaml"
    assert cells[0] == ["`resnet50`", "224 x 224", "4.00", "100.0%", "25.00", "100.0%", "", f"`{dense}`"]
    ours = ["`resnet50_sirfp_keep40`", "224 x 224", "1.60", "40.0%", "10.00", "40.0%", ""]
    assert cells[1] == [*ours, f"`{pruned} SIRFP.KEEP_FLOPS 0.4`"]
    rivals = "`resnet50_{dcfp,depgraph,fpgm,magnitude,random,slimming,taylor}_keep40`"
    assert cells[2] == [rivals, "224 x 224", "1.60", "40.0%", "", "", "", f"`{rival} SIRFP.KEEP_FLOPS 0.4`"]
    assert len(cells) == 3
