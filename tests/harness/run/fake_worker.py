"""A worker process whose engine does what its name says; started by the tests of the launcher."""

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from harness.child_process import private_output
from harness.errors import MachineFailure
from harness.run import worker
from harness.run.failures import Failed
from harness.run.worker import serve

SECONDS = {"slow": 0.02}


class Scripted:
    """Stands for ``worker.CellMeasurement``."""

    def __init__(self, job):
        self.name = job.cell.backend
        self.job = job
        self.record = {"memory": {"limit_bytes": job.memory_bytes}}
        self.host = []

    def load(self):
        self.do("load")
        self.record["sites"] = 5

    def prepare(self):
        print("an engine prints what it likes")
        os.write(1, b"even past Python\n")
        self.do("prepare")
        self.record["pid"] = os.getpid()

    def sample(self, seconds):
        self.do("sample")
        taken = [SECONDS.get(self.name, 0.01)] * 4
        self.host += taken
        log = os.environ.get("FAKE_WORKER_LOG")
        if log:
            with open(log, "a") as file:
                file.write(f"{self.name} ")
        return taken, []

    def finish(self):
        self.do("finish")
        return self.record | {"host_seconds": self.host, "device_seconds": None}

    def do(self, when):
        deed, _, moment = self.name.partition("-at-")
        if moment != when:
            return
        if deed == "raises":
            raise RuntimeError("the engine broke\nwith a long story")
        if deed == "fills-once" and first_time():
            raise MachineFailure("the temporary folder is full")
        if deed == "wrong":
            self.record["error"] = {"rel_rmse": 0.5}
            raise Failed("wrong", "relative RMSE of the logits is 5e-01, 1e-05 is allowed")
        if deed == "allocates":
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        if deed == "aborts":
            os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
            os.abort()
        if deed == "segfaults":
            os.kill(os.getpid(), signal.SIGSEGV)
        if deed == "exits":
            os._exit(3)
        if deed == "hangs":
            time.sleep(600)
        if deed == "ignores":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)
        if deed == "closes":
            os.close(int(sys.argv[2]))
            time.sleep(600)
        if deed == "garbage":
            os.write(int(sys.argv[2]), b"<html>not found</html>\n")
            time.sleep(600)
        if deed == "once" and first_time():
            raise MemoryError("others hold it")
        if deed == "murders" or (deed == "murders-once" and first_time()):
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(600)


def first_time():
    flag = Path(os.environ["FAKE_WORKER_FLAG"])
    if flag.exists():
        return False
    flag.touch()
    return True


if __name__ == "__main__":
    worker.CellMeasurement = Scripted
    worker.die_with_parent()
    private_output().close()
    with os.fdopen(int(sys.argv[1])) as given, os.fdopen(int(sys.argv[2]), "w") as channel:
        serve(given, channel)
