"""Reads the three databases, and holds them against the ledger and against each other."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import sqlalchemy as sa

from tests.chaos.ledger import Entry, Ledger, Sighting

LAST = {"DELIVERED", "CANCELLED", "FAILED"}
# How each thing may go from state to state; the first key is where it begins.
_ORDER_MOVES = {
    "PLACED": {"PREPARING", "CANCELLING", "CANCELLED"},
    "PREPARING": {"READY", "CANCELLING"},
    "READY": {"OUT_FOR_DELIVERY", "CANCELLING"},
    "OUT_FOR_DELIVERY": {"DELIVERED"},
    "CANCELLING": {"CANCELLED", "OUT_FOR_DELIVERY"},
}
_TICKET_MOVES = {"QUEUED": {"COOKING", "CANCELLED"}, "COOKING": {"READY", "CANCELLED"}}
_DELIVERY_MOVES = {"SCHEDULED": {"IN_TRANSIT", "CANCELLED"}, "IN_TRANSIT": {"DELIVERED"}}


@dataclass(frozen=True)
class Record:
    """A row of orders, tickets or deliveries, with the states that its service has told, oldest first."""

    id: str
    state: str
    content: Mapping[str, Any]
    history: list[str]


@dataclass(frozen=True)
class Books:
    orders: list[Record]
    tickets: list[Record]
    deliveries: list[Record]
    portions: int
    """How many are still to be made."""


def live_orders(url: str) -> int:
    """How many orders have not come to their last state."""
    orders = sa.table("orders", sa.column("state"))
    return _count(url, sa.select(sa.func.count()).select_from(orders).where(orders.c.state.not_in(LAST)))


def read_books(urls: Mapping[str, str]) -> Books:
    """What the databases say; `urls` are SQLAlchemy's, by service."""
    lines, address, items = (sa.column(name, sa.JSON) for name in ("lines", "address", "items"))
    return Books(
        orders=_records(urls["order"], "order", "orders", sa.column("customer_id"), lines, address),
        tickets=_records(urls["kitchen"], "ticket", "tickets", items),
        deliveries=_records(urls["delivery"], "delivery", "deliveries", address),
        portions=_count(urls["kitchen"], sa.select(sa.func.count()).select_from(sa.table("portions"))),
    )


def _count(url: str, query: sa.Select[Any]) -> int:
    with _engine(url).connect() as connection:
        return connection.scalar(query) or 0


def _records(url: str, noun: str, table: str, *content: "sa.ColumnClause[Any]") -> list[Record]:
    identity: sa.ColumnClause[str] = sa.column(f"{noun}_id")
    state: sa.ColumnClause[str] = sa.column("state")
    rows = sa.select(identity, state, *content).select_from(sa.table(table))
    changes = sa.select(identity, state).select_from(sa.table(f"{noun}_changes")).order_by(sa.column("sequence"))
    history = defaultdict(list)
    with _engine(url).connect() as connection:
        for changed, then in connection.execute(changes):
            history[changed].append(then)
        names = [column.name for column in content]
        return [
            Record(id_, now, dict(zip(names, rest, strict=True)), history[id_])
            for id_, now, *rest in connection.execute(rows)
        ]


def _engine(url: str) -> sa.Engine:
    return sa.create_engine(url, poolclass=sa.NullPool)  # nothing is to stay open


def broken(ledger: Ledger, books: Books) -> list[str]:
    """The promises that were broken, a line for each."""
    return [*ledger.wrong, *_broken_by_all(ledger, books), *_broken_by_each(ledger, books)]


def _broken_by_all(ledger: Ledger, books: Books) -> Iterator[str]:
    kinds = {"order": books.orders, "ticket": books.tickets, "delivery": books.deliveries}
    placed = {record.id for record in books.orders}
    for kind, records in kinds.items():
        ids = [record.id for record in records]
        yield from (f"{id_}: more than one {kind}" for id_ in {id_ for id_, times in Counter(ids).items() if times > 1})
        known = ledger.entries.keys() if kind == "order" else placed
        yield from (f"{id_}: {kind} that nobody asked for" for id_ in set(ids) - known)
    acknowledged = {entry.order_id for entry in ledger.entries.values() if entry.acknowledged}
    yield from (f"{id_}: acknowledged and lost" for id_ in acknowledged - placed)
    if books.portions:
        yield f"{books.portions} portions are still to be made"
    for records, moves in (
        (books.orders, _ORDER_MOVES),
        (books.tickets, _TICKET_MOVES),
        (books.deliveries, _DELIVERY_MOVES),
    ):
        yield from (f"{record.id}: {fault}" for record in records for fault in _faults_of_life(record, moves))


def _faults_of_life(record: Record, moves: Mapping[str, set[str]]) -> Iterator[str]:
    history = record.history
    first = next(iter(moves))
    if history[:1] != [first]:
        yield f"begins not as {first}: {history}"
    elif history[-1] != record.state:
        yield f"is {record.state}, and told {history}"
    elif not all(after in moves.get(before, ()) for before, after in pairwise(history)):
        yield f"may not go {' -> '.join(history)}"


def _broken_by_each(ledger: Ledger, books: Books) -> Iterator[str]:
    tickets = {record.id: record for record in books.tickets}
    deliveries = {record.id: record for record in books.deliveries}
    for order in books.orders:
        entry = ledger.entries.get(order.id)
        if entry is not None:
            faults = [
                *_faults_of_content(order, entry),
                *_faults_of_end(order, entry),
                *_faults_of_work(order, entry, tickets.get(order.id), deliveries.get(order.id)),
                *_faults_of_sight(order.history, entry),
            ]
            yield from (f"{order.id}: {fault}" for fault in faults)


def _faults_of_content(order: Record, entry: Entry) -> Iterator[str]:
    for name, value in order.content.items():
        if value != getattr(entry, name):
            yield f"its {name} is {value}, and {getattr(entry, name)} was placed"


def _faults_of_end(order: Record, entry: Entry) -> Iterator[str]:
    if order.state not in ({"DELIVERED", "CANCELLED"} if entry.cancelling else {"DELIVERED"}):
        yield f"ended {order.state}, {'and' if entry.cancelling else 'and no'} cancelling was asked for"
    if entry.cancelling and entry.cancelled is None:
        yield "cancelling was never answered"
    ends = {"CANCELLED": {"CANCELLED"}, "CANCELLING": {"CANCELLED", "DELIVERED"}, None: {"CANCELLED", "DELIVERED"}}
    if entry.cancelling and order.state not in ends.get(entry.cancelled, {"DELIVERED"}):
        yield f"is {order.state}, and cancelling was answered {entry.cancelled}"


def _faults_of_work(order: Record, entry: Entry, ticket: Record | None, delivery: Record | None) -> Iterator[str]:
    ticket_state, delivery_state = ticket and ticket.state, delivery and delivery.state
    allowed: dict[str, set[tuple[str | None, str | None]]] = {
        "DELIVERED": {("READY", "DELIVERED")},
        # What was made already stays in the shop.
        "CANCELLED": {(None, None), ("CANCELLED", None), ("READY", None), ("READY", "CANCELLED")},
    }
    if (ticket_state, delivery_state) not in allowed.get(order.state, {(ticket_state, delivery_state)}):
        yield f"is {order.state}, its ticket {ticket_state} and its delivery {delivery_state}"
    if ticket is not None and ticket.content["items"] != entry.lines:
        yield f"its ticket is for {ticket.content['items']}, and {entry.lines} was placed"
    if delivery is not None and delivery.content["address"] != entry.address:
        yield f"its delivery goes to {delivery.content['address']}, and {entry.address} was placed"


def _faults_of_sight(history: list[str], entry: Entry) -> Iterator[str]:
    """Readers see what was, in order; a stream leaves nothing out."""
    reached = 0
    for seen in (entry.reads, *entry.watches):
        at = [history.index(state) if state in history else -1 for state in seen.states]
        if -1 in at or at != sorted(at) or (seen.streamed and at != list(range(at[0], at[0] + len(at)) if at else [])):
            yield f"was seen as {seen.states}, and was {history}"
        elif seen.streamed and at:
            if at[0] < reached:
                yield f"was seen as {seen.states} after {history[reached]}"
            reached = at[-1]
        if seen.ended and (not at or at[-1] != len(history) - 1):
            yield f"a watch ended with {seen.states}, and it was {history}"
    if entry.watches and not entry.watches[-1].ended:
        yield f"its watch did not end; it saw {_tail(entry.watches)}"


def _tail(watches: list[Sighting]) -> list[str]:
    return [state for seen in watches for state in seen.states][-3:]
