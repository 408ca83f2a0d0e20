"""The texts of messages: suggestions can stand within a message as well as at its end."""

from __future__ import annotations

from pathlib import Path

import pytest

import sirfp
from sirfp.data.folders import list_images
from sirfp.errors import InputError, near, suggested


def test_names_are_suggested():
    assert near("tayler", ["taylor", "magnitude"]) == suggested(["taylor"]) == " (did you mean taylor?)"
    assert near("tayler", ["magnitude"]) == suggested([]) == ""
    assert suggested(["a", "b"]) == " (did you mean a or b?)"


def test_a_message_goes_on_after_a_suggestion(tmp_path):
    (tmp_path / "masks").mkdir()
    with pytest.raises(InputError, match=r"/mask: no such folder \(did you mean masks\?\); expected label maps"):
        list_images(tmp_path / "mask", [".png"], "label maps")


def test_all_messages_use_this_form():
    for file in Path(sirfp.__file__).parent.rglob("*.py"):
        assert "; did you mean" not in file.read_text(encoding="utf-8"), file
