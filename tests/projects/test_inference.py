"""Windows cover the image, results are averaged over scales and mirror images, and trivial settings change nothing."""

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from sirfp.config import load_config
from sirfp.errors import InputError

PROJECT = str(Path(__file__).resolve().parents[2] / "projects" / "segmentation")
sys.path.insert(0, PROJECT)
from segmentation import add_segmentation_config, inference  # noqa: E402

sys.path.remove(PROJECT)


class Pointwise(nn.Module):
    """Class logits that depend on each pixel alone, resized as by a segmentor; records the sizes of its inputs."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, inputs):
        self.sizes += [tuple(x["image"].shape[1:]) for x in inputs]
        found = []
        for x in inputs:
            logits = torch.cat([x["image"].float(), 1 - x["image"][:1].float()])[None]
            logits = F.interpolate(logits, (x["height"], x["width"]), mode="bilinear", align_corners=False)
            found.append({"sem_seg": logits[0]})
        return found


def image(height: int = 20, width: int = 31) -> list[dict]:
    values = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))
    return [{"image": values, "height": height, "width": width}]


@pytest.mark.parametrize("options", [{}, {"window": (20, 31)}, {"window": (64, 64)}, {"scales": (1,)}])
def test_where_there_is_nothing_to_average_it_is_the_plain_network(options):
    model = Pointwise()
    found = inference.SegmentorWithTTA(model, **options)(image())
    assert torch.equal(found[0]["sem_seg"], model(image())[0]["sem_seg"])


@pytest.mark.parametrize("options", [{"window": (8, 10)}, {"window": (7, 40)}, {"flip": True}, {"scales": (1.0, 1.0)}])
def test_of_pixels_by_themselves_every_view_says_the_same(options):
    model = Pointwise()
    plain = model(image())[0]["sem_seg"].softmax(0)
    torch.testing.assert_close(inference.SegmentorWithTTA(model, **options)(image())[0]["sem_seg"], plain)
    assert all(size[0] <= options.get("window", (20,))[0] for size in model.sizes[1:])


def test_a_constant_image_is_the_same_at_every_scale():
    given, model = image(), Pointwise()
    given[0]["image"][:] = torch.tensor([0.1, 0.7, 0.2]).view(3, 1, 1)
    plain = model(given)[0]["sem_seg"].softmax(0)
    averaged = inference.SegmentorWithTTA(model, (0.5, 1.0, 1.75), flip=True, window=(12, 12))
    torch.testing.assert_close(averaged(given)[0]["sem_seg"], plain)


def test_scales_are_averaged_at_the_wanted_size():
    model = Pointwise()
    item = {**image()[0], "height": 40, "width": 62}
    found = inference.SegmentorWithTTA(model, (0.5, 2.0))([item])[0]["sem_seg"]
    assert model.sizes == [(10, 16), (40, 62)]
    each = [inference.SegmentorWithTTA(model, (scale,))([item])[0]["sem_seg"] for scale in (0.5, 2.0)]
    torch.testing.assert_close(found, (each[0] + each[1]) / 2)


def test_overlapping_windows_are_averaged():
    class Numbered(Pointwise):
        def forward(self, inputs):
            self.sizes.append(0)
            logits = torch.zeros(2, inputs[0]["height"], inputs[0]["width"])
            logits[0] = len(self.sizes)
            return [{"sem_seg": logits}]

    found = inference.SegmentorWithTTA(Numbered(), window=(4, 4), overlap=0.5)(image(4, 6))[0]["sem_seg"]
    first, second = (torch.tensor([float(n), 0.0]).softmax(0)[0] for n in (1, 2))
    expected = torch.stack([first, first, (first + second) / 2, (first + second) / 2, second, second])
    torch.testing.assert_close(found[0, 0], expected)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(1, 40), st.floats(0, 0.9))
def test_windows_cover_the_image_and_overlap(height, width, tall, wide, overlap):
    seen = torch.zeros(height, width)
    for rows, columns in inference.windows((height, width), (tall, wide), overlap):
        assert rows.stop - rows.start == min(tall, height) and columns.stop - columns.start == min(wide, width)
        seen[rows, columns] += 1
    assert seen.min() >= 1
    tops = sorted({rows.start for rows, _ in inference.windows((height, width), (tall, wide), overlap)})
    steps = [b - a for a, b in zip(tops, tops[1:], strict=False)]
    assert all(0 < step <= max(1, tall * (1 - overlap)) + 1 for step in steps)


def test_the_config_says_how():
    model = Pointwise().eval()
    assert inference.with_tta(load_config("", [], add_segmentation_config), model) is model
    wrapped = inference.with_tta(
        load_config("", ["TEST.AUG.ENABLED", "True", "TEST.WINDOW", "[8, 8]"], add_segmentation_config), model
    )
    assert wrapped.scales == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75) and wrapped.flip and wrapped.window == (8, 8)
    assert not wrapped.training, "the model has its own mode after an evaluation"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"scales": ()}, "SCALES"),
        ({"scales": (0.0,)}, "SCALES"),
        ({"window": (8, 0)}, "WINDOW"),
        ({"overlap": 1.0}, "OVERLAP"),
    ],
)
def test_mistakes_are_named(options, says):
    with pytest.raises(InputError, match=says):
        inference.SegmentorWithTTA(Pointwise(), **options)
