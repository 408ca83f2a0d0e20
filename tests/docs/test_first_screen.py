"""What newcomers look for is on the README's first screen, and in the questions and answers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
FAQ = (ROOT / "docs/faq.md").read_text()


def test_the_first_screen_says_what_it_is_how_to_install_it_and_what_it_is_worth():
    first = "\n".join(README.splitlines()[:40])
    assert "`pip install .`" in first and "arxiv.org/abs/2412.12672" in first
    assert re.search(r"\| mIoU [\d., ]+ \| mIoU [\d., ]+ \|.*\d+ → \d+ ms \|", first), "a network, dense and pruned"


def test_the_paper_and_the_software_can_be_cited():
    assert "@inproceedings{" in README and (ROOT / "CITATION.cff").is_file()


@pytest.mark.parametrize(
    "question",
    [
        "only the backbone", "a pruned file further", "fine-tuning a pruned file", "Another head", "moving average",
        "DDP", "Lightning", "8-bit integers", "reference of the API", "list of changes", "cited", "Detectron2",
        "GPU", "training loop of one's own", "criterion of one's own",
    ],
)  # fmt: skip
def test_questions_of_users_have_answers(question):
    asked = re.findall(r"^\*\*(.+?)\*\*", FAQ, re.MULTILINE)
    assert any(question in text for text in asked), f"no question in docs/faq.md is about {question!r}"
