"""Engines are found by name, and a probe tolerates every failure of an engine."""

import json
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from backends import proof, registry
from backends.capabilities import Capabilities, Kind, Unsupported
from backends.proof import prove

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "docs" / "engine_template.py"
DOCUMENTATION = ROOT / "docs" / "own-engine.md"


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Register an engine whose adapter is the given text."""

    def write(text, name="engine_under_test"):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setitem(registry.BUILT_IN, "under-test", name)
        registry._modules.cache_clear()
        return "under-test"

    yield write
    registry._modules.cache_clear()
    sys.modules.pop("engine_under_test", None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raise ValueError('no licence\\nsecond line')", "ValueError: no licence"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("class Odd(BaseException): pass\nraise Odd('odd')", "Odd: odd"),
        ("import not_there_at_all", "not installed: No module named 'not_there_at_all'"),
        ("import os; os._exit(0)", "the probe ended without an answer (exit code 0)"),
        ("import os; os.kill(os.getpid(), 11)", "the probe ended without an answer (SIGSEGV)"),
        ("import torch; torch.zeros(1).cuda()", None),
        ("def probe(): return 7", "AttributeError"),
        ("x = 1", "AttributeError"),
    ],
)
def test_a_probe_survives(module, text, reason):
    found = registry.probe(module(text))
    assert found.capabilities is None
    assert found.reason if reason is None else found.reason.startswith(reason)
    assert "\n" not in found.reason


@pytest.mark.parametrize(
    "answer",
    [
        "{'version': 1}",
        "{'kinds': 7, 'precisions': {}, 'options': {}, 'devices': [], 'dims': []}",
        "[1, 2]",
        "'text'",
        "{'a': object()}",
    ],
)
def test_a_malformed_answer_spoils_its_engine_alone(module, answer):
    found = registry.probe(
        module(
            f"class Answer:\n    def to_json(self): return {answer}\ndef probe(): return Answer()"
        )
    )
    assert found.capabilities is None
    assert found.reason.startswith("the answer of its probe is malformed")


def test_escape_codes_in_a_reason_do_not_reach_the_terminal(module):
    found = registry.probe(module("raise ValueError('\\x1b[2Jgone')"))
    assert "gone" in found.reason
    assert found.reason.isprintable()


def test_a_probe_that_hangs_is_killed_with_its_children(module, tmp_path):
    name = module(
        f"""
        import subprocess, time
        child = subprocess.Popen(["sleep", "1000"])
        open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
        time.sleep(1000)
        """
    )
    started = time.monotonic()
    found = registry.probe(name, timeout=5)
    assert time.monotonic() - started < 30
    assert found.reason == "the probe gave no answer in 5 s"
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the engine's own child is still alive")


def test_a_probe_that_prints_answers_all_the_same(module, capfd):
    name = module(
        """
        import os, sys
        from backends.capabilities import Capabilities
        print("banner"); os.write(1, b"more"); os.write(2, b"noise")
        def probe():
            print("probing")
            return Capabilities("1.0", ("cpu",), {"cpu": ("fp32",)}, options={"a": ("b", "c")})
        """
    )
    found = registry.probe(name)
    expected = Capabilities("1.0", ("cpu",), {"cpu": ("fp32",)}, options={"a": ("b", "c")})
    assert found == registry.Availability(name, expected)
    assert capfd.readouterr() == ("", "")


def test_probes_run_side_by_side(module, monkeypatch):
    module("import time; time.sleep(100)")
    monkeypatch.setitem(registry.BUILT_IN, "second", "engine_under_test")
    registry._modules.cache_clear()
    started = time.monotonic()
    found = list(registry.probe_all(["under-test", "second"], timeout=4, workers=2))
    assert time.monotonic() - started < 8
    assert {entry.name for entry in found} == {"under-test", "second"}


def test_capabilities_survive_json():
    given = Capabilities(
        "2", ("cpu", "cuda"), {"cpu": ("fp32",), "cuda": ()}, (3,), frozenset(Kind), False,
        {"algorithm": ("x", "y")}, "nothing", "other", "note",
    )  # fmt: skip
    assert Capabilities.from_json(json.loads(json.dumps(given.to_json()))) == given


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_every_engine_is_available_or_has_a_reason(name):
    found = registry.probe(name)
    if found.capabilities is None:
        assert found.reason
        pytest.skip(found.reason)
    can = found.capabilities
    assert can.version
    assert can.missing or all(can.precisions[device] for device in can.devices)


def test_unknown_engines_are_named():
    with pytest.raises(registry.UnknownBackend, match=r"no engine called 'x'; choose one of sscn"):
        registry.load("x", dim=3, device="cpu", precision="fp32")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"device": "tpu"}, "does not offer the device tpu here: it has cpu"),
        ({"precision": "fp8"}, "does not offer the precision fp8 here: it has fp32"),
        ({"dim": 4}, "does not offer the dimension 4 here: it has 2, 3"),
        ({"options": {"speed": "more"}}, "does not offer the option speed here: it has none"),
    ],
)
def test_what_an_engine_lacks_is_refused_in_a_sentence(changes, words):
    wanted = {"dim": 3, "device": "cpu", "precision": "fp32"} | changes
    with pytest.raises(Unsupported, match=words):
        registry.load("dense", **wanted)


def test_an_engine_may_have_its_own_interpreter(monkeypatch, tmp_path):
    assert registry.interpreter("dense-study") == sys.executable
    monkeypatch.setenv("SSCN_BENCH_PYTHON_DENSE_STUDY", str(tmp_path / "python"))
    assert registry.interpreter("dense-study") == str(tmp_path / "python")
    assert registry.probe("dense-study").reason.startswith("its interpreter does not start")


@pytest.fixture(scope="session")
def third_party(tmp_path_factory):
    """Install the documented package with the template as its engine; return its folder."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("third_party")
    [metadata] = re.findall(r"```toml\n(.*?)```", DOCUMENTATION.read_text(), re.DOTALL)
    (folder / "pyproject.toml").write_text(metadata)
    (folder / "example_engine.py").write_text(TEMPLATE.read_text())
    site = folder / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run(
        [*pip, "--no-build-isolation", "--disable-pip-version-check", "--target", site, folder],
        check=True,
        capture_output=True,
    )
    return site


@pytest.mark.slow
def test_a_third_party_engine_is_installed_and_measured(third_party, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{third_party}:{ROOT}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # its own lock: other runs are none of its business
    shown = subprocess.run(
        [sys.executable, "-c", "from backends import registry; print(registry.names()[-1], "
         "registry.probe('example').capabilities.version)"],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert shown.stdout.split() == ["example", "0.1"]
    out = tmp_path / "run.jsonl"
    command = [sys.executable, "-m", "harness", "run", "demo", "--backend", "example"]
    small = ["--size", "192", "--batch", "1", "--budget", "0.2", "--device", "cpu"]
    ran = subprocess.run(
        [*command, *small, "--out", out], capture_output=True, text=True, cwd=tmp_path
    )
    assert ran.returncode == 0, ran.stderr + ran.stdout
    records = [json.loads(line) for line in out.read_text().splitlines()]
    cells = [record for record in records if record.get("cell")]
    assert cells
    for record in cells:
        assert record["cell"]["backend"] == "example"
        assert record["outcome"] == "ok", record["reason"]
        assert record["error"]["rel_rmse"] < 1e-5
        assert record["host_seconds"]


@pytest.mark.slow
def test_a_third_party_engine_is_proved(third_party, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{third_party}:{ROOT}")
    command = [sys.executable, "-m", "harness", "engines", "prove", "example"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "example: 30 of 30 checks passed" in done.stdout
    assert "cold passes build all maps, warm ones none (5 in a cold pass)" in done.stdout


def test_the_proof_finds_wrong_results(module, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    name = module(
        f"""
        import sys
        sys.path.append({str(TEMPLATE.parent)!r})
        from engine_template import *
        from engine_template import Backend as Right

        class Backend(Right):
            def features(self, x):
                return 1.01 * x.values
        """
    )
    agreement = [found for found in prove(name) if "against float64" in found.title]
    assert all("1.0e-02" in found.wrong for found in agreement if found.wrong)
    assert sum(bool(found.wrong) for found in agreement) > len(agreement) / 2


@pytest.mark.parametrize("name", ["sscn", "spconv", "minkowski", "ocnn"])
def test_the_proof_counts_no_map_in_a_warm_pass_of_an_installed_engine(name):
    if registry.probe(name).capabilities is None:
        pytest.skip(f"{name} is not installed")
    found = proof._maps(registry.load(name, dim=3, device="cpu", precision="fp32"))
    assert (found.wrong, "in a cold pass" in found.note) == ("", True)


def test_the_proof_finds_maps_that_are_kept(module, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    name = module(
        f"""
        import sys
        sys.path.append({str(TEMPLATE.parent)!r})
        from engine_template import *
        from engine_template import Backend as Right

        KEPT = {{}}

        class Backend(Right):
            def tensor(self, sites, features, spatial_size, batch_size):
                found = super().tensor(sites, features, spatial_size, batch_size)
                maps = KEPT.setdefault((sites.shape, spatial_size), found.maps)
                return replace(found, maps=maps)
        """
    )
    wrong = {found.title: found.wrong for found in prove(name) if found.wrong}
    where = "cpu fp32 3D:"
    assert "something is kept" in wrong[f"{where} warm passes do not read the sites"]
    assert "build 0 and 0 maps" in wrong[f"{where} cold passes build all maps, warm ones none"]
