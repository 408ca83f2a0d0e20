"""The page of one run: one file with its table, its pictures and its settings; everything in it is escaped."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from sirfp.study import run_page


@pytest.fixture
def folder(tmp_path):
    dense = {"metrics": {"a/x": 80.0, "a/y": 1.0}, "flops": 2_000_000_000, "params": 3_000_000, "latency": 0.004}
    tuned = dense | {"metrics": {"a/x": 79.5, "a/y": 2.0}, "flops": 800_000_000, "latency": 0.002}
    (tmp_path / "pruning.json").write_text(json.dumps({"dense": dense, "fine-tuned": tuned}))
    (tmp_path / "config.yaml").write_text("NAME: <script>alert(1)</script>\n")
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "predictions.png")
    return tmp_path


def test_the_page_has_the_table_the_pictures_and_the_settings(folder):
    file = run_page.write(folder, "A & B", ["as <fast>"], ["a/x"])
    text = file.read_text()
    assert file == folder / "report.html" and "<title>A &amp; B</title>" in text
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", text)[1:]]
    assert cells == [
        ["dense", "80.00", "2.00", "100.0%", "3.00", "100.0%", "4.0"],
        ["fine-tuned", "79.50", "0.8", "40.0%", "3.00", "100.0%", "2.0"],
    ]
    wide = re.findall('<div class="scroll"[^>]*aria-label="[^"]+"><(table|img)', text)
    assert wide == ["table", "img"], "no part widens the page"
    assert "as &lt;fast&gt;" in text and text.count("<img") == 1 and 'src="data:image/webp;base64,' in text
    assert "alert(1)" in text and "<script>alert" not in text


def test_the_page_loads_no_other_file(folder):
    text = run_page.page(folder, "A")
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", text) and "default-src 'none'" in text
    assert '<th scope="col" class="number">y</th>' in text  # all metrics where none are named
