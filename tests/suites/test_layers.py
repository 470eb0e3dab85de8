"""Single convolutions: the right sites, the right numbers, and nothing else in the timed call."""

import io
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from backends import cases, registry, single_layer, weights
from backends.agreement import TOLERANCE, Tolerance, compare
from backends.capabilities import Capabilities, Kind
from backends.contract import master_dtype
from backends.uresnet import UResNet, UResNetConfig
from harness.asv import track
from harness.errors import BadInput
from harness.results import store
from harness.results.summary import summarize
from harness.run.job import Job
from harness.run.plan import unavailable_reason
from harness.run.references import load_reference
from harness.run.sampling import StopRule
from harness.run.worker import measure_cell
from harness.run.workload import build_workload, load_batch
from harness.spec.cell import LAYER_PHASES, LAYERS, Cell, ModelSpec, layers_of
from harness.spec.suite import find_suite
from suites import layers

NETWORK = UResNetConfig(filters=4, depth=3)


def make_cell(layer="submanifold-1", phase="forward", backend="sscn", **changes):
    state = "cold" if phase == "map" else "warm"
    cell = Cell("layers", backend, 192, 1, phase, state, layer=layer)
    return replace(cell, model=ModelSpec(filters=4, depth=3), **changes)


def trial_on(backend, kind, level, phase, batch):
    """One phase of a convolution on an engine, called once, and its reference."""
    config = single_layer.SingleLayerConfig.of(NETWORK, kind, level, phase)
    sites = single_layer.coarsened(batch, level, NETWORK.depth, config.fine)
    values = single_layer.initial(config, batch.dim)
    expected = single_layer.layer_reference(config, values, sites, phase)
    dtype = master_dtype(backend.precision)
    built = single_layer.SingleLayer(backend, config).to(backend.device, dtype)
    weights.load(built, values)
    sites = sites.to(backend.device)
    call = single_layer.LayerCall(built, sites, sites.features.to(dtype), phase)
    call()
    call()  # the second call finds what the first one left
    return call, expected


@pytest.mark.agreement
@pytest.mark.parametrize("phase", LAYER_PHASES)
@pytest.mark.parametrize("kind", LAYERS)
def test_every_engine_computes_each_phase_of_each_convolution(engine, kind, phase):
    if Kind(kind) not in engine.capabilities.kinds:
        pytest.skip(f"{engine.name} has no {kind} convolution")
    call, expected = trial_on(engine.load(3), Kind(kind), 1, phase, cases.random_sites(3))
    assert float(expected.logits.abs().max()) > 0.01
    bounds = TOLERANCE[engine.precision].forward
    found = compare(expected, "fp32", call.result(), tolerance=Tolerance(bounds, bounds))
    assert found.right, found.reason


def test_gradients_are_those_of_the_stated_loss():
    batch = cases.random_sites(3)
    backend = registry.load("sscn", dim=3, device="cpu", precision="fp64")
    config = single_layer.SingleLayerConfig.of(NETWORK, Kind.STRIDED, 0, single_layer.WEIGHT)
    sites = single_layer.coarsened(batch, 0, NETWORK.depth, config.fine)
    values = single_layer.initial(config, 3)
    found = single_layer.layer_reference(config, values, sites, single_layer.WEIGHT).logits
    built = single_layer.SingleLayer(backend, config).to(torch.float64)
    weights.load(built, values)
    built.train()

    def loss():
        with torch.no_grad():
            rows = backend.features(built(built.source(sites, sites.features.double())))
        return 0.5 * float(rows.square().sum()) / len(sites.sites) ** 0.5

    step, before = 1e-5, loss()
    with torch.no_grad():
        built.weight[3, 1, 2] += step  # (tap, in, out)
    assert (loss() - before) / step == pytest.approx(float(found[2, 1 * 8 + 3]), rel=1e-3)


def test_a_level_has_the_sites_that_strided_convolutions_lead_to():
    batch = cases.random_sites(3)
    reference = registry.load("dense", dim=3, device="cpu", precision="fp64")
    network = UResNet(reference, NETWORK)
    x = network.tensor(batch.sites, batch.features, batch.spatial_size, batch.batch_size)
    network.double()(replace(x, volume=x.volume.double()))
    for level in range(NETWORK.depth):
        found = single_layer.coarsened(batch, level, NETWORK.depth, 2)
        assert {*map(tuple, found.sites.tolist())} == {*map(tuple, x.grids[level].sites.tolist())}
        assert (found.batch_size, found.spatial_size) == x.grids[level].shape[:2]
        assert found.features.shape == (len(found.sites), 2)


@pytest.mark.parametrize(
    ("phase", "counts"),
    [
        ("forward", {"convolve": 1}),
        ("input-gradient", {"input_gradient": 1}),
        ("weight-gradient", {"weight_gradient": 1}),
        ("map", {"sort_sites": 1, "submanifold_map": 1, "invert": 1, "take": 1, "convolve": 1}),
    ],
)
def test_a_call_does_nothing_but_its_phase(phase, counts, monkeypatch):
    from backends.sscn.cpu.instructions import InstructionStream

    backend = registry.load("sscn", dim=3, device="cpu", precision="fp32")
    call, _ = trial_on(backend, Kind.SUBMANIFOLD, 0, phase, cases.random_sites(3))
    kernels, called = backend.graph.kernels, {}

    def counted(name, whole):
        def call(*arguments, **named):
            called[name] = called.get(name, 0) + 1
            return whole(*arguments, **named)

        return call

    for name in ("sort_sites", "submanifold_map", "strided_map"):
        monkeypatch.setattr(kernels, name, counted(name, getattr(kernels, name)))
    write = InstructionStream.write

    def written(self, kind, *words):
        counted(kind.name.lower(), write)(self, kind, *words)

    monkeypatch.setattr(InstructionStream, "write", written)
    call()
    assert called == counts


def test_channels_and_sites_are_those_of_the_network():
    cell = make_cell("inverse-1")
    fine, _ = load_batch(make_cell("submanifold-0"), "sample")
    batch, _ = load_batch(cell, "sample")
    assert len(batch.sites) < len(fine.sites)
    assert batch.spatial_size == 96
    subject = build_workload(Job(cell), batch)
    assert weights.weight_shape(subject.single_layer.layer, 3) == (12, 8, 2, 2, 2)


def measured(cell, folder):
    rule = StopRule(least=3, most=4, budget=0.1)
    return measure_cell(Job(cell, rule=rule, warm_up=0.1, references=str(folder)))


@pytest.mark.parametrize("phase", LAYER_PHASES)
def test_a_layer_is_checked_and_timed_like_every_cell(phase, tmp_path):
    found = measured(make_cell("strided-0", phase), tmp_path)
    assert (found["outcome"], found["reason"]) == ("ok", "")
    assert all(seconds > 0 for seconds in found["host_seconds"])
    assert found["error"]["rel_rmse"] < 1e-5
    assert found["sites"] > 100


@pytest.mark.parametrize(
    ("phase", "kernel", "words"),
    [
        ("forward", "convolve", "features"),
        ("input-gradient", "input_gradient", "input's gradient"),
        ("weight-gradient", "weight_gradient", "weights' gradient"),
    ],
)
def test_a_wrong_layer_gets_no_times(phase, kernel, words, tmp_path, monkeypatch):
    from backends.sscn import selection

    cell = replace(make_cell("submanifold-1", phase), options={"kernels": "reference"})
    load_reference(Job(cell, references=str(tmp_path)))
    kernels = selection.load("reference")
    original = getattr(kernels, kernel)

    def off(*arguments, **named):
        out = original(*arguments, **named)
        return (out[0] * 1.001, *out[1:]) if isinstance(out, tuple) else out * 1.001

    monkeypatch.setattr(kernels, kernel, off)
    found = measured(cell, tmp_path)
    assert found["outcome"] == "wrong"
    assert words in found["reason"]
    assert "host_seconds" not in found


def test_the_cell_of_a_layer_has_another_name_than_that_of_the_network():
    plain = Cell("inference", "sscn", 192, 1, "forward", "warm")
    assert "layer" not in plain.to_json()
    alone = replace(plain, layer="submanifold-0")
    assert alone.name != plain.name
    assert Cell.from_json(alone.to_json()) == alone
    assert alone.question != plain.question


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"layer": "submanifold-3"}, "layer must be one of submanifold-0, strided-0, inverse-0"),
        ({"layer": "inverse-2"}, "layer must be one of"),
        ({"layer": 3}, "layer must be one of"),
        ({"phase": "step"}, "phase of a layer must be one of forward, input-gradient"),
        ({"phase": "map"}, "phase map is measured with map 'cold'"),
        ({"map": "first"}, "phase forward is measured with map 'warm'"),
        ({"layer": "", "phase": "map"}, "the phase map is of a single layer; name it in 'layer'"),
    ],
)
def test_a_layer_that_does_not_exist_is_one_sentence(change, sentence):
    with pytest.raises(BadInput, match=sentence):
        Cell.from_json(make_cell().to_json() | change)


@pytest.mark.parametrize(
    ("layer", "phase", "changes", "reason"),
    [
        ("submanifold-0", "forward", {}, ""),
        ("submanifold-0", "forward", {"missing": "an inverse convolution"}, ""),
        ("inverse-0", "forward", {}, "e has no inverse convolution"),
        ("inverse-0", "forward", {"kinds": {Kind.INVERSE}}, "e has no strided convolution"),
        ("strided-0", "weight-gradient", {"training": False}, "e does not train"),
        ("strided-0", "forward", {"kinds": set(Kind), "missing": "a device"}, "e lacks a device"),
        ("strided-0", "forward", {"network": "own"}, "network of its own"),
    ],
)
def test_an_engine_is_measured_in_the_layers_that_it_has(layer, phase, changes, reason):
    kinds = frozenset(Kind) - {Kind.INVERSE, Kind.ORDINARY}
    changes = {"kinds": kinds} | changes
    can = Capabilities("1", ("cpu",), {"cpu": ("fp32",)}, **changes)
    found = unavailable_reason(
        make_cell(layer, phase, "e"), SimpleNamespace(capabilities=can, reason="")
    )
    assert (reason in found) if reason else not found


def test_the_suite_has_every_convolution_of_the_network():
    cells = find_suite("layers").cells(backends=["sscn"], sizes=[192])
    asked = {(cell.layer, cell.phase) for cell in cells}
    assert len(asked) == len(cells) == 13 * 3 + 9
    assert {cell.layer for cell in cells} == set(layers_of(ModelSpec()))
    assert all((cell.map == "cold") == (cell.phase == "map") for cell in cells)


def test_asv_follows_the_cells_of_the_suite():
    asked = {
        (cell.phase, *track.key_of(cell.to_json(), "layer"))
        for cell in layers.SUITE.cells(backends=["sscn"], sizes=[192])
    }
    followed = set()
    for found in (layers.Forward, layers.InputGradient, layers.WeightGradient, layers.MapBuilding):
        engines, sizes, batches, names = found.params
        assert found.param_names[-1] == "layer"
        assert "sscn" in engines
        followed |= {(found.phase, "sscn", s, b, n) for s in sizes for b in batches for n in names}
    assert followed == asked


def test_each_layer_is_a_separate_question(make_record, write_records):
    records = [
        make_record(seconds, backend=engine, phase="input-gradient", map="warm")
        for engine, seconds in (("sscn", 0.1), ("spconv", 0.2), ("sscn", 0.3), ("spconv", 0.4))
    ]
    for record, layer in zip(records, ("submanifold-0",) * 2 + ("strided-1",) * 2, strict=True):
        record["cell"]["layer"] = layer
    cells = summarize(store.read(write_records([*records, make_record(0.5)])))
    assert len({m.question for m in cells}) == 3
    assert {m.where.split(", ")[2] for m in cells} == {
        "submanifold-0",
        "strided-1",
        "forward",
    }


def test_compare_shows_layers(make_record, write_records):
    from harness.compare.command import standing_table
    from harness.compare.comparison import standings

    records = []
    for engine, seconds in (("sscn", 0.1), ("spconv", 0.25)):
        record = make_record(seconds, backend=engine, phase="map", map="cold")
        record["cell"]["layer"] = "strided-2"
        records.append(record)
    out = io.StringIO()
    table = standing_table(standings(summarize(store.read(write_records(records)))))
    Console(file=out, width=160).print(table)
    assert "strided-2, map" in out.getvalue()
    assert "2.5×" in out.getvalue()


def test_the_page_shows_layers_against_level(make_record, write_records):
    from harness.compare.figures import against_level, against_size, call_of
    from harness.report.style import Looks

    records = []
    for level in range(3):
        for kind in ("submanifold", "strided"):
            record = make_record(0.1 / 2**level, phase="weight-gradient", map="warm")
            record["cell"]["layer"] = f"{kind}-{level}"
            records.append(record)
    cells = summarize(store.read(write_records(records)))
    looks = Looks(["sscn"])
    panels = against_level(cells, looks, call_of, "s", "time")
    assert len(panels) == 2
    assert all("level of the network" in panel for panel in panels)
    assert any("submanifold, weight-gradient, 192 px, batch 1" in panel for panel in panels)
    assert not against_size(cells, looks, call_of, "s", "time")
