"""Command lines of the engines: ``weights``, mounted by ``python -m harness weights``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="weights",
    help="Convert trained weights from one engine to another.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_LAYOUT = (
    "`canonical`, `study` (the SparseConvNet network of the 2018 study), `spine` (SPINE's "
    "UResNetSegmentation), or an engine's name."
)


@app.callback()
def weights() -> None:
    """Convert trained weights from one engine to another."""


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A .pt, .ckpt or .npz file.")],
    target: Annotated[Path, typer.Argument(help="A .pt or .npz file to write.")],
    layout: Annotated[str, typer.Option("--from", help=f"Layout of SOURCE: {_LAYOUT}")] = (
        "canonical"
    ),
    into: Annotated[str, typer.Option("--to", help=f"Layout of TARGET: {_LAYOUT}")] = "canonical",
    network: Annotated[
        str,
        typer.Option(
            help="The network, as for `run`: its activation and norms are not in a checkpoint. By "
            "default those of SPINE for `--from spine`, otherwise the study's."
        ),
    ] = "",
) -> None:
    """Read weights in one layout and write them in another; the numbers keep every bit."""
    from backends import weight_files
    from backends.network_spec import parse_network
    from backends.weights import SETTINGS

    try:
        config = parse_network(network) if network else None
        values = weight_files.read(source, layout, config)
        weight_files.write(target, values, into)
    except (ValueError, ImportError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    config, dim = weight_files.network_size(values)
    learned = sum(
        value.numel()
        for name, value in values.items()
        if name not in SETTINGS and ".running_" not in name
    )
    typer.echo(
        f"{target}: a {dim}D UResNet, {config.filters} filters, depth {config.depth}, "
        f"{config.classes} classes, {learned:,} parameters"
    )
