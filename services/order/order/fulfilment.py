"""The control loop that fulfils orders: it does the steps that are due, and follows what kitchen and delivery tell.

Whatever it does is a keyed call that may be repeated, and whatever it learns is stored in one transaction with how far
it has read. So it may be killed at any instant: the next one goes on from what is stored.
"""

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random

import structlog
from grpcmesh import Workload
from txstore import StoreOverloaded, StoreUnavailable

from order.clients import (
    Delivery,
    Kitchen,
    NotThere,
    PastCancelling,
    Progress,
    Refused,
    TokenRefused,
    Unreachable,
    Update,
)
from order.domain import Order, OrderState, Step
from order.store import FeedLost, Store

_log = structlog.get_logger("order")

_AT_ONCE = 32  # steps that are under way together
_LEASE = timedelta(seconds=3)  # a call's longest by its contract, and some; two workers at one step do no harm
_BACKOFF = 0.1  # seconds, doubled with each attempt
_BACKOFF_MOST = 10.0  # seconds
_PAUSE_AFTER_ERROR = 1.0  # seconds
_FEED_LEASE = timedelta(seconds=3)  # without a sign of life, after which another replica reads the feed
_RENEW_FEED = 1.0  # seconds

Clock = Callable[[], datetime]
Apply = Callable[[Order, datetime], Order]


@dataclass(frozen=True)
class Patience:
    """How long the loop waits."""

    check_after: timedelta
    """Without news of an order, before it asks for them."""
    give_up_after: timedelta = timedelta(hours=1)
    """While a step comes to a fault each time, before it sets the order aside."""


class Fulfilment:
    def __init__(
        self,
        store: Store,
        kitchen: Kitchen,
        delivery: Delivery,
        clock: Clock,
        random: Random,
        patience: Patience,
        workload: Workload,
    ) -> None:
        self._store = store
        self._kitchen = kitchen
        self._delivery = delivery
        self._clock = clock
        self._random = random
        self._patience = patience
        self._tracing = workload.tracing
        self._failed = workload.metrics.counter("pizza.order.failed", "Orders that have ended as FAILED")
        self._lag = workload.metrics.histogram("pizza.order.feed.lag", "s", "From news to what they have changed here")

    async def run(self) -> None:
        """Fulfils orders until it is cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._for_ever(self._do_due_steps))
                group.create_task(self._for_ever(self._follow_kitchen))
                group.create_task(self._for_ever(self._follow_delivery))
        finally:
            with suppress(StoreUnavailable, StoreOverloaded):  # then their leases run out
                await self._store.leave_feeds()

    async def _for_ever(self, part: Callable[[], Awaitable[None]]) -> None:
        """Begins a part of the loop anew whenever it ends; a fault in one order must not end it for the others."""
        while True:
            try:
                await part()
            except (Exception, asyncio.CancelledError) as error:
                task = asyncio.current_task()
                if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                    raise
                # A call that gRPC cancelled by itself would end this part for good, and nobody would be told.
                _log.exception("fulfilment failed; trying again", seconds=_PAUSE_AFTER_ERROR)
                await asyncio.sleep(_PAUSE_AFTER_ERROR)

    # Steps.

    async def _do_due_steps(self) -> None:
        under_way: set[asyncio.Task[None]] = set()
        async with asyncio.TaskGroup() as group:
            while True:
                seen = self._store.due.version
                now = self._clock()
                room = _AT_ONCE - len(under_way)
                orders, next_due = await self._store.take_due(now, now + _LEASE, room)
                under_way |= {group.create_task(self._do_step(order)) for order in orders}
                if len(under_way) == _AT_ONCE:
                    timeout = None
                else:
                    until_due = math.inf if next_due is None else (next_due - self._clock()).total_seconds()
                    timeout = min(until_due, self._store.poll_interval.total_seconds())
                waiting = group.create_task(self._store.due.wait_beyond(seen))
                await asyncio.wait({waiting, *under_way}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                under_way = {task for task in under_way if not task.done()}

    async def _do_step(self, order: Order) -> None:
        """Does the step of an order, and stores what came of it."""
        step = order.step
        assert step is not None  # noqa: S101 # an order is due for nothing else
        name = step.replace("_", " ").lower()
        facts = {"order_id": order.order_id, "step": step, "attempt": order.attempts}
        try:
            with self._tracing.span(name, order.traceparent, _attributes(order)):
                try:
                    await self._move(order.order_id, await self._outcome(order, step))
                except (StoreUnavailable, StoreOverloaded):
                    raise
                except Exception as error:  # whatever it is, no order may end the loop for the others
                    _log.exception("step failed", **facts)
                    await self._set_back(order, step, str(error) or repr(error))
        except (StoreUnavailable, StoreOverloaded) as error:  # the lease ends, and the step is done again
            _log.info("step not stored", **facts, error=str(error))
        except Exception:  # likewise
            _log.exception("step failed", **facts)

    async def _set_back(self, order: Order, step: Step, reason: str) -> None:
        self._tracing.fail(reason)
        delay = timedelta(seconds=self._backoff(order.attempts))
        patience = self._patience.give_up_after
        await self._move(
            order.order_id, lambda current, now: current.step_failed(step, reason, now, now + delay, patience)
        )

    async def _outcome(self, order: Order, step: Step) -> Apply:
        """Makes the step's calls; answers what they mean for the order as it will be then."""
        done: Apply = lambda current, now: current.step_done(step, now)  # noqa: E731 # one of the shapes below
        try:
            if step is Step.CHECK_TICKET:
                making = await self._kitchen.check(order)
                return lambda current, now: done(current, now).making(making, now)
            if step is Step.CHECK_DELIVERY:
                carrying = await self._delivery.check(order)
                return lambda current, now: done(current, now).carrying(carrying, now)
            await self._call(order, step)
        except NotThere:
            return Order.ticket_lost if step is Step.CHECK_TICKET else Order.delivery_lost
        except PastCancelling:
            if step is Step.CANCEL_TICKET:
                return Order.ticket_past_cancelling
            return lambda current, _: current.delivery_past_cancelling()
        except Refused as refused:
            reason = str(refused)
            if step is Step.SUBMIT_TICKET:
                return lambda current, now: current.cannot_be_made(reason, now)
            if step is Step.SCHEDULE_DELIVERY:
                return lambda current, now: current.cannot_be_carried(reason, now)
            return done  # it can never begin, so it is as good as cancelled
        except Unreachable as error:
            delay = self._backoff(order.attempts)
            self._tracing.fail(str(error))
            _log.info("step postponed", order_id=order.order_id, step=step, attempt=order.attempts, error=str(error))
            return lambda current, now: current.retry_step(step, now + timedelta(seconds=delay))
        return done

    async def _call(self, order: Order, step: Step) -> None:
        match step:
            case Step.SUBMIT_TICKET:
                await self._kitchen.submit(order)
            case Step.SCHEDULE_DELIVERY:
                await self._delivery.schedule(order)
            case Step.CANCEL_TICKET:
                await self._cancel_ticket(order)
            case Step.CANCEL_DELIVERY:
                await self._cancel_delivery(order)

    def _backoff(self, attempts: int) -> float:
        """Seconds to wait before the next attempt: exponential, with full jitter."""
        return self._random.uniform(0, min(_BACKOFF_MOST, _BACKOFF * 2 ** min(attempts, 16)))

    async def _cancel_ticket(self, order: Order) -> None:
        """Cancels the ticket, also one that is still on its way.

        A submission that was given up here may yet arrive there. Submitting it (which is keyed) and cancelling that
        leaves a cancelled ticket for it to find.
        """
        try:
            await self._kitchen.cancel(order)
        except NotThere:
            await self._kitchen.submit(order)
            await self._kitchen.cancel(order)

    async def _cancel_delivery(self, order: Order) -> None:
        """Cancels the delivery, also one that is still on its way, as a ticket."""
        try:
            await self._delivery.cancel(order)
        except NotThere:
            await self._delivery.schedule(order)
            await self._delivery.cancel(order)

    # Feeds.

    async def _follow_kitchen(self) -> None:
        await self._follow("kitchen", self._kitchen.updates, Order.making, Step.CHECK_TICKET)

    async def _follow_delivery(self) -> None:
        await self._follow("delivery", self._delivery.updates, Order.carrying, Step.CHECK_DELIVERY)

    async def _follow(
        self,
        feed: str,
        updates: Callable[[str], AsyncGenerator[Update[Progress], None]],
        apply: Callable[[Order, Progress, datetime], Order],
        check: Step,
    ) -> None:
        """Waits until a feed is this replica's to read, and reads it for as long as it is.

        A replica that has lost a feed and does not know it yet stores nothing: each effect asks who reads the feed.
        """
        while await self._lease(feed) is None:  # noqa: ASYNC110 # another replica has no event of ours
            await asyncio.sleep(_RENEW_FEED)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._keep_lease(feed))
                group.create_task(self._read(feed, updates, apply, check))
        except* FeedLost as lost:
            _log.warning("feed lost", feed=feed, error=str(lost.exceptions[0]))

    async def _lease(self, feed: str) -> str | None:
        now = self._clock()
        return await self._store.take_feed(feed, now, now + _FEED_LEASE)

    async def _keep_lease(self, feed: str) -> None:
        while self._store.shared:
            await asyncio.sleep(_RENEW_FEED)
            if await self._lease(feed) is None:
                raise FeedLost(f"this replica was too slow for the feed of {feed}")

    async def _read(
        self,
        feed: str,
        updates: Callable[[str], AsyncGenerator[Update[Progress], None]],
        apply: Callable[[Order, Progress, datetime], Order],
        check: Step,
    ) -> None:
        """Reads a feed to its end, which may be any time, from the last entry whose effect is stored."""
        failures = 0
        while True:
            token = await self._lease(feed)
            if token is None:
                raise FeedLost(f"another replica reads the feed of {feed}")
            try:
                async with aclosing(updates(token)) as news:
                    async for update in news:
                        failures = 0
                        await self._apply(feed, update, apply)
            except TokenRefused:
                # Its database is another one, which may not know our orders: check them, and read from the beginning,
                # where what is known already changes nothing.
                _log.warning("the feed does not know our token; reading it anew", feed=feed)
                await self._store.restart_feed(feed, check, self._clock())
            except Unreachable as error:
                delay = self._backoff(failures)
                failures += 1
                _log.info("feed away", feed=feed, error=str(error), seconds=round(delay, 3))
                await asyncio.sleep(delay)

    async def _apply(
        self, feed: str, update: Update[Progress], apply: Callable[[Order, Progress, datetime], Order]
    ) -> None:
        start = self._clock()
        try:
            order = await self._move(
                update.order_id, lambda order, now: apply(order, update.progress, now), feed=feed, token=update.token
            )
        except (StoreUnavailable, StoreOverloaded, FeedLost):
            raise
        except Exception:  # it would be so again, and the others' news are behind it; the order's check sees to it
            _log.exception("news skipped", feed=feed, order_id=update.order_id)
            await self._store.skip(feed, update.token)
            return
        if order is not None:
            end = self._clock()
            name = f"{feed} says {update.progress}"
            self._tracing.record(name, order.traceparent, start, end, _attributes(order))
            self._lag.record((end - update.time).total_seconds(), {"feed": feed})
        else:
            _log.warning("the feed tells of an order that is not ours", feed=feed, order_id=update.order_id)

    async def _move(self, order_id: str, move: Apply, feed: str | None = None, token: str = "") -> Order | None:
        """Stores a move, and when to ask for news if none come; None where there is no such order."""
        now = self._clock()
        check_at = now + self._patience.check_after
        order = await self._store.update(
            order_id, lambda order: move(order, now).check_later(check_at), feed=feed, token=token
        )
        if order is not None and order.state is OrderState.FAILED and order.update_time == now:
            self._failed.add(1)
        return order


def _attributes(order: Order) -> dict[str, str | int]:
    """What spans tell of an order."""
    return {
        "order.id": order.order_id,
        "order.state": order.state,
        "order.attempt": order.attempts,
        "order.skus": len(order.lines),
    }
