"""Entry of the command line: runs a command, and says what went wrong without a traceback."""

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from mixmoe.cli.commands import (
    FAILED,
    INTERRUPTED,
    USAGE,
    parsed,
    run_data,
    run_describe,
    run_fit,
    run_predict,
    run_select,
)
from mixmoe.errors import ArgumentError, FormulaError, MixmoeError, MixmoeWarning

_COMMANDS: Mapping[str, Callable[[Any], int]] = MappingProxyType(
    {"fit": run_fit, "select": run_select, "predict": run_predict, "describe": run_describe, "data": run_data}
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default those of the program.

    Returns
    -------
    int
        Exit code: 0 done; 1 failed; 2 wrong use; 3 fitted, but not converged; 130 interrupted.
    """
    given = parsed(arguments)
    try:
        with _warnings_on_stderr():
            code = _COMMANDS[given.command](given)
            sys.stdout.flush()
        return code
    except (ArgumentError, FormulaError) as error:
        return _complain(error, USAGE)
    except MixmoeError as error:
        return _complain(error, FAILED)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        return _complain(f"{error.strerror or error}: {error.filename}" if error.filename else error, FAILED)
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)


def _complain(error: object, code: int) -> int:
    print(f"mixmoe: error: {error}", file=sys.stderr)
    return code


@contextmanager
def _warnings_on_stderr() -> Iterator[None]:
    """Warnings as single lines, without the place in the code, which means nothing in a shell."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"mixmoe: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("always", MixmoeWarning)
        warnings.showwarning = show
        yield
