"""Which files a source has: nothing that a path leads to is left out unsaid, and nothing is read twice."""

import os
from pathlib import Path

import pytest

from lmstack.prep.collect.source import Source, list_pieces


def listed(*paths: Path | str, max_bytes: int = 1 << 20) -> list[str]:
    return [piece.path for piece in list_pieces("s", Source(paths=[str(path) for path in paths]), max_bytes)]


def test_a_file_that_two_patterns_name_is_read_once(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("text")
    assert listed(tmp_path / "*.txt", tmp_path / "a*", tmp_path) == [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]


def test_links_to_folders_are_followed_and_a_circle_ends(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.txt").write_text("text")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "raw")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "one").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "raw" / "two").symlink_to(tmp_path / "elsewhere")
    assert listed(tmp_path / "raw") == [str(tmp_path / "raw" / "one" / "a.txt")]


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.txt").write_text("text")
    scandir = os.scandir

    def closed(path: str) -> object:
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(ValueError, match=r"closed cannot be listed: Permission denied\. Make it readable"):
        listed(tmp_path)


def test_a_folder_with_the_name_of_a_file_is_left_to_the_reader_to_report(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "b.jsonl").write_text("{}")
    assert listed(tmp_path / "*") == [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]


def test_a_large_file_that_cannot_be_opened_is_left_to_the_reader_to_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n" * 100)

    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("lmstack.prep.collect.source.open_binary", refuse)
    assert listed(tmp_path, max_bytes=10) == [str(tmp_path / "a.jsonl")]
