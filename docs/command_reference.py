"""Writes the reference of the commands from the commands themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.__main__ import command_tree


def write_command_reference(page: Path) -> None:
    """Write the page, unless it is the same already: Sphinx builds changed pages again."""
    intro = "# Commands\n\nSubcommands of `python -m harness`, installed as `sscn-bench`.\n\n"
    text = intro + "\n".join(lines for name, one in _commands() for lines in _section(name, one))
    if not page.exists() or page.read_text(encoding="utf-8") != text:
        page.write_text(text, encoding="utf-8")


def _commands(name: str = "", command: Any = None) -> Iterator[tuple[str, Any]]:
    """Yield each visible command with its full name."""
    if command is None:
        command = command_tree()
    if name:
        yield name, command
    for verb, one in getattr(command, "commands", {}).items():
        if not one.hidden and verb != "backends":  # another name of engines
            yield from _commands(f"{name} {verb}".strip(), one)


def _section(name: str, command: Any) -> Iterator[str]:
    yield f"{'##' if ' ' not in name else '###'} {name}\n"
    yield f"{(command.help or '').strip()}\n"
    rows = [_row(parameter) for parameter in command.params if parameter.name != "help"]
    if rows:
        yield "| argument or option | meaning | default |\n|---|---|---|"
        yield "\n".join(rows) + "\n"
    if command.epilog:
        yield f"```\n{command.epilog.removeprefix('Example: ')}\n```\n"


def _row(parameter: Any) -> str:
    names = [*parameter.opts, *parameter.secondary_opts]
    shown = ", ".join(f"`{name}`" for name in names)
    default = parameter.default
    switch = isinstance(default, bool) or default in (None, "") or callable(default)
    usual = "" if switch else f"`{default}`"
    if parameter.required:
        usual = "required"
    text = (parameter.help or "").replace("|", "\\|").replace("``", "`")
    return f"| {shown} | {text} | {usual} |"
