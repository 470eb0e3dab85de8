"""The engines that can run here, for tests that want each of them."""

import functools
import os
import tempfile
from dataclasses import dataclass

import hypothesis
import pytest

from backends import registry

# A busy machine must not fail a test: examples are not timed.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

if "PYTEST_XDIST_WORKER" in os.environ:
    # The lock of the device is one per user: tests side by side would wait for each other.
    os.environ["XDG_RUNTIME_DIR"] = tempfile.mkdtemp(prefix="sscn-bench-tests-")


@dataclass(frozen=True)
class Engine:
    """One engine on one device with one precision policy."""

    name: str
    device: str
    precision: str
    capabilities: object

    def __str__(self):
        return f"{self.name}-{self.device}-{self.precision}"

    def load(self, dim=3, **options):
        """Set the engine up, or skip where it has no such dimension."""
        if dim not in self.capabilities.dims:
            pytest.skip(f"{self.name} has no {dim}D")
        return registry.load(
            self.name, dim=dim, device=self.device, precision=self.precision, options=options
        )


@functools.cache
def probed():
    """Probe every engine once a session, in child processes."""
    return {found.name: found for found in registry.probe_all()}


def engines(every_precision):
    """List the engines that can run the UResNet here as parameters."""
    for name in registry.names():
        can = probed()[name].capabilities
        if can is None or can.missing or can.network != "uresnet":
            continue  # tests/backends/test_registry.py reports why
        for device in can.devices:
            marks = [pytest.mark.cuda] if device == "cuda" else []
            for precision in can.precisions[device]:
                if every_precision or precision == "fp32":
                    engine = Engine(name, device, precision, can)
                    yield pytest.param(engine, id=str(engine), marks=marks)


def pytest_generate_tests(metafunc):
    """``engine``: each engine and device in fp32; ``arithmetic``: in each precision too."""
    if "engine" in metafunc.fixturenames:
        metafunc.parametrize("engine", list(engines(every_precision=False)))
    if "arithmetic" in metafunc.fixturenames:
        metafunc.parametrize("arithmetic", list(engines(every_precision=True)))


@pytest.fixture(params=(3, 2), ids=("3D", "2D"))
def dim(request):
    """Both numbers of dimensions."""
    return request.param


@pytest.fixture
def backend(engine, dim):
    """Each engine that can run here, in fp32, in 3D and 2D."""
    return engine.load(dim)
