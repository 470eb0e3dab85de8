"""Weights in the type of the rows; a plan converts those of all layers in one launch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from backends.sscn.cuda.launching import launch
from backends.sscn.cuda.symbols import cdiv, current_tape
from backends.sscn.recording import RecordingGraph

BLOCK = 1024
"""Values that a program converts."""


class ConvertingGraph(RecordingGraph):
    """Records layers whose weights the plan converts in each pass."""

    def converted(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """Return an array for converted weights, with which the layers are planned."""
        if not torch.is_grad_enabled():
            return super().converted(weight, dtype)
        made = weight.detach().to(dtype).requires_grad_(weight.requires_grad)
        self.conversions.append((weight, made))
        return made


@triton.jit(do_not_specialize=["count"])
def convert_all_weights(jobs, weight, converted, count, BLOCK: tl.constexpr):
    """Convert a block of the weights of one of several layers.

    A row of ``jobs`` has the first program of a layer, the addresses of its weights and of the
    converted ones, and their number. The other two arguments have the types.
    """
    program = tl.program_id(0).to(tl.int64)
    job = 0
    for each in range(1, count):
        job += (tl.load(jobs + 4 * each) <= program).to(tl.int32)
    jobs += 4 * job
    source = tl.load(jobs + 1).to(tl.pointer_type(weight.dtype.element_ty))
    target = tl.load(jobs + 2).to(tl.pointer_type(converted.dtype.element_ty))
    place = (program - tl.load(jobs)) * BLOCK + tl.arange(0, BLOCK)
    valid = place < tl.load(jobs + 3)
    value = tl.load(source + place, mask=valid, other=0.0)
    tl.store(target + place, value.to(converted.dtype.element_ty), mask=valid)


def convert_all(conversions: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Convert weights in one launch, while a plan is made.

    Parameters
    ----------
    conversions : sequence of (Tensor, Tensor)
        Contiguous weights, and arrays for them in another type.
    """
    jobs, programs = [], 0
    for weight, made in conversions:
        jobs.append([programs, weight.data_ptr(), made.data_ptr(), weight.numel()])
        programs += cdiv(weight.numel(), BLOCK)
    weight, made = conversions[0]
    listed = torch.tensor(jobs, dtype=torch.int64).to(weight.device)
    current_tape().keep([listed])
    launch(convert_all_weights, (programs,), listed, weight, made, len(jobs), BLOCK=BLOCK)
