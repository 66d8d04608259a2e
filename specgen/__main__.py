"""The `specgen` command, and `python -m specgen`.

Nothing heavy is imported before signals are heard: importing takes a good part of a second, and
what is raised in the midst of it ends in a traceback, or is lost. What fails while importing, or
gets past the net of `cli/main.py`, becomes a line here.
"""

from __future__ import annotations

import gc
import os
import signal
import sys

# Python looks for garbage when there are so many objects more than before. Nearly all that a start
# makes stays, and to look through it every 700 objects, and at the end, takes 60 ms.
_NEW_OBJECTS = 100_000


def main() -> None:
    """Entry point of the `specgen` script. Until a command listens, a signal ends the process."""
    gc.set_threshold(_NEW_OBJECTS)
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # as in a script's background jobs
            signal.signal(number, _leave)
    try:
        from specgen.cli.main import main as run

        run()
    except Exception as error:
        from specgen.cli.terminal import say_unexpected

        say_unexpected(error)
        sys.exit(1)
    finally:
        gc.freeze()


def _leave(number: int, _frame: object) -> None:
    """End at once: there is nothing to clean up yet."""
    os._exit(128 + number)


if __name__ == "__main__":
    main()
