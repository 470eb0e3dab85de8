"""The ``cuda`` kernels of our network, compiled ahead for a GPU that is not here.

    python -m benchmarks.kernel_cache compile FOLDER --precision fp32 --precision tf32
    python -m benchmarks.kernel_cache adopt FOLDER CACHE

``compile`` fills a folder with what Triton compiles for passes and steps of the standard network on
large, medium and small events. It takes about a minute of processor time per precision, and no GPU.
``adopt``, on the machine with the GPU, copies the folder into a cache of Triton: the names of its
entries depend on the build of Triton, which may be another one of the same version.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
KEYS = "keys.json"
PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
SITES = (20000, 10000, 1000)
"""Sites of a level: for either size of tiles, and for few tiles, which programs share."""


class Target:
    """What Triton asks a driver before it compiles; nothing is launched."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        """Return the number of the GPU."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """Return the handle of its stream."""
        return 0

    def get_current_target(self) -> Any:
        """Return the architecture to compile for."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)


@contextmanager
def recorded(capability: int) -> Iterator[dict[str, str]]:
    """Compile what is launched, and yield the keys of the cache without the build of Triton."""
    import triton.compiler.compiler as compiler
    from triton.runtime.cache import triton_key
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    keys: dict[str, str] = {}
    before, run = compiler.get_cache_key, JITFunction.run

    def cache_key(*arguments: Any, **named: Any) -> str:
        key: str = before(*arguments, **named)
        keys[entry(key)] = key.removeprefix(triton_key())
        return key

    def compile_only(kernel: Any, *arguments: Any, warmup: bool, **named: Any) -> Any:
        return run(kernel, *arguments, warmup=True, **named)

    driver.set_active(Target(capability))
    compiler.get_cache_key, JITFunction.run = cache_key, compile_only
    try:
        yield keys
    finally:
        compiler.get_cache_key, JITFunction.run = before, run


def entry(key: str) -> str:
    """Return the name of the folder in which Triton keeps what has a key."""
    from triton.runtime.cache import get_cache_manager

    return Path(get_cache_manager(hashlib.sha256(key.encode()).hexdigest()).cache_dir).name


def launch(precision: str, sites: int, levels: Sequence[int]) -> None:
    """Launch everything that a pass and a step of the standard network launch.

    Tensors have no values. ``levels`` are the sites of each level, the finest first.
    """
    import torch

    from backends import network
    from backends.contract import master_dtype
    from backends.sscn import adapter, selection
    from backends.sscn.cuda import maps
    from backends.uresnet import UResNetConfig

    selection._triton_unavailable_reason = lambda device: ""
    maps._read = lambda ends: [*[*levels, *[1] * ends.shape[1]][: ends.shape[1] - 1], 0]
    engine = adapter.Backend(3, "cuda", precision, {"kernels": "cuda"})
    config, dtype = UResNetConfig(), master_dtype(precision)
    net = network.build(engine, config).to("meta", dtype)
    where = torch.empty((sites, 4), device="meta", dtype=torch.int32)
    features = torch.empty((sites, 1), device="meta", dtype=dtype)
    for training in (False, True):
        net.train(training)
        with torch.set_grad_enabled(training):
            logits = net(net.tensor(where, features, 192, 1))
            if training:
                logits.float().square().sum().backward()


def compile_ahead(folder: Path, precisions: Sequence[str], capability: int) -> int:
    """Fill a folder, and return the number of kernels in it."""
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TRITON_CACHE_DIR"] = str(folder)
    from triton.runtime import driver

    assert driver is not None  # Triton is imported after its cache is named
    with recorded(capability) as keys:
        for precision in precisions:
            for sites in SITES:
                launch(precision, sites, [sites] * 5)
            print(f"{precision}: {len(keys)} kernels", flush=True)
    finish(folder, keys, capability)
    return len(keys)


def finish(folder: Path, keys: dict[str, str], capability: int) -> None:
    """Remove what a launch does not need from a cache, and write the keys of the rest into it."""
    from triton import __version__ as version

    for file in folder.glob("*/*"):
        if file.suffix not in (".cubin", ".json"):
            file.unlink()
    found = {name: key for name, key in keys.items() if (folder / name).is_dir()}
    values = {"triton": version, "capability": capability, "keys": found}
    (folder / KEYS).write_text(json.dumps(values))


def adopt(folder: Path, cache: Path) -> int:
    """Copy kernels into a cache of this Triton, and return their number.

    Raises
    ------
    SystemExit
        If they were compiled by another version.
    """
    os.environ["TRITON_CACHE_DIR"] = str(cache)
    import triton
    from triton.runtime.cache import triton_key

    values = json.loads((folder / KEYS).read_text())
    if values["triton"] != triton.__version__:
        sys.exit(
            f"the kernels were compiled by Triton {values['triton']}, and here is "
            f"{triton.__version__}; they are compiled at their first use instead"
        )
    build = triton_key()
    for name, rest in values["keys"].items():
        target = cache / entry(build + rest)
        shutil.copytree(folder / name, target, dirs_exist_ok=True)
        for group in target.glob("__grp__*.json"):  # the files of a kernel, by absolute paths
            files = [target / each for each in json.loads(group.read_text())["child_paths"]]
            there = {file.name: str(file) for file in files if file.exists()}
            group.write_text(json.dumps({"child_paths": there}))
    return len(values["keys"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(dest="part", required=True)
    part = parts.add_parser("compile")
    part.add_argument("folder", type=Path)
    part.add_argument("--precision", action="append", choices=PRECISIONS)
    part.add_argument("--capability", type=int, default=90)
    part = parts.add_parser("adopt")
    part.add_argument("folder", type=Path)
    part.add_argument("cache", type=Path)
    options = parser.parse_args(arguments)
    if options.part == "compile":
        precisions = options.precision or list(PRECISIONS)
        count = compile_ahead(options.folder.resolve(), precisions, options.capability)
    else:
        count = adopt(options.folder.resolve(), options.cache.resolve())
    print(f"{count} kernels")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
