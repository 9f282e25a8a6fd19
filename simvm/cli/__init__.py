"""The command line: verbs to calls, and exceptions to exit codes.

* `arguments`: the verbs and their options
* `verbs`: what each verb does
* `output`: data to stdout, messages and progress to stderr
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Final

from simvm.cli import output
from simvm.cli.arguments import parser
from simvm.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    InvalidInput,
    SimvmError,
)

EXIT_SIGPIPE: Final = 141
"""What a shell reports of a program that SIGPIPE ended."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    Parameters
    ----------
    argv
        Arguments without the program's name; by default those of the process.
    """
    try:
        try:
            args = parser().parse_args(argv)
            args.run(args)
        finally:
            sys.stdout.flush()
        return EXIT_DONE
    except SystemExit as stop:  # of argparse, after its message
        return stop.code if isinstance(stop.code, int) else EXIT_DONE
    except BrokenPipeError:
        # Nobody reads any more. Python would complain once again when it closes stdout.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return EXIT_SIGPIPE
    except KeyboardInterrupt:
        print("simvm: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except InvalidInput as error:
        output.complain(error.mistakes, sys.stderr)
        return error.exit_code
    except SimvmError as error:
        print(f"simvm: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        return _unexpected(error)


def _unexpected(error: Exception) -> int:
    """What is no exception of simvm's own: a full disk, or a defect."""
    if isinstance(error, OSError):
        print(f"simvm: {error}", file=sys.stderr)
        return EXIT_FAILED
    traceback.print_exception(error)
    print("simvm: this is a defect of simvm", file=sys.stderr)
    return EXIT_FAILED
