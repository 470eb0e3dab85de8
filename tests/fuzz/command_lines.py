"""The command line: every command with other options, values and files, in one process."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import requests

from backends import registry
from harness import __main__ as cli
from harness.errors import BadInput
from harness.events import open_events
from harness.events.native import EventWriter
from harness.events.packed import write_packed
from harness.instruments import machine
from harness.profile.profile import write_profile
from harness.results.record import ended
from harness.study.definition import Study, write_definition
from harness.study.plan import write_plan
from harness.study.results import read_results
from tests.fuzz.format import Format
from tests.fuzz.jobs import Jobs
from tests.fuzz.mutations import Rng, mutate_bytes, pick
from tests.fuzz.study_files import small_plan
from tests.fuzz.weights import Weights
from tests.harness.events.conftest import make_event
from tests.harness.profile import made

LINES = (
    "backends --timeout 60",
    "suites",
    "run demo --backend sscn --size 192 --budget 0.1 --repeats 2 --seed 3 --out run.jsonl",
    "run inference --backend sscn --exclude dense --threads 1 --timeout 5 --out new.jsonl",
    "run demo --backend sscn --events wide.h5 --precision fp32 --device cpu --out new.jsonl",
    "run demo --backend sscn --resume --out run.jsonl",
    "run demo --backend sscn --against HEAD --out new.jsonl",
    "run demo --backend sscn --dask local:1 --out new.jsonl",
    "boundary 1 --backend sscn --size 192 --phase forward --most 2 --out new.jsonl",
    "compare run.jsonl --report page",
    "compare run.jsonl baseline.jsonl --fail-on slower,wrong --format csv",
    "compare latest --relative-to sscn",
    "compare profile profile --explain",
    "history --report page --format csv",
    "profile --backend sscn --size 192 --batch 1 --map cold --out new --seconds 0.1",
    "study --out study --scale smoke --backend sscn --also dense --precision fp32 --minutes 0.1",
    "study page study",
    "study train study/training",
    "events info events.h5 --size 32 --count 2 --first 1 --plane xy",
    "events view events.h5 --event 2 --out event.html",
    "events simulate --out new.h5 --size 32 --count 2 --seed 7 --preset standard --processes 1",
    "events fetch --size 192 --files 0-1 --cache cache --api https://api.osf.io/v2",
    "events convert events.h5 new.h5 --count 2 --first 0 --plane yz",
    "weights convert weights.npz weights.pt --from canonical --to sscn",
    "worker job.json",
    "asv show",
)
"""Valid command lines in a folder with these files."""

WORDS = (
    *("", " ", "-", "--", "---", "-1", "0", "1", "7", "999999999999999999999", "1e999", "nan"),
    *("inf", "-inf", "1.5", "0x10", "text", "\u00e9\u4e2d\u202e", "\x1b[31m", "\udc80", "a\nb"),
    *("n" * 300, "%s%n", "[bold]", "{}", "*", "~", "--help", "--version", "--out", "--nonesuch"),
    *("sscn", "sscn:kernels=cpu", "sscn:a", "nonesuch", "dense", "cuda", "fp64", "bf16", "step"),
    *("missing", "missing/x.h5", "folder", "pipe", "/dev/null", "/dev/full", "/proc/self/mem"),
    *("locked/x", "loop", "run.jsonl", "events.h5", "weights.npz", "job.json", "study", "binary"),
    *("empty", "latest", "baseline", "HEAD", "local:9", "local:", "tcp://127.0.0.1:1", "sample"),
)
"""Values of every kind that take the place of others."""


class CommandLines(Format):
    """A command line: exit code 0, 1 or 2, and one line of standard error for 2."""

    name = "command-lines"
    trials = 60

    def write(self, path: Path) -> None:
        """Write a valid command line."""
        path.write_text(json.dumps(LINES[1].split()))

    def mutate(self, path: Path, rng: Rng) -> None:
        """Choose a command line, and change, drop, repeat or add words."""
        words = pick(rng, LINES).split()
        for _ in range(int(rng.integers(3))):
            place = int(rng.integers(1, len(words) + 1))
            kind = int(rng.integers(6))
            if kind < 3 and place < len(words):
                words[place] = pick(rng, WORDS)
            elif kind == 3:
                del words[place:][:1]
            elif kind == 4:
                words[place:place] = words[place : place + 2]
            else:
                words[place:place] = [pick(rng, WORDS)]
        if rng.random() < 0.15:
            name = pick(rng, FILES)
            words = ["--mutate", name, str(int(rng.integers(1000))), *words]
        path.write_text(json.dumps(words))

    def read(self, path: Path) -> str:
        """Run the command line in a folder of its own."""
        folder = path.with_name("cli")
        template = path.with_name("template")
        if not template.exists():
            make_files(template)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(template, folder, symlinks=True, copy_function=shutil.copy)
        os.mkfifo(folder / "pipe")
        words = json.loads(path.read_text())
        if words[:1] == ["--mutate"]:
            target = folder / words[1]
            content = mutate_bytes(target.read_bytes(), np.random.default_rng(int(words[2])))
            target.write_bytes(content)
            words = words[3:]
        return run(words, folder)


def run(words: list[str], folder: Path) -> str:
    """Run a command line in a folder, with everything that measures or downloads left out."""
    out = io.TextIOWrapper(io.BytesIO(), "utf-8")  # as strict as a terminal's
    said = io.StringIO()
    before, handler = Path.cwd(), signal.getsignal(signal.SIGTERM)
    os.chdir(folder)
    code: Any = 0
    try:
        with dry(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
            cli.app.registered_commands.clear()
            cli.app.registered_groups.clear()
            cli.main(words)
    except SystemExit as end:
        code = end.code or 0
    finally:
        os.chdir(before)
        signal.signal(signal.SIGTERM, handler)
    text = said.getvalue()
    if code not in (0, 1, 2) or "Traceback" in text:
        raise AssertionError(f"exit code {code}: {text}")
    if code and not text.strip():
        raise AssertionError(f"exit code {code} without a sentence")
    if code == 2 and not text.startswith(("Usage:", "╭─ Error")):
        kept = [line for line in text.splitlines() if not line.startswith("warning: ")]
        raise BadInput("\n".join(kept))
    return str(code)


FILES = (
    *("run.jsonl", "weights.npz", "job.json", "profile/profile.json"),
    *("study/study.json", "study/training/plan.json", "baseline.jsonl"),
)
"""Files that command lines read, for mutations of their bytes."""


def make_files(folder: Path) -> None:
    """Make the files that command lines name."""
    root = Path(__file__).parents[2]
    (folder / "results" / "runs").mkdir(parents=True)
    lines = (root / "results" / "baseline.jsonl").read_text().splitlines()
    for name in ("run.jsonl", "baseline.jsonl", "results/runs/20260101T000000-demo.jsonl"):
        (folder / name).write_text("\n".join(lines[:4]) + "\n")
    (folder / "asv.conf.json").write_text("{}")
    for name, size in (("events.h5", 32), ("wide.h5", 192)):
        with EventWriter(folder / name, size, 3, "fuzz") as writer:
            for count in (40, 0, 25):
                writer.append(make_event(count, size, seed=count))
    Weights("canonical", ".npz").write(folder / "weights.npz")
    Jobs().write(folder / "job.json")
    (folder / "profile").mkdir()
    write_profile(made.profile(), folder / "profile")
    write_definition(Study(folder / "study", "smoke"))
    tiny = [make_event(count, size=16, seed=count) for count in (40, 25)]
    write_packed(folder / "events.sscnpack", tiny)
    plan = small_plan(Path("."))
    write_plan(folder / "study" / "training", plan, {"test": (plan.held_out, 1)})
    for name in ("folder", "locked", "runtime"):
        (folder / name).mkdir(mode=0o700)
    (folder / "loop").symlink_to("loop")
    (folder / "binary").write_bytes(bytes(range(256)) * 4)
    (folder / "empty").touch()


@functools.cache
def probed(name: str) -> registry.Availability:
    """Return what an engine can do, from a process that the first call starts."""
    return REAL_PROBE(name)


REAL_PROBE, REAL_GIT = registry.probe, machine.git


def probe(name: str, timeout: float = 0.0) -> registry.Availability:
    """Return what one of two engines can do; all others are not installed."""
    registry.module_name(name)
    if name in ("sscn", "dense"):
        return probed(name)
    return registry.Availability(name, None, "not installed")


@contextlib.contextmanager
def dry(folder: Path) -> Iterator[None]:
    """Replace what takes long, starts processes or uses the network by stand-ins."""

    def probe_all(wanted: Any = None, **_: Any) -> Any:
        return [probe(name) for name in (registry.names() if wanted is None else wanted)]

    def measure(tasks: Any, *_: Any) -> Any:
        return ((task, ended({}, "unavailable", "not measured")) for task in tasks)

    def page(study: Study) -> Path:
        read_results(study)
        return study.out / "index.html"

    def git(repository: Path, *words: str) -> str:
        return "" if words[0] == "worktree" else REAL_GIT(repository, *words)

    stand_ins: dict[str, Any] = {
        "backends.registry.probe": probe,
        "backends.registry.probe_all": probe_all,
        "harness.study.run.probe_all": probe_all,
        "harness.run.turns.measure_in_turns": measure,
        "harness.run.max_batch.find_max_batch": lambda *_: 3,
        "harness.run.cluster.local_cluster": lambda *_: contextlib.nullcontext("here"),
        "distributed.Client": mock.Mock(side_effect=OSError("no scheduler")),
        "harness.instruments.machine.git": git,
        "harness.run.against._build": lambda *_: None,
        "harness.run.worker.measure_cell": lambda job: ended({}, "ok"),
        "harness.child_process.private_output": io.StringIO,
        "harness.run.plan.open_in_child": open_events,
        "harness.events.command.open_in_child": open_events,
        "harness.events.simulate.simulate": lambda recipe, count, **_: [
            make_event(5, size=recipe.size) for _ in range(min(count, 2))
        ],
        "harness.profile.command.profile_cell": lambda *_: made.profile(),
        "harness.study.run.run_training": lambda *_: "ok",
        "harness.study.run.measure_costs": lambda *_, **__: None,
        "harness.study.run.EventFolder.simulate_missing": lambda *_, **__: None,
        "harness.study.run.write_study_page": page,
        "harness.study.page.write_study_page": page,
        "harness.study.training_worker.end_with_parent": lambda: None,
        "harness.asv.command.write_machine_file": lambda _: {"machine": "this"},
        "harness.asv.command.run_with_progress": lambda _: 0,
        "requests.sessions.Session.send": mock.Mock(side_effect=requests.ConnectionError("none")),
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, {"XDG_RUNTIME_DIR": f"{folder}/runtime"}))
        for name, stand_in in stand_ins.items():
            stack.enter_context(mock.patch(name, stand_in))
        yield
