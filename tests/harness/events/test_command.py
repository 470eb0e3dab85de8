from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.errors import BadInput
from harness.events import open_events, open_sample
from harness.events.command import app
from tests.harness.events.test_osf import CONTENT, Osf, serving


def run(*words) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_info_of_the_sample_shows_every_size_beside_the_references():
    text = run("info", "--count", 2)
    for size, talk in ((192, "5e-04"), (512, "1e-04"), (768, "")):
        assert f"2 events, {size} px" in text
        assert talk in text
    for words in (
        "real event",
        "5,180",
        "talk",
        "neighbours of 27",
        "sites at stride 32",
        "michel",
    ):
        assert words in text


def test_info_of_the_real_event_agrees_with_its_reference(fixtures):
    text = run("info", fixtures / "larcv3_pilarnet_event48.h5", "--count", 1)
    for words in ("voxels", "neighbours of 27", "voxels per MeV", "sites at stride 8"):
        rows = [[cell.strip() for cell in line.split("│")] for line in text.splitlines()]
        (row,) = (row for row in rows if words in row)
        assert row[2] == row[3] != ""
    assert "empty" not in text
    assert "1 empty events were left out" in run("info", fixtures / "larcv3_pilarnet_event48.h5")


def test_convert_keeps_voxels_and_can_cut_and_project(tmp_path):
    out = tmp_path / "events.h5"
    assert "5 events" in run("convert", "sample", out, "--size", 192, "--first", 3, "--count", 5)
    sample = open_sample(192)
    with open_events(out) as converted:
        assert [e.voxels.tolist() for e in converted] == [e.voxels.tolist() for e in sample[3:8]]
    flat = tmp_path / "flat.h5"
    run("convert", out, flat, "--plane", "zx")
    with open_events(flat) as projected:
        assert (len(projected), projected[0].dim, projected.size) == (5, 2, 192)
    text = run("info", flat)
    assert "neighbours of 9" in text
    assert "real event" not in text


def test_view_writes_a_page_and_a_picture(tmp_path):
    page = tmp_path / "event.html"
    assert str(page) in run("view", "--size", 192, "--event", -1, "--out", page)
    text = page.read_text(encoding="utf-8")
    event = open_sample(192)[-1]
    assert f"{len(event):,} active voxels" in text
    assert "<script src=" not in text
    assert page.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_fetch_prints_what_arrived(tmp_path):
    osf = Osf()
    with serving(osf) as osf.address:
        text = run(
            *("fetch", "--size", 512, "--files", "0-1", "--cache", tmp_path),
            *("--api", f"{osf.address}/v2"),
        )
    paths = [Path(line) for line in text.split()]
    assert [path.read_bytes() for path in paths] == [CONTENT[path.name] for path in paths]
    assert len(paths) == 2


def test_simulate_writes_a_file_that_opens(tmp_path):
    pytest.importorskip("calzone")
    out = tmp_path / "events.h5"
    run("simulate", "--size", 64, "--count", 3, "--seed", 7, "--processes", 1, "--out", out)
    with open_events(out) as events:
        assert (len(events), events.size) == (3, 64)
        assert "seed=7" in events.source


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("info", "none.root"), "none.root is no file"),
        (("info", "sample", "--size", 100), "192, 512, 768 px, none of 100"),
        (("info", "sample", "--first", 10_000), "there is no event 10000"),
        (("info", "sample", "--plane", "xx"), "choose one of xy, yz, zx"),
        (("view", "--size", 192, "--event", 256), "there is no event 256"),
        (("view", "--size", 192, "--out", "none/page.html"), "does not exist"),
        (("convert", "sample", "x.h5"), "choose one with size"),
        (("convert", "sample", "none/x.h5", "--size", 192), "does not exist"),
        (("simulate", "--size", 192, "--preset", "cosmic", "--out", "x.h5"), "standard, michel"),
        (("simulate", "--size", 4, "--out", "x.h5"), "choose 16 to 4096"),
        (("fetch", "--size", 512, "--files", "one"), "write them like 0-1"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput) as caught:
        run(*words)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_never_converted_onto_itself(tmp_path):
    out = tmp_path / "events.h5"
    run("convert", "sample", out, "--size", 192, "--count", 2)
    with pytest.raises(BadInput, match="is the source itself"):
        run("convert", out, out)
    with open_events(out) as events:
        assert len(events) == 2
