"""The page of a comparison: what it says, and that it looks right in a browser."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from harness.__main__ import main
from harness.compare.comparison import changes, standings
from harness.compare.figures import against_sites, against_size, call_of
from harness.compare.page import render, write_page
from harness.errors import BadInput
from harness.events.child_reader import open_in_child
from harness.events.native import EventWriter
from harness.report.style import Looks
from harness.results.store import read
from harness.results.summary import summarize
from tests.harness.events.conftest import make_event

ENGINES = ["sscn", "dense", "spconv"]


class Text(HTMLParser):
    """The words of a page, without scripts and styles."""

    def __init__(self):
        super().__init__()
        self.words, self.silent = [], 0

    def handle_starttag(self, tag, attrs):
        self.silent += tag in ("script", "style")

    def handle_endtag(self, tag):
        self.silent -= tag in ("script", "style")

    def handle_data(self, data):
        if not self.silent:
            self.words.append(data)


def words(html):
    parser = Text()
    parser.feed(html)
    return re.sub(r"\s+", " ", " ".join(parser.words))


def parsed(folder, name, records):
    path = folder / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return read(path)


@pytest.fixture(scope="module")
def one_run(tmp_path_factory, run_records):
    frame = parsed(tmp_path_factory.mktemp("one"), "run.jsonl", run_records(rounds=3))
    cells = summarize(frame)
    return frame, cells, standings(cells), []


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory, run_records):
    folder = tmp_path_factory.mktemp("two")
    before = parsed(folder, "before.jsonl", run_records(rounds=12))
    after = parsed(folder, "after.jsonl", run_records(rounds=12, factor=1.2, commit="b" * 40))
    cells = summarize(after)
    return after, cells, standings(cells), changes(summarize(before), cells), before


@pytest.fixture(scope="module")
def page(one_run):
    return render(*one_run)


def test_the_page_says_who_is_fastest_before_anything_else(page):
    text = words(page)
    assert text.index("sscn is the fastest engine here") < text.index("Every number")
    assert "Example CPU" in text
    assert "a" * 10 in text


def test_the_page_lists_what_gave_no_time_with_its_reason(page):
    text = words(page)
    assert text.count("needs 31 GB of 8 GB") >= 4
    assert "out-of-memory" in text


def test_the_page_tells_how_to_measure_again(page):
    text = words(page)
    assert f"git checkout {'a' * 40}" in text
    assert "python -m harness run inference --backend sscn --backend spconv" in text
    assert "--repeats 3" in text


def test_the_page_needs_no_network(page):
    own = page.replace(plotly_source(), "")
    assert len(own) < len(page), "the library is inlined"
    assert page.count(plotly_source()[:2000]) == 1
    links = re.findall(r"""(?:src|href)\s*=\s*["']([^"']+)""", own)
    assert not [link for link in links if not link.startswith(("data:", "#"))]
    assert "@import" not in own
    assert "url(http" not in own
    assert len(page.encode()) < 6_500_000


def plotly_source():
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def test_the_page_shows_an_event_with_its_classes(page):
    assert "scatter3d" in page
    assert "electromagnetic shower" in page
    assert "active sites of 512³ voxels" in words(page)


def test_events_of_a_file_are_not_shown(write_records, make_record):
    record = make_record()
    record["cell"]["events"]["set"] = "mine.root"
    frame = read(write_records([record]))
    cells = summarize(frame)
    html = render(frame, cells, standings(cells), [])
    assert "scatter3d" not in html
    assert len(html) < 500_000


def test_every_panel_shows_the_failures_of_its_engines(page):
    panels = re.findall(r"<figure>(.*?)</figure>", page, re.S)
    assert len(panels) == 6  # two batches of time and memory, and both against sites
    assert sum("out of memory" in panel for panel in panels) == 4


def test_figures_follow_the_theme_of_the_page(page):
    svg = re.search(r"<figure>(.*?)</figure>", page, re.S)[1]
    assert "currentColor" in svg
    assert "#010203" not in svg


def test_text_from_records_cannot_become_markup(write_records, make_record):
    bad = make_record(backend="<b>x</b>", outcome="crashed", reason="<script>alert(1)</script>")
    frame = read(write_records([bad, make_record()]))
    cells = summarize(frame)
    html = render(frame, cells, standings(cells), [])
    assert "<script>alert" not in html
    assert "<b>x</b>" not in html


def test_two_runs_show_the_changes_first(two_runs):
    html = render(*two_runs)
    text = words(html)
    assert text.index("6 SLOWER") < text.index("The engines after the change")
    assert "95 % interval" in text
    assert "b" * 10 in text
    assert "The run before" in text
    assert 'class="narrow"' in html


def test_an_engine_keeps_its_look_when_others_come_and_go():
    few, many = Looks(["minkowski"]), Looks(["spconv", "dense", "minkowski", "sscn", "ocnn"])
    assert few.color("minkowski") == many.color("minkowski")
    assert few.marker("minkowski") == many.marker("minkowski")
    assert len({many.color(e) for e in many.engines}) == 5
    assert len({many.marker(e) for e in many.engines}) == 5


def test_engines_outside_the_table_have_looks_of_their_own():
    names = ["sscn", "spconv", *(f"engine-{i}" for i in range(20))]
    looks = Looks(names)
    assert len({(looks.color(e), looks.marker(e)) for e in names}) == len(names)
    assert Looks(["engine-3"]).color("engine-3") == Looks(["engine-3", "sscn"]).color("engine-3")


def test_a_folder_that_cannot_be_written_is_named(one_run, tmp_path):
    from harness.errors import BadInput

    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(BadInput, match="give another --report"):
        write_page(blocked, *one_run)


def test_compare_writes_the_page(write_records, run_records, tmp_path):
    path = write_records(run_records())
    with pytest.raises(SystemExit) as ended:
        main(["compare", str(path), "--report", str(tmp_path / "page")])
    assert ended.value.code == 0
    assert (tmp_path / "page" / "index.html").is_file()


def test_energy_is_shown_where_it_was_measured(one_run, page, tmp_path, run_records):
    assert "energy per event" not in words(page)
    records = [record | {"energy_joules": 0.25} for record in run_records()]
    frame = parsed(tmp_path, "metered.jsonl", records)
    cells = summarize(frame)
    text = words(render(frame, cells, standings(cells), []))
    assert "Energy against image size" in text
    assert "energy per event" in text
    assert "0.25 J" in text


def test_panels_of_a_kind_share_their_axes(run_records, tmp_path):
    cells = summarize(parsed(tmp_path, "run.jsonl", run_records()))
    looks = Looks(ENGINES)
    ticks = [
        re.findall(r"<text[^>]*>([^<]* m?s)</text>", panel)
        for panel in against_sites(
            [m for m in cells if m.cell.batch == 1 or m.engine == "sscn"],
            looks,
            call_of,
            "s",
            "time",
        )
        + against_size(cells, looks, call_of, "s", "time")
    ]
    assert len(ticks) == 3
    assert ticks[1] == ticks[2] != []
    single = [m for m in cells if m.cell.size == 192]
    bars = against_size(single, looks, call_of, "s", "time")
    axes = [re.findall(r'<g id="xtick_\d+">.*?<text[^>]*>([^<]*)</text>', b, re.S) for b in bars]
    assert axes[0] == axes[1] != []


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("runs", ["one_run", "two_runs"])
def test_the_page_looks_right_in_a_browser(runs, width, request, tmp_path, open_page, violations):
    path = write_page(tmp_path, *request.getfixturevalue(runs))
    browser = open_page(path, width, dark=width == 400)
    assert violations(browser) == []
    assert browser.execute_script("return window.innerWidth") == width
    overflow = browser.execute_script(
        "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    assert overflow <= 0
    assert browser.execute_script("return document.querySelectorAll('#event canvas').length") > 0
    clipped = browser.execute_script(
        "return [...document.querySelectorAll('figure svg text')].filter(t => {"
        " const r = t.getBoundingClientRect(), f = t.closest('svg').getBoundingClientRect();"
        " return r.left < f.left - 2 || r.right > f.right + 2; }).map(t => t.textContent)"
    )
    assert clipped == []
    assert Path(path).stat().st_size > 0


@pytest.mark.browser
def test_the_changes_fit_a_narrow_screen(two_runs, tmp_path, open_page):
    browser = open_page(write_page(tmp_path, *two_runs), 400)
    shown = browser.execute_script(
        "return [...document.querySelectorAll('figure.narrow svg text')].map(t => {"
        " const r = t.getBoundingClientRect(); return [t.textContent.trim(), r.left, r.right]; })"
    )
    places = {text: (left, right) for text, left, right in shown}
    for text in ("same", "+10 %"):
        left, right = places[text]
        assert 0 <= left < right <= 400
    assert places["same"][1] < places["+10 %"][0]


def test_accuracies_lead_the_figures(tmp_path, make_record):
    def record(engine, precision, right):
        accuracy = {"nonzero": right / 100, "event_correct": [right], "event_labelled": [100]}
        return make_record(backend=engine, precision=precision, accuracy=accuracy | {"flips": 3})

    runs = [("sscn", "fp32", 96), ("spconv", "fp32", 96), ("sscn", "bf16", 93)]
    frame = parsed(tmp_path, "run.jsonl", [record(*run) for run in runs])
    cells = summarize(frame)
    page = render(frame, cells, standings(cells), [])
    said = words(page)
    assert said.index("Accuracy against time") < said.index("Time against image size")
    assert said.count("96.00 % (3 differ)") == 2
    assert "93.00 % (3 differ)" in said
    figure = page[page.index("Accuracy against time") : page.index("Time against image size")]
    assert figure.count("<figure>") == 1
    assert "bf16" in figure


def test_a_page_without_accuracies_has_no_empty_column(one_run):
    frame, cells, ranked, found = one_run
    assert "accuracy" not in words(render(frame, cells, ranked, found)).lower()


def test_the_event_of_a_users_file_is_shown(tmp_path, make_record):
    path = tmp_path / "mine.h5"
    with EventWriter(path, 192, 3, "test") as writer:
        writer.append(make_event(70, 192, 0))
        writer.append(make_event(50, 192, 1))
    record = make_record()
    with open_in_child(path) as events:
        record["cell"]["events"] = {"set": "mine.h5[1]", "sha256": events.sha256, "seed": 0}
    frame = parsed(tmp_path, "run.jsonl", [record])
    cells = summarize(frame)
    page = render(frame, cells, standings(cells), [], events=str(path))
    assert "A liquid-argon event of mine.h5: 50 active sites of 192³ voxels" in words(page)
    assert "liquid-argon event of" not in words(render(frame, cells, standings(cells), []))
    other = tmp_path / "other.h5"
    with EventWriter(other, 192, 3, "test") as writer:
        writer.append(make_event(60, 192, 2))
    with pytest.raises(BadInput, match="not the file of events that this run has measured"):
        render(frame, cells, standings(cells), [], events=str(other))
