"""The command line as tests call it, in this process."""

import signal
import sys

from filigree import cli


def call(monkeypatch, capsys, *arguments):
    """Run `filigree` with these arguments: exit code, standard output, standard error."""
    monkeypatch.setattr(sys, "argv", ["filigree", *map(str, arguments)])
    code = 0
    before = signal.getsignal(signal.SIGTERM)
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code
    finally:
        signal.signal(signal.SIGTERM, before)
    return code, *capsys.readouterr()
