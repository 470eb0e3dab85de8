"""An interactive page of one event, which needs no network, and a picture of it."""

import html
import io
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import BadInput
from harness.events.classes import CLASS_LOOKS
from harness.events.event import Event, Label
from harness.events.predictions import Labels
from harness.events.scene import LINES, THEMED, cube
from harness.files import write_bytes, write_text

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2433; --soft: #5a6478; --line: #dfe3ea; --paper: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ec; --soft: #9aa4af; --line: #30363d; --paper: #14171b; }
  #event .gl-container, #event .points, #event .legend .layers { filter: brightness(1.4); }
}
* { box-sizing: border-box; }
body { margin: 0; font: 15px/1.45 system-ui, sans-serif; color: var(--ink);
  background: var(--paper);
  display: flex; flex-direction: column; height: 100vh; height: 100dvh; }
header { padding: 12px 20px 8px; border-bottom: 1px solid var(--line); }
h1 { font-size: 18px; margin: 0 0 2px; overflow-wrap: anywhere; }
p { margin: 0; color: var(--soft); }
main { flex: 1; min-height: 320px; max-height: max(420px, 115vw); }
main > div { height: 100%; width: 100%; }
"""


def event_figure(event: Event, predicted: Labels | None = None) -> Any:
    """Draw the voxels in 3D (or 2D) with Plotly.

    Parameters
    ----------
    event : Event
    predicted : ndarray of uint8, shape (N,), optional
        Predicted labels.

    Returns
    -------
    plotly.graph_objects.Figure
        One trace for each class, one coloured by energy, and with predicted labels one for each
        predicted class and one of the wrong voxels; buttons switch between them.

    Raises
    ------
    BadInput
        If the event is empty.
    """
    import plotly.graph_objects as go

    if not len(event):
        raise BadInput(f"{event.name} has no voxel; choose another event")
    scatter = go.Scatter3d if event.dim == 3 else go.Scattergl
    axes = "xyz"[: event.dim]
    side = 2.5 if event.dim == 3 else 4

    def trace(chosen: Any, name: str, marker: dict[str, Any]) -> Any:
        return scatter(
            **{axis: event.voxels[chosen, i] for i, axis in enumerate(axes)},
            mode="markers",
            name=name,
            marker={"size": side, "line": {"width": 0}, **marker},
            customdata=event.energies[chosen],
            hovertemplate="("
            + ", ".join(f"%{{{axis}}}" for axis in axes)
            + ")<br>%{customdata:.3f} MeV<extra>"
            + name
            + "</extra>",
        )

    def by_label(labels: Any) -> list[Any]:
        return [
            trace(
                labels == label,
                f"{CLASS_LOOKS[label].legend}: {int((labels == label).sum()):,}",
                {"color": CLASS_LOOKS[label].color},
            )
            for label in Label
            if (labels == label).any()
        ]

    views = {"class" if predicted is None else "truth": by_label(event.labels)}
    if predicted is not None:
        views["prediction"] = by_label(predicted)
        right = (predicted == event.labels) | (event.labels >= len(Label))
        views["wrong"] = by_label(np.where(right, len(Label), predicted))
    logarithm = np.log10(np.maximum(event.energies, 1e-6))
    ticks = [-2, -1, 0, 1]
    views["energy"] = [
        trace(
            slice(None),
            "energy",
            {
                "color": logarithm,
                "colorscale": "Viridis",
                "colorbar": {
                    "title": {"text": "MeV"},
                    "tickvals": ticks,
                    "ticktext": [f"{10.0**tick:g}" for tick in ticks],
                    "thickness": 14,
                    "len": 0.7,
                },
            },
        )
    ]
    buttons = [
        {
            "label": name,
            "method": "update",
            "args": [
                {"visible": [name == other for other, traces in views.items() for _ in traces]},
                {"showlegend": name != "energy"},
            ],
        }
        for name in views
    ]
    first = next(iter(views))
    for name, traces in views.items():
        for each in traces:
            each.visible = name == first
    figure = go.Figure([each for traces in views.values() for each in traces])
    figure.update_layout(
        **(cube(event.size) if event.dim == 3 else _square(event.size)),
        updatemenus=[
            {
                "type": "buttons",
                "direction": "right",
                "x": 0.01,
                "y": 1,
                "xanchor": "left",
                "yanchor": "top",
                "bgcolor": "rgba(127,127,127,.15)",
                "bordercolor": LINES,
                "buttons": buttons,
            }
        ],
        showlegend=True,
    )
    return figure


def _square(size: int) -> dict[str, Any]:
    """Return the layout of a projection."""
    axis = {"range": [0, size], "gridcolor": LINES, "zeroline": False}
    return {
        **THEMED,
        "xaxis": {**axis, "title": "first axis [voxels]"},
        "yaxis": {**axis, "title": "second axis [voxels]", "scaleanchor": "x"},
        "legend": {**THEMED["legend"], "y": -0.12},
        "margin": {"l": 60, "r": 10, "t": 45, "b": 50},
    }


def write_event_page(event: Event, path: Path, predicted: Labels | None = None) -> None:
    """Write the interactive page, plotly.js included.

    Parameters
    ----------
    event : Event
    path : Path
    predicted : ndarray of uint8, optional
        Predicted labels, to be shown beside the true ones.

    Raises
    ------
    BadInput
        If the event is empty.
    """
    figure = event_figure(event, predicted).to_html(
        full_html=False,
        include_plotlyjs="inline",
        div_id="event",
        config={"responsive": True, "displaylogo": False},
        default_height="100%",
    )
    title = html.escape(event.name)
    write_text(
        path,
        f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
<header><h1>{title}</h1><p>{html.escape(describe(event, predicted))}</p></header>
<main>{figure}</main>
</body>
</html>
""",
    )


def describe(event: Event, predicted: Labels | None = None) -> str:
    """Return a line with the size, occupancy and energy of an event, and the right labels."""
    shape = " x ".join([str(event.size)] * event.dim)
    labelled = event.labels < len(Label)
    right = ""
    if predicted is not None and labelled.any():
        share = float((predicted == event.labels)[labelled].mean())
        right = f", {100 * share:.1f} % of the voxels labelled right"
    return (
        f"{len(event):,} active voxels of {shape} (occupancy {event.occupancy:.1e}), "
        f"{event.energies.sum(dtype=np.float64):,.0f} MeV{right}"
    )


def write_event_picture(event: Event, path: Path, predicted: Labels | None = None) -> None:
    """Write a PNG: the voxels by class, in 3D beside the XY projection by energy.

    Parameters
    ----------
    event : Event
        In 2D, both panels show the same projection.
    path : Path
    predicted : ndarray of uint8, optional
        Predicted labels, shown in a panel between the two.

    Raises
    ------
    BadInput
        If the event is empty.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    from harness.events.projection import project

    if not len(event):
        raise BadInput(f"{event.name} has no voxel; choose another event")
    panels = {"truth" if predicted is not None else "": event.labels}
    if predicted is not None:
        panels["prediction"] = predicted
    columns = len(panels) + 1
    figure = Figure(figsize=(6.5 * columns, 6), layout="constrained")
    FigureCanvasAgg(figure)
    title = f"{event.name}\n{describe(event, predicted)}"
    figure.suptitle(title, fontsize=11, parse_math=False)
    for column, (name, labels) in enumerate(panels.items(), 1):
        where = {"projection": "3d"} if event.dim == 3 else {"aspect": "equal"}
        axes = figure.add_subplot(1, columns, column, **where)
        _draw_classes(axes, event, labels)
        axes.set_title(name, fontsize=10)
    flat = project(event, "xy") if event.dim == 3 else event
    right = figure.add_subplot(1, columns, columns, aspect="equal")
    right.set(xlim=(0, event.size), ylim=(0, event.size), xlabel="x [voxels]", ylabel="y [voxels]")
    right.set_title("projection on xy" if event.dim == 3 else "energy", fontsize=10)
    drawn = right.scatter(
        flat.voxels[:, 0],
        flat.voxels[:, 1],
        s=2.5,
        c=np.maximum(flat.energies, 1e-6),
        norm=LogNorm(0.01, 10),
        cmap="viridis",
        linewidths=0,
    )
    figure.colorbar(drawn, ax=right, label="MeV", shrink=0.8, extend="both")
    picture = io.BytesIO()
    figure.savefig(picture, dpi=110, format="png")
    write_bytes(path, picture.getvalue())


def _draw_classes(axes: Any, event: Event, labels: Any) -> None:
    """Draw the voxels in the colours of some labels."""
    if event.dim == 3:
        axes.set(zlim=(0, event.size), zlabel="z")
    axes.set(xlim=(0, event.size), ylim=(0, event.size), xlabel="x", ylabel="y")
    for label in Label:
        chosen = labels == label
        if chosen.any():
            axes.plot(
                *event.voxels[chosen].T,
                linestyle="none",
                marker=".",
                markersize=1.5,
                markeredgewidth=0.5,
                color=CLASS_LOOKS[label].color,
                label=f"{CLASS_LOOKS[label].legend}: {int(chosen.sum()):,}",
            )
    axes.legend(loc="upper left", fontsize=8, markerscale=8, frameon=False)
