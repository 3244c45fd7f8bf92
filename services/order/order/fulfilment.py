"""The control loop that fulfils orders: it does the steps that are due, and follows what kitchen and delivery tell.

Whatever it does is a keyed call that may be repeated, and whatever it learns is stored in one transaction with how far
it has read. So it may be killed at any instant: the next one goes on from what is stored.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random

import structlog
from grpcmesh import Workload
from txstore import StoreOverloaded, StoreUnavailable

from order.clients import (
    BadToken,
    Delivery,
    Kitchen,
    NotFound,
    PastCancelling,
    Progress,
    Rejected,
    Unreachable,
    Update,
)
from order.domain import Order, OrderState, Step
from order.store import FeedLost, Store

_log = structlog.get_logger("order")

_MAX_IN_FLIGHT = 32  # steps
_LEASE = timedelta(seconds=3)  # a call's longest by its contract, and some; two workers at one step do no harm
_BACKOFF = timedelta(seconds=0.1)  # doubled with each attempt
_MAX_BACKOFF = timedelta(seconds=10)
_PAUSE_AFTER_ERROR = timedelta(seconds=1)
_FEED_LEASE = timedelta(seconds=3)  # without a sign of life, after which another replica reads the feed
_FEED_RENEWAL = timedelta(seconds=1)

Clock = Callable[[], datetime]
Move = Callable[[Order, datetime], Order]
"""What an outcome means for an order, as it is when that is stored."""


@dataclass(frozen=True)
class Patience:
    """How long the loop waits."""

    check_after: timedelta
    """Without news of an order, before it asks for them."""
    give_up_after: timedelta = timedelta(hours=1)
    """While a step comes to a fault each time, before it sets the order aside."""


class Fulfilment:
    """The loop of one replica: the steps that are due, and the feeds of kitchen and delivery."""

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
        self._steps: Mapping[Step, Callable[[Order], Awaitable[Move]]] = {
            Step.SUBMIT_TICKET: self._submit_ticket,
            Step.CHECK_TICKET: self._check_ticket,
            Step.CANCEL_TICKET: self._cancel_ticket,
            Step.SCHEDULE_DELIVERY: self._schedule_delivery,
            Step.CHECK_DELIVERY: self._check_delivery,
            Step.CANCEL_DELIVERY: self._cancel_delivery,
        }

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
        """Begins a part of the loop again whenever it ends; a fault in one order must not end it for the others."""
        while True:
            try:
                await part()
            except (Exception, asyncio.CancelledError) as error:
                task = asyncio.current_task()
                if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                    raise
                # A call that gRPC cancelled by itself would end this part for good, and nobody would be told.
                _log.exception("fulfilment failed; trying again", seconds=_PAUSE_AFTER_ERROR.total_seconds())
                await asyncio.sleep(_PAUSE_AFTER_ERROR.total_seconds())

    # Steps.

    async def _do_due_steps(self) -> None:
        in_flight: set[asyncio.Task[None]] = set()
        async with asyncio.TaskGroup() as group:
            while True:
                seen = self._store.due.version
                now = self._clock()
                orders, next_due = await self._store.take_due(now, now + _LEASE, _MAX_IN_FLIGHT - len(in_flight))
                in_flight |= {group.create_task(self._do_step(order)) for order in orders}
                timeout = None
                if len(in_flight) < _MAX_IN_FLIGHT:
                    pause = self._store.poll_interval
                    if next_due is not None:
                        pause = min(pause, next_due - self._clock())
                    timeout = pause.total_seconds()
                news = group.create_task(self._store.due.wait_beyond(seen))
                await asyncio.wait({news, *in_flight}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                news.cancel()
                in_flight = {task for task in in_flight if not task.done()}

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
        except Exception:  # the same
            _log.exception("step failed", **facts)

    async def _outcome(self, order: Order, step: Step) -> Move:
        """Makes the step's calls, and returns what came of them; raises what is a fault, of others or of ours."""
        try:
            return await self._steps[step](order)
        except Unreachable as error:
            delay = self._backoff(order.attempts)
            self._tracing.fail(str(error))
            _log.info("step postponed", order_id=order.order_id, step=step, attempt=order.attempts, error=str(error))
            return lambda current, now: current.retry_step(step, now + delay)

    async def _submit_ticket(self, order: Order) -> Move:
        try:
            await self._kitchen.submit(order)
        except Rejected as rejected:
            return _rejected(Step.SUBMIT_TICKET, rejected)
        return _done(Step.SUBMIT_TICKET)

    async def _check_ticket(self, order: Order) -> Move:
        try:
            preparation = await self._kitchen.check(order)
        except NotFound:
            return Order.ticket_lost
        done = _done(Step.CHECK_TICKET)
        return lambda current, now: done(current, now).preparation_reported(preparation, now)

    async def _cancel_ticket(self, order: Order) -> Move:
        """Cancels the ticket, also one that is still on its way.

        A submission that was given up here may yet arrive there. Submitting it (which is keyed) and cancelling that
        leaves a cancelled ticket for it to find. A ticket that is made already stays in the shop, since nobody was
        asked to carry it; one that the kitchen rejects can never begin. To the customer both are cancelled.
        """
        with suppress(PastCancelling, Rejected):
            try:
                await self._kitchen.cancel(order)
            except NotFound:
                await self._kitchen.submit(order)
                await self._kitchen.cancel(order)
        return _done(Step.CANCEL_TICKET)

    async def _schedule_delivery(self, order: Order) -> Move:
        try:
            await self._delivery.schedule(order)
        except Rejected as rejected:
            return _rejected(Step.SCHEDULE_DELIVERY, rejected)
        return _done(Step.SCHEDULE_DELIVERY)

    async def _check_delivery(self, order: Order) -> Move:
        try:
            transport = await self._delivery.check(order)
        except NotFound:
            return Order.delivery_lost
        done = _done(Step.CHECK_DELIVERY)
        return lambda current, now: done(current, now).transport_reported(transport, now)

    async def _cancel_delivery(self, order: Order) -> Move:
        """Cancels the delivery, also one that is still on its way, as a ticket."""
        try:
            with suppress(Rejected):
                try:
                    await self._delivery.cancel(order)
                except NotFound:
                    await self._delivery.schedule(order)
                    await self._delivery.cancel(order)
        except PastCancelling:
            return lambda current, _: current.delivery_past_cancelling()
        return _done(Step.CANCEL_DELIVERY)

    async def _set_back(self, order: Order, step: Step, reason: str) -> None:
        self._tracing.fail(reason)
        delay = self._backoff(order.attempts)
        patience = self._patience.give_up_after
        await self._move(
            order.order_id, lambda current, now: current.step_failed(step, reason, now, now + delay, patience)
        )

    def _backoff(self, attempts: int) -> timedelta:
        """How long to wait before the next attempt: exponential, with full jitter."""
        most = min(_MAX_BACKOFF, _BACKOFF * 2 ** min(attempts, 16))
        return timedelta(seconds=self._random.uniform(0, most.total_seconds()))

    # Feeds.

    async def _follow_kitchen(self) -> None:
        await self._follow("kitchen", self._kitchen.updates, Order.preparation_reported, Step.CHECK_TICKET)

    async def _follow_delivery(self) -> None:
        await self._follow("delivery", self._delivery.updates, Order.transport_reported, Step.CHECK_DELIVERY)

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
            await asyncio.sleep(_FEED_RENEWAL.total_seconds())
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
            await asyncio.sleep(_FEED_RENEWAL.total_seconds())
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
            except BadToken:
                # Its database is another one, which may not know our orders: check them, and read from the beginning,
                # where what is known already changes nothing.
                _log.warning("the feed does not know our token; reading it from its beginning", feed=feed)
                await self._store.restart_feed(feed, check, self._clock())
            except Unreachable as error:
                delay = self._backoff(failures)
                failures += 1
                _log.info("feed away", feed=feed, error=str(error), seconds=round(delay.total_seconds(), 3))
                await asyncio.sleep(delay.total_seconds())

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

    async def _move(self, order_id: str, move: Move, feed: str | None = None, token: str = "") -> Order | None:
        """Stores a move, and when to ask for news if none come; None where there is no such order."""
        now = self._clock()
        check_at = now + self._patience.check_after
        fails = False

        def moved(before: Order) -> Order:
            nonlocal fails
            after = move(before, now).check_later(check_at)
            fails = after.state is OrderState.FAILED and before.state is not OrderState.FAILED
            return after

        order = await self._store.update(order_id, moved, feed=feed, token=token)
        if order is not None and fails:
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


def _done(step: Step) -> Move:
    return lambda current, now: current.step_done(step, now)


def _rejected(step: Step, rejected: Rejected) -> Move:
    return lambda current, now: current.rejected(step, str(rejected), now)
