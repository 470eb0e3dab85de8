"""Meaning of stored fields: unit, range and readers, for checks, schema and documentation."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Field:
    """Description of one stored field, given in ``Annotated``.

    Attributes
    ----------
    meaning : str
        One sentence for the documentation.
    unit : str
        ``s``, ``bytes``, ``J`` and so on; empty for text and for numbers without a unit.
    readers : str
        The modules that read the field.
    least, most : float or None
        Bounds of a number, or of each number in a list.
    above : float or None
        Bound that a number must exceed.
    choices : tuple
        The allowed values; empty if there is no such list.
    pattern : str
        Regular expression that a text must match as a whole; empty for any text.
    """

    meaning: str
    unit: str = ""
    readers: str = ""
    least: float | None = None
    most: float | None = None
    above: float | None = None
    choices: tuple[str | int, ...] = ()
    pattern: str = ""

    def problem(self, value: object) -> str:
        """Return why a value of the right type is not allowed; empty if it is."""
        if self.choices and value not in self.choices:
            return f"is {repr(value)[:60]}, not one of {', '.join(map(str, self.choices))}"
        if self.pattern and not (isinstance(value, str) and re.fullmatch(self.pattern, value)):
            return f"is {repr(value)[:60]}, which does not match {self.pattern}"
        if isinstance(value, (int, float)):
            if self.least is not None and not value >= self.least:
                return f"is {value!r}, less than {self.least:g}"
            if self.above is not None and not value > self.above:
                return f"is {value!r}, not above {self.above:g}"
            if self.most is not None and not value <= self.most:
                return f"is {value!r}, more than {self.most:g}"
        return ""
