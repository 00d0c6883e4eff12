"""Reading a folder: which files are pictures, what is passed over, and where links lead."""

import os
import socket
from pathlib import Path

import pytest

from toolkit.data.folders import Folder, read_folder
from toolkit.errors import DataError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def passed_over(folder: Folder) -> dict[str, str]:
    return {item.path: item.reason for item in folder.all_passed_over()}


def test_pictures_are_sorted_as_text_with_those_of_inner_folders(tmp_path: Path) -> None:
    touch(tmp_path, "10.jpg", "9.JPG", "b/x.png", "b/a/y.tif", "a.gif")
    top = read_folder(tmp_path)
    assert top.all_pictures() == ["10.jpg", "9.JPG", "a.gif", "b/a/y.tif", "b/x.png"]
    assert top.pictures == ["10.jpg", "9.JPG", "a.gif"]
    assert [folder.path for folder in top.walk()] == ["", "b", "b/a"]
    assert passed_over(top) == {}


def test_what_is_passed_over_has_a_reason_and_folders_are_not_entered(tmp_path: Path) -> None:
    touch(tmp_path, "0.jpg", "._0.jpg", "Thumbs.db", "1.jpg.part", "1.heic", "notes.txt", "plain", "classes.txt")
    touch(tmp_path, "a/@eaDir/0.jpg/SYNOPHOTO_THUMB_M.jpg", "a/.thumbnails/0.jpg", "__MACOSX/a/._0.jpg")
    top = read_folder(tmp_path)
    assert top.all_pictures() == ["0.jpg"]
    assert passed_over(top) == {
        "._0.jpg": "hidden",
        "1.heic": "other endings",
        "1.jpg.part": "partial",
        "Thumbs.db": "system",
        "__MACOSX": "system",
        "notes.txt": "other endings",
        "plain": "other endings",
        "a/.thumbnails": "hidden",
        "a/@eaDir": "system",
    }
    assert [item.path for item in top.all_passed_over() if item.is_folder] == [
        "__MACOSX",
        "a/.thumbnails",
        "a/@eaDir",
    ]


def test_pipes_and_sockets_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "null.jpg").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # the path of a socket has to be short
        server.bind("s.jpg")
        assert passed_over(read_folder(tmp_path)) == dict.fromkeys(("null.jpg", "pipe.jpg", "s.jpg"), "special")


def test_links_to_files_are_followed_and_broken_ones_are_pictures_that_cannot_be_read(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/0.jpg", "set/a/1.jpg")
    (tmp_path / "set" / "a" / "out.jpg").symlink_to(tmp_path / "elsewhere" / "0.jpg")
    (tmp_path / "set" / "a" / "broken.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "set" / "a" / "self.jpg").symlink_to("self.jpg")
    top = read_folder(tmp_path / "set")
    assert top.all_pictures() == ["a/1.jpg", "a/broken.jpg", "a/out.jpg", "a/self.jpg"]
    assert top.folders[0].links == ["a/broken.jpg", "a/out.jpg", "a/self.jpg"]


def test_links_to_folders_are_followed_at_the_top_and_in_split_folders_only(tmp_path: Path) -> None:
    touch(tmp_path, "far/0.jpg", "set/train/a/1.jpg", "set/b/2.jpg")
    for place in ("set/c", "set/train/d", "set/train/a/e", "set/b/f"):
        (tmp_path / place).symlink_to(tmp_path / "far")
    top = read_folder(tmp_path / "set", lambda name: name == "train")
    assert top.all_pictures() == ["b/2.jpg", "c/0.jpg", "train/a/1.jpg", "train/d/0.jpg"]
    assert passed_over(top) == {"b/f": "linked", "train/a/e": "linked"}


def test_links_that_lead_back_are_not_followed(tmp_path: Path) -> None:
    touch(tmp_path, "set/a/0.jpg", "set/train/b/1.jpg")
    links = {"set/here": ".", "set/up": "..", "set/top": "/", "set/train/round": "../train", "set/train/root": "../.."}
    for place, target in links.items():
        (tmp_path / place).symlink_to(target)
    top = read_folder(tmp_path / "set", lambda name: name == "train")
    assert top.all_pictures() == ["a/0.jpg", "train/b/1.jpg"]
    assert set(passed_over(top).values()) == {"linked"}
    assert len(passed_over(top)) == 5


def test_folders_may_be_deeper_than_python_calls_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    depth = 1200
    monkeypatch.chdir(tmp_path)
    for _ in range(depth):
        Path("d").mkdir()
        os.chdir("d")
    Path("0.jpg").touch()
    os.chdir(tmp_path)
    top = read_folder(Path())
    os.chdir("/".join("d" * depth))
    Path("0.jpg").unlink()
    for _ in range(depth):  # pytest would not get it away
        os.chdir("..")
        Path("d").rmdir()
    assert top.all_pictures() == [f"{'d/' * depth}0.jpg"]
    assert sum(1 for _ in top.walk()) == depth + 1


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal is staged, because tests may run as root, whom permissions do not stop."""

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"cannot read the folder .*: Permission denied; change its permissions"):
        read_folder(tmp_path)
