"""Sensitivities: their tables and figures, a measurement that goes on where it was interrupted, several processes."""

from __future__ import annotations

import csv
import io
import json
import math

import pytest
import torch
from torch import nn

import sirfp
from sirfp.budget import curves as measuring
from sirfp.budget.curve import Curve
from sirfp.budget.sensitivity import COLUMNS, Sensitivity, csv_text, ranked, table
from sirfp.reporting import figures

LEVELS = (0.75, 0.5)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(12, 4)).eval()


def images(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 3, 12, 12, generator=generator) for _ in range(4)]


def measure(model=None, batches=None, **given):
    batches = batches or images()
    return sirfp.sensitivity(model or network(), batches[0][:1], calibration=batches, levels=LEVELS, **given)


@pytest.fixture
def measured(monkeypatch) -> list[int]:
    """The number of copies that were cut for curves, as they come."""
    copies: list[int] = []
    cut_copy = measuring.cut_copy

    def counted(*args, **kwargs):
        copies.append(1)
        return cut_copy(*args, **kwargs)

    monkeypatch.setattr(measuring, "cut_copy", counted)
    return copies


def test_a_model_is_measured_and_not_changed():
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = measure(model)
    assert [one.group for one in found] == ["0", "2"] and [one.curve.widths for one in found] == [(4, 6, 8), (6, 9, 12)]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    first, second, rest = 3 * 8 * 9 * 100, 8 * 12 * 9 * 64, 12 * 64 + 12 * 4  # convolutions; pooling and classifier
    whole = sirfp.find_groups(network(), images()[0][:1]).flops()
    assert whole == first + second + rest
    assert [one.flops for one in found] == [(first + second) / whole, (second + rest) / whole]


def test_tables_rank_groups_and_leave_out_what_was_not_measured():
    curves = [Curve("a", 8, (4, 6, 8), (0.1, 0.01, 0)), Curve("b", 8, (8,), (0,)), Curve("c", 8, (4, 8), (0.5, 0))]
    rows = [Sensitivity(curve, 2, 0.25) for curve in curves]
    assert [one.group for one in ranked(rows)] == ["c", "a", "b"]
    assert table(rows, LEVELS).rows == (
        ("c", "16", "-", "0.5", "25.0%"), ("a", "16", "0.01", "0.1", "25.0%"), ("b", "16", "-", "-", "25.0%"),
    )  # fmt: skip
    lines = list(csv.DictReader(io.StringIO(csv_text(rows))))
    assert tuple(lines[0]) == COLUMNS and len(lines) == 6
    assert [lines[0][key] for key in COLUMNS] == ["a", "16", "8", "0.5", "0.1", "0.25"]
    assert rows[0].to_json()["widths"] == [8, 12, 16] and math.isinf(rows[1].at_half)


def test_a_figure_needs_a_loss(tmp_path):
    figures.loss_curves({"a": [(0.5, 0.1), (0.75, -1e-9), (1.0, 0.0)], "b": [(0.5, math.nan)]}, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(sirfp.InputError, match="no loss curve to draw"):
        figures.loss_curves({"a": [(0.5, 0.0), (1.0, 0.0)]}, tmp_path / "b.png")


def test_an_interrupted_measurement_goes_on(tmp_path, measured, monkeypatch):
    whole = measure()
    assert len(measured) == 4
    put = measuring.CurveStore.put

    def stop(self, *args):
        put(self, *args)
        raise KeyboardInterrupt

    cache = tmp_path / "folder/curves.json"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(measuring.CurveStore, "put", stop)
        measure(cache=cache)
    assert len(measured) == 4 + 1
    assert measure(cache=cache) == whole and len(measured) == 4 + 4, "only what is missing is measured"
    assert measure(cache=cache) == whole and len(measured) == 4 + 4, "nothing is measured"
    assert [file.name for file in cache.parent.iterdir()] == ["curves.json"]


def altered() -> nn.Module:
    model = network()
    with torch.no_grad():
        model[6].bias[1] += 1e-6
    return model


class Slower(nn.ReLU):
    """Computes the same by another class."""


def another_class() -> nn.Module:
    model = network()
    model[1] = Slower()
    return model


def other_pixel() -> list[torch.Tensor]:
    batches = images()
    batches[0][0, 0, 0, 0] += 1e-6  # of an image that is fitted on
    return batches


@pytest.mark.parametrize(
    "other",
    [
        {"model": altered}, {"model": another_class}, {"batches": other_pixel}, {"batches": lambda: images(1)},
        {"batches": lambda: images()[:3]}, {"reconstruction": 0}, {"criterion": "magnitude"}, {"round_to": 4},
    ],
    ids=lambda other: next(iter(other)),
)  # fmt: skip
def test_a_cache_is_not_used_where_anything_differs(tmp_path, measured, other):
    made = {name: value() if callable(value) else value for name, value in other.items()}
    plain = measure(**made)
    del measured[:]
    measure(cache=tmp_path / "c.json")
    first = len(measured)
    again = {name: value() if callable(value) else value for name, value in other.items()}
    assert measure(cache=tmp_path / "c.json", **again) == plain
    assert len(measured) > first
    count = len(measured)
    measure(cache=tmp_path / "c.json")
    assert len(measured) == count, "the first state is still known"


def test_a_group_that_keeps_its_order_and_widths_is_not_measured_again(tmp_path, measured):
    measure(cache=tmp_path / "c.json")
    found = sirfp.sensitivity(
        network(), images()[0][:1], calibration=images(), levels=(*LEVELS, 0.74), cache=tmp_path / "c.json"
    )
    assert [one.curve.widths for one in found] == [(4, 6, 8), (6, 9, 12)] and len(measured) == 4


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": "sirfp loss curves 0"}', json.dumps({"format": "sirfp loss curves 1"}),
             json.dumps({"format": "sirfp loss curves 1", "states": {"a": {"b": ["c"]}}})],
)  # fmt: skip
def test_another_file_is_not_overwritten(tmp_path, text):
    file = tmp_path / "c.json"
    file.write_text(text)
    with pytest.raises(sirfp.InputError, match="name another file, or remove it") as error:
        measure(cache=file)
    assert "\n" not in str(error.value) and file.read_text() == text


def test_mistakes():
    for given, says in (({"levels": (0.5, 1.0)}, "below 1; got 1"), ({"levels": ()}, "none is given")):
        with pytest.raises(sirfp.InputError, match=says):
            sirfp.sensitivity(network(), images()[0][:1], calibration=images(), **given)
    with pytest.raises(sirfp.InputError, match="at least two calibration images, not 0"):
        sirfp.sensitivity(network(), images()[0][:1])
    with pytest.raises(sirfp.InputError, match="leave out cache or divergence"):
        measure(cache="c.json", divergence=lambda a, b: (a - b).square().mean())
