"""The documentation: its commands are accepted, and its links lead somewhere."""

import re
import shlex
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
import typer

from harness.__main__ import command_tree

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "results").glob("*/README.md")),
    *sorted(path for path in (ROOT / "docs").glob("*.md") if path.name != "commands.md"),
]
SHELL = ("", "sh", "bash", "console")
PROGRAM = re.compile(r"(?:^|[;&|] *)(?:python -m harness|sscn-bench)( .*)?$")


def blocks(page):
    """Return the blocks of commands of a page: their lines, without those of other languages."""
    found, language = [], None
    for line in page.read_text().splitlines():
        fence = re.match(r" *```([^`]*)$", line)
        if not fence:
            if language in SHELL:
                found[-1].append(line)
        elif language is None:
            language = fence[1].strip()
            if language in SHELL:
                found.append([])
        else:
            language = None
    return found


def shown(page, scripts=True):
    """Return the lines of a page's blocks of commands, without comments and continuations."""
    kept = [block for block in blocks(page) if scripts or not block[0].startswith("#!")]
    lines = "\n".join(line for block in kept for line in block).replace("\\\n", " ").splitlines()
    return [re.sub(r"(^|\s)#.*", "", line).strip() for line in lines]


def commands():
    for page in PAGES:
        for line in shown(page):
            found = PROGRAM.search(line)
            if found:
                words = (found[1] or "").strip()
                yield pytest.param(words, id=f"{page.relative_to(ROOT)}: {words}"[:90])


@cache
def tree():
    return command_tree()


def parse(words):
    """Parse a command line as the program does, without running it."""
    command, name, context = tree(), "harness", None
    words = [word for word in shlex.split(words) if word not in ("\u2026",)]
    while True:
        context = command.make_context(name, list(words), parent=context)
        verbs = getattr(command, "commands", None)
        rest = [*context._protected_args, *context.args]
        if verbs is None or not rest:
            return context
        name, command, words = command.resolve_command(context, rest)


@pytest.mark.parametrize("words", list(commands()))
def test_a_shown_command_is_accepted(words):
    with suppress(typer.Exit):  # of --help
        parse(words)


@pytest.mark.parametrize("words", ["run inference --sise 192", "compere latest", "boundary much"])
def test_a_wrong_command_would_be_found(words):
    with pytest.raises(typer.BadParameter.__base__):  # any error of usage
        parse(words)


def targets():
    text = (ROOT / "Makefile").read_text()
    return set(re.findall(r"^([a-z-]+):", text, re.MULTILINE))


def test_shown_targets_of_make_exist():
    for page in PAGES:
        for line in shown(page):
            found = re.match(r"make ([a-z-]+)", line)
            assert not found or found[1] in targets(), f"{page.name}: {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for address in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if not address.startswith("http") and address != "commands.md":
            assert (page.parent / address).exists(), address
