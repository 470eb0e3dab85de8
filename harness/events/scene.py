"""The layout of an event in three dimensions, the same on every page."""

from __future__ import annotations

from typing import Any

LINES = "#8a939d"
"""Grey of axes, which is legible on a light and on a dark page."""

INK = "#7c8590"
"""Grey of texts, likewise."""


def cube(size: int) -> dict[str, Any]:
    """Return Plotly's layout of a scene that shows all of a cube.

    The camera is far enough for the cube, the numbers and the titles of the axes in an element
    that is as wide as it is high, or wider.

    Parameters
    ----------
    size : int
        Voxels per side.
    """
    axes = {
        f"{name}axis": {
            "range": [0, size],
            "title": {"text": f"{name} [voxels]"},
            "nticks": 5,
            "gridcolor": LINES,
            "linecolor": LINES,
            "showline": True,
            "showbackground": False,
            "zeroline": False,
        }
        for name in "xyz"
    }
    return {
        "scene": {
            **axes,
            "aspectmode": "cube",
            "camera": {
                "eye": {"x": 1.85, "y": 1.85, "z": 1.2},
                "center": {"x": 0, "y": 0, "z": -0.08},
            },
        },
        **THEMED,
        "margin": {"l": 0, "r": 0, "t": 0, "b": 0},
    }


THEMED: dict[str, Any] = {
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
    "legend": {
        "orientation": "h",
        "itemsizing": "constant",
        "x": 0,
        "y": 0,
        "yanchor": "top",
        "bgcolor": "rgba(0,0,0,0)",
    },
    "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "#909090", "activecolor": "#505050"},
}
"""Colours for a light and a dark page, and the legend below the figure."""
