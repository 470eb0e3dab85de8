"""The interactive 3D event of the page, its sites coloured by class."""

from __future__ import annotations

from harness.events.batches import benchmark_batch
from harness.events.event import CLASSES, Label
from harness.events.open import SAMPLE, open_events
from harness.measured import Measured

NAMES = {
    Label.HIP: "proton (heavily ionising)",
    Label.MIP: "muon or pion (minimum ionising)",
    Label.SHOWER: "electromagnetic shower",
    Label.DELTA: "delta ray",
    Label.MICHEL: "Michel electron",
}
COLORS = {
    Label.HIP: "#D55E00",
    Label.MIP: "#0072B2",
    Label.SHOWER: "#009E73",
    Label.DELTA: "#E69F00",
    Label.MICHEL: "#CC79A7",
}


def event_of(measured: Measured) -> tuple[str, str] | None:
    """Draw the first event of a cell's batch.

    Returns
    -------
    tuple of str or None
        The Plotly element without the library, and what it shows in words; None where the events
        are a file of the user's, which may have moved, or are not in three dimensions.
    """
    cell = measured.cell
    if cell["events.set"] != SAMPLE or cell["dim"] != 3:
        return None
    import plotly.graph_objects as go

    batch, _ = benchmark_batch(open_events(SAMPLE, size=cell["size"]), 1, cell["events.seed"])
    voxels, labels = batch["sites"][:, 1:].astype("uint16"), batch["labels"]
    figure = go.Figure()
    for label in list(Label)[:CLASSES]:
        own = voxels[labels == label]
        if len(own):
            figure.add_trace(
                go.Scatter3d(
                    x=own[:, 0],
                    y=own[:, 1],
                    z=own[:, 2],
                    mode="markers",
                    name=f"{NAMES[label]}, {len(own)}",
                    marker={"size": 1.8, "color": COLORS[label]},
                    hovertemplate="%{x}, %{y}, %{z}<extra>" + NAMES[label] + "</extra>",
                )
            )
    axis = {
        "range": [0, cell["size"]],
        "gridcolor": "rgba(128,128,128,0.35)",
        "showbackground": False,
        "zeroline": False,
        "nticks": 4,
        "title": {"text": ""},
    }
    figure.update_layout(
        scene={"xaxis": axis, "yaxis": axis, "zaxis": axis, "aspectmode": "cube"},
        margin={"l": 0, "r": 0, "t": 0, "b": 0},
        paper_bgcolor="rgba(0,0,0,0)",
        font={"color": "#808080", "family": "system-ui, sans-serif"},
        legend={"orientation": "h", "itemsizing": "constant", "y": 0, "yanchor": "top"},
        uirevision="event",
    )
    element = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        default_height="460px",
        div_id="event",
        config={"displaylogo": False, "responsive": True, "scrollZoom": False},
    )
    words = (
        f"{len(voxels)} active sites in {cell['size']}³ voxels, "
        f"an occupancy of {len(voxels) / cell['size'] ** 3:.2g}"
    )
    return element, words
