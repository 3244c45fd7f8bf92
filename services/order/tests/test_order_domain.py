"""The life of an order, as pure moves."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from order.domain import (
    Address,
    Line,
    Menu,
    MenuItem,
    Money,
    NotCancellable,
    Order,
    OrderState,
    Preparation,
    Step,
    Transport,
    UnknownSku,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(minutes=1)
MENU = Menu(
    (
        MenuItem("margherita", "Pizza Margherita", Money("EUR", 8, 500_000_000)),
        MenuItem("belgian-waffle", "Belgian Waffle", Money("EUR", 4, 200_000_000)),
    )
)


def placed() -> Order:
    return MENU.order("id", "ada", (Line("margherita", 1),), Address("1 Main St", "Springfield", ""), NOW)


def test_a_total_is_exact() -> None:
    """Nanos carry into units; nothing is rounded."""
    order = MENU.order("id", "ada", (Line("margherita", 3), Line("belgian-waffle", 2)), placed().address, NOW)
    assert order.total == Money("EUR", 33, 900_000_000)


def test_an_unknown_sku_is_named_with_its_line() -> None:
    """The refusal says which line is at fault, and which SKU."""
    with pytest.raises(UnknownSku) as refused:
        MENU.order("id", "ada", (Line("margherita", 1), Line("sushi", 1)), placed().address, NOW)
    assert (refused.value.subject, refused.value.metadata) == ("lines[1].sku", {"sku": "sushi"})


def test_an_order_goes_from_placed_to_delivered() -> None:
    """Each fact of the feeds moves the order on, and asks for the next step where there is one."""
    order = placed()
    assert (order.state, order.step) == (OrderState.PLACED, Step.SUBMIT_TICKET)
    order = order.begin_step(LATER).step_done(Step.SUBMIT_TICKET, LATER)
    assert (order.state, order.step, order.due) == (OrderState.PLACED, None, None)
    order = order.preparation_reported(Preparation.COOKING, LATER)
    assert (order.state, order.step) == (OrderState.PREPARING, None)
    order = order.preparation_reported(Preparation.READY, LATER)
    assert (order.state, order.step, order.due) == (OrderState.READY, Step.SCHEDULE_DELIVERY, LATER)
    order = (
        order.begin_step(LATER).step_done(Step.SCHEDULE_DELIVERY, LATER).transport_reported(Transport.IN_TRANSIT, LATER)
    )
    assert (order.state, order.step) == (OrderState.OUT_FOR_DELIVERY, None)
    assert order.transport_reported(Transport.DELIVERED, LATER).state is OrderState.DELIVERED


def test_a_hold_gives_time_for_second_thoughts() -> None:
    """A held order is due later, and is cancelled at once until then."""
    order = MENU.order("id", "ada", placed().lines, placed().address, NOW, hold=timedelta(minutes=1))
    assert order.due == NOW + timedelta(minutes=1)
    assert order.cancel(NOW).state is OrderState.CANCELLED


def test_cancelling_after_the_kitchen_may_know_of_it_takes_a_call() -> None:
    """Once a submission was begun, however it ended, the order is CANCELLING until the ticket is cancelled."""
    order = placed().begin_step(LATER).cancel(LATER)
    assert (order.state, order.step) == (OrderState.CANCELLING, Step.CANCEL_TICKET)
    assert order.step_done(Step.CANCEL_TICKET, LATER).state is OrderState.CANCELLED


def test_a_late_answer_to_the_submission_does_not_undo_cancelling() -> None:
    """The submission's outcome, good or bad, no longer matters to an order that is CANCELLING."""
    order = placed().begin_step(LATER).cancel(LATER)
    assert order.step_done(Step.SUBMIT_TICKET, LATER) == order
    assert order.rejected(Step.SUBMIT_TICKET, "no recipe", LATER) == order
    assert order.retry_step(Step.SUBMIT_TICKET, LATER) == order


def test_what_is_made_and_not_yet_to_be_carried_is_cancelled() -> None:
    """A ticket past cancelling whose order nobody was asked to carry ends CANCELLED."""
    order = (
        placed()
        .begin_step(LATER)
        .preparation_reported(Preparation.COOKING, LATER)
        .cancel(LATER)
        .step_done(Step.CANCEL_TICKET, LATER)
    )
    assert order.state is OrderState.CANCELLED


def test_a_courier_may_be_faster_than_a_cancellation() -> None:
    """Where delivery is past cancelling, its feed takes the order from CANCELLING on its way."""
    order = placed().begin_step(LATER).preparation_reported(Preparation.READY, LATER).begin_step(LATER).cancel(LATER)
    assert (order.state, order.step) == (OrderState.CANCELLING, Step.CANCEL_DELIVERY)
    order = order.delivery_past_cancelling()
    assert (order.state, order.step) == (OrderState.CANCELLING, None)
    assert order.transport_reported(Transport.IN_TRANSIT, LATER).state is OrderState.OUT_FOR_DELIVERY


def test_an_order_that_hears_nothing_asks() -> None:
    """Whatever waits for news has a check due; where its ticket or delivery is lost, it is asked for again."""
    order = placed().begin_step(LATER).step_done(Step.SUBMIT_TICKET, LATER).check_later(LATER)
    assert (order.step, order.due) == (Step.CHECK_TICKET, LATER)
    assert order.ticket_lost(LATER).step is Step.SUBMIT_TICKET
    order = (
        order.preparation_reported(Preparation.READY, LATER).begin_step(LATER).step_done(Step.SCHEDULE_DELIVERY, LATER)
    )
    order = order.check_later(LATER)
    assert order.step is Step.CHECK_DELIVERY
    assert order.delivery_lost(LATER).step is Step.SCHEDULE_DELIVERY
    order = order.transport_reported(Transport.IN_TRANSIT, LATER).check_later(LATER)
    assert order.delivery_lost(LATER).state is OrderState.FAILED


def test_an_order_that_has_ended_asks_nothing() -> None:
    """A last state has no step."""
    assert placed().cancel(NOW).check_later(LATER).step is None


def test_an_order_s_time_never_goes_back() -> None:
    """A fact that a lagging clock has the time of moves the order, and leaves its time as it was."""
    order = placed().preparation_reported(Preparation.COOKING, LATER)
    ready = order.preparation_reported(Preparation.READY, NOW)
    assert (ready.state, ready.update_time) == (OrderState.READY, LATER)


FACTS = st.one_of(
    st.sampled_from(Preparation).map(lambda preparation: lambda order: order.preparation_reported(preparation, LATER)),
    st.sampled_from(Transport).map(lambda transport: lambda order: order.transport_reported(transport, LATER)),
    st.sampled_from(Step).map(lambda step: lambda order: order.step_done(step, LATER)),
    st.sampled_from(Step).map(lambda step: lambda order: order.retry_step(step, LATER)),
    st.just(lambda order: order.begin_step(LATER) if order.step else order),
    st.just(lambda order: order.rejected(Step.SUBMIT_TICKET, "no recipe", LATER)),
    st.just(lambda order: order.rejected(Step.SCHEDULE_DELIVERY, "no road", LATER)),
    st.just(lambda order: order.step_done(Step.CANCEL_TICKET, LATER)),
    st.just(lambda order: order.delivery_past_cancelling()),
    st.just(lambda order: order.check_later(LATER)),
    st.just(lambda order: order.ticket_lost(LATER)),
    st.just(lambda order: order.delivery_lost(LATER)),
)
ALLOWED = {
    OrderState.PLACED: {"PREPARING", "READY", "DELIVERED", "CANCELLING", "CANCELLED", "FAILED"},
    OrderState.PREPARING: {"READY", "DELIVERED", "CANCELLING", "FAILED"},
    OrderState.READY: {"OUT_FOR_DELIVERY", "DELIVERED", "CANCELLING", "FAILED"},
    OrderState.OUT_FOR_DELIVERY: {"DELIVERED", "FAILED"},
    OrderState.CANCELLING: {"CANCELLED", "OUT_FOR_DELIVERY", "DELIVERED", "FAILED"},
}


@given(st.lists(st.one_of(FACTS, st.just(None))))
def test_no_order_of_facts_breaks_an_order(facts: list[Callable[[Order], Order] | None]) -> None:
    """Facts and cancellations in any order keep the states' rules; a last state is never left; a step is always due."""
    order = placed()
    for fact in facts:
        before = order
        if fact is None:
            try:
                order = order.cancel(LATER)
            except NotCancellable:
                assert order.state in ("OUT_FOR_DELIVERY", "DELIVERED", "FAILED")
        else:
            order = fact(order)
        if order.state is not before.state:
            assert order.state in ALLOWED.get(before.state, set())
        assert (order.step is None) == (order.due is None)
        assert not (order.state.last and order.step)
        assert (order.state is OrderState.FAILED) == bool(order.failure)
