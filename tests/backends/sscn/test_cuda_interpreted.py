"""Runs the tests of the Triton kernels on the CPU, in Triton's interpreter.

The interpreter must be chosen before Triton is imported, so it has a process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("test_cuda_kernels runs on the GPU itself", allow_module_level=True)

TESTS = Path(__file__).with_name("test_cuda_kernels.py")


def run_interpreted(*arguments: str) -> None:
    root = Path(__file__).parents[3]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--durations=5", *arguments, str(TESTS)],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_kernels_in_the_interpreter() -> None:
    run_interpreted("-m", "not slow")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_tiles_of_64_rows_in_the_interpreter() -> None:
    run_interpreted("-m", "slow", "--timeout", "1500", "-k", "tiles_of_64_rows")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kernels_in_the_interpreter_in_every_width() -> None:
    run_interpreted("-m", "slow", "--timeout", "3000", "-k", "not tiles_of_64_rows")
