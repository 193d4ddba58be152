"""The command line, a file a command."""

from filigree.cli.application import app, main

__all__ = ["app", "main"]
