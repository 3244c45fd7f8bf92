"""What the shop responded, shown on stdout: to people as text, to scripts as JSON."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from typing import TypeAlias

from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from pizza.order.v1 import order_service_pb2 as contract
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pizza_cli import text
from pizza_cli.trace import Trace, waterfall

# The way of an order that goes well.
WAY: tuple[int, ...] = (
    contract.ORDER_STATE_PLACED,
    contract.ORDER_STATE_PREPARING,
    contract.ORDER_STATE_READY,
    contract.ORDER_STATE_OUT_FOR_DELIVERY,
    contract.ORDER_STATE_DELIVERED,
)

# Wide enough that no line of ours is folded where a script or a file reads it.
FILE_WIDTH = 250


Step: TypeAlias = Callable[[contract.Order], None]


class Json:
    """JSON with the contract's field names, all fields present: one document, or one line for each watched state."""

    def menu(self, menu: contract.ListMenuItemsResponse) -> None:
        self._print(menu)

    def order(self, order: contract.Order) -> None:
        self._print(order)

    def orders(self, orders: Iterable[contract.Order]) -> None:
        self._print(contract.ListOrdersResponse(orders=orders))

    def trace(self, trace: Trace) -> None:
        print(json.dumps(asdict(trace), indent=2))

    def progress(self, first: contract.Order | None = None) -> AbstractContextManager[Step]:
        """Return, for the time of a watch, what shows the order at each state; `first`, if any, is among these."""
        return nullcontext(lambda order: self._print(order, indent=None))

    def _print(self, message: Message, indent: int | None = 2) -> None:
        document = MessageToJson(
            message, preserving_proto_field_name=True, indent=indent, always_print_fields_with_no_presence=True
        )
        print(document, flush=True)


class People:
    """Text: tables, and for a watch either a live view (on a terminal) or a line for each state."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._console = Console(width=None if self._terminal else FILE_WIDTH)

    def menu(self, menu: contract.ListMenuItemsResponse) -> None:
        table = _table("SKU", "NAME", "PRICE")
        for item in menu.items:
            _row(table, item.sku, item.display_name, text.money(item.price))
        self._console.print(table)

    def order(self, order: contract.Order) -> None:
        facts = {
            "Order": order.order_id,
            "State": f"{text.state_name(order.state)} since {text.local_time(order.update_time)}",
            "Customer": order.customer_id,
            "To": text.address(order.address),
            "Items": ", ".join(f"{line.sku}:{line.quantity}" for line in order.lines),
            "Total": text.money(order.total),
            "Failure": order.failure,
        }
        grid = Table.grid(padding=(0, 2))
        for name, value in facts.items():
            if value:
                _row(grid, name, value)
        self._console.print(grid)

    def orders(self, orders: Iterable[contract.Order]) -> None:
        table = _table("ORDER", "PLACED", "STATE", "TOTAL")
        for order in orders:
            placed = text.local_time(order.create_time)
            _row(table, order.order_id, placed, text.state_name(order.state), text.money(order.total))
        self._console.print(table)

    def trace(self, trace: Trace) -> None:
        self._console.print(waterfall(trace))

    def progress(self, first: contract.Order | None = None) -> AbstractContextManager[Step]:
        """Return, for the time of a watch, what shows the order at each state; `first`, if any, is shown whole."""
        if first is not None:
            self.order(first)
        if self._terminal and self._console.is_interactive:
            return self._live_progress()
        return nullcontext(self._line)

    def _line(self, order: contract.Order) -> None:
        print(text.local_time(order.update_time), text.state_name(order.state), flush=True)

    @contextmanager
    def _live_progress(self) -> Iterator[Step]:
        entered: dict[int, str] = {}
        with Live(steps(entered), console=self._console, auto_refresh=False) as live:

            def step(order: contract.Order) -> None:
                entered[order.state] = text.local_time(order.update_time)
                live.update(steps(entered), refresh=True)

            yield step


Show: TypeAlias = Json | People


def steps(entered: dict[int, str]) -> Table:
    """Return the states of an order as steps; `entered` has those seen so far, in order, and when they were entered.

    A step that lies behind without a time was passed while nobody watched. A state off the usual way, such as
    CANCELLED, gets a step of its own at the end.
    """
    now = next(reversed(entered), None)
    furthest = max((WAY.index(state) for state in entered if state in WAY), default=-1)
    grid = Table.grid(padding=(0, 2))
    for position, state in enumerate([*WAY, *(state for state in entered if state not in WAY)]):
        if state == now:
            mark, style = ">", "bold"
        elif position <= furthest or state in entered:
            mark, style = "*", "green"
        else:
            mark, style = "-", "dim"
        _row(grid, mark, text.state_name(state), entered.get(state, ""), style=style)
    return grid


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=column == "ORDER")
    return table


def _row(table: Table, *cells: str, style: str = "") -> None:
    # As Text, so that brackets in what the shop answers are no markup.
    table.add_row(*(Text(text.printable(cell)) for cell in cells), style=style)
