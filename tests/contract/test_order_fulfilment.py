"""What becomes of orders while kitchen and delivery do their work, fail, or come too late."""

import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.contract.contract import methods, refused
from tests.contract.customer import Customer, state
from tests.contract.fakes import Asked, FakeDelivery, FakeKitchen, Trouble
from tests.contract.launch import Running, eventually, running

TIMEOUTS = {str(method): method.timeout for method in methods()}
LIFE = ("PLACED", "PREPARING", "READY", "OUT_FOR_DELIVERY", "DELIVERED")
MAKING = dict(zip(LIFE, ([], ["COOKING"], *[["COOKING", "READY"]] * 3), strict=True))
CARRYING = dict(zip(LIFE[2:], ([], ["IN_TRANSIT"], ["IN_TRANSIT", "DELIVERED"]), strict=True))


class Shop(Customer):
    """The order service between the fakes: a customer of the one, and the master of the others."""

    def __init__(self, order: Running, kitchen: FakeKitchen, delivery: FakeDelivery) -> None:
        super().__init__(order.channel)
        self.kitchen = kitchen
        self.delivery = delivery
        self.orders: list[str] = []
        self._before = {fake: (set(fake.things), len(fake.asked)) for fake in (kitchen, delivery)}

    def new(self, sku: str = "margherita") -> str:
        """Places an order and answers its id, which is that of its ticket and its delivery as well."""
        order_id = str(uuid4())
        self.orders.append(order_id)
        assert state(self.place([(sku, 2)], order_id=order_id)) == "PLACED"
        return order_id

    def at(self, stage: str) -> str:
        """A new order, brought to a stage of its life; what it has asked for by then has arrived."""
        order_id = self.new()
        self.kitchen.go(order_id, *MAKING[stage])
        if stage in CARRYING:
            self.delivery.go(order_id, *CARRYING[stage])
        self.until(order_id, stage)
        return order_id

    def fulfil(self, order_id: str) -> None:
        """Has an order that is not begun made and delivered."""
        self.kitchen.go(order_id, "COOKING", "READY")
        self.deliver(order_id)

    def deliver(self, order_id: str) -> None:
        self.delivery.go(order_id, "IN_TRANSIT", "DELIVERED")
        self.until(order_id, "DELIVERED")

    def trouble(self, method: str, *troubles: Trouble | threading.Event) -> None:
        """The next calls of a method get into trouble."""
        (self.delivery if "Delivery" in method else self.kitchen).trouble(method, *troubles)

    def calls(self, method: str, order_id: str) -> list[Asked]:
        return (self.delivery if "Delivery" in method else self.kitchen).calls(method, order_id)

    def commands(self, order_id: str) -> list[str]:
        """What kitchen and delivery were told to do for an order."""
        calls = (*self.kitchen.asked, *self.delivery.asked)
        return [call.method for call in calls if call.thing_id == order_id and not call.method.startswith("Get")]

    def until(self, order_id: str, wanted: str) -> None:
        eventually(lambda: state(self.get(order_id)) == wanted)

    def check_books(self) -> None:
        """Nothing was asked for but for these orders, nothing cancelled goes on, and every call had its deadline."""
        for order_id in self.orders:
            ends = state(self.get(order_id)), self.kitchen.state(order_id), self.delivery.state(order_id)
            assert ends[0] != "CANCELLED" or (ends[1] in ("", "CANCELLED", "READY") and ends[2] in ("", "CANCELLED"))
            assert ends[0] != "FAILED" or ends[2] == ""
        for fake, (things, asked) in self._before.items():
            assert fake.things.keys() - things <= set(self.orders)
            for call in fake.asked[asked:]:
                assert call.remaining is not None
                assert call.remaining <= TIMEOUTS[call.method] * 1.01  # which gRPC rounds up on the wire


@pytest.fixture
def shop(order: Running, fake_kitchen: FakeKitchen, fake_delivery: FakeDelivery) -> Iterator[Shop]:
    shop = Shop(order, fake_kitchen, fake_delivery)
    yield shop
    shop.check_books()


def test_an_order_is_made_and_delivered(shop: Shop) -> None:
    """A watch tells each state as it comes, and ends; the kitchen is told what to make, and delivery where it goes."""
    order_id = shop.new("diavola")
    states = shop.states(order_id)
    seen = [next(states)]
    for fake, step in (
        (shop.kitchen, "COOKING"),
        (shop.kitchen, "READY"),
        (shop.delivery, "IN_TRANSIT"),
        (shop.delivery, "DELIVERED"),
    ):
        fake.go(order_id, step)
        seen.append(next(states))
    assert seen == list(LIFE)
    assert list(states) == []
    order, ticket, delivery = shop.get(order_id), shop.kitchen.things[order_id], shop.delivery.things[order_id]
    assert order.failure == ""
    assert [(item.sku, item.quantity) for item in ticket.items] == [("diavola", 2)]
    assert delivery.address.SerializeToString() == order.address.SerializeToString()


def test_a_watch_misses_no_state(shop: Shop) -> None:
    """However fast an order goes through its life, a watch tells every state of it, in order."""
    order_id = shop.new()
    states = shop.states(order_id)
    shop.fulfil(order_id)
    assert list(states) == list(LIFE)


def test_an_order_that_cannot_be_made_fails_alone(shop: Shop) -> None:
    """Without a recipe for it an order is FAILED, with words for people to read; the others go on."""
    bad, good = shop.new("unicorn"), shop.new()
    assert list(shop.states(bad))[-1] == "FAILED"
    assert shop.get(bad).failure
    shop.fulfil(good)
    assert shop.get(good).failure == ""
    refusal = refused(shop.cancel, bad)
    assert (refusal.why, refusal.metadata) == (("order.pizza", "NOT_CANCELLABLE"), {"state": "FAILED"})


def test_orders_are_taken_while_all_others_are_away(shop: Shop) -> None:
    """With neither kitchen nor delivery there, orders are PLACED, and delivered once they have come."""
    with shop.kitchen.away(), shop.delivery.away():
        orders = [shop.new() for _ in range(3)]
    for order_id in orders:
        shop.fulfil(order_id)


def test_an_order_waits_for_delivery(shop: Shop) -> None:
    """With delivery away, an order that is made is READY, and is delivered once delivery has come."""
    order_id = shop.new()
    with shop.delivery.away():
        shop.kitchen.go(order_id, "COOKING", "READY")
        shop.until(order_id, "READY")
    shop.deliver(order_id)


@pytest.mark.parametrize("method", ["SubmitTicket", "ScheduleDelivery"])
def test_a_command_is_repeated_until_it_is_answered(shop: Shop, method: str) -> None:
    """A call that fails, and one that is done but whose answer is lost: the order is made and delivered once."""
    shop.trouble(method, Trouble.NOT_DONE, Trouble.ANSWER_LOST)
    order_id = shop.new()
    shop.fulfil(order_id)
    assert len(shop.calls(method, order_id)) >= 2


@pytest.mark.parametrize(("stage", "method"), [("PREPARING", "CancelTicket"), ("READY", "CancelDelivery")])
def test_a_cancellation_is_repeated_until_it_is_answered(shop: Shop, stage: str, method: str) -> None:
    """A cancellation that fails, and one that is done but whose answer is lost: the order ends CANCELLED."""
    order_id = shop.at(stage)
    shop.trouble(method, Trouble.NOT_DONE, Trouble.ANSWER_LOST)
    shop.cancel(order_id)
    shop.until(order_id, "CANCELLED")
    assert len(shop.calls(method, order_id)) >= 2


def test_a_slow_answer_holds_up_nobody_else(shop: Shop) -> None:
    """While the kitchen does not answer for one order, another is delivered; then the one is, too, made once."""
    late = threading.Event()
    shop.trouble("SubmitTicket", late)
    slow = shop.new()
    eventually(lambda: shop.calls("SubmitTicket", slow))
    shop.fulfil(shop.new())
    eventually(lambda: len(shop.calls("SubmitTicket", slow)) > 1)
    late.set()
    shop.fulfil(slow)


# Cancelling.


@pytest.mark.parametrize("stage", ["PLACED", "PREPARING", "READY"])
def test_an_order_that_is_begun_is_cancelled(shop: Shop, stage: str) -> None:
    """It is CANCELLING at once, CANCELLED soon, and so are its ticket and its delivery; asking again answers it."""
    order_id = shop.at(stage)
    states = shop.states(order_id)
    assert state(shop.cancel(order_id)) == "CANCELLING"
    assert list(states) == [stage, "CANCELLING", "CANCELLED"]
    order = shop.get(order_id)
    assert shop.cancel(order_id) == order
    assert order.failure == ""
    assert (shop.delivery if stage == "READY" else shop.kitchen).state(order_id) == "CANCELLED"


@pytest.mark.parametrize("stage", ["OUT_FOR_DELIVERY", "DELIVERED"])
def test_an_order_on_its_way_is_not_cancelled(shop: Shop, stage: str) -> None:
    """The refusal says where it is, and it goes on."""
    order_id = shop.at(stage)
    order = shop.get(order_id)
    refusal = refused(shop.cancel, order_id)
    assert (refusal.why, refusal.metadata) == (("order.pizza", "NOT_CANCELLABLE"), {"state": stage})
    assert len(refusal.preconditions) == 1
    assert shop.get(order_id) == order
    assert not shop.calls("CancelDelivery", order_id)


def test_a_cancellation_waits_for_the_kitchen(shop: Shop) -> None:
    """With the kitchen away, an order stays CANCELLING however often one asks, and is CANCELLED once it has come."""
    order_id = shop.at("PREPARING")
    with shop.kitchen.away():
        cancelling = shop.cancel(order_id)
        assert state(cancelling) == "CANCELLING"
        assert shop.cancel(order_id) == cancelling
        assert shop.get(order_id) == cancelling
    shop.until(order_id, "CANCELLED")


def test_what_can_never_be_made_can_be_cancelled(shop: Shop) -> None:
    """An order that the kitchen would refuse, cancelled before the kitchen could say so, is CANCELLED."""
    shop.trouble("SubmitTicket", late := threading.Event())
    order_id = shop.new("unicorn")
    eventually(lambda: shop.calls("SubmitTicket", order_id))
    shop.cancel(order_id)
    shop.until(order_id, "CANCELLED")
    late.set()


def test_an_order_that_is_made_in_the_meantime_stays_in_the_shop(shop: Shop) -> None:
    """Cancelled when the kitchen is done but has not told, it is CANCELLED, and nobody is asked to carry it."""
    order_id = shop.at("PREPARING")
    with shop.kitchen.muted():
        shop.kitchen.go(order_id, "READY")
        shop.cancel(order_id)
        shop.until(order_id, "CANCELLED")
    shop.fulfil(shop.new())  # so the news of the first has been read
    assert state(shop.get(order_id)) == "CANCELLED"
    assert shop.delivery.state(order_id) == ""


@pytest.mark.parametrize("courier", [["IN_TRANSIT"], ["IN_TRANSIT", "DELIVERED"]], ids=str)
def test_a_courier_who_is_faster_delivers(shop: Shop, courier: list[str]) -> None:
    """Cancelled when the courier has it but delivery has not told, it goes on its way and is delivered."""
    order_id = shop.at("READY")
    states = shop.states(order_id)
    with shop.delivery.muted():
        shop.delivery.go(order_id, *courier)
        assert state(shop.cancel(order_id)) == "CANCELLING"
        eventually(lambda: any(call.done for call in shop.calls("CancelDelivery", order_id)))
    if "DELIVERED" not in courier:
        shop.until(order_id, "OUT_FOR_DELIVERY")
        assert refused(shop.cancel, order_id).metadata == {"state": "OUT_FOR_DELIVERY"}
        shop.delivery.go(order_id, "DELIVERED")
    assert list(states) == ["READY", "CANCELLING", "OUT_FOR_DELIVERY", "DELIVERED"]


@pytest.mark.parametrize(("stage", "method"), [("PLACED", "SubmitTicket"), ("READY", "ScheduleDelivery")])
def test_a_command_that_arrives_after_the_cancellation_begins_nothing(shop: Shop, stage: str, method: str) -> None:
    """A command that is still under way when its order is CANCELLED finds what it asks for cancelled."""
    shop.trouble(method, late := threading.Event())
    order_id = shop.new()
    if stage == "READY":
        shop.kitchen.go(order_id, "COOKING", "READY")
    eventually(lambda: shop.calls(method, order_id))
    shop.cancel(order_id)
    shop.until(order_id, "CANCELLED")
    late.set()
    eventually(lambda: all(call.done for call in shop.calls(method, order_id)))
    assert (shop.kitchen if stage == "PLACED" else shop.delivery).state(order_id) == "CANCELLED"


# Losses.


@pytest.mark.parametrize(("who", "stage"), [("kitchen", "PLACED"), ("kitchen", "PREPARING"), ("delivery", "READY")])
def test_what_a_lost_database_held_is_asked_for_again(shop: Shop, who: str, stage: str) -> None:
    """After kitchen or delivery has lost all that it knew, orders that are under way and new ones are fulfilled."""
    done, begun = shop.at("DELIVERED"), shop.at(stage)
    (shop.kitchen if who == "kitchen" else shop.delivery).lose_database()
    if who == "kitchen":
        shop.fulfil(begun)
    else:
        shop.deliver(begun)
    shop.fulfil(shop.new())
    assert state(shop.get(done)) == "DELIVERED"


def test_news_that_is_told_again_changes_nothing(shop: Shop) -> None:
    """When both feeds are told from the beginning, every order stays as it is, and nothing is asked for again."""
    orders = [shop.at(stage) for stage in LIFE]
    shop.cancel(orders[1])
    shop.until(orders[1], "CANCELLED")
    before = [(shop.get(order_id), shop.commands(order_id)) for order_id in orders]
    for fake in (shop.kitchen, shop.delivery):
        fake.lose_database(keep_things=True)
    shop.fulfil(shop.new())  # so the old news has been read
    assert [(shop.get(order_id), shop.commands(order_id)) for order_id in orders] == before


def test_a_kill_loses_no_order(
    tmp_path: Path, targets: dict[str, str], fake_kitchen: FakeKitchen, fake_delivery: FakeDelivery
) -> None:
    """Killed while a submission is under way, the order service goes on where it was: made and delivered once."""
    late = threading.Event()
    with running("order", tmp_path, **targets) as order:
        shop = Shop(order, fake_kitchen, fake_delivery)
        shop.trouble("SubmitTicket", late)
        order_id = shop.new()
        eventually(lambda: shop.calls("SubmitTicket", order_id))
        order.kill()
        late.set()
    with running("order", tmp_path, **targets) as order:
        shop = Shop(order, fake_kitchen, fake_delivery)
        shop.fulfil(order_id)


def test_a_poisoned_order_is_set_aside(
    tmp_path: Path, targets: dict[str, str], fake_kitchen: FakeKitchen, fake_delivery: FakeDelivery
) -> None:
    """An order that comes to a fault each time ends FAILED and says why; the others are delivered meanwhile."""
    poisoned = str(uuid4())
    fake_kitchen.poisonous.add(poisoned)
    with running("order", tmp_path, **targets, ORDER_GIVE_UP_AFTER="0.5") as order:
        order.expected.append("step failed")
        shop = Shop(order, fake_kitchen, fake_delivery)
        shop.place([("margherita", 1)], order_id=poisoned)
        shop.fulfil(shop.new())
        shop.until(poisoned, "FAILED")
        assert shop.get(poisoned).failure == "given up: INTERNAL: a fault of the server's"
        assert len(shop.calls("SubmitTicket", poisoned)) > 1
