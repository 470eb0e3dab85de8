"""Run networks of SPINE in a process of their own: SPINE reads its backend when it is imported.

``python -m tests.backends.spine.run_networks BACKEND OUT`` writes the results of every case.
"""

import functools
import os
import sys

CONFIGURATION = {
    "num_classes": 5,
    "reps": 1,
    "depth": 3,
    "filters": 4,
    "num_input": 2,
    "activation": {"name": "lrelu", "negative_slope": 0.33},
    "norm_layer": {"name": "batch_norm", "eps": 1e-4, "momentum": 0.01},
}

CASES = {
    "uresnet": {},
    "relu": {"activation": "relu"},
    "other norm": {"norm_layer": {"name": "batch_norm", "eps": 1e-3, "momentum": 0.3}},
    "instance norm": {"norm_layer": "instance_norm"},
    "no activation": {"activation": "none"},
    "mish, biases": {"activation": "mish", "allow_bias": True},
    "2D": {"data_dim": 2},
    "lattice": {"lattice": {"period": 4}},
}


def events(dimension, duplicates):
    """Return the table that SPINE's networks take: batch index, coordinates, two features."""
    import torch

    generator = torch.Generator().manual_seed(3)
    rows = []
    for event in (0, 1, 3):  # event 2 is empty
        steps = torch.randint(-1, 2, (150, dimension), generator=generator)
        sites = (steps.cumsum(0) + 20).unique(dim=0)
        sites = sites[torch.randperm(len(sites), generator=generator)]
        rows.append(torch.cat([torch.full((len(sites), 1), event), sites], 1))
    table = torch.cat(rows).double()
    if duplicates:
        table = torch.cat([table, table[5:25]])[torch.cat([table, table[5:25]])[:, 0].argsort()]
    features = torch.rand(len(table), 2, generator=generator, dtype=torch.float64)
    return torch.cat([table, features], 1)


def by_coordinate(coordinates, features):
    """Return coordinates and features as one table, sorted by coordinate."""
    import torch

    table = torch.cat([coordinates.double(), features.detach()], 1)
    for column in range(coordinates.shape[1] - 1, -1, -1):
        table = table[table[:, column].argsort(stable=True)]
    return table


def segmentation(change, duplicates=False):
    """Train UResNetSegmentation for two steps, then evaluate it."""
    import torch
    from spine.data import TensorBatch
    from spine.model.uresnet import UResNetSegmentation

    configuration = CONFIGURATION | change
    torch.manual_seed(0)
    network = UResNetSegmentation(configuration)
    initial = {name: value.clone() for name, value in network.state_dict().items()}
    network.double()
    dimension = configuration.get("data_dim", 3)
    table = events(dimension, duplicates)
    columns = list(range(1, 1 + dimension))
    batch = TensorBatch(table, batch_size=4, has_batch_col=True, coord_cols=columns)
    labels = torch.arange(len(table)) % 5
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    found = {"initial": initial}
    for step in range(2):
        torch.manual_seed(step)
        out = network(batch)
        logits = out["segmentation"].tensor
        loss = torch.nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        found[f"logits {step}"] = logits.detach() + 0
        found[f"gradients {step}"] = {
            name: parameter.grad.clone() for name, parameter in network.named_parameters()
        }
        found[f"planes {step}"] = [
            by_coordinate(each.C, each.F)
            for each in (*out["encoder_tensors"], *out["decoder_tensors"])
        ]
        optimizer.step()
    network.eval()
    with torch.no_grad():
        found["evaluated"] = network(batch)["segmentation"].tensor + 0
    found["state"] = {name: value.clone() for name, value in network.state_dict().items()}
    return found


def points(ghost):
    """Evaluate UResNetPPN, with and without masks of ghost points."""
    import torch
    from spine.data import TensorBatch
    from spine.model.uresnet.ppn import UResNetPPN

    torch.manual_seed(1)
    network = UResNetPPN(CONFIGURATION | {"ghost": ghost}, {})
    network.double()
    table = events(3, duplicates=False)
    batch = TensorBatch(table, batch_size=4, has_batch_col=True, coord_cols=[1, 2, 3])
    network.train()
    out = network(batch)
    coordinates = [each.tensor for each in out["ppn_coords"]]
    layers = [each.tensor for each in out["ppn_layers"]]
    return {
        "points": by_coordinate(coordinates[-1], out["ppn_points"].tensor),
        "layers": list(map(by_coordinate, coordinates, layers)),
    }


def runs(backend, case):
    """Return whether an engine runs a case: ocnn has no 2D, and dense takes minutes in 3D."""
    return {"ocnn": case != "2D", "dense": case == "2D"}.get(backend, True)


def main(backend, target):
    """Run every case and write the results."""
    import backends.minkowski

    if backend != "minkowski as shipped":
        os.environ["SPINE_SPARSE_BACKEND"] = "sscn_bench"
        os.environ["SSCN_BENCH_SPINE_ENGINE"] = backend
    import torch

    import backends.spine  # noqa: F401  registers itself

    torch.set_num_threads(1)
    cases = {name: functools.partial(segmentation, change) for name, change in CASES.items()}
    cases["duplicates"] = functools.partial(segmentation, {}, duplicates=True)
    cases["points"] = functools.partial(points, ghost=False)
    cases["points, ghosts"] = functools.partial(points, ghost=True)
    torch.save({name: case() for name, case in cases.items() if runs(backend, name)}, target)


if __name__ == "__main__":
    main(*sys.argv[1:])
