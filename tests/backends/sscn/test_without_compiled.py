"""The engine on a machine where the C++ module has not been built."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import backends

# The finder of an editable installation would import the clone's package.
HERE_ALONE = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "Redirecting" not in type(f).__name__]
"""
FORWARD = """
import torch
from backends import registry, weights
from backends.uresnet import UResNet, UResNetConfig

config = UResNetConfig(filters=4, depth=2, reps=1)
generator = torch.Generator().manual_seed(0)
sites = (torch.rand(1, 8, 8, 8, generator=generator) < 0.2).nonzero().int()
features = torch.rand(len(sites), 1, generator=generator)
logits = []
for name, precision in (("dense", "fp64"), ("sscn", "fp32")):
    backend = registry.load(name, dim=3, device="cpu", precision=precision)
    dtype = torch.float64 if precision == "fp64" else torch.float32
    network = UResNet(backend, config).to(dtype).eval()
    weights.load(network, weights.initial(config, 3))
    with torch.no_grad():
        logits.append(network(network.tensor(sites, features.to(dtype), 8, 1)))
print(backend.precision_readback()["sscn.kernels"])
print(float((logits[1].double() - logits[0]).norm() / logits[0].norm()))
"""
REFUSED = """
from backends import registry

registry.load("sscn", dim=3, device="cpu", precision="fp32", options={"kernels": "cpu"})
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package, but without its compiled module."""
    folder = tmp_path_factory.mktemp("without")
    ignored = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__")
    shutil.copytree(Path(backends.__file__).parent, folder / "backends", ignore=ignored)
    return folder


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HERE_ALONE + code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )


def test_auto_falls_back_to_the_reference_and_computes_the_same(copy):
    ran = python(FORWARD, copy)
    assert ran.returncode == 0, ran.stderr
    name, error = ran.stdout.split()
    assert name == "reference"
    assert float(error) < 1e-5


def test_the_cpu_kernels_are_refused_in_one_sentence(copy):
    ran = python(REFUSED, copy)
    assert ran.returncode == 1
    last = ran.stderr.splitlines()[-1]
    assert last.startswith("ValueError: the cpu kernels are not built here")
    assert "kernels=reference" in last
