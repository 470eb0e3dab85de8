"""The table of event statistics beside those of a real event and of the study's talk."""

from math import isnan

from rich.table import Table

from harness.events.event import Label
from harness.events.statistics import QUANTILES, STRIDES, Statistics

REAL_EVENT = Statistics(
    size=192,
    dim=3,
    events=1,
    empty=0,
    voxels=5180.0,
    occupancy=7.32e-4,
    neighbours=16.1,
    sites=(5180.0, 1372.0, 482.0, 223.0, 106.0, 50.0),
    classes=(1545 / 5180, 1367 / 5180, 1563 / 5180, 241 / 5180, 464 / 5180, 0.0, 0.0, 0.0, 0.0),
    quantiles=(0.0118, 0.0219, 0.0518, 0.1126, 0.404),
    energy=572.0,
    voxels_per_mev=9.1,
)
"""Event 48 of dlprod_192px_00 of the public data set, OSF project vruzp."""

TALK_OCCUPANCY = {192: 5e-4, 512: 1e-4}
"""Occupancy in the study's talk, by size in voxels per side."""


def statistics_table(measured: Statistics, title: str) -> Table:
    """Return a table with one statistic per row.

    Parameters
    ----------
    measured : Statistics
    title : str

    Returns
    -------
    rich.table.Table
        Columns: the events, the real event and the talk; the latter two for 3D events only.
    """
    compared = [measured, REAL_EVENT] if measured.dim == 3 else [measured]
    table = Table(title=title, title_justify="left")
    table.add_column("mean over events")
    table.add_column(f"{measured.events} events, {measured.size} px", justify="right")
    if measured.dim == 3:
        table.add_column("real event, 192 px", justify="right")
        table.add_column("talk", justify="right")
    talk = TALK_OCCUPANCY.get(measured.size)
    block = 3**measured.dim

    def row(name: str, cells: list[str], of_talk: str = "") -> None:
        table.add_row(name, *cells, *([of_talk] if measured.dim == 3 else []))

    row("voxels", [f"{each.voxels:,.0f}" for each in compared])
    row(
        "occupancy",
        [f"{each.occupancy:.2e}" for each in compared],
        f"about {talk:.0e}" if talk else "",
    )
    row(
        f"neighbours of {block}",
        [f"{each.neighbours:.1f}" for each in compared],
    )
    row(
        "voxels per MeV",
        [
            "n/a" if isnan(each.voxels_per_mev) else f"{each.voxels_per_mev:.1f}"
            for each in compared
        ],
    )
    row("energy [MeV]", [f"{each.energy:,.0f}" for each in compared])
    table.add_section()
    for i, stride in enumerate(STRIDES):
        row(f"sites at stride {stride}", [f"{each.sites[i]:,.0f}" for each in compared])
    table.add_section()
    for i, quantile in enumerate(QUANTILES):
        row(
            f"{quantile:.0%} energy [MeV]",
            [f"{each.quantiles[i]:.4f}" for each in compared],
        )
    table.add_section()
    for label in Label:
        if any(each.classes[label] for each in compared):
            name = label.name.lower().replace("_", " ")
            row(f"share of {name}", [f"{each.classes[label]:.1%}" for each in compared])
    if measured.empty:
        table.caption = f"{measured.empty} empty events were left out"
    return table
