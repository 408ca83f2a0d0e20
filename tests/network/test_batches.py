"""Calibration as loaders give it: with labels, as lists and dictionaries, without end; failures say so in one line."""

import functools
import itertools
import logging

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sirfp
from sirfp.errors import InputError
from sirfp.network.batches import ENDLESS, described, finite, inputs_of

X, Y = torch.randn(8, 3, 12, 12), torch.randint(0, 4, (8,))


class Net(nn.Module):
    """A network of one input, of two, or of two by keyword; it counts its calls."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU()
        )
        self.head = nn.Linear(16, 4)
        self.calls = 0

    def forward(self, x, other=None):
        self.calls += 1
        return self.head(self.body(x if other is None else x + other).mean((2, 3)))


def build() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def kept(calibration, example=X[:1], criterion="sirfp", model=None, **options):
    return sirfp.prune(model or build(), example, criterion, keep_flops=0.5, calibration=calibration, **options).kept


def cross_entropy(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


PLAIN = [X[:4], X[4:]]
PAIRS = [(X[:4], Y[:4]), (X[4:], Y[4:])]
FORMS = {
    "a loader of images and labels": (DataLoader(TensorDataset(X, Y), batch_size=4), {}),
    "tuples of images and labels": (PAIRS, {}),
    "tuples of indices, labels and images": ([(torch.arange(4), y, x) for x, y in PAIRS], {}),
    "dictionaries": ([{"label": y, "image": x} for x, y in PAIRS], {}),
    "a loss that knows the batch": (PAIRS, {"loss": cross_entropy}),
    "a forward": ([{"a": [x]} for x in PLAIN], {"forward": lambda model, batch: model(batch["a"][0])}),
}


@pytest.mark.parametrize("criterion", ["sirfp", "magnitude"])  # statistics and reconstruction, or the latter alone
@pytest.mark.parametrize("form", FORMS)
def test_labelled_batches_give_the_plan_of_their_images(form, criterion):
    batches, options = FORMS[form]
    assert kept(batches, criterion=criterion, **options) == kept_of_images(criterion)


@functools.cache
def kept_of_images(criterion):
    return kept(PLAIN, criterion=criterion)


def test_gradients_of_labelled_batches():
    wanted = kept(PAIRS, criterion="taylor", loss=cross_entropy)
    assert kept(DataLoader(TensorDataset(X, Y), batch_size=4), criterion="taylor", loss=cross_entropy) == wanted
    run = kept(PAIRS, criterion="taylor", loss=cross_entropy, forward=lambda model, batch: model(batch[0]))
    assert run == wanted


def test_inputs_are_found_by_their_likeness_to_the_example():
    x, y = X[:2], Y[:2]
    assert inputs_of(x, x) is x and inputs_of([x, y], X) is x and inputs_of({"y": y, "x": x}, X) is x
    assert inputs_of((x, x, y), (X, X)) == (x, x)
    assert inputs_of([(x, x), y], (X, X)) == (x, x) and inputs_of(x, (X,)) == (x,)
    assert inputs_of({"x": x, "other": x, "y": y}, {"x": X, "other": X}) == {"x": x, "other": x}
    assert inputs_of([{"x": x}, y], {"x": X}) == {"x": x}
    tokens = torch.randint(0, 9, (2, 7))
    assert inputs_of([tokens, y], tokens) is tokens
    images = [x[0], x[1]]
    assert inputs_of((tuple(images), ({"boxes": y},) * 2), images) == images and inputs_of(images, images) == images
    records = [{"image": x[0]}]
    assert inputs_of(records, records) is records


@pytest.mark.parametrize(
    "batch, example, words",
    [
        ([Y, Y], X, "a list of a tensor \\(8,\\) and a tensor \\(8,\\)"),
        ({"y": Y}, X, "a mapping of 'y'"),
        ("text", X, "an object of class str"),
        ([X], (X, X), "a list of a tensor"),
        (X, {"x": X}, "a tensor \\(8, 3, 12, 12\\)"),
        (X, [{"image": X[0]}], "a tensor"),
    ],
)
def test_a_batch_without_inputs_is_refused(batch, example, words):
    with pytest.raises(InputError, match=f"a calibration batch is {words}.*forward=") as error:
        inputs_of(batch, example)
    assert "\n" not in str(error.value)
    assert described([]) == "a list of nothing"


class Sized:
    """Says that it has two batches, and never ends."""

    def __len__(self):
        return 2

    def __iter__(self):
        return itertools.cycle(PLAIN)


@pytest.mark.parametrize(
    ("calibration", "words"),
    [(torch.rand(8, 3, 8, 8), r"give a list of batches, such as \[images\] or images.split"), ("photos", "is a path")],
)
def test_what_is_no_list_of_batches_is_said(calibration, words):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3))
    with pytest.raises(InputError, match=words):
        sirfp.prune(model, torch.zeros(1, 3, 8, 8), "sirfp", keep_flops=0.5, calibration=calibration)


def test_endless_loaders_end(caplog, monkeypatch):
    with caplog.at_level(logging.WARNING, "sirfp"):
        assert len(list(finite(itertools.cycle(PLAIN)))) == ENDLESS
    assert f"its first {ENDLESS} batches are used" in caplog.text
    caplog.clear()
    assert len(list(finite(Sized()))) == 2 and len(list(finite(iter(PLAIN)))) == 2 and not caplog.text
    assert len(list(finite([X] * (ENDLESS + 1)))) == ENDLESS + 1
    monkeypatch.setattr("sirfp.network.batches.ENDLESS", 64)
    model = build()
    assert kept(itertools.cycle(PLAIN), model=model) == kept(PLAIN * 32)
    assert 64 < model.calls < 64 + 60


def failing(model, batch):
    raise KeyError("pixel_values")


@pytest.mark.parametrize(
    "options, words",
    [
        ({"calibration": PLAIN, "forward": failing}, "cannot be run on a calibration batch.*KeyError: 'pixel_values'"),
        (
            {"calibration": PAIRS, "criterion": "taylor", "loss": failing},
            "on a calibration batch, a tuple of .*KeyError",
        ),
        ({"calibration": PLAIN, "criterion": "magnitude", "forward": failing}, "on a calibration batch, .*KeyError"),
        ({"calibration": [X[:, :2]]}, "on a calibration batch, a tensor \\(8, 2, 12, 12\\): RuntimeError"),
        ({"calibration": None, "example": X[:, :2]}, "on the example inputs, a tensor .*RuntimeError"),
        ({"calibration": None, "example": (X, X, X)}, "on the example inputs, a tuple of .*TypeError"),
    ],
)
def test_errors_of_the_users_code_are_input_errors_with_their_cause(options, words):
    with pytest.raises(InputError, match=words) as error:
        kept(**options)
    assert "\n" not in str(error.value) and isinstance(error.value.__cause__, Exception)
