"""The report is one page without other files; it sorts, has light and dark colours, and escapes its inputs."""

from __future__ import annotations

import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

import sirfp
from sirfp.reporting.provenance import checkout_commit
from sirfp.study import charts, grid, html_report, pictures
from sirfp.study.results import Row
from sirfp.study.run_folders import RunFolders


@pytest.fixture(scope="module")
def report(finished):
    """The report of the finished study, with pictures."""
    study = grid.load(finished.file, finished.root / "out")
    folder = RunFolders(study.folder).folder(study.cells[0])
    random = np.random.default_rng(0)
    near = random.random((6, 6)) ** 2
    np.savez(
        folder / pictures.MATRICES, names=np.array(["a"]), before0=np.float16(np.maximum(near, near.T)),
        after0=np.eye(3, dtype=np.float16), order0=np.array([5, 3, 1, 0, 2, 4]), kept0=np.array([0, 2, 3]),
    )  # fmt: skip
    Image.fromarray(random.integers(0, 256, (40, 60, 3), np.uint8)).save(folder / pictures.PREDICTIONS)
    html_report.write(study, RunFolders(study.folder))
    return study.folder / html_report.NAME


def chromium(report, hash_: str, *options: str) -> str:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium (Debian: apt install chromium)")
    command = [
        program,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={report.parent / 'chromium'}",
    ]
    done = subprocess.run(
        [*command, *options, f"file://{report}{hash_}"], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


def column(dom: str, index: int) -> list[str]:
    body = re.search(r'<table id="results">.*?<tbody>(.*?)</tbody>', dom, re.DOTALL)[1]
    return [re.findall(r'data-value="([^"]*)"', row)[index] for row in body.split("</tr>")[:-1]]


def test_it_needs_nothing_from_outside(report):
    text = report.read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text) and "url(" not in text and "default-src 'none'" in text
    assert text.count("<script>") == 1 and "&lt;script&gt;alert(1)" in text
    assert (
        "data:image/webp" in text
        and "Of the 3 channels that the greedy clique would keep, sirfp 0.5 keeps 67%." in text
    )


def test_the_table_sorts(report):
    text = report.read_text()
    assert column(text, 3) == ["62.0", "59.0", "61.5", "49.0", "51.5"]
    dom = chromium(report, "#sort=-metric", "--dump-dom")
    assert column(dom, 3) == ["62.0", "61.5", "59.0", "51.5", "49.0"]
    assert column(chromium(report, "#sort=metric", "--dump-dom"), 3)[0] == "62.0", "the dense network stays at the top"
    assert re.search(r'data-key="metric"[^>]* aria-sort="descending"', dom)
    assert column(chromium(report, "#sort=-budget", "--dump-dom"), 2) == ["", "0.75", "0.75", "0.5", "0.5"]


def test_what_has_no_value_comes_last(report):
    other = report.parent / "without.html"
    other.write_text(report.read_text().replace('data-value="61.5"', 'data-value=""'))
    for order in ("metric", "-metric"):
        assert column(chromium(other, f"#sort={order}", "--dump-dom"), 3)[-1] == ""


def test_latency_fits_its_speed_up(report):
    text = report.read_text()
    cells = re.findall(r'data-value="[^"]*">([\d.]+)<small>of ([\d.]+)</small></td><td[^>]*>([\d.]+)×', text)
    assert cells and all(float(dense) / float(less) == pytest.approx(float(up), abs=0.01) for less, dense, up in cells)


def test_versions_and_time_are_on_the_page(report):
    text = report.read_text()
    assert f"sirfp {sirfp.__version__}" in text and re.search(r"PyTorch [\d.]+", text) and "Python 3." in text
    assert re.search(r"Written \d{4}-\d\d-\d\d \d\d:\d\d", text) and "of run time" in text


def test_a_commit_is_that_of_the_checkout_itself(tmp_path):
    assert checkout_commit(tmp_path) == ""
    (tmp_path / "inside").mkdir()
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run([*git, *words], check=True)
    assert re.fullmatch(r"[0-9a-f]{12}", checkout_commit(tmp_path)) and checkout_commit(tmp_path / "inside") == ""


def test_the_best_is_bold_among_several_only(report):
    text = report.read_text()
    assert text.count('<tr class="best">') == 2, "one of two criteria, for each of two budgets"
    rows = [Row("t", "m", "a/b", "x", 0.5, (1,), 60.0, None), Row("t", "m", "a/b", "x", 0.4, (1,), 50.0, None)]
    assert 'class="best"' not in html_report._results(rows) and "bold" not in html_report._results(rows)


def test_lines_end_at_the_network_that_was_trained_on():
    def row(criterion, budget, mean):
        return Row("t", "m", "sem_seg/mIoU", criterion, budget, (1,), mean, None, flops_kept=budget or 1.0)

    pruned, dense, unpruned = row("b", 0.5, 50.0), row("dense", None, 60.0), row("unpruned", 1, 70.0)

    def last_height(*rows):
        return float(re.search(r'<polyline[^>]*,([\d.]+)"', charts.trade_off(rows))[1])

    def height(name, *rows):
        svg = charts.trade_off(rows)
        return float(re.search(rf'cy="([\d.]+)" r="5"><title>{name}', svg)[1])

    assert last_height(dense, pruned) == height("dense", dense, pruned)
    assert last_height(dense, unpruned, pruned) == height("unpruned", dense, unpruned, pruned)
    assert "to unpruned" in charts.explanation([dense, unpruned, pruned])
    assert "fewer iterations" in charts.explanation([dense, pruned])


@pytest.mark.parametrize(
    ("metric", "title"),
    [("sem_seg/mIoU", "mIoU, %"), ("bbox/AP50", "AP50, %"), ("classification/top1", "top1, %"), ("a/loss", "loss")],
)
def test_axes_have_names_and_units(metric, title):
    svg = charts.trade_off([Row("t", "m", metric, "b", 0.5, (1,), 50.0, None, flops_kept=0.5)])
    assert f">{title}</text>" in svg and "FLOPs kept, % of the dense network" in svg


def test_it_is_light_and_dark(report, tmp_path):
    shades = {}
    for theme in ("light", "dark"):
        shot = tmp_path / f"{theme}.png"
        chromium(report, f"#theme={theme}", "--window-size=1280,900", f"--screenshot={shot}")
        pixels = np.asarray(Image.open(shot).convert("L"))
        shades[theme] = np.median(pixels)
        assert pixels.std() > 10, "there is something on it"
    assert shades["light"] > 230 and shades["dark"] < 50


def test_it_fits_a_table_into_1280_pixels(report, tmp_path):
    probe = report.parent / "probe.html"
    script = "<script>document.title = `wide ${document.querySelector('.scroll').scrollWidth - "
    script += (
        "document.querySelector('.scroll').clientWidth} ${document.body.scrollWidth - innerWidth}`</script></body>"
    )
    policy = "default-src 'none'"
    probe.write_text(report.read_text().replace("</body>", script).replace(policy, "default-src *"))
    wide, over = re.search(
        r"<title>wide (-?\d+) (-?\d+)", chromium(probe, "", "--window-size=1280,900", "--dump-dom")
    ).groups()
    assert int(wide) == 0 and int(over) <= 0


def test_a_trade_off_of_any_rows_is_drawn():
    def row(criterion, kept, mean, std=None):
        return Row("t", "m", "a/b", criterion, None if criterion == "dense" else kept, (1,), mean, std, flops_kept=kept)

    svg = charts.trade_off([row("dense", 1.0, 60.0), row("<a>", 0.4, 60.0, 0.0), row("b", 0.4, 60.0)])
    assert "&lt;a&gt;" in svg and "<a>" not in svg and "nan" not in svg
    places = [float(y) for y in re.findall(r'<text class="(?:name|tick) end" x="136" y="([\d.]+)"', svg)]
    assert len(places) == 3 and min(np.diff(sorted(places))) >= 19.9, "labels do not lie on each other"
    assert "<svg" in charts.trade_off([row("b", 0.4, 0.0)])


def test_matrices_shrink_to_means_and_mark_what_stays():
    matrix = np.zeros((448, 448), np.float32)
    matrix[:224, :224] = 1
    pixels = np.asarray(pictures.draw_matrix(matrix, np.arange(448) < 112))
    wide = pixels.shape[0] - 224
    assert tuple(pixels[wide, 0]) == pictures.KEPT and tuple(pixels[-1, 0]) == pictures.GONE
    assert (pixels[wide:, wide:][:112, :112] == pixels[wide, wide]).all()
    assert (pixels[-1, -1] != pixels[wide, wide]).any()
