"""The life of a service's process: one line and exit status 1 where it cannot start, a graceful stop on a signal."""

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

if sys.platform == "win32":  # has no uvloop
    from asyncio import new_event_loop
else:
    from uvloop import new_event_loop


class StartError(Exception):
    """The service cannot start; the message is the one line that its operator reads."""


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs `main` on uvloop where there is one. A StartError is printed as one line, with exit status 1."""
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(main())
    except StartError as error:
        sys.exit(f"error: {error}")  # to stderr, with status 1
    except KeyboardInterrupt:
        sys.exit(130)


async def stop_requested() -> None:
    """Waits for SIGTERM or SIGINT; a second one ends the process at once."""
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    try:
        await asked.wait()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
