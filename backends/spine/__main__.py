"""The command ``spine`` with this backend: ``python -m backends.spine -c config.yaml``."""

from __future__ import annotations

import os
import sys

from backends.spine import NAME


def main() -> None:
    """Select this backend, unless the environment selects one, and run SPINE's command."""
    os.environ.setdefault("SPINE_SPARSE_BACKEND", NAME)
    try:
        from spine.bin.cli import cli
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "spine":
            raise
        print("SPINE is not installed: pip install spine==1.4.3", file=sys.stderr)
        raise SystemExit(2) from None
    sys.argv[0] = "spine"
    cli()


if __name__ == "__main__":
    main()
