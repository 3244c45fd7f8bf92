"""The commands of `pizza`, each against a shop made from the contract, over gRPC."""

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import NoReturn
from uuid import UUID

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status
from google.type.money_pb2 import Money
from grpc_status import rpc_status
from pizza.order.v1 import order_service_pb2 as contract
from pizza.order.v1.order_service_pb2_grpc import OrderServiceServicer, add_OrderServiceServicer_to_server
from pizza_cli.main import app
from pizza_cli.watch import Stream, states
from typer.testing import CliRunner, Result

ORDER_ID = "6f1b0c6e-6b0e-4a53-9a3e-0d7a1c0f4a11"
PLACED, PREPARING, READY = "PLACED", "PREPARING", "READY"
OUT_FOR_DELIVERY, DELIVERED = "OUT_FOR_DELIVERY", "DELIVERED"
CANCELLED, FAILED = "CANCELLED", "FAILED"

Pizza = Callable[..., Result]


def an_order(state: str = PLACED, order_id: str = ORDER_ID, failure: str = "") -> contract.Order:
    """Return homer's order; the minute of its update time is the number of its state."""
    number = contract.OrderState.Value(f"ORDER_STATE_{state}")
    return contract.Order(
        order_id=order_id,
        customer_id="homer",
        lines=[contract.OrderLine(sku="margherita", quantity=2)],
        address=contract.Address(street="1 Main St", city="Springfield"),
        total=Money(currency_code="USD", units=19, nanos=500_000_000),
        state=number,
        create_time=Timestamp(seconds=int(datetime(2026, 1, 31, 18, 1, tzinfo=UTC).timestamp())),
        update_time=Timestamp(seconds=int(datetime(2026, 1, 31, 18, number, tzinfo=UTC).timestamp())),
        failure=failure,
    )


class FakeShop(OrderServiceServicer):
    """An order service that does as it is told and remembers what it was asked."""

    def __init__(self) -> None:
        self.orders = [an_order()]
        self.requests: list[Message] = []
        self.time_remaining: dict[str, float] = {}
        self.failures: list[Status] = []  # one for each of the next unary calls
        self.streams: list[tuple[list[contract.Order], grpc.StatusCode | None]] = []  # one for each WatchOrder
        self.silent = False
        self.page = 2

    def _begin(self, request: Message, context: grpc.ServicerContext) -> None:
        self.requests.append(request)
        self.time_remaining[type(request).__name__] = context.time_remaining()
        if self.silent:
            self._wait_for_the_end(context)
        if self.failures:
            refuse(context, self.failures.pop(0))

    def _wait_for_the_end(self, context: grpc.ServicerContext) -> None:
        ended = threading.Event()
        if context.add_callback(ended.set):
            ended.wait(30)

    def _find(self, order_id: str, context: grpc.ServicerContext) -> contract.Order:
        found = [order for order in self.orders if order.order_id == order_id]
        if not found:
            refuse(context, refusal(grpc.StatusCode.NOT_FOUND, f"no order {order_id}", "ORDER_NOT_FOUND"))
        return found[0]

    def ListMenuItems(
        self, request: contract.ListMenuItemsRequest, context: grpc.ServicerContext
    ) -> contract.ListMenuItemsResponse:
        self._begin(request, context)
        price = Money(currency_code="USD", units=9, nanos=750_000_000)
        return contract.ListMenuItemsResponse(
            items=[contract.MenuItem(sku="margherita", display_name="Pizza [bold]Margherita[/]", price=price)]
        )

    def PlaceOrder(
        self, request: contract.PlaceOrderRequest, context: grpc.ServicerContext
    ) -> contract.PlaceOrderResponse:
        self._begin(request, context)
        order = an_order(order_id=request.order_id)
        order.customer_id = request.customer_id
        return contract.PlaceOrderResponse(order=order)

    def GetOrder(self, request: contract.GetOrderRequest, context: grpc.ServicerContext) -> contract.GetOrderResponse:
        self._begin(request, context)
        return contract.GetOrderResponse(order=self._find(request.order_id, context))

    def ListOrders(
        self, request: contract.ListOrdersRequest, context: grpc.ServicerContext
    ) -> contract.ListOrdersResponse:
        self._begin(request, context)
        start = int(request.page_token or "0")
        end = start + min(self.page, request.page_size)
        found = [order for order in self.orders if order.customer_id == request.customer_id]
        return contract.ListOrdersResponse(
            orders=found[start:end], next_page_token=str(end) if end < len(found) else ""
        )

    def CancelOrder(
        self, request: contract.CancelOrderRequest, context: grpc.ServicerContext
    ) -> contract.CancelOrderResponse:
        self._begin(request, context)
        order = self._find(request.order_id, context)
        order.state = contract.ORDER_STATE_CANCELLED
        return contract.CancelOrderResponse(order=order)

    def WatchOrder(
        self, request: contract.WatchOrderRequest, context: grpc.ServicerContext
    ) -> Iterator[contract.WatchOrderResponse]:
        self._begin(request, context)
        if not self.streams:
            self._wait_for_the_end(context)
            return
        orders, end = self.streams.pop(0)
        for order in orders:
            yield contract.WatchOrderResponse(order=order)
        if end is not None:
            context.abort(end, "the stream broke")

    def watched(self, *stream: str, end: grpc.StatusCode | None = None) -> None:
        """Let the next watch see these states, and then end so."""
        self.streams.append(([an_order(state) for state in stream], end))


def refusal(code: grpc.StatusCode, message: str, reason: str, *details: Message) -> Status:
    status = Status(code=code.value[0], message=message)
    for detail in (ErrorInfo(reason=reason, domain="order.pizza"), *details):
        packed = Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def refuse(context: grpc.ServicerContext, status: Status) -> NoReturn:
    context.abort_with_status(rpc_status.to_status(status))


def last_states(result: Result) -> list[str]:
    return [line.split()[-1] for line in result.stdout.splitlines()]


@pytest.fixture
def shop() -> FakeShop:
    return FakeShop()


@pytest.fixture
def target(shop: FakeShop) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(4))
    add_OrderServiceServicer_to_server(shop, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
def nowhere() -> Iterator[str]:
    """A target that nobody listens at, and nobody else can take meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("PIZZA_TARGET", "PIZZA_CUSTOMER", "FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    # Two hours from UTC, so that a time shown in the wrong zone shows.
    monkeypatch.setenv("TZ", "UTC-2")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def pizza(target: str) -> Pizza:
    """Run `pizza` with the given arguments, at the fake shop."""

    def run(*arguments: str, env: dict[str, str] | None = None) -> Result:
        return CliRunner().invoke(app, ["--target", target, *arguments], env=env)

    return run


# What the commands do.


def test_menu(pizza: Pizza) -> None:
    """The menu shows code, name and exact price, and takes nothing in a name for markup."""
    result = pizza("menu")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[1].strip().split("  ") == ["margherita", "Pizza [bold]Margherita[/]", "9.75 USD"]


def test_order_is_sent_as_asked(pizza: Pizza, shop: FakeShop) -> None:
    """An order carries items with quantities (1 if left out), address, customer and the id that was given."""
    to = "1 Main St,Springfield , 49007"
    result = pizza("order", "margherita:2", "belgian-waffle", "--to", to, "--customer", "marge", "--order-id", ORDER_ID)
    assert result.exit_code == 0
    assert shop.requests == [
        contract.PlaceOrderRequest(
            order_id=ORDER_ID,
            customer_id="marge",
            lines=[
                contract.OrderLine(sku="margherita", quantity=2),
                contract.OrderLine(sku="belgian-waffle", quantity=1),
            ],
            address=contract.Address(street="1 Main St", city="Springfield", postal_code="49007"),
        )
    ]
    assert ORDER_ID in result.stdout
    assert "PLACED since 2026-01-31 20:01:00" in result.stdout
    assert "19.50 USD" in result.stdout


def test_order_ids_are_fresh_uuids(pizza: Pizza, shop: FakeShop) -> None:
    """Without --order-id each order gets a UUID of its own."""
    for _ in range(2):
        assert pizza("order", "margherita", "--to", "a, b").exit_code == 0
    first, second = (UUID(request.order_id) for request in shop.requests if hasattr(request, "order_id"))
    assert first != second


@pytest.mark.parametrize(
    ("env", "customer"),
    [
        ({"PIZZA_CUSTOMER": "lisa", "LOGNAME": "bart"}, "lisa"),
        ({"LOGNAME": "bart"}, "bart"),
    ],
)
def test_default_customer(pizza: Pizza, env: dict[str, str], customer: str) -> None:
    """The customer is PIZZA_CUSTOMER, else the user of the operating system."""
    result = pizza("--json", "order", "margherita", "--to", "a, b", env=env)
    assert json.loads(result.stdout)["customer_id"] == customer


def test_a_nameless_user_is_a_guest(pizza: Pizza, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the operating system knows no name, the customer is "guest"."""

    def no_user() -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr("getpass.getuser", no_user)
    result = pizza("--json", "order", "margherita", "--to", "a, b")
    assert json.loads(result.stdout)["customer_id"] == "guest"


def test_status(pizza: Pizza, shop: FakeShop) -> None:
    """The status of an order shows where it is, and why it failed if it did."""
    shop.orders = [an_order(FAILED, failure="the oven is cold")]
    result = pizza("status", ORDER_ID)
    assert result.exit_code == 0
    assert "FAILED since 2026-01-31 20:07:00" in result.stdout
    assert "the oven is cold" in result.stdout
    assert "1 Main St, Springfield" in result.stdout
    assert "margherita:2" in result.stdout


def test_list_follows_pages(pizza: Pizza, shop: FakeShop) -> None:
    """Without a limit all of a customer's orders are listed, in the shop's order, however many pages there are."""
    shop.orders = [an_order(order_id=f"order-{number}") for number in range(5)]
    result = pizza("list", "--customer", "homer")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()[1:]] == [f"order-{number}" for number in range(5)]
    assert len(shop.requests) == 3


def test_list_stops_at_the_limit(pizza: Pizza, shop: FakeShop) -> None:
    """A limit ends the list in the middle of a page, and no further page is asked for."""
    shop.orders = [an_order(order_id=f"order-{number}") for number in range(9)]
    result = pizza("--json", "list", "--customer", "homer", "--limit", "3")
    assert [order["order_id"] for order in json.loads(result.stdout)["orders"]] == ["order-0", "order-1", "order-2"]
    sizes = [request.page_size for request in shop.requests if isinstance(request, contract.ListOrdersRequest)]
    assert sizes == [3, 1]


def test_cancel(pizza: Pizza) -> None:
    """A cancelled order is shown as it then stands, which is no failure of the command."""
    result = pizza("cancel", ORDER_ID)
    assert result.exit_code == 0
    assert "CANCELLED" in result.stdout


def test_watch_prints_a_line_for_each_state(pizza: Pizza, shop: FakeShop) -> None:
    """Where stdout is no terminal, a watch prints a line for each state, with the time at which it was entered."""
    shop.watched(PLACED, PREPARING, READY, OUT_FOR_DELIVERY, DELIVERED)
    result = pizza("watch", ORDER_ID)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "2026-01-31 20:01:00 PLACED",
        "2026-01-31 20:02:00 PREPARING",
        "2026-01-31 20:03:00 READY",
        "2026-01-31 20:04:00 OUT_FOR_DELIVERY",
        "2026-01-31 20:05:00 DELIVERED",
    ]
    assert not result.stderr


def test_order_and_watch(pizza: Pizza, shop: FakeShop) -> None:
    """`order --watch` shows the order that was placed and then follows just that one."""
    shop.watched(PLACED, DELIVERED)
    result = pizza("order", "margherita", "--to", "a, b", "--order-id", ORDER_ID, "--watch")
    assert result.exit_code == 0
    assert "19.50 USD" in result.stdout
    assert last_states(result)[-2:] == [PLACED, DELIVERED]
    assert shop.requests[1:] == [contract.WatchOrderRequest(order_id=ORDER_ID)]


def test_target_from_the_environment(target: str, shop: FakeShop) -> None:
    """PIZZA_TARGET says where the shop is."""
    assert CliRunner().invoke(app, ["menu"], env={"PIZZA_TARGET": target}).exit_code == 0
    assert len(shop.requests) == 1


# JSON, for scripts.


def test_json_documents(pizza: Pizza) -> None:
    """With --json every command answers one document with the contract's field names, empty fields included."""
    assert json.loads(pizza("--json", "menu").stdout)["items"][0]["display_name"] == "Pizza [bold]Margherita[/]"
    assert json.loads(pizza("--json", "order", "margherita", "--to", "a, b").stdout)["state"] == "ORDER_STATE_PLACED"
    status = json.loads(pizza("--json", "status", ORDER_ID).stdout)
    assert status["total"] == {"currency_code": "USD", "units": "19", "nanos": 500_000_000}
    assert status["failure"] == ""
    assert json.loads(pizza("--json", "list", "--customer", "nobody").stdout)["orders"] == []
    assert json.loads(pizza("--json", "cancel", ORDER_ID).stdout)["order_id"] == ORDER_ID


def test_json_lines(pizza: Pizza, shop: FakeShop) -> None:
    """With --json an order that is watched from its placing on gives one line for each state, and nothing else."""
    shop.watched(PLACED, PREPARING, DELIVERED)
    result = pizza("--json", "order", "margherita", "--to", "a, b", "--watch")
    seen = [json.loads(line)["state"] for line in result.stdout.splitlines()]
    assert seen == ["ORDER_STATE_PLACED", "ORDER_STATE_PREPARING", "ORDER_STATE_DELIVERED"]


# Refusals and wrong usage.


def test_refused(pizza: Pizza) -> None:
    """A refusal is one line on stderr with the shop's message and reason, and exit status 1."""
    result = pizza("status", "none")
    assert result.exit_code == 1
    assert result.stderr == "error: no order none (ORDER_NOT_FOUND)\n"
    assert not result.stdout


def test_refused_with_field_violations(pizza: Pizza, shop: FakeShop) -> None:
    """The fields that break the contract stand in the line, whatever line breaks the shop's texts hold."""
    violation = BadRequest.FieldViolation(field="lines[0].quantity", description="must be\nat most 100")
    shop.failures = [
        refusal(
            grpc.StatusCode.INVALID_ARGUMENT, "bad request", "INVALID_REQUEST", BadRequest(field_violations=[violation])
        )
    ]
    result = pizza("order", "margherita:101", "--to", "a, b")
    assert result.exit_code == 1
    assert result.stderr == "error: bad request; lines[0].quantity: must be at most 100 (INVALID_REQUEST)\n"


def test_refused_without_details(pizza: Pizza, shop: FakeShop) -> None:
    """An error that carries no reason is named by its status."""
    shop.failures = [Status(code=grpc.StatusCode.INTERNAL.value[0], message="oops")]
    result = pizza("menu")
    assert result.exit_code == 1
    assert result.stderr == "error: oops (INTERNAL)\n"


def test_watch_refused(pizza: Pizza, shop: FakeShop) -> None:
    """A watch that the shop refuses ends at once with exit status 1."""
    shop.failures = [refusal(grpc.StatusCode.NOT_FOUND, "no such order", "ORDER_NOT_FOUND")]
    result = pizza("watch", ORDER_ID)
    assert result.exit_code == 1
    assert result.stderr == "error: no such order (ORDER_NOT_FOUND)\n"
    assert len(shop.requests) == 1


@pytest.mark.parametrize(
    "item", ["margherita:", ":2", "margherita:two", "margherita:0", "margherita:-1", "margherita:2:3", "a b", ""]
)
def test_malformed_item(pizza: Pizza, shop: FakeShop, item: str) -> None:
    """An ITEM of any other form than SKU or SKU:QUANTITY is wrong usage; the line names it, and nothing is sent."""
    result = pizza("order", "cola", item, "--to", "a, b")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: ITEM {item!r} is not SKU or SKU:QUANTITY")
    assert result.stderr.count("\n") == 1
    assert not shop.requests


@pytest.mark.parametrize("to", ["Springfield", "1 Main St,", ", Springfield", "a, b, c, d", ""])
def test_malformed_address(pizza: Pizza, shop: FakeShop, to: str) -> None:
    """A --to without street and city, or with more than a postal code besides, is wrong usage; nothing is sent."""
    result = pizza("order", "margherita", "--to", to)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: --to {to!r} is not ")
    assert result.stderr.count("\n") == 1
    assert not shop.requests


def test_text_that_is_not_unicode(pizza: Pizza) -> None:
    """An argument that is no Unicode text, as a shell can pass it, is wrong usage and no traceback."""
    result = pizza("status", "\udcff")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: text that is not Unicode")


def test_wrong_usage(pizza: Pizza) -> None:
    """An unknown option, and a limit below 1, have exit status 2."""
    assert pizza("menu", "--nonsense").exit_code == 2
    assert pizza("list", "--limit", "0").exit_code == 2


def test_help_documents_the_exit_statuses(pizza: Pizza) -> None:
    """`pizza --help` says what each exit status means."""
    result = pizza("--help")
    for line in ("0  done", "1  refused by the shop", "2  wrong usage", "3  the shop is not", "4  the watched order"):
        assert line in result.stdout


# Deadlines and retries, as the contract says.


def test_deadlines(pizza: Pizza, shop: FakeShop) -> None:
    """Each call has the deadline that the contract gives its method."""
    shop.watched(DELIVERED)
    pizza("status", ORDER_ID)
    pizza("cancel", ORDER_ID)
    pizza("watch", ORDER_ID)
    # Less what the way takes; more by up to ten seconds in an hour, because gRPC rounds deadlines up.
    assert 0 < shop.time_remaining["GetOrderRequest"] < 1.1
    assert 1.1 < shop.time_remaining["CancelOrderRequest"] < 2.1
    assert 3500 < shop.time_remaining["WatchOrderRequest"] < 3700


def test_no_answer_in_time(pizza: Pizza, shop: FakeShop) -> None:
    """A shop that is silent past the deadline gives exit status 3."""
    shop.silent = True
    result = pizza("status", ORDER_ID)
    assert result.exit_code == 3
    assert result.stderr.startswith("error: no answer from 127.0.0.1:")
    assert result.stderr.endswith(" (DEADLINE_EXCEEDED)\n")


def test_unreachable(nowhere: str) -> None:
    """A target where nobody listens gives exit status 3 and a line that names it."""
    result = CliRunner().invoke(app, ["--target", nowhere, "menu"])
    assert result.exit_code == 3
    assert result.stderr.startswith(f"error: no answer from {nowhere}: ")
    assert result.stderr.endswith(" (UNAVAILABLE)\n")
    assert result.stderr.count("\n") == 1


def test_retries_carry_the_same_order(pizza: Pizza, shop: FakeShop) -> None:
    """An order that meets UNAVAILABLE twice is placed by the third attempt, with the same order id."""
    shop.failures = [refusal(grpc.StatusCode.UNAVAILABLE, "not now", "STORE_UNAVAILABLE")] * 2
    result = pizza("order", "margherita", "--to", "a, b")
    assert result.exit_code == 0
    assert len(shop.requests) == 3
    assert shop.requests[0] == shop.requests[1] == shop.requests[2]


def test_attempts_are_limited(pizza: Pizza, shop: FakeShop) -> None:
    """After the contract's three attempts an order gives up with exit status 3, and says how to repeat it safely."""
    shop.failures = [refusal(grpc.StatusCode.UNAVAILABLE, "not now", "STORE_UNAVAILABLE")] * 4
    result = pizza("order", "margherita", "--to", "a, b", "--order-id", ORDER_ID)
    assert result.exit_code == 3
    assert len(shop.requests) == 3
    assert f"repeat it with --order-id {ORDER_ID}" in result.stderr
    assert result.stderr.endswith(" (STORE_UNAVAILABLE)\n")


def test_refusals_are_not_retried(pizza: Pizza, shop: FakeShop) -> None:
    """What is not UNAVAILABLE is not retried."""
    shop.failures = [refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "too much", "OVERLOADED")]
    assert pizza("menu").exit_code == 1
    assert len(shop.requests) == 1


# Watches: how they end, and what they outlive.


@pytest.mark.parametrize(
    "end",
    [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED, None],
    ids=lambda end: end.name if end else "ended",
)
def test_watch_resumes(pizza: Pizza, shop: FakeShop, end: grpc.StatusCode | None) -> None:
    """A watch goes on after a stream that breaks, or ends, before a last state, and shows no state twice."""
    shop.watched(PLACED, PREPARING, end=end)
    shop.watched(PREPARING, READY, end=end)
    shop.watched(READY, OUT_FOR_DELIVERY, DELIVERED)
    result = pizza("watch", ORDER_ID)
    assert result.exit_code == 0
    assert last_states(result) == [PLACED, PREPARING, READY, OUT_FOR_DELIVERY, DELIVERED]
    assert len(shop.requests) == 3


def test_watch_ends_with_the_last_state(pizza: Pizza, shop: FakeShop) -> None:
    """A watch ends with the last state, even where the shop then breaks the stream instead of ending it."""
    shop.watched(DELIVERED, end=grpc.StatusCode.UNAVAILABLE)
    result = pizza("watch", ORDER_ID)
    assert result.exit_code == 0
    assert last_states(result) == [DELIVERED]
    assert len(shop.requests) == 1


def test_watched_order_failed(pizza: Pizza, shop: FakeShop) -> None:
    """A watched order that ends FAILED gives exit status 4 and its failure text."""
    shop.streams = [([an_order(PLACED), an_order(FAILED, failure="the oven is cold")], None)]
    result = pizza("watch", ORDER_ID)
    assert result.exit_code == 4
    assert last_states(result) == [PLACED, FAILED]
    assert result.stderr == "error: the oven is cold (FAILED)\n"


def test_watched_order_cancelled(pizza: Pizza, shop: FakeShop) -> None:
    """A watched order that ends CANCELLED gives exit status 4, with --json as well."""
    shop.watched(PLACED, "CANCELLING", CANCELLED)
    result = pizza("--json", "watch", ORDER_ID)
    assert result.exit_code == 4
    assert json.loads(result.stdout.splitlines()[-1])["state"] == "ORDER_STATE_CANCELLED"
    assert result.stderr == "error: the order ended CANCELLED (CANCELLED)\n"


def test_watch_of_an_unreachable_shop(nowhere: str) -> None:
    """A watch gives up on an unreachable shop when its patience is at an end, with exit status 3."""
    result = CliRunner().invoke(app, ["--target", nowhere, "watch", ORDER_ID, "--patience", "0.5"])
    assert result.exit_code == 3
    assert result.stderr.startswith(f"error: no answer from {nowhere}: ")


def test_watch_of_a_silent_shop(pizza: Pizza, shop: FakeShop) -> None:
    """A stream on which not even the first answer comes counts against the patience, whatever its deadline."""
    shop.silent = True
    result = pizza("watch", ORDER_ID, "--patience", "0.3")
    assert result.exit_code == 3
    assert result.stderr.endswith(" for 0.3 s (DEADLINE_EXCEEDED)\n")


class Answer:
    """A stream that answers one state after `seconds` of the clock, and then ends."""

    def __init__(self, clock: list[float], state: str, seconds: float) -> None:
        self._clock, self._state, self._seconds = clock, state, seconds

    def __iter__(self) -> Iterator[contract.WatchOrderResponse]:
        self._clock[0] += self._seconds
        yield contract.WatchOrderResponse(order=an_order(self._state))
        self._clock[0] += self._seconds

    def cancel(self) -> bool:
        return True


def test_answers_renew_the_patience() -> None:
    """Patience counts from the last stream that answered: an order that rests for hours is watched to its end."""
    clock, pauses = [0.0], list[float]()

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        clock[0] += seconds

    streams: list[Stream] = [Answer(clock, state, 3600) for state in (PLACED, PLACED, PLACED, READY, DELIVERED)]
    seen = states(lambda: streams.pop(0), "target", 60, clock=lambda: clock[0], sleep=sleep)
    assert [order.state for order in seen] == [
        contract.ORDER_STATE_PLACED,
        contract.ORDER_STATE_READY,
        contract.ORDER_STATE_DELIVERED,
    ]
    assert pauses == [0.1, 0.2, 0.4, 0.1], "the pause grows until something new is heard"


class Rest:
    """A stream that answers one state, rests for 0.3 seconds unless it is cancelled, and then answers the last."""

    def __init__(self) -> None:
        self._cancelled = threading.Event()

    def __iter__(self) -> Iterator[contract.WatchOrderResponse]:
        yield contract.WatchOrderResponse(order=an_order(PREPARING))
        if not self._cancelled.wait(0.3):
            yield contract.WatchOrderResponse(order=an_order(DELIVERED))

    def cancel(self) -> bool:
        self._cancelled.set()
        return True


def test_a_stream_that_answered_may_rest() -> None:
    """A stream that has answered once is left alone, even where the order rests for longer than the patience."""
    streams: list[Stream] = [Rest()]
    seen = states(lambda: streams.pop(0), "target", patience_seconds=0.1)
    assert [order.state for order in seen] == [contract.ORDER_STATE_PREPARING, contract.ORDER_STATE_DELIVERED]


# As a process: a terminal, and an interrupt.

# A shell that runs the tests in the background has them, and so their children, ignore interrupts.
PROGRAM = """
import signal
from pizza_cli.main import app
signal.signal(signal.SIGINT, signal.default_int_handler)
app()
"""
PROCESS = (sys.executable, "-c", PROGRAM)


def test_live_view_on_a_terminal(target: str, shop: FakeShop) -> None:
    """On a terminal a watch shows all steps of the way, those to come too, and the times of those entered."""
    shop.watched(PLACED, READY, end=grpc.StatusCode.UNAVAILABLE)
    shop.watched(DELIVERED)
    terminal, stdout = pty.openpty()
    command = [*PROCESS, "--target", target, "watch", ORDER_ID]
    # The command is this module's own.
    with subprocess.Popen(command, stdout=stdout, env=os.environ | {"TERM": "xterm", "COLUMNS": "80"}) as process:
        os.close(stdout)
        output = b""
        while chunk := _read(terminal):
            output += chunk
    os.close(terminal)
    assert process.returncode == 0
    frames = output.decode().split("PLACED")
    assert [step in frames[1] for step in (PREPARING, READY, OUT_FOR_DELIVERY, DELIVERED)] == [True] * 4
    last = frames[-1]
    assert "20:01:00" in last
    assert "20:02:00" not in last, "nobody saw when it began to be prepared"
    assert "20:03:00" in last
    assert "20:05:00" in last


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux's way to say that the other end is closed
        return b""


def test_interrupt(target: str, shop: FakeShop) -> None:
    """An interrupt ends a watch quietly, with exit status 130."""
    shop.watched(PLACED, end=grpc.StatusCode.UNAVAILABLE)
    command = [*PROCESS, "--target", target, "watch", ORDER_ID]
    # The command is this module's own.
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "PLACED" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        try:
            output, errors = process.communicate(timeout=20)
        finally:
            process.kill()
    assert (process.returncode, output, errors) == (130, "", "")
