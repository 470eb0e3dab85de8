"""Stand-ins for what FlexGEMM compiles for CUDA, so that its Triton kernels run interpreted.

They follow the comments of the engine's headers and are correct rather than fast. ``install``
must be called before the engine is imported.
"""

import itertools
import sys
import types

import torch

NONE = 0xFFFFFFFF


def _keys(coordinates, shape):
    key = coordinates[:, 0].long()
    for axis, size in enumerate(shape, 1):
        key = key * size + coordinates[:, axis].long()
    return key


def _lookup(sources, queries, shape):
    """Return the row of each query (L, V, 4) among the sources, ``NONE`` if it is absent."""
    keys, order = _keys(sources, shape).sort()
    flat = queries.reshape(-1, 4)
    inside = ((flat[:, 1:] >= 0) & (flat[:, 1:] < torch.tensor(shape))).all(1)
    wanted = _keys(flat, shape)
    place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    found = inside & (keys[place] == wanted)
    rows = torch.where(found, order[place], NONE)
    return rows.reshape(queries.shape[:2])


def _taps(kernel, dilation):
    steps = itertools.product(*(range(size) for size in kernel))
    return torch.tensor(
        [[0, *(s * d for s, d in zip(tap, dilation, strict=True))] for tap in steps]
    )


def hashmap_build_submanifold_conv_neighbour_map(keys, values, coords, *geometry):
    """Return the (N, V) map."""
    shape, kernel, dilation = geometry[:3], geometry[3:6], geometry[6:9]
    centre = torch.tensor([0, *(k // 2 * d for k, d in zip(kernel, dilation, strict=True))])
    queries = coords.long()[:, None] + _taps(kernel, dilation) - centre
    return _lookup(coords, queries, shape).to(torch.uint32)


def hashmap_build_sparse_conv_out_coords(coords, ratio, mode, batch, *geometry):
    """Return the sorted output coordinates."""
    shape, kernel, stride, padding, dilation = (geometry[i : i + 3] for i in range(0, 15, 3))
    places = coords.long()[:, None] + torch.tensor([0, *padding]) - _taps(kernel, dilation)
    steps = torch.tensor([1, *stride])
    places = places.reshape(-1, 4)
    places = places[(places % steps == 0).all(1)] // steps
    sizes = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(shape, kernel, stride, padding, dilation, strict=True)
    ]
    inside = ((places[:, 1:] >= 0) & (places[:, 1:] < torch.tensor(sizes))).all(1)
    return torch.unique(places[inside], dim=0).int()


def hashmap_build_sparse_conv_neighbour_map(
    coords, out_coords, ratio, both_directions, batch, *geometry
):
    """Return the (L, V) map, and the (N, V) one of the backward direction."""
    shape, kernel, stride, padding, dilation = (geometry[i : i + 3] for i in range(0, 15, 3))
    queries = (out_coords.long() * torch.tensor([1, *stride]))[:, None]
    queries = queries - torch.tensor([0, *padding]) + _taps(kernel, dilation)
    forward = _lookup(coords, queries, shape)
    backward = torch.full((len(coords), forward.shape[1]), NONE)
    row, tap = (forward != NONE).nonzero(as_tuple=True)
    backward[forward[row, tap], tap] = row
    return forward.to(torch.uint32), backward.to(torch.uint32) if both_directions else None


def neighbor_map_post_process_for_masked_implicit_gemm_1_no_bwd(neighbours):
    """Return the mask of each row, and the rows in the order of masks read as a Gray code."""
    used = neighbours.long() != NONE
    code = (used.long() << torch.arange(used.shape[1])).sum(1)
    binary = code.clone()
    for shift in range(1, used.shape[1]):
        binary ^= code >> shift
    return code.int(), binary.argsort()


def neighbor_map_post_process_for_masked_implicit_gemm_1(neighbours):
    """Return masks and order, and the pairs of rows of each tap, one tap after the other."""
    masks = neighbor_map_post_process_for_masked_implicit_gemm_1_no_bwd(neighbours)
    by_tap = neighbours.long().T
    tap, row_out = (by_tap != NONE).nonzero(as_tuple=True)
    row_in = by_tap[tap, row_out]
    ends = torch.bincount(tap, minlength=len(by_tap)).cumsum(0)
    segments = torch.cat([ends.new_zeros(1), ends])
    return (*masks, *(each.to(torch.uint32) for each in (row_in, row_out, segments)))


def neighbor_map_post_process_for_masked_implicit_gemm_2(code, order, block_size):
    """Return the taps that each block of rows uses, and where those of each block begin."""
    taps, segments = [], [0]
    for block in code[order].long().split(block_size):
        used = 0
        for mask in block.tolist():
            used |= mask
        taps += [tap for tap in range(32) if used >> tap & 1]
        segments.append(len(taps))
    return torch.tensor(taps, dtype=torch.int32), torch.tensor(segments, dtype=torch.int32)


def install():
    """Let the engine be imported without CUDA, and take a given way to split sums."""
    compiled = types.ModuleType("flex_gemm.kernels.cuda")
    for name, value in globals().items():
        if name.startswith(("hashmap_", "neighbor_")):
            setattr(compiled, name, value)
    sys.modules[compiled.__name__] = compiled
    properties = types.SimpleNamespace(multi_processor_count=1 / 16)  # splits sums in one or two
    torch.cuda.get_device_properties = lambda *_: properties
    torch.cuda.get_device_name = lambda *_: "NVIDIA H100"  # it has a list of configurations
    import flex_gemm.utils.autotuner

    flex_gemm.utils.autotuner.PersistentCacheAutoTuner._benchmark = lambda *given: given[-1][-1]
