"""News for tasks, none of which misses any."""

import asyncio
from datetime import timedelta

from txstore import Notifier

AT_ONCE = timedelta(0)


async def test_news_while_looking_ends_the_wait_at_once() -> None:
    """Whatever came after the version was noted is not waited for, also when it came before the wait."""
    notifier = Notifier()
    seen = notifier.version
    notifier.notify()
    assert await notifier.wait_beyond(seen)
    assert await notifier.wait_beyond(seen, AT_ONCE)
    assert not await notifier.wait_beyond(notifier.version, AT_ONCE)


async def test_news_wakes_all_who_wait() -> None:
    """Every task, whatever it has seen and however long it would wait."""
    notifier = Notifier()
    timeouts = (None, timedelta(hours=1), None)
    waiting = [asyncio.create_task(notifier.wait_beyond(notifier.version, timeout)) for timeout in timeouts]
    await asyncio.wait(waiting, timeout=0)
    assert not any(task.done() for task in waiting)
    notifier.notify()
    woken, _ = await asyncio.wait(waiting, timeout=10)
    assert [task.result() for task in woken] == [True] * 3


async def test_a_timeout_ends_the_wait() -> None:
    """It returns False, and the news after it is not lost."""
    notifier = Notifier()
    seen = notifier.version
    assert not await notifier.wait_beyond(seen, timedelta(milliseconds=1))
    notifier.notify()
    assert await notifier.wait_beyond(seen, AT_ONCE)


async def test_a_waiter_that_goes_away_takes_no_news_with_it() -> None:
    """When one of two that wait is cancelled, the other is woken all the same."""
    notifier = Notifier()
    gone, stays = (asyncio.create_task(notifier.wait_beyond(notifier.version)) for _ in range(2))
    await asyncio.wait([gone, stays], timeout=0)
    gone.cancel()
    notifier.notify()
    assert await stays
    await asyncio.wait([gone])
    assert gone.cancelled()


async def test_no_news_is_lost_between_looks() -> None:
    """A task that looks and waits in turn sees the last of many changes, whenever they come."""
    notifier = Notifier()
    state = 0

    async def look() -> None:
        looked = 0
        while looked < 100:
            seen = notifier.version
            looked = state
            await asyncio.sleep(0)  # a turn in which others go on, as while a read is under way
            if looked < 100:
                await notifier.wait_beyond(seen)

    async def change() -> None:
        nonlocal state
        for state in range(1, 101):
            notifier.notify()
            if state % 3:
                await asyncio.sleep(0)  # such a turn, but not each time

    async with asyncio.timeout(10):  # a change that was missed would be waited for without an end
        await asyncio.gather(look(), look(), change())
