"""The site of submissions in a browser: rankings, filters, addresses, hostile texts."""

import json
import re
from dataclasses import replace
from urllib.parse import urlencode

import pytest
from markupsafe import escape

from backends import defects
from harness.__main__ import main
from harness.events.sample import SHA256
from harness.results.environment import facts_in_words
from harness.site.catalogue import read_catalogue
from harness.site.engine import history
from harness.site.pages import write_site
from harness.submissions.archive import make_submission, write_archive

EVENTS = {size: {"set": "sample", "sha256": SHA256[size], "seed": 4} for size in SHA256}
HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>"


@pytest.fixture
def submit(make_record, tmp_path):
    """Write the archive of a machine with some cells: (engine, size, seconds or an outcome)."""

    def write(name, processor, cells, **about):
        records = []
        for engine, size, result in cells:
            ok = isinstance(result, float)
            changes = {} if ok else {"outcome": result, "reason": about.get("reason", "why")}
            record = make_record(result if ok else 0.05, backend=engine, size=size, **changes)
            record["cell"]["events"] = dict(EVENTS[size])
            if "events" in about:
                record["cell"]["events"]["count"] = about["events"]
            record["machine"] = {"processor": processor, "threads": 2}
            record["versions"] = {engine: about.get("version", "1.0")}
            record |= about.get("record", {})
            records.append(record)
        folder = tmp_path / "submissions"
        folder.mkdir(exist_ok=True)
        for name_of_test in ("reason", "version", "record", "events"):
            about.pop(name_of_test, None)
        write_archive(folder / f"{name}.zip", make_submission(records, **about))
        return folder

    return write


@pytest.fixture
def site(submit, tmp_path, capfd):
    """The folder of a site of two machines and an archive that breaks the rules."""
    submit(
        "laptop",
        "Example CPU",
        [
            ("sscn", 192, 0.006),
            ("spconv", 192, 0.05),
            ("minkowski", 192, "crashed"),
            ("sscn", 768, 0.018),
            ("spconv", 768, 0.1),
        ],
        commands=("python -m harness run inference",),
        machine=("processor: Example CPU",),
    )
    folder = submit(
        "server",
        HOSTILE,
        [("sscn", 192, 0.003), ("spconv", 192, 0.03), ("ocnn", 192, "crashed")],
        reason=HOSTILE,
        machine=(f"processor: {HOSTILE}",),
    )
    (folder / "broken.zip").write_bytes(b"nothing")
    out = tmp_path / "site"
    with pytest.raises(SystemExit) as ended:
        main(["site", str(folder), "--out", str(out)])
    assert not ended.value.code
    assert "broken.zip is left out. The file is no ZIP archive" in capfd.readouterr().out
    return out


def rows(browser):
    return [
        [cell.text for cell in line.find_elements("tag name", "td")]
        for line in browser.find_elements("css selector", "#rankings tbody tr")
    ]


def names(browser):
    return [row[0].removesuffix(" ◆") for row in rows(browser)]


def machine_named(site, start):
    text = (site / "data.js").read_text().removeprefix("const DATA = ").rstrip(";\n")
    return next(key for key, name in json.loads(text)["machines"] if name.startswith(start))


def at(site, page="index.html", **state):
    return f"{site / page}#{urlencode(state)}"


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("dark", [False, True])
def test_engines_are_ranked_on_one_machine(site, open_page, width, dark):
    browser = open_page(site / "index.html", width, dark=dark)
    browser.get(f"file://{at(site, machine=machine_named(site, 'Example'))}")
    browser.refresh()
    assert names(browser) == ["sscn", "spconv", "minkowski"]
    first, second, lost = rows(browser)
    assert (first[0], first[3]) == ("sscn ◆", "–")
    assert first[1].startswith("6.0")
    assert first[1].endswith(" ms")
    assert second[3].startswith("8.")
    assert lost[1] == "crashed"
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_filters_change_the_rows_and_the_address(site, open_page):
    from selenium.webdriver.support.ui import Select

    browser = open_page(site / "index.html", 1280)
    Select(browser.find_element("name", "machine")).select_by_visible_text("Example CPU, 2 threads")
    Select(browser.find_element("name", "size")).select_by_value("768")
    assert names(browser) == ["sscn", "spconv"]
    browser.find_element("name", "search").send_keys("spc")
    assert names(browser) == ["spconv"]
    address = browser.current_url
    other = open_page(site / "index.html", 400)
    other.get(address)
    other.refresh()
    assert names(other) == ["spconv"]
    assert other.find_element("name", "size").get_attribute("value") == "768"
    browser.find_element("css selector", "button[type=reset]").click()
    assert "#" not in browser.current_url


def test_a_view_of_all_sizes_has_an_address(site, open_page):
    from selenium.webdriver.support.ui import Select

    browser = open_page(site / "index.html", 1280)
    Select(browser.find_element("name", "machine")).select_by_visible_text("Example CPU, 2 threads")
    Select(browser.find_element("name", "size")).select_by_visible_text("all")
    assert names(browser) == ["sscn", "spconv", "minkowski", "sscn", "spconv"]
    browser.refresh()
    assert names(browser) == ["sscn", "spconv", "minkowski", "sscn", "spconv"]
    assert "on Example CPU, 2 threads" in browser.find_element("id", "said").text
    other = open_page(site / "engines" / "spconv.html", 400)
    other.find_element("partial link text", "Example CPU").click()
    assert names(other) == ["spconv", "spconv"]


def test_the_search_keeps_ranks_and_frontier(site, open_page):
    browser = open_page(site / "index.html", 400)
    key = machine_named(site, "Example")
    browser.get(f"file://{at(site, machine=key, size=192, search='spconv')}")
    browser.refresh()
    ((name, _, _, slower, *_),) = rows(browser)
    assert name == "spconv"
    assert slower.startswith("8.")


def test_a_machine_without_the_initial_question_shows_its_results(submit, tmp_path, open_page):
    folder = submit("one", "Example CPU", [("sscn", 768, 0.01)])
    write_site(tmp_path / "site", read_catalogue(folder))
    browser = open_page(tmp_path / "site" / "index.html", 1280)
    assert names(browser) == ["sscn"]


def test_accuracies_of_fewer_events_are_named_and_not_compared(submit, tmp_path, open_page):
    def accuracy(shares):
        return {
            "nonzero": sum(shares) / len(shares),
            "event_correct": [int(100 * share) for share in shares],
            "event_labelled": [100] * len(shares),
        }

    for name, engine, seconds, shares in (
        ("one", "sscn", 0.01, [0.9, 0.9]),
        ("two", "dense", 0.5, [0.99]),
    ):
        folder = submit(
            name,
            "Example CPU",
            [(engine, 192, seconds)],
            record={"accuracy": accuracy(shares)},
            events=2,
        )
    write_site(tmp_path / "site", read_catalogue(folder))
    browser = open_page(tmp_path / "site" / "index.html", 1280)
    first, second = rows(browser)
    assert first[0] == "sscn ◆"
    assert second[0] == "dense"
    assert "90.00 %" in first
    assert "99.00 % of 1 events" in second


def test_lists_are_searched_and_the_search_has_an_address(site, open_page):
    def shown(browser):
        lines = browser.find_elements("css selector", "tbody tr")
        return [line.text.split()[0] for line in lines if line.is_displayed()]

    browser = open_page(site / "submissions.html", 400)
    assert len(shown(browser)) == 3
    browser.find_element("name", "search").send_keys("LAP")
    assert shown(browser) == ["laptop.zip"]
    assert browser.find_element("id", "said").text == "1 of 3"
    browser.refresh()
    assert shown(browser) == ["laptop.zip"]


def test_filters_work_by_keyboard(site, open_page):
    from selenium.webdriver.common.keys import Keys

    browser = open_page(site / "index.html", 1280)
    browser.get(f"file://{at(site, machine=machine_named(site, 'Example'))}")
    browser.refresh()
    size = browser.find_element("name", "size")
    size.send_keys(Keys.ARROW_DOWN)
    assert size.get_attribute("value") == "768"
    assert names(browser) == ["sscn", "spconv"]


def test_across_machines_only_ratios_to_one_engine_are_shown(site, open_page):
    browser = open_page(site / "index.html", 1280)
    cells = browser.find_element("id", "across").text
    assert cells.count("1×") == 2
    assert re.search(r"\b8\.[0-9]+×", cells)
    assert " ms" not in cells


def test_energy_and_disturbance_are_shown_where_there_are_any(submit, tmp_path, open_page):
    conditions = {"stolen": 0.031}
    folder = submit(
        "one", "Disturbed CPU", [("sscn", 192, 0.01)], record={"conditions": conditions}
    )
    submit("two", "Metered CPU", [("sscn", 192, 0.01)], record={"energy_joules": 0.25})
    write_site(tmp_path / "site", read_catalogue(folder))
    browser = open_page(tmp_path / "site" / "index.html", 1280)
    shown = {}
    for machine in ("Disturbed", "Metered"):
        key = machine_named(tmp_path / "site", machine)
        browser.get(f"file://{at(tmp_path / 'site', machine=key)}")
        browser.refresh()
        shown[machine] = browser.find_element("css selector", "#rankings table").text
    assert "taken by the host" in shown["Disturbed"]
    assert "3.1 %" in shown["Disturbed"]
    assert "energy" not in shown["Disturbed"]
    assert "250 mJ" in shown["Metered"]
    assert "taken by the host" not in shown["Metered"]


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (400, True)])
def test_pages_are_accessible(site, open_page, violations, width, dark):
    browser = open_page(site / "index.html", width, dark=dark)
    pages = [site / "index.html", site / "submissions.html", site / "engines" / "spconv.html"]
    for page in (*pages, *site.glob("machines/*.html"), *site.glob("submissions/*.html")):
        browser.get(page.as_uri())
        assert violations(browser) == [], page
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_every_control_is_reached_by_the_tabulator(site, open_page):
    from selenium.webdriver.common.keys import Keys

    browser = open_page(site / "index.html", 400)
    reached = set()
    for _ in range(60):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        focused = browser.switch_to.active_element
        reached.add(focused.get_attribute("name") or focused.text)
    fields = browser.find_elements("css selector", "select, input")
    assert reached >= {field.get_attribute("name") for field in fields}
    assert reached >= {"rankings", "machines", "engines", "submissions", "reset", "spconv"}


def test_a_printed_page_has_its_tables_and_no_controls(site, open_page):
    browser = open_page(site / "index.html", 700)
    dark = {"name": "prefers-color-scheme", "value": "dark"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": [dark]})
    paper = browser.find_element("tag name", "body").value_of_css_property("background-color")
    assert paper in ("rgb(255, 255, 255)", "rgba(255, 255, 255, 1)")
    assert "2 threads" in browser.find_element("id", "said").text
    assert not browser.find_element("id", "filter").is_displayed()
    assert browser.find_element("css selector", "#rankings table").is_displayed()
    scroll = browser.find_element("css selector", "#rankings .scroll")
    assert scroll.value_of_css_property("overflow-x") == "visible"


def test_the_page_of_an_engine_has_its_recipe_and_its_defects(site):
    page = (site / "engines" / "spconv.html").read_text()
    assert "python -m harness engines install spconv --cuda 12.6" in page
    for defect in defects.known("spconv"):
        assert escape(defect.symptom) in page
        assert escape(defect.handled) in page
    own = (site / "engines" / "sscn.html").read_text()
    assert "part of sscn-bench" in own
    assert "engines install" not in own
    assert "None is known" in own
    assert "No machine has two submissions" in own


def test_the_page_of_an_engine_has_its_times_over_dates_for_each_machine(submit, tmp_path):
    def measured(name, processor, seconds, version, day):
        about = {"version": version, "record": {"utc": f"2026-01-{day:02}T00:00:00Z"}}
        return submit(name, processor, [("spconv", 192, seconds)], **about)

    measured("c", "Example CPU", 0.020, "2.3.8", 9)
    measured("a", "Example CPU", 0.050, "2.3.6", 1)
    measured("b", "Example CPU", 0.040, "2.3.7", 5)
    folder = measured("other", "Another CPU", 0.001, "2.3.8", 7)
    found = history(read_catalogue(folder).entries, "spconv")
    (series,) = found
    assert series.machine.name == "Example CPU, 2 threads"
    assert [point.version for point in series.points] == ["2.3.6", "2.3.7", "2.3.8"]
    assert series.ratio == pytest.approx(0.4, rel=0.05)
    (other,) = (e for e in read_catalogue(folder).entries if e.machine.name.startswith("Another"))
    assert history([replace(other, cells=other.cells * 2)], "spconv") == []  # of one submission
    write_site(tmp_path / "site", read_catalogue(folder))
    page = (tmp_path / "site" / "engines" / "spconv.html").read_text()
    assert "2026-01-01, 2.3.6" in page
    assert "2026-01-09, 2.3.8" in page
    assert page.count("<circle") == 3


@pytest.mark.parametrize("page", ["index.html", "machines.html", "submissions.html"])
def test_texts_of_others_stay_texts(site, open_page, page):
    browser = open_page(site / page, 1280)
    assert browser.title != "owned"
    assert "onerror=alert(1)" in browser.page_source.replace("&gt;", ">")
    assert not browser.find_elements("css selector", "img")


def test_every_link_leads_to_a_page(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) == 4 + 2 + 2 + 4  # lists, machines, submissions, engines
    for page in pages:
        for address in re.findall(r'href="([^"#]+?)(?:#[^"]*)?"', page.read_text()):
            if not address.startswith("data:"):
                assert (page.parent / address).is_file(), f"{page.name}: {address}"


def test_the_documentation_is_part_of_the_site(submit, tmp_path, capfd):
    folder = submit("one", "Example CPU", [("sscn", 192, 0.01)])
    docs, out = tmp_path / "built", tmp_path / "site"
    docs.mkdir()
    command = ["site", str(folder), "--docs", str(docs), "--out", str(out)]
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 2
    assert "make docs" in capfd.readouterr().err
    (docs / "_static").mkdir()
    (docs / "_static" / "style.css").write_text("")
    (docs / "index.html").write_text("documentation")
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert not ended.value.code
    assert (out / "docs" / "_static" / "style.css").is_file()
    for page in ("index.html", "engines/sscn.html"):
        address = re.search(r'href="([^"]*docs/index.html)"', (out / page).read_text())
        assert (out / page).parent.joinpath(address[1]).is_file()


def test_refused_archives_are_listed_with_their_reason(site):
    assert "no ZIP archive" in (site / "submissions.html").read_text()


def test_pages_of_gpus_are_announced_as_missing(site):
    assert "no results of GPUs yet" in (site / "index.html").read_text()


def test_equal_machines_are_one(submit):
    for name in ("one", "two"):
        folder = submit(name, "Example CPU", [("sscn", 192, 0.006)])
    assert len(read_catalogue(folder).machines) == 1


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_text("")])
def test_a_folder_without_archives_is_one_sentence(tmp_path, capfd, make):
    folder = tmp_path / "submissions"
    make(folder)
    with pytest.raises(SystemExit) as ended:
        main(["site", str(folder), "--out", str(tmp_path / "site")])
    assert ended.value.code == 2
    assert capfd.readouterr().err.count("\n") == 1


def test_the_page_of_a_machine_names_the_fastest_engine_of_each_question(site):
    (page,) = (
        text
        for text in (each.read_text() for each in site.glob("machines/*.html"))
        if "Example CPU" in text
    )
    rows = re.findall(r"<tr><td class=\"where\"><a href=\"([^\"]+)\">(.*?)</tr>", page)
    assert len(rows) == 2
    (address, small), (_, large) = rows
    assert "size=192" in address
    assert "machine=" in address
    for row, ratio in ((small, 0.05 / 0.006), (large, 0.1 / 0.018)):
        first, time, following, times = re.findall(r"<td[^>]*>([^<]+)</td>", row)
        assert (first, following) == ("sscn", "spconv")
        assert time.endswith(" ms")
        assert float(times.rstrip("×")) == pytest.approx(ratio, rel=0.02)


def test_facts_of_a_machine_are_written_in_words():
    facts = {
        "machine.memory_bytes": 125.9, "machine.affinity": (0, 1, 2, 8), "machine.ecc": True,
        "machine.mig": False, "machine.gpu": "GPU 1",
    }  # fmt: skip
    assert facts_in_words(facts) == [
        ("memory", "135 GB"), ("affinity", "0 to 2, 8"), ("ECC", "on"), ("MIG", "off"),
        ("GPU", "GPU 1"),
    ]  # fmt: skip
