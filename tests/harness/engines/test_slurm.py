"""Job scripts are what Slurm understands; a scheduler of this machine runs one."""

import getpass
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.engines.slurm import Node, job_script
from harness.errors import BadInput
from harness.results.store import records
from harness.run.cluster import RESOURCE

ROOT = Path(__file__).resolve().parents[3]


def harness(*words, **variables):
    return subprocess.run(
        [sys.executable, "-m", "harness", "engines", "slurm", *words],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
    )


def directives(script):
    lines = [line for line in script.splitlines() if line.startswith("#SBATCH --")]
    return dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines)


def test_a_script_asks_for_the_node_and_runs_the_suite(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    node = Node("gpu", "dune", "1-12", cpus=4, gpus=2, memory="32G", exclusive=True)
    script = job_script("inference", ["sscn", "spconv@2.3.6"], ["--size", "192"], node)
    asked = directives(script)
    assert asked.items() >= {
        ("partition", "gpu"),
        ("account", "dune"),
        ("time", "1-12"),
        ("cpus-per-task", "4"),
        ("gres", "gpu:2"),
        ("mem", "32G"),
        ("exclusive", ""),
        ("nodes", "1"),
    }
    last = shlex.split(script.splitlines()[-1])
    assert last[:5] == [sys.executable, "-m", "harness", "run", "inference"]
    assert last[5:11] == ["--backend", "sscn", "--backend", "spconv@2.3.6", "--size", "192"]
    assert last[11:] == ["--out", "results/runs/slurm-$SLURM_JOB_ID-inference.jsonl"]
    assert f"cd {tmp_path}" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0


def test_what_is_not_asked_for_is_left_to_the_cluster():
    asked = directives(job_script("demo", [], [], Node()))
    assert not {"partition", "account", "gres", "mem", "exclusive"} & set(asked)


def test_an_image_is_run_by_apptainer():
    script = job_script("demo", [], [], Node(gpus=1), Path("/images/my image.sif"))
    assert "apptainer run --nv '/images/my image.sif' run demo --out" in script
    assert "--nv" not in job_script("demo", [], [], Node(), Path("image.sif"))


@pytest.mark.parametrize(
    ("node", "sentence"),
    [
        (Node(time="two hours"), "--time 'two hours' is no time of Slurm; write 02:00:00"),
        (Node(memory="much"), "--memory 'much' is no size of Slurm; write 32G"),
        (Node(partition="a b"), "--partition 'a b' is no name of Slurm"),
        (Node(account="x\n#SBATCH --mem=0"), "is no name of Slurm"),
    ],
)
def test_what_slurm_would_refuse_is_refused_before(node, sentence):
    with pytest.raises(BadInput, match=sentence):
        job_script("demo", [], [], node)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nonesuch"], "there is no suite 'nonesuch'"),
        (["demo", "--backend", "nonesuch"], "there is no engine called 'nonesuch'"),
    ],
)
def test_an_unknown_name_is_one_sentence(words, sentence):
    done = harness(*words)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


CONFIGURATION = """\
ClusterName=test
SlurmctldHost=localhost
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
NodeName=localhost NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=short Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture
def scheduler(tmp_path, monkeypatch):
    """A Slurm of one node, this machine."""
    programs = ("munged", "slurmctld", "slurmd", "sbatch", "sinfo")
    places = os.pathsep.join([os.environ["PATH"], "/usr/sbin"])
    if not all(shutil.which(program, path=places) for program in programs):
        pytest.skip("Slurm is not here")
    if os.geteuid():
        pytest.skip("slurmd needs to be run as root")
    tmp_path.chmod(0o755)
    for name in ("munge", "state", "spool"):
        (tmp_path / name).mkdir(mode=0o711)
    key = tmp_path / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        ports = first.getsockname()[1], second.getsockname()[1]
    configuration = tmp_path / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(
            user=getpass.getuser(), folder=tmp_path, ports=ports, cpus=os.cpu_count()
        )
    )
    monkeypatch.setenv("SLURM_CONF", str(configuration))
    monkeypatch.setenv("PATH", places)
    munge = tmp_path / "munge"
    started = [
        subprocess.Popen([*words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for words in (
            [
                *("munged", "--foreground", "--force", f"--socket={munge}/socket"),
                *(f"--key-file={key}", f"--pid-file={munge}/pid", f"--seed-file={munge}/seed"),
            ],
            ["slurmctld", "-D", "-f", str(configuration)],
            ["slurmd", "-D", "-N", "localhost", "-f", str(configuration)],
        )
    ]
    try:
        for _ in range(120):
            states = subprocess.run(["sinfo", "-h", "-o", "%t"], capture_output=True, text=True)
            if states.stdout.strip() == "idle":
                break
            time.sleep(0.5)
        else:
            pytest.fail((tmp_path / "slurmctld.log").read_text()[-2000:])
        yield
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(30)


@pytest.mark.slow
def test_a_scheduler_runs_the_script(scheduler, tmp_path, monkeypatch):
    work = tmp_path / "a folder"
    work.mkdir()
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\nprintf "%s\\n" "$@" > arguments\necho "on $SLURM_CPUS_PER_TASK"\n'
    )
    python.chmod(0o755)
    monkeypatch.chdir(work)
    monkeypatch.setattr(sys, "executable", str(python))
    node = Node("short", time="10", cpus=1, memory="1K")
    script = job_script("inference", ["sscn"], ["--size", "192"], node)
    done = subprocess.run(["sbatch", "--wait"], input=script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (work / "sscn-bench-inference-1.log").read_text() == "on 1\n"
    assert (work / "arguments").read_text().split() == [
        *("-m", "harness", "run", "inference", "--backend", "sscn", "--size", "192"),
        *("--out", "results/runs/slurm-1-inference.jsonl"),
    ]
    refused = subprocess.run(
        ["sbatch"], input=job_script("demo", [], [], Node("long")), capture_output=True, text=True
    )
    assert "invalid partition" in refused.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_job_measures_and_leaves_its_records(scheduler, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    words = ["inference", "--backend", "sscn", "--cpus", "1", "--time", "30"]
    words += ["--", "--size", "192", "--batch", "1", "--repeats", "2", "--budget", "0.1"]
    script = subprocess.run(
        [sys.executable, "-m", "harness", "engines", "slurm", *words],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    done = subprocess.run(["sbatch", "--wait"], input=script, capture_output=True, text=True)
    log = (tmp_path / "sscn-bench-inference-1.log").read_text()
    assert done.returncode == 0, log
    found = list(records([tmp_path / "results" / "runs" / "slurm-1-inference.jsonl"]))
    measured = {(r["cell"]["map"], r["round"]) for r in found if r["outcome"] == "ok"}
    assert measured >= {("cold", 0), ("cold", 1), ("warm", 0), ("warm", 1)}, log
    assert len(found) == len({(str(r["cell"]), r["round"]) for r in found})
    assert "records: results/runs/slurm-1-inference.jsonl" in log


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestWarning")
def test_jobs_of_dask_jobqueue_are_devices(scheduler, tmp_path, monkeypatch):
    jobqueue = pytest.importorskip("dask_jobqueue")
    distributed = pytest.importorskip("distributed")
    monkeypatch.chdir(tmp_path)
    with (
        jobqueue.SLURMCluster(
            queue="short",
            cores=1,
            processes=1,
            memory="100MB",
            walltime="00:10:00",
            python=sys.executable,
            job_directives_skip=["--mem"],
            worker_extra_args=["--resources", "device=1"],
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        cluster.scale(jobs=1)
        job = client.submit(os.getenv, "SLURM_JOB_ID", resources=RESOURCE)
        assert job.result(timeout=120) == "1"
