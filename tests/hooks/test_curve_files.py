"""Loss curves in a training run: the files about them, and prunings that are cut off while they are measured."""

from __future__ import annotations

import json

import pytest
from tiny_run import Stopped, run

from sirfp.errors import InputError
from sirfp.hooks import curves

pytestmark = pytest.mark.usefixtures("undrawn", "found_once")

CURVES = ("SIRFP.WIDTHS", "curves")


def recording(kept):
    """`CurveStore.put` that also notes what it puts."""
    put = curves.CurveStore.put

    def record(self, state, *args):
        put(self, state, *args)
        kept.append(state)

    return record


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run: its folder, its trainer, and how many curves it measured."""
    folder, kept = tmp_path_factory.mktemp("whole"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves.CurveStore, "put", recording(kept))
        return folder, run(folder, *CURVES), len(kept)


def test_a_run_writes_its_loss_curves(whole):
    folder, trainer, _ = whole
    prunings = json.loads((folder / "curves.json").read_text())["prunings"]
    assert [(one["step"], one["iteration"]) for one in prunings] == [(1, 8), (2, 13)]
    assert prunings[-1]["cuts"] == [[one.to_json() for one in cut] for cut in trainer.pruning.measured]
    plan = trainer.pruning.plan
    for cut in (cut for one in prunings for cut in one["cuts"]):
        assert [group["group"] for group in cut] == list(plan.kept)
        assert all(group["channels"] == group["widths"][-1] and group["losses"][-1] == 0 for group in cut)
    first = prunings[0]["cuts"][0]
    assert {group["group"]: group["channels"] for group in first} == dict(plan.channels)
    assert (folder / "curves.png").stat().st_size and "keeps 80%" in (folder / "curves.md").read_text()


def test_an_interrupted_pruning_goes_on_with_its_curves(whole, tmp_path, monkeypatch):
    """The run dies while the second pruning's curves are measured, and is resumed from a checkpoint before it."""
    folder, finished, count = whole
    kept: list = []
    record = recording(kept)

    def die(self, state, *args):
        record(self, state, *args)
        if len(kept) == count - 1:
            raise Stopped

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(curves.CurveStore, "put", die)
        run(tmp_path, *CURVES)
    monkeypatch.setattr(curves.CurveStore, "put", record)
    trainer = run(tmp_path, *CURVES, resume=True)
    assert len(kept) == count, "one group more was measured"
    assert trainer.pruning.plan == finished.pruning.plan
    ours, theirs = (json.loads((place / "curves.json").read_text()) for place in (tmp_path, folder))
    assert ours == theirs


def test_a_file_in_the_way_of_curves_ends_the_run_before_it_starts(tmp_path):
    (tmp_path / "curve_cache.json").write_text("{}")
    with pytest.raises(InputError, match="curve_cache.json holds no measured losses"):
        run(tmp_path, *CURVES)
