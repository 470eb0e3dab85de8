import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import BadInput
from harness.run.job import Job
from harness.run.sampling import StopRule
from harness.spec.cell import Cell, EventSpec, ModelSpec
from harness.spec.network import find_network

models = st.builds(
    ModelSpec,
    filters=st.sampled_from([1, 16, 32]),
    depth=st.sampled_from([3, 5]),
    classes=st.sampled_from([2, 5]),
    inputs=st.sampled_from([1, 2]),
    slope=st.sampled_from([0, 0.0, 0.33, 1]),
    eps=st.sampled_from([1e-5, 1e-4, 1]),
    momentum=st.sampled_from([0.01, 0.1]),
)
cells = st.builds(
    Cell,
    suite=st.sampled_from(["inference", "training"]),
    backend=st.sampled_from(["sscn", "dense"]),
    size=st.integers(16, 1024),
    batch=st.integers(1, 64),
    phase=st.sampled_from(["forward", "step"]),
    map=st.sampled_from(["first", "cold", "warm"]),
    device=st.sampled_from(["cpu", "cuda"]),
    precision=st.sampled_from(["fp32", "tf32"]),
    dim=st.sampled_from([2, 3]),
    options=st.dictionaries(st.sampled_from(["a", "b"]), st.text(max_size=3)),
    model=models,
    events=st.builds(EventSpec, set=st.sampled_from(["sample", "x.root[1]"]), seed=st.integers(0)),
)


@given(cells)
def test_a_cell_survives_json(cell):
    again = Cell.from_json(json.loads(json.dumps(cell.to_json())))
    assert again == cell
    assert again.name == cell.name
    assert hash(again) == hash(cell)


@given(models)
def test_the_label_of_a_network_names_it_on_the_command_line(model):
    assert find_network(model.label) == model


def test_a_network_of_older_records_has_no_new_fields():
    cell = Cell("s", "sscn", 192, 1, "forward", "cold")
    assert cell.to_json()["model"] == {"filters": 16, "depth": 5, "reps": 2, "classes": 5}
    leaky = replace(cell, model=ModelSpec(slope=0.33))
    assert leaky.to_json()["model"]["slope"] == 0.33
    assert leaky.name != cell.name
    assert leaky.question.label.endswith("cpu activation=leaky_relu:0.33")


@given(cells, cells)
def test_equal_names_mean_equal_cells(one, other):
    assert (one.name == other.name) == (one == other)


def test_the_name_does_not_depend_on_the_order_of_options():
    cell = Cell("s", "b", 192, 1, "forward", "cold", options={"x": "1", "y": "2"})
    assert cell.name == replace(cell, options={"y": "2", "x": "1"}).name


def test_a_name_is_stable_between_releases():
    # Records of different releases are matched by it.
    assert Cell("inference", "sscn", 192, 1, "forward", "cold").name == "0c12a859f94d"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"size": 8}, "size must be a whole number of at least 16"),
        ({"size": 0}, "size"),
        ({"batch": 0}, "batch"),
        ({"batch": True}, "batch"),
        ({"device": "tpu"}, "device must be one of cpu, cuda"),
        ({"precision": "fp8"}, "precision must be one of"),
        ({"phase": "backward"}, "phase must be one of"),
        ({"map": "hot"}, "map must be one of"),
        ({"dim": 4}, "dim must be one of"),
        ({"backend": ""}, "backend must be a name"),
        ({"options": {"a": 1}}, "options must map names to texts"),
        ({"model": {"filters": 0}}, "model.filters"),
        ({"model": {"inputs": 0}}, "model.inputs"),
        ({"model": {"slope": 1.5}}, "model.slope must be a number from 0 to 1, not 1.5"),
        ({"model": {"eps": 0}}, "model.eps must be a number above 0"),
        ({"model": {"momentum": "0.1"}}, "model.momentum must be a number"),
        ({"model": {"width": 3}}, "model has no field 'width'"),
        ({"events": {"set": ""}}, "events.set"),
        ({"events": 3}, "events must be a JSON object"),
        ({"colour": "red"}, "a cell has no field 'colour'"),
    ],
)
def test_a_field_without_meaning_is_named(change, sentence):
    values = Cell("s", "sscn", 192, 1, "forward", "cold").to_json()
    with pytest.raises(BadInput, match=sentence):
        Cell.from_json(values | change)


def test_a_missing_field_is_named():
    with pytest.raises(BadInput, match="size"):
        Cell.from_json({"suite": "s", "backend": "b", "batch": 1, "phase": "step", "map": "cold"})


@given(cells)
def test_a_job_survives_json(cell):
    job = Job(cell, "f.root", StopRule(budget=2.0), threads=3, processors=(0, 1), references="t")
    assert Job.from_json(json.loads(json.dumps(job.to_json()))) == job
    assert Job.from_json(cell.to_json()) == Job(cell)


@pytest.mark.parametrize("values", [3, {"cell": {}, "speed": 1}, {"cell": {}}])
def test_a_job_that_is_none_is_refused(values):
    with pytest.raises(BadInput):
        Job.from_json(values)
