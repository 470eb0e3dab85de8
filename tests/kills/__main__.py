"""The command: disturb commands so many times, and report what does not come back."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Annotated

import typer

from tests.kills.trial import disturb, undisturbed
from tests.kills.victims import VICTIMS


def main(
    trials: Annotated[int, typer.Option(help="For all commands together", min=1)] = 100,
    seed: Annotated[int, typer.Option(help="First seed")] = 0,
    only: Annotated[list[str] | None, typer.Option(help="Commands; all by default")] = None,
) -> None:
    """End processes of commands at random; exit with 1 if a command does not recover."""
    victims = [victim for victim in VICTIMS if not only or victim.name in only]
    expected = {victim.name: undisturbed(victim) for victim in victims}
    for name, found in expected.items():
        print(f"{name}: {found.seconds:.1f} s undisturbed", flush=True)
    counts: Counter[str] = Counter()
    failed = False
    for number in range(seed, seed + trials):
        victim = victims[number % len(victims)]
        trial = disturb(victim, number, expected[victim.name])
        what = f"{victim.name} {trial.role} {trial.number}" if trial.hit else "ended before"
        counts[what] += 1
        for problem in trial.problems:
            failed = True
            print(
                f"seed {number}: {victim.name} {trial.role} {trial.number}: {problem}", flush=True
            )
    for what, count in sorted(counts.items()):
        print(f"{count:4d}  {what}")
    print(f"{trials} trials, {'with' if failed else 'no'} failures")
    sys.exit(failed)


if __name__ == "__main__":
    typer.run(main)
