"""Accuracy of labels in records, with events that the float64 network labels without error."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from backends import weights
from backends.contract import SparseBatch
from backends.float64_reference import compute_reference
from backends.uresnet import UResNetConfig
from harness.__main__ import main
from harness.accuracy.michel import reconstruct, summarize_michels
from harness.compare.comparison import changes
from harness.events import collate, open_events
from harness.events.batches import benchmark_batch
from harness.events.child_reader import open_in_child
from harness.events.event import Label
from harness.events.native import EventWriter
from harness.results import store
from harness.results.summary import summarize
from harness.results.verdict import Verdict
from harness.run.job import Job
from harness.run.label_accuracy import label_accuracy
from harness.run.label_stream import event_batches
from harness.run.sampling import StopRule
from harness.run.weight_files import find_weights
from harness.run.worker import measure_cell
from harness.spec.cell import Cell, EventSpec, ModelSpec
from harness.spec.metrics import ACCURACY

SMALL = ModelSpec(filters=4, depth=3, reps=1)
EVENTS = 16


def batch_of(labels, numbers):
    sites = torch.tensor([[n, i, 0, 0] for i, n in enumerate(numbers)], dtype=torch.int32)
    return SparseBatch(sites, torch.ones(len(labels), 1), torch.tensor(labels), 16, 2)


def logits_of(classes):
    return torch.nn.functional.one_hot(torch.tensor(classes), 5).double()


def test_accuracies_are_counted_by_event_and_class():
    truth = [0, 0, 1, 1, 2, -100]
    predicted, expected = [0, 1, 1, 1, 2, 3], [0, 0, 1, 0, 2, 3]
    found = label_accuracy(
        [batch_of(truth, [0, 0, 0, 1, 1, 1])], [logits_of(predicted)], [logits_of(expected)]
    )
    assert found["event_labelled"] == [3, 2]
    assert found["event_correct"] == [2, 2]
    assert found["nonzero"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["voxel_share"] == pytest.approx(4 / 5)
    assert found["confusion"]["HIP"] == [1, 1, 0, 0, 0]
    assert found["class_accuracy"]["MIP"] == 1.0
    assert found["class_purity"]["MIP"] == pytest.approx(2 / 3)
    assert found["class_accuracy"]["Michel"] is None
    assert (found["flips"], found["lost"], found["gained"]) == (2, 1, 1)


def test_events_without_labels_have_no_accuracy():
    assert label_accuracy([batch_of([-100, -100], [0, 1])], [logits_of([0, 1])], None) is None


def reconstruct_truth(event):
    return reconstruct(event.voxels, event.energies, event.labels, event.labels)


def test_michel_electrons_are_counted_as_in_the_study():
    held = (e for e in open_events("sample", size=192) if (e.labels == Label.MICHEL).any())
    event, summary = next(
        (event, found)
        for event in held
        if (found := summarize_michels([reconstruct_truth(event)])).true_clusters
    )
    numbers = np.zeros(len(event), np.int32)
    batch = SparseBatch(
        torch.from_numpy(np.column_stack([numbers, event.voxels]).astype(np.int32)),
        torch.from_numpy(event.energies[:, None]),
        torch.from_numpy(event.labels.astype(np.int64)),
        192,
        1,
    )
    found = label_accuracy([batch], [logits_of(event.labels.astype(int).tolist())], None)
    assert found["michel_true"] == summary.true_clusters > 0
    assert found["michel_matched"] == summary.matched > 0


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A file of weights, and a file of events whose labels are those of its float64 network."""
    folder = tmp_path_factory.mktemp("network")
    config = UResNetConfig(SMALL.filters, SMALL.depth, SMALL.reps, SMALL.classes)
    values = weights.initial(config, 3)
    np.savez(folder / "small.npz", **{name: value.numpy() for name, value in values.items()})
    events = [event for event in open_events("sample", size=192)[:40] if len(event) < 4000]
    with EventWriter(folder / "labelled.h5", 192, 3, "test") as writer:
        for event in events[:EVENTS]:
            arrays = collate([event])
            sites, features = (torch.from_numpy(arrays[name]) for name in ("sites", "features"))
            batch = SparseBatch(sites.int(), features, None, 192, 1)
            logits = compute_reference(config, values, batch, step=False).logits
            writer.append(replace(event, labels=logits.argmax(1).numpy().astype(np.uint8)))
    return folder


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    return tmp_path_factory.mktemp("references")


def measured(engine, network, references, precision="fp32"):
    source = network / "labelled.h5"
    with open_in_child(source) as events:
        spec = EventSpec(source.name, events.sha256, count=EVENTS)
    cell = Cell("accuracy", engine, 192, 4, "forward", "cold", precision=precision, model=SMALL)
    found = find_weights(str(network / "small.npz"))
    cell = replace(cell, weights=found.label, events=spec)
    job = Job(
        cell,
        str(source),
        rule=StopRule(least=3, most=3, budget=10.0),
        warm_up=0.1,
        references=str(references),
        weights=str(found.path),
    )
    threads = torch.get_num_threads()
    try:
        return cell, measure_cell(job)
    finally:
        torch.set_num_threads(threads)


def summary_of(tmp_path, name, cell, entries):
    path = tmp_path / f"{name}.jsonl"
    store.append_record(path, cell, entries, run=name, commit="a" * 40, dirty=False)
    return summarize(store.read(path))


def test_engines_find_the_same_labels(network, references):
    found = {}
    for engine in ("sscn", "spconv"):
        _, entries = measured(engine, network, references)
        assert entries["outcome"] == "ok", entries["reason"]
        found[engine] = entries["accuracy"]
    for accuracy in found.values():
        assert accuracy["nonzero"] > 0.999
        assert len(accuracy["event_labelled"]) == EVENTS
        assert accuracy["flips"] == accuracy["lost"] <= 4
        assert accuracy["gained"] == 0
    assert found["sscn"]["event_labelled"] == found["spconv"]["event_labelled"]


def test_all_events_of_a_cell_are_labelled_in_batches():
    cell = Cell("s", "sscn", 192, 4, "forward", "cold", events=EventSpec(count=10))
    batches = list(event_batches(cell, "sample"))
    assert [batch.batch_size for batch in batches] == [4, 4, 2]
    own, _ = benchmark_batch(open_events("sample", size=192), 4, seed=0)
    assert torch.equal(batches[0].sites, torch.from_numpy(own["sites"]))
    assert torch.equal(batches[0].labels, torch.from_numpy(own["labels"]))


def test_exchanged_taps_are_wrong(network, references, monkeypatch):
    from backends import spconv as adapter

    whole = adapter.Backend.to_native

    def exchanged(self, kind, weight):
        if weight.ndim == 5 and weight.shape[-1] == 3:
            weight = weight.clone()
            weight[..., 0, 0, 0], weight[..., 2, 2, 2] = (
                weight[..., 2, 2, 2].clone(),
                weight[..., 0, 0, 0].clone(),
            )
        return whole(self, kind, weight)

    monkeypatch.setattr(adapter.Backend, "to_native", exchanged)
    _, entries = measured("spconv", network, references)
    assert entries["outcome"] == "wrong"
    assert "accuracy" not in entries


def test_activations_of_8_bits_are_worse_than_bf16(network, references, install, tmp_path):
    module = install("example")
    can = replace(module.probe(), precisions={"cpu": ("fp32", "bf16")})
    module.probe = lambda: can
    whole = module.Convolution.forward
    found = {}
    for name, rounding in (("before", lambda v: v.bfloat16().float()), ("after", eight_bits)):

        def forward(self, x, rounding=rounding):
            with torch.autocast("cpu", enabled=False):
                out = whole(self, replace(x, values=x.values.float()))
            return replace(out, values=rounding(out.values))

        module.Convolution.forward = forward
        cell, entries = measured("example", network, references, "bf16")
        assert entries["outcome"] == "ok", entries["reason"]
        found[name] = summary_of(tmp_path, name, cell, entries)
    judged = {c.metric: c.judgement for c in changes(found["before"], found["after"])}
    assert judged[ACCURACY].verdict is Verdict.WORSE, judged[ACCURACY].reason
    assert f"{EVENTS} events" in judged[ACCURACY].reason


def eight_bits(values):
    """Round to 256 levels between the extremes."""
    step = (values.max() - values.min()) / 255
    return values if step == 0 else (values / step).round() * step


def test_a_file_without_labels_has_no_accuracy(tmp_path, capfd):
    with EventWriter(tmp_path / "bare.h5", 192, 3, "test") as writer:
        event = open_events("sample", size=192)[0]
        writer.append(replace(event, labels=np.full(len(event), 5, np.uint8)))
    with pytest.raises(SystemExit) as ended:
        main(["run", "accuracy", "--events", str(tmp_path / "bare.h5"), "--backend", "sscn"])
    assert ended.value.code == 2
    assert "has no labels to compare with" in capfd.readouterr().err
