"""The console script `filigree`: it says its version and shows help without loading torch, and hands on all else."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points, version

DISTRIBUTION = "filigree-nn"


def main() -> None:
    """Run the command line and exit; what `filigree.cli.main` prints is printed sooner where torch is not needed."""
    words = sys.argv[1:]
    try:
        if words == ["--version"]:
            print(version(DISTRIBUTION))
            sys.exit()
        if not words or words == ["--help"] or words[1:] == ["--help"]:
            from filigree_launcher.stored_help import show

            show(words, list(entry_points(group="filigree.extensions")))
        from filigree.cli import main as run
    except KeyboardInterrupt:  # while torch is imported
        print("filigree: interrupted; nothing was begun.", file=sys.stderr)
        sys.exit(130)
    except ImportError as error:
        if error.name != "torch":
            raise
        print(f"filigree: {error}", file=sys.stderr)  # there is none, or it is too old
        sys.exit(1)
    run()
