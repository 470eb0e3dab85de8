"""Sections of the page, from synthetic curves and events."""

import numpy as np
import pandas as pd
import pytest

from harness.accuracy import michel
from harness.events import Event, Label
from harness.events.classes import CLASS_NAMES
from harness.results import store
from harness.study import displays, document
from harness.study.definition import Study, read_study, write_definition
from harness.study.learning_section import learning_section
from harness.study.page import write_study_page
from harness.study.predictions import Predicted
from harness.study.results import Curve, Results
from harness.study.scales import DENSE, SMOKE, SPARSE, Training
from harness.study.training_tables import HELD_OUT_COLUMNS


def curve(role, joules):
    steps = np.arange(1, 41)
    table = pd.DataFrame(
        {
            "step": steps,
            "events": 4 * steps,
            "sites": 1000,
            "loss": 6 / steps,
            "accuracy": 1 - 1 / (1 + steps),
            "step_seconds": 0.5,
            "seconds": 0.5 * steps,
            "joules": 3.0 * steps if joules else np.nan,
        }
    )
    held_out = table.iloc[[19, 39]].rename(columns={"events": "all"}).assign(events=8, spread=0.1)
    training = Training(f"{role} 32 px", role, 192, batch=4, steps=40, crop=32)
    return Curve(training, {SPARSE: "sscn"}.get(role, role), table, held_out)


def section(tmp_path, curves):
    nothing = store.read([])
    found = Results(Study(tmp_path, "laptop"), curves, [], [], nothing)
    return learning_section(document.PageWriter(found))


def test_trainings_are_drawn_against_iterations_time_and_energy(tmp_path):
    made = section(tmp_path, [curve(SPARSE, True), curve(DENSE, True)])
    names = [item.name for item in made.items]
    assert names == [
        "trainings",
        "accuracy-against-step-crops",
        "loss-against-step-crops",
        "accuracy-against-seconds-crops",
        "accuracy-against-joules-crops",
    ]
    for name in names[1:]:
        assert (tmp_path / "figures" / f"{name}.png").stat().st_size > 1000
        table = pd.read_csv(tmp_path / "figures" / f"{name}.csv")
        assert table["training"].value_counts().to_dict() == {"sparse 32 px": 40, "dense 32 px": 40}
    assert "sparse 32 px 0.12 kJ" in made.items[4].sentence
    assert "sparse 32 px 500 ms" in made.items[3].sentence
    assert all(image.startswith("<svg") for item in made.items[1:] for image in item.images)


def test_a_table_states_the_extent_and_the_optimiser_of_every_training(tmp_path):
    table = section(tmp_path, [curve(SPARSE, True)]).items[0]
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert row["training"] == "sparse 32 px"
    assert (row["steps"], row["batch"], row["events"]) == ("40", "4", "160")
    assert (row["time"], row["median step"], row["energy"]) == ("20 s", "500 ms", "120 J")
    assert (row["optimiser"], row["learning rate"]) == ("Adam", "0.001")
    written = pd.read_csv(tmp_path / "figures" / "trainings.csv")
    assert written["time [s]"].tolist() == [20.0]


def test_a_missing_energy_counter_is_stated(tmp_path):
    made = section(tmp_path, [curve(SPARSE, False)])
    assert not any("joules" in item.name for item in made.items)
    assert any("no readable energy counter" in paragraph for paragraph in made.paragraphs)


@pytest.fixture
def killed(tmp_path):
    """Return a study with two trainings, whose files end within a row, and one damaged training."""
    study = Study(tmp_path / "study", "smoke")
    write_definition(study)
    written = curve(SPARSE, True)
    for training in SMOKE.trainings[:2]:
        folder = study.training_folder(training)
        folder.mkdir(parents=True)
        text = written.steps.to_csv(index=False)
        (folder / "steps.csv").write_text(text + "41,16")  # killed while it wrote a row
        columns = [*HELD_OUT_COLUMNS, *CLASS_NAMES[5]]
        (folder / "held_out.csv").write_text(",".join(columns) + "\n")
        (folder / "sample-192px.npz").write_bytes(b"PK\x03\x04 and no more")
    damaged = study.training_folder(SMOKE.trainings[2])
    damaged.mkdir()
    (damaged / "steps.csv").write_text("step,events\n1,x\n")
    return study


def test_the_page_of_a_killed_study_has_what_is_complete_and_names_what_is_damaged(killed):
    killed.records.write_text('{"schema": 1, "run": "r')
    with pytest.warns(store.BadRecord, match="not a whole JSON record"):
        page = write_study_page(read_study(killed.out)).read_text()
    assert "This study contains no test of a trained network yet" in page
    assert page.count('<td data-name="steps" class="n">40</td>') == 2
    assert "training/sparse-192-px/sample-192px.npz is damaged" in page
    assert "training/dense-16-px/steps.csv is damaged" in page
    assert "The training sparse 2 classes: there are no steps of sscn." in page
    assert str(killed.out) not in page


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 400])
def test_tables_fit_and_figures_use_the_width_of_a_browser(killed, width, open_page, violations):
    browser = open_page(write_study_page(killed), width)
    assert violations(browser) == []
    overflow = browser.execute_script(
        "return [document.documentElement, ...document.querySelectorAll('.scroll')]"
        ".map(e => e.scrollWidth - e.clientWidth)"
    )
    assert max(overflow) <= 0
    lefts = browser.execute_script(
        "return [...document.querySelectorAll('figure')].map(f => f.getBoundingClientRect().left)"
    )
    assert (max(lefts) > width / 2) == (width == 1280)  # two columns, or one


def event(truth, predicted):
    voxels = np.argwhere(np.ones((len(truth), 1, 1))).astype(np.int32)
    ones = np.ones(len(truth), np.float32)
    return Predicted(
        Event(voxels, ones, np.array(truth, np.uint8), 64, "synthetic"), np.array(predicted)
    )


def test_mistakes_are_events_with_missed_or_unmatched_michels_in_descending_order():
    right = event([Label.MICHEL] * 3, [Label.MICHEL] * 3)
    lost = event([Label.MICHEL] * 9, [Label.SHOWER] * 9)
    invented = event([Label.SHOWER] * 5, [Label.MICHEL] * 5)
    found = [
        michel.EventMichels(1, 1, ()),
        michel.EventMichels(1, 0, ()),
        michel.EventMichels(0, 0, (michel.Candidate(5, 5.0, -1, 0, 0, 0.0),)),
    ]
    assert displays.find_mistakes([right, lost, invented], found) == [1, 2]
    assert displays.find_mistakes([right, lost, invented], found, 1) == [1]
    assert displays.find_mistakes([right], found[:1]) == []


def test_a_rotatable_event_marks_wrong_voxels():
    element = displays.rotatable(event([0, 1, 2], [0, 1, 1]), "an-id")
    assert 'id="an-id"' in element
    assert "wrong class" in element
    assert "wrong class" not in displays.rotatable(event([0, 1], [0, 1]), "another")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (float("inf"), "–"),
        (True, "yes"),
        (12345, "12,345"),
        (0.12345, "0.123"),
        (3107.2, "3,107"),
        ("ok", "ok"),
    ],
)
def test_values_of_a_table_are_formatted(value, written):
    assert document.format_cell(value) == written
