"""Triton's compiler and launcher on a machine without a GPU, on a driver that runs nothing.

The driver, ``libcuda.c``, is built in a temporary folder. It answers as an H100 does.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

CAPABILITY = (9, 0)
SOURCE = Path(__file__).with_name("libcuda.c")


def build(folder: Path) -> Path:
    """Build the driver in a folder, and return the library."""
    library = folder / "libcuda.so.1"
    compiler = os.environ.get("CC", "cc")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-w", f"-Wl,-soname,{library.name}", "-o", library, SOURCE],
        check=True,
    )
    return library


def install(folder: Path) -> Callable[[], int]:
    """Make Triton compile for and launch on the driver, for the rest of the process.

    Parameters
    ----------
    folder : Path
        Where the driver is built.

    Returns
    -------
    callable
        Returns the number of launches that have reached the driver.
    """
    library = ctypes.CDLL(str(build(folder)), mode=ctypes.RTLD_GLOBAL)
    os.environ["TRITON_LIBCUDA_PATH"] = str(folder)
    import torch
    from triton.backends.nvidia.driver import CudaDriver
    from triton.runtime.driver import driver

    torch.cuda.is_available = lambda: True
    torch.cuda.current_device = lambda: 0
    torch.cuda.get_device_capability = lambda device=None: CAPABILITY
    torch._C._cuda_getCurrentRawStream = lambda device: 0
    stub = CudaDriver()
    stub.get_current_device = lambda: 0
    stub.get_current_stream = lambda device: 0
    stub.get_device_capability = lambda device=None: CAPABILITY
    driver.set_active(stub)
    count: Callable[[], int] = library.stub_launches
    return count
