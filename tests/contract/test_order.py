"""What the order service promises its customers by itself: the menu, orders, watches and lists."""

import tomllib
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from random import Random
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.type.money_pb2 import Money
from hypothesis import given
from hypothesis import strategies as st
from pizza.order.v1 import order_service_pb2 as pb

from tests.contract.contract import Refusal, refusal_of, refused
from tests.contract.customer import ONE_PIZZA, Customer, state
from tests.contract.launch import DATA, Running
from tests.contract.strategies import EXAMPLES

MENU = {item["sku"]: item for item in tomllib.loads((DATA / "menu.toml").read_text(), parse_float=Decimal)["items"]}


@pytest.fixture(scope="module")
def customer(held_order: Running) -> Customer:
    """A customer whose orders stay PLACED."""
    return Customer(held_order.channel)


def amount(money: Money) -> Decimal:
    """Exactly, from a Money that is as its own contract wants it."""
    assert money.currency_code == "EUR"
    assert 0 <= money.nanos < 1_000_000_000
    return Decimal(money.units) + Decimal(money.nanos).scaleb(-9)


def test_the_menu_is_listed_in_its_order(customer: Customer) -> None:
    """All items, with their names and exact prices."""
    items = customer.stub.ListMenuItems(pb.ListMenuItemsRequest()).items
    assert [(item.sku, item.display_name, amount(item.price)) for item in items] == [
        (sku, item["name"], item["price"]) for sku, item in MENU.items()
    ]


@EXAMPLES
@given(quantities=st.dictionaries(st.sampled_from(list(MENU)), st.integers(1, 100), min_size=1))
def test_a_total_is_exact(customer: Customer, quantities: dict[str, int]) -> None:
    """The sum over all lines, to the billionth."""
    total = customer.place(list(quantities.items())).total
    assert amount(total) == sum(MENU[sku]["price"] * quantity for sku, quantity in quantities.items())


def test_an_order_is_stored_as_asked_for(customer: Customer) -> None:
    """The answer holds what was asked for, PLACED; and so does the order whenever it is got."""
    order_id = str(uuid4())
    order = customer.place([("diavola", 3), ("water", 1)], "bob", "Zgierska 2", order_id)
    assert (order.order_id, order.customer_id, order.failure) == (order_id, "bob", "")
    assert [(line.sku, line.quantity) for line in order.lines] == [("diavola", 3), ("water", 1)]
    assert order.address == pb.Address(street="Zgierska 2", city="Łódź", postal_code="90-001")
    assert state(order) == "PLACED"
    assert order.update_time == order.create_time
    assert order.create_time.seconds > 0
    assert customer.get(order_id) == order


def test_a_repeated_order_answers_the_order_as_it_stands(customer: Customer) -> None:
    """The same id with the same content answers it, and changes nothing, also once it is cancelled."""
    order = customer.place()
    assert customer.place(order_id=order.order_id) == order
    cancelled = customer.cancel(order.order_id)
    assert customer.place(order_id=order.order_id) == cancelled
    assert customer.get(order.order_id) == cancelled


@pytest.mark.parametrize(
    "other",
    [
        {"customer": "bob"},
        {"street": "Zgierska 2"},
        {"lines": [("margherita", 2)]},
        {"lines": [("diavola", 1)]},
        {"lines": [*ONE_PIZZA, ("water", 1)]},
    ],
    ids=str,
)
def test_an_id_is_taken_by_its_first_content(customer: Customer, other: dict[str, Any]) -> None:
    """The same id with another customer, address or lines is refused, and changes nothing."""
    order = customer.place()
    refusal = refused(lambda: customer.place(**other, order_id=order.order_id))
    assert refusal.why == ("order.pizza", "ORDER_ID_TAKEN")
    assert customer.get(order.order_id) == order


def test_one_of_many_at_once_takes_the_id(customer: Customer) -> None:
    """Orders of one id placed at the same time: one content wins and is listed once, the others are refused."""
    name, order_id = str(uuid4()), str(uuid4())

    def place(quantity: int) -> pb.Order | Refusal:
        try:
            return customer.place([("water", quantity)], name, order_id=order_id)
        except grpc.RpcError as error:
            return refusal_of(error)

    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(place, [1, 2] * 4))
    assert [response for response in responses if isinstance(response, pb.Order)] == [customer.get(order_id)] * 4
    reasons = [response.why for response in responses if isinstance(response, Refusal)]
    assert reasons == [("order.pizza", "ORDER_ID_TAKEN")] * 4
    assert [ids(page) for page in customer.pages(name, 5)] == [[order_id]]


@pytest.mark.parametrize("position", [0, 1, 2])
def test_what_is_not_on_the_menu_is_refused(customer: Customer, position: int) -> None:
    """The refusal names the SKU and the line it stands in, and nothing is stored."""
    order_id, lines = str(uuid4()), [("margherita", 1), ("water", 2)]
    lines.insert(position, ("sushi", 1))
    refusal = refused(lambda: customer.place(lines, order_id=order_id))
    assert refusal.why == ("order.pizza", "UNKNOWN_SKU")
    assert refusal.metadata == {"sku": "sushi"}
    assert refusal.bad_fields == {f"lines[{position}].sku"}
    assert refused(customer.get, order_id).why == ("order.pizza", "ORDER_NOT_FOUND")


def test_what_is_not_there_is_not_found(customer: Customer) -> None:
    """Neither got, nor cancelled, nor watched."""
    for call in (customer.get, customer.cancel, customer.states):
        assert refused(call, str(uuid4())).why == ("order.pizza", "ORDER_NOT_FOUND")


def test_an_order_is_cancelled_at_once_while_nothing_is_begun(customer: Customer) -> None:
    """The very answer is CANCELLED; cancelling again answers the order unchanged."""
    order = customer.place()
    cancelled = customer.cancel(order.order_id)
    assert (state(cancelled), cancelled.failure) == ("CANCELLED", "")
    assert cancelled.update_time.ToNanoseconds() > order.update_time.ToNanoseconds()
    assert customer.cancel(order.order_id) == cancelled
    assert customer.get(order.order_id) == cancelled


def test_a_watch_tells_at_once_and_at_each_change(customer: Customer) -> None:
    """All who watch see the order as it stands, then each change; it ends after the last state."""
    order = customer.place()
    watches = [customer.watch(order.order_id) for _ in range(3)]
    assert [next(watch) for watch in watches] == [order] * 3
    watches.pop(0).close()  # one who leaves takes nothing from the others
    cancelled = customer.cancel(order.order_id)
    assert [list(watch) for watch in watches] == [[cancelled]] * 2
    assert list(customer.watch(order.order_id)) == [cancelled]


# Lists.


def ids(page: pb.ListOrdersResponse) -> list[str]:
    return [order.order_id for order in page.orders]


@pytest.fixture(scope="module")
def many(customer: Customer) -> tuple[str, list[str]]:
    """The name of a customer with 1,003 orders, and their ids; the last three were placed one after the other."""
    name = str(uuid4())
    with ThreadPoolExecutor(16) as pool:
        orders = list(pool.map(lambda _: customer.place(customer=name), range(1000)))
    orders += [customer.place(customer=name) for _ in range(3)]
    return name, [order.order_id for order in orders]


@pytest.mark.parametrize(("size", "means"), [(0, 50), (1, 1), (50, 50), (1000, 1000), (1001, 1000), (2**31 - 1, 1000)])
def test_a_page_is_as_long_as_asked_for(customer: Customer, many: tuple[str, list[str]], size: int, means: int) -> None:
    """0 means 50, and more than 1000 is taken as 1000."""
    page = next(customer.pages(many[0], size))
    assert len(page.orders) == means
    assert page.next_page_token


def test_a_list_holds_every_order_newest_first(customer: Customer, many: tuple[str, list[str]]) -> None:
    """Over all pages each order of the customer once, as GetOrder answers it, the last one placed first."""
    name, order_ids = many
    orders = [order for page in customer.pages(name, 333) for order in page.orders]
    assert sorted(order.order_id for order in orders) == sorted(order_ids)
    assert [order.order_id for order in orders[:3]] == order_ids[:-4:-1]
    times = [order.create_time.ToNanoseconds() for order in orders]
    assert times == sorted(times, reverse=True)
    assert orders[0] == customer.get(orders[0].order_id)


@pytest.mark.parametrize("size", range(1, 9))
def test_pages_neither_lose_nor_repeat(customer: Customer, size: int) -> None:
    """While orders are placed between the pages, each that was there is listed once, and none twice."""
    random, name = Random(size), str(uuid4())
    there = [customer.place(customer=name).order_id for _ in range(7)]
    listed = []
    for page in customer.pages(name, size):
        listed += ids(page)
        for _ in range(random.randrange(3)):
            customer.place(customer=name)
    assert listed == there[::-1]


@pytest.mark.parametrize(("count", "sizes"), [(0, [0]), (1, [1]), (6, [3, 3]), (7, [3, 3, 1])])
def test_the_last_page_has_no_token(customer: Customer, count: int, sizes: list[int]) -> None:
    """Also where it is full, and where the customer has no order at all."""
    name = str(uuid4())
    for _ in range(count):
        customer.place(customer=name)
    assert [len(page.orders) for page in customer.pages(name, 3)] == sizes


def test_a_token_of_nobody_is_refused(customer: Customer, order: Running) -> None:
    """A page token that was made up, damaged, or given out by another database or for another list."""
    name, tokens = str(uuid4()), []
    for whose, where in ((name, customer), (name, Customer(order.channel)), (str(uuid4()), customer)):
        for _ in range(2):
            where.place(customer=whose)
        tokens.append(next(where.pages(whose, 1)).next_page_token)
    token, *foreign = tokens
    for bad in (*foreign, "0", "gibberish", "пицца", token[1:], token[:-4], token + "A", token[::-1], token.swapcase()):
        request = pb.ListOrdersRequest(customer_id=name, page_token=bad)
        assert refused(customer.stub.ListOrders, request).why == ("order.pizza", "BAD_PAGE_TOKEN")
