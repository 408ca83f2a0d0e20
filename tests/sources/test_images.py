"""The images of a folder."""

from __future__ import annotations

from sirfp.sources.images import find_images


def test_folders_and_files_may_be_links(tmp_path):
    real, linked = tmp_path / "real" / "cats", tmp_path / "linked"
    real.mkdir(parents=True)
    linked.mkdir()
    for name in ("a.png", "b.JPG", ".hidden.png", "notes.txt"):
        (real / name).touch()
    (linked / "cat").symlink_to(real)
    (linked / "file.png").symlink_to(real / "a.png")
    (linked / "again").symlink_to(linked)  # a circle
    found = [path.relative_to(linked).as_posix() for path in find_images(str(linked))]
    assert found == ["cat/a.png", "cat/b.JPG", "file.png"]
