"""Run-length encoded masks: decoded as pycocotools writes them, and refused where they do not cover the image."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask

from sirfp.data.run_lengths import covers, run_lengths


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40), st.floats(0, 1))
def test_masks_that_pycocotools_writes_cover_their_image(seed, height, width, share):
    drawn = np.random.default_rng(seed).random((height, width)) < share
    text = mask.encode(np.asfortranarray(drawn.astype(np.uint8)))["counts"].decode("ascii")
    runs = run_lengths(text)
    ends = np.cumsum(runs)
    decoded = np.zeros(height * width, bool)
    for start, end in zip(ends[::2], ends[1::2], strict=False):
        decoded[start:end] = True
    assert np.array_equal(decoded.reshape(height, width, order="F"), drawn)
    assert covers(text, height * width) and covers(runs, height * width)
    assert not covers(text, height * width + 1) and not covers(runs[:-1], height * width)


OTHERS = [[5, 5], [700], [-5, 605], [1.5, 598.5], ["600"], [True] * 600, "", "P", "a b", "\u00e9", "o" * 40 + "0", None]


@pytest.mark.parametrize("counts", OTHERS)
def test_others_do_not(counts):
    assert not covers(counts, 600)
