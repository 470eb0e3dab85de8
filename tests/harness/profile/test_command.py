"""The command: its files, its tables, and one sentence for what it cannot do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from backends import registry
from backends.registry import UnknownBackend
from harness.errors import BadInput
from harness.profile.command import profile
from harness.profile.profile import read_profile

ROOT = Path(__file__).resolve().parents[3]
CELL = {"backend": "sscn", "size": 192, "batch": 1}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"backend": "sscn:kernels=magic"}, "no option kernels=magic"),
        ({"size": 7}, "size must be a whole number of at least 16"),
        ({"size": 100}, "100"),
        ({"batch": 0}, "batch must be a whole number"),
        ({"map_": "first"}, "give --map cold or warm"),
        ({"phase": "submanifold"}, "only forward and step"),
        ({"precision": "fp16"}, "no fp16 on cpu"),
        ({"events": "nowhere.root"}, "nowhere.root"),
    ],
)
def test_unsupported_cells_are_refused_in_one_sentence(change, words, tmp_path):
    with pytest.raises(BadInput) as error:
        profile(**CELL | {"out": tmp_path / "out"} | change)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_unknown_and_unavailable_engines_are_refused(tmp_path):
    with pytest.raises(UnknownBackend, match="no engine called 'nobody'"):
        profile(**CELL | {"backend": "nobody"})
    if registry.probe("fvdb").capabilities is None:
        with pytest.raises(BadInput, match="cannot profile fvdb: "):
            profile(**CELL | {"backend": "fvdb"})


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="--out"):
        profile(**CELL | {"out": tmp_path / "file" / "out"})


def command(*words, home):
    """Run the command; the lock on the device is this test's own."""
    return subprocess.run(
        [sys.executable, "-m", "harness", "profile", *map(str, words)],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(home)},
        capture_output=True,
        text=True,
    )


def test_bad_input_gives_exit_code_2(tmp_path):
    done = command("--backend", "sscn", "--size", 7, "--batch", 1, home=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sscn", "spconv", "minkowski"])
@pytest.mark.parametrize("phase", ["forward", "step"])
@pytest.mark.parametrize("size", [192, 512])
def test_layers_sum_to_the_cell_and_the_peak_is_explained(name, phase, size, tmp_path):
    """Both within 5 %; a machine that does other work meanwhile can spoil the first."""
    found = registry.probe(name)
    if found.capabilities is None:
        pytest.skip(found.reason)
    out = tmp_path / "out"
    cell = ("--backend", name, "--size", size, "--batch", 4, "--phase", phase)
    seconds = 60 if (name, phase) == ("minkowski", "step") else 24  # a second each, and uneven
    done = command(*cell, "--seconds", seconds, "--out", out, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "FLOP" in done.stdout
    profile = read_profile(out)
    assert profile.layer_sum_ratio == pytest.approx(1, abs=0.05)
    assert profile.memory is not None
    assert profile.memory.share_explained == pytest.approx(1, abs=0.05)
    events = json.loads((out / "trace.json").read_text())["traceEvents"]
    names = {event.get("name") for event in events if event["ph"] == "X"}
    assert {"stem", "stem (map)", "linear"} <= names
    assert ("stem backward" in names) == (phase == "step")
    assert any(name.startswith("aten::") for name in names)
    assert (out / "index.html").exists()


@pytest.mark.parametrize(
    ("more", "policy"), [({}, "freed memory is kept"), ({"resident": [0, 0]}, "")]
)
def test_times_are_profiled_with_the_allocator_policy_of_a_run(more, policy):
    code = (
        "from harness.instruments import allocator; from harness.profile.child import answer; "
        f"answer({more | {'job': {}, 'settings': {}}}); print(allocator.policy()[:20])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == policy
