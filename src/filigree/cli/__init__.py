"""The command line, a file a command."""

from filigree.cli.application import build, main

__all__ = ["build", "main"]
