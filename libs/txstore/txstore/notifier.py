"""News for tasks of one event loop."""

import asyncio
from datetime import timedelta


class Notifier:
    """Wakes the tasks that wait for news, and lets none of them miss any.

    A task notes the version, looks at what there is, and then waits for a version beyond the noted one: whatever comes
    while it looks ends the wait at once.

        seen = notifier.version
        rows = await look()
        await notifier.wait_beyond(seen, timeout=poll_interval)
    """

    def __init__(self) -> None:
        self.version = 0
        self._next = asyncio.Event()

    def notify(self) -> None:
        """Tells that there is news."""
        self.version += 1
        self._next.set()
        self._next = asyncio.Event()

    async def wait_beyond(self, version: int, timeout: timedelta | None = None) -> bool:  # noqa: ASYNC109 # also unlimited
        """Waits for news after `version`. Returns False where `timeout` ended first."""
        if self.version > version:
            return True
        try:
            async with asyncio.timeout(None if timeout is None else timeout.total_seconds()):
                return await self._next.wait()
        except TimeoutError:
            return False
