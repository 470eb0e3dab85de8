"""Files appear complete or not at all, and only regular files are replaced."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from harness.errors import BadInput
from harness.files import check_target, make_folder, replacing, write_bytes, write_text

ROOT = Path(__file__).resolve().parents[2]


def test_a_file_is_written_with_its_folder_unchanged(tmp_path):
    write_text(tmp_path / "a.txt", "α")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "α"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_regular_file_is_replaced_and_keeps_its_mode(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    path.chmod(0o640)
    write_text(path, "after")
    assert path.read_text() == "after"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_link_keeps_pointing_to_the_replaced_file(tmp_path):
    (tmp_path / "real.txt").write_text("before")
    (tmp_path / "link.txt").symlink_to("real.txt")
    write_text(tmp_path / "link.txt", "after")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "after"


def test_a_name_of_the_longest_length_is_written(tmp_path):
    name = "n" * 255
    write_bytes(tmp_path / name, b"1")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def pipe(folder):
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def link_to_device(folder):
    (folder / "link").symlink_to("/dev/full")
    return folder / "link"


TARGETS = {
    "folder": (lambda folder: folder, "is a folder"),
    "device": (lambda folder: folder.__class__("/dev/full"), "is no regular file"),
    "link to a device": (link_to_device, "is no regular file"),
    "pipe": (pipe, "is no regular file"),
    "missing folder": (lambda folder: folder / "none" / "a", "does not exist; make it first"),
    "file as folder": (lambda folder: folder.__class__(__file__) / "a", "Not a directory"),
    "long name": (lambda folder: folder / ("n" * 256), "File name too long"),
    "long path": (lambda folder: folder.joinpath(*["n" * 200] * 30), "File name too long"),
    "null character": (lambda folder: folder / "a\0b", "is no valid path"),
}


@pytest.mark.parametrize("case", TARGETS)
def test_what_is_no_regular_file_is_refused_in_one_sentence(tmp_path, case):
    make, words = TARGETS[case]
    path = make(tmp_path)
    before = sorted(tmp_path.iterdir())
    for attempt in (check_target, lambda target: write_bytes(target, b"1")):
        with pytest.raises(BadInput, match=words) as caught:
            attempt(path)
        assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_nothing_is_left_where_writing_fails(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")

    def fail(error):
        with replacing(path) as part:
            part.write_text("half")
            raise error

    with pytest.raises(RuntimeError):
        fail(RuntimeError())
    with pytest.raises(BadInput, match="No space left"):
        fail(OSError(28, "No space left on device"))
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "before")]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match=r"cannot write .*file/inner: Not a directory"):
        make_folder(tmp_path / "file" / "inner")


def test_what_a_killed_writer_leaves_is_removed_by_the_next_one(tmp_path):
    killed = (
        "import os, sys; from pathlib import Path; from harness.files import Replacement; "
        "Replacement(Path(sys.argv[1])).part.write_text('half'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", killed, tmp_path / "a.txt"], cwd=ROOT, check=False)
    (left,) = tmp_path.iterdir()
    with replacing(tmp_path / "b.txt") as alive:
        assert not left.exists()
        write_text(tmp_path / "c.txt", "")
        alive.write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.txt", "c.txt"]
    assert (tmp_path / "b.txt").read_text() == "whole"
