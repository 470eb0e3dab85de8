"""Command line: ``python -m harness …``."""

from __future__ import annotations

import importlib
import importlib.util
import io
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from harness.errors import BadInput
from harness.examples import EXAMPLES
from harness.instruments.machine import ROOT
from harness.terminal import plain, program


class _Commands(TyperGroup):
    """The commands. A stopped command ends with a message, which Typer would replace."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            if ctx.invoked_subcommand == "run" and len(result) > 1:
                from harness.compare.command import compare

                compare(str(result[0]))  # with the records of the other side, which lie beside it
            return result
        except KeyboardInterrupt:
            resumable = ctx.invoked_subcommand == "run"
            text = "stopped; --resume goes on from here" if resumable else "stopped"
            print(text, file=sys.stderr)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Commands,
    name="harness",
    help="Measure sparse-convolution engines on liquid-argon events, and say which to use.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

COMMANDS = {
    "engines": ("harness.engines.command", "what can run here; install, remove and prove engines"),
    "backends": ("harness.engines.command", "another name of engines"),
    "suites": ("harness.spec.command", "the suites, their question and their number of cells"),
    "run": ("harness.run.command", "measure a suite, and write a record for each cell"),
    "boundary": ("harness.run.boundary_command", "the largest batch that fits into memory"),
    "compare": ("harness.compare.command", "one run: engines side by side; two runs: what changed"),
    "history": (
        "harness.history.command",
        "every stored run over commits, with the change points found",
    ),
    "profile": ("harness.profile.command", "where a cell's time and memory go, layer by layer"),
    "predict": ("harness.predict.command", "labels for your own events"),
    "train": ("harness.study.train_command", "train the network on your own events"),
    "study": ("harness.study.command", "the 2018 study, with this machine's numbers beside"),
    "events": ("harness.events.command", "info, view, simulate, fetch, convert"),
    "submit": ("harness.submissions.command", "pack runs for publication; check archives"),
    "site": ("harness.site.command", "static pages of submitted results"),
    "asv": ("harness.asv.command", "asv with this machine's facts filled in"),
    "weights": ("backends.command", "convert trained weights"),
    "worker": ("harness.run.worker_command", "measure one cell in this process"),
}
"""Commands in other modules, which are imported when they are called.

A module has a Typer application ``app``, or a function with the name of the command.
"""


def _mount(arguments: list[str]) -> None:
    """Add the commands of other modules; only that of the called one is imported."""
    called = next((word for word in arguments if not word.startswith("-")), None)
    for name, (_, text) in COMMANDS.items():
        if name == called:
            _add(app, name)
        else:
            app.command(name, help=text)(lambda: None)


def _add(to: typer.Typer, name: str) -> None:
    """Import a command and add it."""
    module, text = COMMANDS[name]
    found: Any = importlib.import_module(module)
    if hasattr(found, "app"):
        for command in found.app.registered_commands:
            if not command.hidden:
                verb = command.name or command.callback.__name__
                command.epilog = _example(f"{name} {verb}")
        to.add_typer(found.app, name=name, help=text, epilog=_example(name))
    else:  # a module of one command, which is a function of its name
        settings = getattr(found, "CONTEXT", None)
        mount = to.command(name, help=text, epilog=_example(name), context_settings=settings)
        mount(getattr(found, name))


def command_tree() -> Any:
    """Return all commands as an object of click, for the documentation and its tests."""
    every = typer.Typer(name="harness", add_completion=False)
    for name in COMMANDS:
        _add(every, name)
    return typer.main.get_command(every)


def _example(command: str) -> str:
    command = command.replace("backends", "engines")
    return f"Example: {program()} {command} {EXAMPLES[command]}".rstrip()


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; for bad input, print one sentence and exit with code 2."""
    given = sys.argv[1:] if arguments is None else arguments
    warnings.showwarning = _one_line
    for stream in (sys.stdout, sys.stderr):  # names of files may not be valid text
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # end the workers first, too
    try:
        _refuse_shadows()
        _mount(given)
        app(given, prog_name=program())
    except ValueError as error:
        if not _is_bad_input(error):
            raise
        print(" ".join(plain(str(error)).splitlines()), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)


def _refuse_shadows() -> None:
    """Refuse a file of the current folder that hides a package of this project.

    Raises
    ------
    BadInput
        If ``backends`` or ``suites`` would be imported from elsewhere than the harness.
    """
    for name in ("backends", "suites"):
        found = importlib.util.find_spec(name)
        place = Path(found.origin) if found is not None and found.origin else None
        if place is None or place.resolve().parents[1] != ROOT:
            raise BadInput(
                f"{place or f'a folder called {name}'} hides the package {name} of sscn-bench: "
                "rename it, or start from another folder"
            )


def _is_bad_input(error: ValueError) -> bool:
    """Return whether an error is one of the user's input, and not a defect."""
    if isinstance(error, BadInput):
        return True
    from backends.capabilities import Unsupported
    from backends.registry import UnknownBackend

    return isinstance(error, (Unsupported, UnknownBackend))


def _one_line(message: Any, category: type[Warning], *_: Any, **__: Any) -> None:
    from harness.results.store import BadRecord

    if issubclass(category, BadRecord):
        print(f"warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    main()
