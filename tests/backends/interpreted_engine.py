"""Compares an engine of Triton kernels with float64, on the CPU, in Triton's interpreter.

``python -m tests.backends.interpreted_engine MODULE OPTION=VALUE ...`` with
``TRITON_INTERPRET=1``; MODULE is that of the adapter. Prints a line per comparison and exits with
1 if one fails.
"""

import importlib
import sys
from types import SimpleNamespace

import torch

from backends import cases
from backends.agreement import WITHOUT_JUMPS, compare
from tests.backends import flex_gemm_on_cpu


def without_tuning():
    """Let Triton take a small configuration of each kernel, because nothing can be timed."""
    import triton

    create = triton.runtime.Autotuner.__init__

    def create_with_one(self, fn, arg_names, configs, *rest, **options):
        one = configs[0]
        one.kwargs = {
            name: min(value, 64) if type(value) is int else value
            for name, value in one.kwargs.items()
        }
        create(self, fn, arg_names, [one], *rest, **options)

    triton.runtime.Autotuner.__init__ = create_with_one


def main(module, *options):
    torch.set_num_threads(1)
    torch.Tensor.is_cuda = property(lambda _: True)  # engines refuse tensors of the CPU
    torch.cpu.get_device_properties = lambda *_: SimpleNamespace(multi_processor_count=1)
    without_tuning()
    if module.endswith("flex_gemm"):
        flex_gemm_on_cpu.install()
    adapter = importlib.import_module(module)
    wrong = False
    for case in ("random_sites",):
        network = None
        for phase in ("forward", "step"):
            batch, values, expected = cases.with_reference(case, 3, cases.SMALL, phase)
            if network is None:
                backend = adapter.Backend(3, "cpu", "fp32", dict(o.split("=") for o in options))
                network = cases.network_on(backend, cases.SMALL, values)
            got = getattr(cases, phase)(network, batch)
            found = compare(
                expected, "fp32", got.logits, got.gradients, got.statistics, tolerance=WITHOUT_JUMPS
            )
            print(case, phase, "right" if found.right else found.reason, flush=True)
            wrong |= not found.right
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
