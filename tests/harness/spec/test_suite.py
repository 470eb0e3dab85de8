import ast
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from backends.capabilities import Capabilities
from harness.errors import BadInput
from harness.events import benchmark_batch, open_events
from harness.events.native import EventWriter
from harness.run.plan import groups, unavailable_reason, with_events
from harness.run.workload import load_batch
from harness.spec.cell import NETWORKS, Cell, EventSpec, ModelSpec
from harness.spec.suite import DENSE, ENGINES, TYPICAL_SEED, find_suite, find_suites, parse_engine
from tests.harness.events.conftest import make_event

ROOT = Path(__file__).resolve().parents[3]


def test_the_suites_have_the_expected_cells():
    for name, phase in (("inference", "forward"), ("training", "step")):
        cells = find_suite(name).cells()
        asked = {(c.backend, c.size, c.batch, c.phase, c.map) for c in cells}
        assert asked == {
            (backend, size, batch, phase, state)
            for backend in ENGINES
            for size in (192, 512, 768)
            for batch in (1, 4)
            for state in ("cold", "warm")
        }


def test_the_demo_has_dense_at_192_and_every_question_has_several_engines():
    cells = find_suite("demo").cells()
    assert {c.size for c in cells if c.backend == "dense"} == {192}
    assert {c.size for c in cells} == {192, 512, 768}
    assert {c.phase for c in cells} == {"forward", "step"}
    questions = {c.question for c in cells}
    for question in questions:
        assert len({c.backend for c in cells if c.question == question}) > 2


def test_cells_are_listed_once():
    for suite in find_suites().values():
        cells = suite.cells()
        assert len({cell.name for cell in cells}) == len(cells)


def test_a_grid_does_not_depend_on_what_is_installed(monkeypatch):
    before = [cell.name for cell in find_suite("inference").cells()]
    monkeypatch.setattr("backends.registry.probe", lambda *_: pytest.fail("probed"))
    assert [cell.name for cell in find_suite("inference").cells()] == before


def test_choices_narrow_the_grid():
    cells = find_suite("inference").cells(
        backends=["sscn:kernels=reference", "elsewhere"], sizes=[512], batches=[16]
    )
    assert {(c.engine, c.size, c.batch) for c in cells} == {
        ("sscn kernels=reference", 512, 16),
        ("elsewhere", 512, 16),
    }
    assert find_suite("inference").cells(device="cuda", precision="tf32")[0].precision == "tf32"


def test_any_network_is_measured():
    spine = NETWORKS["spine"]
    assert {c.model for c in find_suite("inference").cells(network=spine)} == {spine}
    layers = find_suite("layers").cells(network=ModelSpec(depth=2))
    assert {(c.phase == "map", c.layer) for c in layers} == {
        (phase_is_map, layer)
        for phase_is_map in (False, True)
        for layer in ("submanifold-0", "strided-0", "inverse-0", "submanifold-1")
        if not (phase_is_map and layer == "inverse-0")
    }
    with pytest.raises(BadInput, match="dilation measures no UResNet; leave out --network"):
        find_suite("dilation").cells(network=spine)


def test_events_have_the_inputs_and_classes_of_the_network():
    cell = Cell("s", "sscn", 192, 1, "step", "cold", model=ModelSpec(inputs=3, classes=2))
    plain, _ = load_batch(replace(cell, model=ModelSpec()), "sample")
    batch, _ = load_batch(cell, "sample")
    energy = plain.features[:, 0]
    np.testing.assert_allclose(batch.features[:, 1] ** 2, energy, rtol=1e-5)
    np.testing.assert_allclose(batch.features[:, 2] ** 3, energy, rtol=1e-5)
    tracks = plain.labels < 2
    assert (batch.labels[tracks] == 0).all()
    assert (batch.labels[~tracks & (plain.labels >= 0)] == 1).all()
    few, _ = load_batch(replace(cell, model=ModelSpec(classes=3)), "sample")
    assert set(few.labels.tolist()) <= {-100, 0, 1, 2}
    assert {0, 1, 2} & set(few.labels.tolist())


def test_impossible_choices_are_one_sentence():
    with pytest.raises(BadInput, match="no images of 100 px; choose from 192, 512, 768"):
        find_suite("inference").cells(sizes=[100])
    with pytest.raises(BadInput, match="no suite 'nothing'; choose one of"):
        find_suite("nothing")
    with pytest.raises(BadInput, match="NAME:OPTION=VALUE"):
        parse_engine("sscn:fast")


def test_the_harness_imports_no_suite():
    for path in (ROOT / "harness").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [each.name for each in node.names] if isinstance(node, ast.Import) else []
            assert not any((name or "").split(".")[0] == "suites" for name in names), path


def test_the_typical_seed_draws_typical_events():
    for size in (192, 512, 768):
        events = open_events("sample", size=size)
        mean = np.mean([len(event) for event in events])
        for batch in (1, 4):
            sites = len(benchmark_batch(events, batch, TYPICAL_SEED)[0]["sites"])
            assert 0.7 < sites / batch / mean < 1.3


def test_the_sample_is_named_by_its_hash():
    cells = with_events(find_suite("inference").cells(backends=["sscn"]), "sample")
    hashes = {cell.size: cell.events.sha256 for cell in cells}
    assert len(set(hashes.values())) == 3
    assert all(len(value) == 64 for value in hashes.values())


def test_a_small_file_is_measured_event_by_event(larcv2_file):
    cells = with_events(find_suite("inference").cells(backends=["sscn"]), str(larcv2_file))
    assert {cell.size for cell in cells} == {192}
    found = {}
    for cell in cells:
        batch, skipped = load_batch(cell, str(larcv2_file))
        found.setdefault(cell.batch, []).append((len(batch.sites), skipped))
    assert sorted(set(found[1])) == [(100, 1), (1000, 1), (4000, 1)]
    assert {skipped for _, skipped in found[4]} == {1}
    ((sites, _),) = set(found[4])
    assert sites - 5100 in (4000, 100, 1000)  # one of the three, in another orientation


def test_other_events_than_the_cell_names_are_refused(larcv2_file):
    cell = Cell("s", "sscn", 192, 1, "forward", "cold")
    cell = Cell.from_json(cell.to_json() | {"events": {"set": "f", "sha256": "0" * 64, "seed": 0}})
    with pytest.raises(BadInput, match="SHA-256 differs"):
        load_batch(cell, str(larcv2_file))


def test_a_file_without_the_suites_sizes_is_refused(tmp_path):
    path = tmp_path / "small.h5"
    with EventWriter(path, 64, 3, "a test") as writer:
        writer.append(make_event(50, size=64))
    with pytest.raises(BadInput, match="has events of 64 px"):
        with_events(find_suite("inference").cells(), str(path))


@pytest.mark.parametrize(
    ("name", "index"), [("f.root[2]", 2), ("f.root", None), ("sample", None), ("f[x].root", None)]
)
def test_a_single_event_is_named_in_brackets(name, index):
    assert EventSpec(name).index == index


CAN = Capabilities(
    "1.0", ("cpu",), {"cpu": ("fp32",)}, dims=(3,), options={"algorithm": ("Native",)}
)


@pytest.mark.parametrize(
    ("change", "capabilities", "reason"),
    [
        ({}, CAN, ""),
        ({}, None, "not installed"),
        ({"device": "cuda"}, CAN, "does not run on cuda"),
        ({"precision": "bf16"}, CAN, "no bf16 on cpu"),
        ({"dim": 2}, CAN, "no 2D"),
        ({"options": {"algorithm": "Split"}}, CAN, "no option algorithm=Split"),
        ({"options": {"algorithm": "Native"}}, CAN, ""),
        (
            {"phase": "step"},
            Capabilities("1", ("cpu",), {"cpu": ("fp32",)}, training=False),
            "train",
        ),
        ({}, Capabilities("1", ("cpu",), {"cpu": ("fp32",)}, missing="inverse"), "lacks inverse"),
    ],
)
def test_a_cell_that_cannot_run_has_a_reason(change, capabilities, reason):
    cell = Cell.from_json(Cell("s", "e", 192, 1, "forward", "cold").to_json() | change)
    found = unavailable_reason(
        cell, SimpleNamespace(capabilities=capabilities, reason="not installed")
    )
    assert (reason in found) if reason else not found


def test_engines_of_one_question_are_measured_together_in_mirrored_rounds():
    cells = find_suite("demo").cells()
    first, second = groups(cells, 3, 0), groups(cells, 3, 1)
    slow = [group for group in first if group[0].backend in DENSE]
    assert first[-len(slow) :] == second[-len(slow) :] == slow
    assert second[: -len(slow)] == first[: -len(slow)][::-1]
    assert sorted(c.name for g in first for c in g) == sorted(c.name for c in cells)
    assert all(len({cell.question for cell in group}) == 1 for group in first)
    assert groups(cells, 3, 2) != first


def test_on_a_gpu_dense_engines_take_turns_with_the_others():
    cells = find_suite("inference").cells(device="cuda")
    assert all(len(group) == len(ENGINES) for group in groups(cells, 3, 0))
