"""How a command ends: its errors as one line, its exit code, and how to resume it."""

from __future__ import annotations

import errno
import re
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

import typer

from filigree.config import visible
from filigree.recipes import RecipeError
from filigree.train.signals import terminate

_OUT_OF = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.ENOMEM, errno.EIO)


class State:
    """The state of the command that runs. debug: show tracebacks. hint: how to resume it after it was stopped."""

    debug = False
    hint = ""


def run(make: Callable[[], typer.Typer]) -> NoReturn:
    """Make the command line (its modules are imported then), run it and exit: 2 for usage, 1 for other errors, 130 or
    143 when interrupted; one line each."""
    signal.signal(signal.SIGTERM, terminate)
    State.hint = ""  # of an earlier command in this process
    try:
        app = make()
        if unreadable := [argument for argument in sys.argv[1:] if not _is_text(argument)]:
            raise RecipeError(f"{unreadable[0]!r}: names and values must be text in UTF-8.")
        code = app(standalone_mode=False) or 0
        if code == 130:  # typer has seen the Ctrl-C
            raise KeyboardInterrupt
        sys.exit(code)
    except RecipeError as error:
        _fail(str(error), 2)
    except (KeyboardInterrupt, typer.Abort):
        _fail(f"interrupted; {_intact()}", 130)
    except SystemExit as end:
        if end.code == 128 + signal.SIGTERM:
            _fail(f"terminated; {_intact()}", 128 + signal.SIGTERM)
        raise
    except OSError as error:
        text = f"{error.filename}: {error.strerror}." if error.filename else str(error)
        _raise_or_fail(error, f"{text} {_kept()}" if error.errno in _OUT_OF else text)
    except Exception as error:
        if message := getattr(error, "format_message", None):  # of click, or of the copy of it that typer brings
            word = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
            own = getattr(getattr(error, "ctx", None), "info_name", None) == word
            _fail(f"{message()} `filigree {word + ' ' if own else ''}--help` shows what there is.", 2)
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # torch's is a RuntimeError
            amount = re.search(r"you tried to allocate \d+ bytes|Unable to allocate [^,]*?iB", str(error))
            _raise_or_fail(error, f"out of memory{f' ({amount[0]})' if amount else ''}. {_kept()}")
        _raise_or_fail(error, str(error) or type(error).__name__)


def _is_text(argument: str) -> bool:
    """Whether it can be written to a record: bytes that are no UTF-8 come as lone surrogates."""
    return not any("\ud800" <= c <= "\udfff" for c in argument)


def _intact() -> str:
    """What an interruption leaves."""
    return f"the last checkpoint is intact. {State.hint}" if State.hint else "files are as they were."


def _kept() -> str:
    """What is left of a run that was stopped from outside, and how to resume it."""
    return f"What was saved before is intact. {State.hint}" if State.hint else ""


def _raise_or_fail(error: Exception, message: str) -> NoReturn:
    if State.debug:
        raise error
    _fail(message, 1)


def _fail(message: str, code: int) -> NoReturn:
    print(f"filigree: {visible(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(code)
