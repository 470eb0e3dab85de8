"""The action for pull requests: its steps, run in bash beside a program in place of ``gh``."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]

SLOWER_BY_A_TENTH = """

import time as _time


def _begins(make):
    def begin(self, *arguments):
        self._began = _time.perf_counter()
        return make(self, *arguments)

    return begin


def _end(self, x, _features=Backend.features):
    rows = _features(self, x)
    until = _time.perf_counter() + 0.1 * (_time.perf_counter() - self._began)
    while _time.perf_counter() < until:
        pass
    return rows


Backend.tensor, Backend.with_features = _begins(Backend.tensor), _begins(Backend.with_features)
Backend.features = _end
"""


# An editable installation has precedence over the folder of the clone on import.
WITHOUT_EDITABLE_FINDERS = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "Redirecting" not in type(f).__name__]
"""


def git(repository, *words):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(
        ["git", "-C", str(repository), *identity, *words], check=True, capture_output=True
    )
    return done.stdout.decode().strip()


GH = """
import json, os, subprocess, sys
from pathlib import Path

words = sys.argv[1:]
assert words.pop(0) == "api"
path = next(word for word in words if word.startswith("repos/"))
file = Path(os.environ["COMMENTS"])
comments = json.loads(file.read_text())
if "--method" not in words:
    assert path == "repos/lab/bench/issues/7/comments"
    query = words[words.index("--jq") + 1]
    subprocess.run(["jq", "--raw-output", query], input=json.dumps(comments), text=True, check=True)
    sys.exit()
if os.environ["GH_TOKEN"] != "allowed":
    sys.exit("HTTP 403: Resource not accessible by integration")
body = Path(words[words.index("-F") + 1].removeprefix("body=@")).read_text()
if words[words.index("--method") + 1] == "POST":
    assert path == "repos/lab/bench/issues/7/comments"
    comments.append({"id": len(comments), "user": {"type": "Bot"}, "body": body})
else:
    comments[int(path.removeprefix("repos/lab/bench/issues/comments/"))]["body"] = body
file.write_text(json.dumps(comments))
"""

EXPRESSION = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")


class Action:
    """The steps of ``action.yml`` on a folder, for the pull request 7 of a repository."""

    def __init__(self, tmp_path, folder, base, **inputs):
        self.folder, self.values = folder, {}
        self.action = yaml.safe_load((ROOT / "action.yml").read_text())
        assert set(inputs) <= set(self.action["inputs"])
        self.values = {
            "github.event.pull_request.base.sha": base,
            "github.event.pull_request.number": "7",
            "github.token": "allowed",
        }
        for name, about in self.action["inputs"].items():
            value = inputs.get(name, self.filled(about["default"]))
            self.values[f"inputs.{name}"] = value
        self.programs = tmp_path / "programs"
        self.programs.mkdir()
        self.comments = tmp_path / "comments.json"
        self.comments.write_text("[]")
        self.program("gh", GH)
        self.program("make", "import sys\nassert sys.argv[1:] == ['.venv/.demo']")
        activate = folder / ".venv" / "bin" / "activate"
        activate.parent.mkdir(parents=True)
        activate.write_text(f"PATH={Path(sys.executable).parent}:$PATH\n")
        self.environment = {
            "PATH": f"{self.programs}{os.pathsep}{os.environ['PATH']}",
            "COMMENTS": str(self.comments),
            "GITHUB_ACTION_PATH": str(ROOT),
            "GITHUB_REPOSITORY": "lab/bench",
            "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
        }

    def program(self, name, code):
        path = self.programs / name
        path.write_text(f"#!{sys.executable}\n{code}")
        path.chmod(0o755)

    def filled(self, text):
        return EXPRESSION.sub(lambda found: self.values[found[1]], str(text))

    def wanted(self, condition, failed):
        """Whether a step runs; of conditions, those of the action are understood."""
        terms = [term.strip() for term in condition.split("&&")] if condition else []
        if failed and "always()" not in terms:
            return False
        for term in terms:
            value, _, other = term.partition(" == ")
            if term != "always()" and (
                self.values[value] != other.strip("'") if other else not self.values[value]
            ):
                return False
        return True

    def run(self, *, without=(), **environment):
        """Run the steps as GitHub does, and return what each printed and whether it failed."""
        done, failed = {}, False
        for step in self.action["runs"]["steps"]:
            if "run" not in step or step["name"] in without:
                continue
            if not self.wanted(step.get("if", ""), failed):
                continue
            assert step["shell"] == "bash"
            own = {name: self.filled(value) for name, value in step.get("env", {}).items()}
            ran = subprocess.run(
                ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
                cwd=self.folder,
                env=os.environ | self.environment | environment | own,
                capture_output=True,
                text=True,
            )
            done[step["name"]] = ran
            failed = failed or ran.returncode != 0
        return done

    def written(self):
        return [comment["body"] for comment in json.loads(self.comments.read_text())]


@pytest.fixture
def measured(tmp_path, write_runs):
    """The action after its measurement, of which a test chooses the factor of the times."""
    if not shutil.which("jq"):
        pytest.skip("needs jq")
    folder = tmp_path / "checkout"
    folder.mkdir()
    action = Action(tmp_path, folder, "a" * 40, engine="sscn")

    def show(factor, **environment):
        write_runs(folder, factor)
        without = ("Set up", "Measure")
        return action, action.run(without=without, PYTHONPATH=str(ROOT), **environment)

    return show


@pytest.fixture
def write_runs(make_record):
    def write(folder, factor):
        for name, cost, commit in (("gate.against", 1, "a"), ("gate", factor, "b")):
            lines = [
                make_record(0.05 * cost, seed=number, round=number, commit=commit * 40)
                for number in range(8)
            ]
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (folder / f"{name}.jsonl").write_text(text)

    return write


def test_a_comment_has_the_verdicts_and_later_runs_update_it(measured):
    action, done = measured(1.5)
    assert all(step.returncode == 0 for step in done.values()), done
    (body,) = action.written()
    assert "**sscn, compared with aaaaaaaaaaaa**" in body
    assert "| SLOWER | time | sscn | 192 px" in body
    assert "| SAME |" not in body
    assert "| SAME |" in (action.folder / "gate.md").read_text()
    assert (action.folder / "gate-report" / "index.html").is_file()
    assert "SLOWER" in Path(action.environment["GITHUB_STEP_SUMMARY"]).read_text()

    foreign = {"id": 1, "user": {"type": "User"}, "body": body}
    comments = json.loads(action.comments.read_text())
    action.comments.write_text(json.dumps([foreign | {"id": 0}, comments[0] | {"id": 1}]))
    measured(1.0)
    first, second = action.written()
    assert first == body
    assert "SLOWER" not in second
    assert re.search("Verdicts SAME: [1-9]", second)


def test_another_engine_has_a_comment_of_its_own(measured):
    action, _ = measured(1.5)
    action.values["inputs.engine"] = "spconv"
    measured(1.5)
    assert len(action.written()) == 2


def test_a_token_that_may_not_comment_is_a_warning(measured):
    action, _ = measured(1.0)
    action.values["inputs.token"] = "of a fork"
    _, done = measured(1.5)
    assert done["Comment"].returncode == 0
    assert "::warning::" in done["Comment"].stdout
    assert "SLOWER" not in action.written()[0]


def test_comments_can_be_left_out(measured):
    action, _ = measured(1.0)
    action.values["inputs.comment"] = "false"
    _, done = measured(1.5)
    assert "Comment" not in done
    assert "SLOWER" not in action.written()[0]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_pull_request_that_slows_an_engine_by_a_tenth_fails_with_a_verdict(tmp_path):
    pytest.importorskip("spconv")
    pytest.importorskip("scikit_build_core")
    clone = tmp_path / "clone"
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(WITHOUT_EDITABLE_FINDERS)
    git(tmp_path, "clone", "--quiet", str(ROOT), str(clone))
    for kernels in (ROOT / "backends/sscn/cpu").glob("_kernels*.so"):
        (clone / "backends/sscn/cpu" / kernels.name).write_bytes(kernels.read_bytes())
    adapter = clone / "backends/spconv.py"
    adapter.write_text(adapter.read_text() + SLOWER_BY_A_TENTH)
    git(clone, "commit", "--quiet", "--all", "--message", "A slower engine")
    before = git(clone, "rev-parse", "--short=12", "HEAD~1")
    base = git(clone, "rev-parse", "HEAD~1")
    action = Action(tmp_path, clone, base, engine="spconv", batch="1", budget="1")

    done = action.run(PYTHONPATH=str(tmp_path / "site"))

    assert done["Set up"].returncode == 0
    gate = done["Measure"]
    assert f"at {before}" in gate.stdout, gate.stdout + gate.stderr
    assert gate.returncode == 1, gate.stdout + gate.stderr
    assert "SLOWER" in gate.stdout
    (body,) = action.written()
    assert "| SLOWER | time | spconv |" in body
    assert before in body


@pytest.mark.parametrize("words", [[], [""]])
def test_a_gate_without_a_base_names_what_it_needs(words, tmp_path):
    command = ["bash", str(ROOT / "docs" / "gate.sh"), *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "name the commit to compare with: bash docs/gate.sh BASE\n"


def test_the_workflow_of_this_repository_uses_the_action():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "speed.yml").read_text())
    assert [step["uses"] for step in workflow["jobs"]["gate"]["steps"]][-1] == "./"
    assert workflow["permissions"]["pull-requests"] == "write"
    assert "$(VENV)/.demo:" in (ROOT / "Makefile").read_text()
