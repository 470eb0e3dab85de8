import importlib
import importlib.util
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from harness import __main__ as cli
from harness.examples import EXAMPLES
from harness.results import store
from harness.spec.cell import Cell

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _own_device_lock(tmp_path, monkeypatch):
    """Do not wait for another run on this machine: these tests report no times."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


def harness(*words, **options):
    return subprocess.run(
        [sys.executable, "-m", "harness", *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        **options,
    )


def test_the_harness_needs_no_torch():
    modules = "harness.__main__, harness.run.rounds, harness.results.store, harness.run.cluster"
    code = f"import sys, {modules}, suites.demo\n"
    code += "assert not {'torch', 'pynvml', 'pandas', 'distributed'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_help_names_every_command():
    text = harness("--help").stdout
    for name in cli.COMMANDS:
        assert f" {name} " in text


def commands():
    """Map the name of each command and sub-command to its click command."""
    for name, (module, _) in cli.COMMANDS.items():
        if name == "backends":  # the same as engines
            continue
        found = importlib.import_module(module)
        if hasattr(found, "app"):
            group = typer.main.get_command(found.app)
            yield name, group
            for verb, command in getattr(group, "commands", {}).items():
                if not command.hidden:
                    yield f"{name} {verb}", command
        else:
            alone = typer.Typer()
            settings = getattr(found, "CONTEXT", None)
            alone.command(context_settings=settings)(getattr(found, name))
            yield name, typer.main.get_command(alone)


def test_every_command_has_an_example_that_it_accepts():
    found = dict(commands())
    assert set(EXAMPLES) == set(found)
    for name, command in found.items():
        command.make_context(name, shlex.split(EXAMPLES[name]))


@pytest.mark.parametrize("called", ["python -m harness", "sscn-bench"])
def test_help_has_the_name_it_was_called_by_and_an_example(called, monkeypatch, capsys):
    name = "sscn-bench" if called == "sscn-bench" else "harness/__main__.py"
    monkeypatch.setattr(sys, "argv", [name])
    monkeypatch.setattr(cli, "app", typer.Typer(rich_markup_mode=None, add_completion=False))
    with pytest.raises(SystemExit):
        cli.main(["events", "view", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert f"Usage: {called} events view" in text
    assert f"Example: {called} events view {EXAMPLES['events view']}" in text


def test_help_needs_no_extra(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.modules.update(dict.fromkeys(['asv', 'calzone', 'dask', 'distributed']))\n"
    )
    without = os.environ | {"PYTHONPATH": str(tmp_path)}
    for words in (["asv", "--help"], ["asv"], ["events", "simulate", "--help"], ["run", "--help"]):
        done = harness(*words, env=without)
        assert done.returncode == 0, done.stderr
        assert "Example: python -m harness" in done.stdout
    assert "[asv]" in harness("asv", "--help", env=without).stdout
    assert "[asv]" in one_sentence(harness("asv", "run", env=without))


def one_sentence(done):
    """Whether a command refused its input as it should; return the sentence."""
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    return line


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["run", "nothing"], "there is no suite 'nothing'; choose one of"),
        (["run", "demo", "--backend", "nonesuch"], "there is no engine called 'nonesuch'"),
        (["run", "demo", "--backend", "sscn", "--size", "100"], "no images of 100 px; choose"),
        (["run", "demo", "--backend", "sscn", "--events", "missing.root"], "missing.root"),
        (["run", "demo", "--backend", "sscn", "--batch", "0"], "batch must be a whole number"),
        (["run", "demo", "--backend", "sscn", "--device", "tpu"], "device must be one of"),
        (["run", "demo", "--backend", "sscn", "--against", "nocommit"], "is no commit of"),
        (["run", "demo", "--backend", "sscn", "--against-env", "nowhere"], "is neither an inst"),
        (["run", "demo", "--against", "HEAD", "--against-env", "x"], "not both"),
        (
            ["profile", "--backend", "sscn", "--size", "192", "--batch", "1", "--env", "nowhere"],
            "is neither an installed environment",
        ),
        (["run", "demo", "--backend", "sscn", "--dask", "local:0"], "write local:2"),
        (["run", "demo", "--timeout", "nan"], "--timeout must be a finite number above 0, not nan"),
        (["run", "demo", "--budget", "inf"], "--budget must be a finite number above 0, not inf"),
        (["boundary", "inf"], "must be a finite number above 0, not inf"),
        (["boundary", "1", "--timeout", "-3"], "--timeout must be a finite number above 0"),
        (["backends", "--timeout", "nan"], "--timeout must be a finite number above 0"),
        (["engines", "prove", "nonesuch"], "there is no engine called 'nonesuch'"),
        (["worker", "missing.json"], "cannot read the cell missing.json"),
        (["worker", "LICENSE"], "LICENSE is not JSON"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(words, sentence):
    assert sentence in one_sentence(harness(*words))


def test_names_that_are_no_text_or_have_two_lines_are_printed(tmp_path):
    assert "a b is no file" in one_sentence(harness("events", "info", "a\nb"))
    out = os.fsdecode(os.fsencode(tmp_path) + b"/\x80.h5")
    done = harness("events", "convert", "sample", out, "--size", "192", "--count", "1")
    assert done.returncode == 0, done.stderr
    assert "\\udc80.h5: 1 events" in done.stdout


def test_a_deeply_nested_job_is_one_sentence(tmp_path):
    path = tmp_path / "job.json"
    path.write_text("[" * 100_000)
    assert "nested too deeply" in one_sentence(harness("worker", path))


def test_a_fifo_as_the_file_of_records_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    done = harness("run", "demo", "--backend", "sscn", "--out", tmp_path / "fifo", timeout=300)
    assert "is no regular file" in one_sentence(done)


@pytest.mark.parametrize(
    ("command", "end"), [("run", "; --resume goes on from here"), ("study", "")]
)
def test_a_stopped_command_ends_with_a_message(command, end, monkeypatch, capsys):
    def stop():
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_mount", lambda arguments: None)
    app = typer.Typer(cls=cli._Commands)
    app.command(command)(stop)
    app.command("other")(lambda: None)
    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(SystemExit) as ended:
        cli.main([command])
    assert ended.value.code == 130
    assert capsys.readouterr().err.strip() == f"stopped{end}"


def test_wrong_options_are_explained(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["suites", "--nonesuch"])
    assert ended.value.code == 2
    assert "--nonesuch" in capsys.readouterr().err


def test_an_unwritable_place_is_one_sentence_before_anything_is_measured(tmp_path):
    (tmp_path / "file").touch()
    done = harness(
        "run", "demo", "--backend", "sscn", "--out", tmp_path / "file" / "run.jsonl", timeout=300
    )
    assert "cannot write results to" in one_sentence(done)


def test_a_truncated_root_file_is_one_sentence(tmp_path, larcv2_file):
    path = tmp_path / "truncated.root"
    path.write_bytes(larcv2_file.read_bytes()[:40_000])
    done = harness("run", "inference", "--backend", "sscn", "--events", path)
    assert "truncated.root" in one_sentence(done)


@pytest.mark.parametrize("name", ["suites.py", "backends.py", "suites/__init__.py", "suites"])
def test_a_file_that_hides_a_package_is_named(tmp_path, name):
    path = tmp_path / name
    if path.suffix:
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    else:
        path.mkdir()
    # As in an installation: the current folder is searched before the packages, and the finder of
    # an editable installation, which answers first, is not there.
    start = (
        "import runpy, sys; "
        "sys.meta_path[:] = [f for f in sys.meta_path if 'Redirecting' not in type(f).__name__]; "
        "runpy.run_module('harness', run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", start, "suites"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
    )
    if path.is_dir():  # a folder without Python files hides nothing
        assert done.returncode == 0, done.stderr
    else:
        assert name.partition(".")[0].partition("/")[0] in one_sentence(done)


def test_an_engine_that_is_not_installed_is_refused(tmp_path):
    if importlib.util.find_spec("fvdb"):
        pytest.skip("fvdb is installed")
    done = harness("run", "demo", "--backend", "fvdb", "--out", tmp_path / "run.jsonl")
    assert "fvdb cannot run here: not installed" in one_sentence(done)
    assert not (tmp_path / "run.jsonl").exists()


def test_engines_are_excluded_by_name(tmp_path):
    words = ("run", "demo", "--backend", "sscn", "--backend", "dense", "--exclude", "sscn")
    done = harness(*words, "--exclude", "dense", "--out", tmp_path / "run.jsonl")
    assert "has no cell for these options" in one_sentence(done)
    assert "no engine called 'dens'" in one_sentence(harness("run", "demo", "--exclude", "dens"))


def test_the_suites_are_listed():
    text = harness("suites").stdout
    for name in ("demo", "inference", "training"):
        assert name in text


@pytest.mark.parametrize("words", [("engines", "list"), ("backends",)])
def test_the_engines_are_listed_with_the_reason_where_absent(words):
    done = harness(*words, "--timeout", "300")
    assert done.returncode == 0
    assert "sscn" in done.stdout
    assert "dense" in done.stdout
    for name in ("sparseconvnet", "torchsparse"):
        try:
            __import__(name)
        except ImportError:
            assert "not installed" in done.stdout


def test_warnings_about_records_are_one_line(capsys):
    cli._one_line("run.jsonl:3: not a record; left out", store.BadRecord)
    cli._one_line("something internal", DeprecationWarning)
    assert capsys.readouterr().err == "warning: run.jsonl:3: not a record; left out\n"


@pytest.mark.slow
def test_a_physicists_own_file_is_measured_event_by_event(tmp_path, larcv2_file):
    out = tmp_path / "run.jsonl"
    done = harness(
        *("run", "inference", "--backend", "sscn", "--events", larcv2_file),
        *("--budget", "0.1", "--out", out),
    )
    assert done.returncode == 0, done.stderr
    found = list(store.records([out]))
    assert {r["outcome"] for r in found} == {"ok"}
    assert {r["skipped_empty"] for r in found} == {1}
    single = [r for r in found if r["cell"]["batch"] == 1]
    assert sorted(r["sites"] for r in single) == [100, 100, 1000, 1000, 4000, 4000]
    assert all(r["sites"] in range(100, 4 * 5180 + 1) for r in found)


@pytest.mark.slow
def test_a_run_on_two_dask_workers_measures_real_engines(tmp_path):
    pytest.importorskip("distributed")
    out = tmp_path / "run.jsonl"
    done = harness(
        *("run", "demo", "--backend", "sscn", "--size", "192", "--dask", "local:1"),
        *("--budget", "0.1", "--out", out),
    )
    assert done.returncode == 0, done.stderr
    found = list(store.records([out]))
    assert [r["outcome"] for r in found] == ["ok"] * 3
    assert len({Cell.from_json(r["cell"]).name for r in found}) == 3
