"""Loss of the 2018 study."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def event_cross_entropy(
    logits: Tensor, labels: Tensor, batch_index: Tensor, batch_size: int
) -> Tensor:
    """Return the cross entropy, averaged over the sites of each event and summed over events.

    Parameters
    ----------
    logits : Tensor
        (N, classes).
    labels : Tensor
        (N,) int64.
    batch_index : Tensor
        (N,) the event of each site.
    batch_size : int
        Number of events; empty ones add nothing.

    Returns
    -------
    Tensor
        A scalar of the type of ``logits`` (float32 for 16-bit logits).

    Notes
    -----
    As in the code of arXiv:1903.05663.
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    event = batch_index.long()
    sites = torch.zeros(batch_size, dtype=logits.dtype, device=logits.device)
    sites = sites.index_add(0, event, torch.ones_like(event, dtype=logits.dtype))
    losses = functional.cross_entropy(logits, labels, reduction="none")
    return (losses / sites[event]).sum()
