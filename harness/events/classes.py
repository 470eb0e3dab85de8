"""One table of the classes of voxels: names and colours for every page and figure."""

from __future__ import annotations

from dataclasses import dataclass

from harness.events.event import CLASSES, Label


@dataclass(frozen=True)
class ClassLook:
    """The appearance of a class.

    Attributes
    ----------
    name : str
        The short name, for tables and axes.
    meaning : str
        The particle or process, for legends.
    color : str
        Hexadecimal RGB; no engine has it (``harness.report.style.PALETTE``).
    """

    name: str
    meaning: str
    color: str

    @property
    def legend(self) -> str:
        """The short name with its meaning, if that adds anything."""
        return self.name if self.meaning == self.name else f"{self.name} ({self.meaning})"


CLASS_LOOKS = {
    Label.HIP: ClassLook("HIP", "proton", "#882255"),
    Label.MIP: ClassLook("MIP", "muon or pion", "#6699CC"),
    Label.SHOWER: ClassLook("shower", "electromagnetic shower", "#117733"),
    Label.DELTA: ClassLook("delta", "delta ray", "#DDAA33"),
    Label.MICHEL: ClassLook("Michel", "Michel electron", "#EE3377"),
    Label.LOW_ENERGY: ClassLook("low energy", "low-energy scatter", "#999999"),
    Label.TRACK: ClassLook("track", "HIP or MIP", "#44AA99"),
    Label.GHOST: ClassLook("ghost", "ghost", "#CCCCCC"),
    Label.UNKNOWN: ClassLook("unknown", "unknown", "#666666"),
}
"""Colours of Paul Tol's qualitative schemes, chosen for readers with colour blindness."""

CLASS_NAMES = {
    CLASSES: tuple(CLASS_LOOKS[Label(label)].name for label in range(CLASSES)),
    2: (CLASS_LOOKS[Label.TRACK].name, CLASS_LOOKS[Label.SHOWER].name),
}
"""Names of the classes by the number of classes: all five, or track and shower."""
