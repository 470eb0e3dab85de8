"""Engines of Triton kernels, whose package is installed, agree with float64 in the interpreter.

FlexGEMM can be a checkout on ``PYTHONPATH``: its compiled functions are replaced. The interpreter
must be chosen before Triton is imported, so each engine has a process of its own.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from backends import registry

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(torch.cuda.is_available(), reason="test_agreement runs on the GPU itself")
@pytest.mark.parametrize(
    ("name", "package", "option"),
    [
        ("flex-gemm", "flex_gemm", "algorithm=masked_implicit_gemm_splitk"),
        ("flex-gemm", "flex_gemm", "algorithm=masked_implicit_gemm"),
        ("spconv-triton", "spconv_triton", "algorithm=MaskImplicitGemm"),
        ("spconv-triton", "spconv_triton", "algorithm=Native"),
    ],
)
def test_forward_and_step_agree_with_float64(name, package, option, tmp_path):
    for needed in ("triton", package):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not here")
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.backends.interpreted_engine"),
            *(registry.BUILT_IN[name], option),
        ],
        env=os.environ
        | {
            "TRITON_INTERPRET": "1",
            "HOME": str(tmp_path),  # FlexGEMM keeps tuned configurations there
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert done.stdout.count("right") == 2
