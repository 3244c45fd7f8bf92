"""Draws docs/states.md from the tables in the services' domains: `make states`."""

from collections.abc import Iterable, Iterator
from enum import StrEnum

import delivery.domain
import kitchen.domain
import order.domain

Arrow = tuple[StrEnum, StrEnum, str]


def diagram(title: str, first: StrEnum, arrows: Iterable[Arrow]) -> Iterator[str]:
    labels: dict[tuple[StrEnum, StrEnum], list[str]] = {}
    for start, end, event in arrows:
        labels.setdefault((start, end), []).append(event)
    yield from ("", f"## {title}", "", "```mermaid", "stateDiagram-v2", f"  [*] --> {first}")
    for (start, end), events in labels.items():
        label = "<br>".join(filter(None, events))
        yield f"  {start} --> {end}{': ' if label else ''}{label}"
    begun = {start for start, _ in labels}
    for state in type(first):
        if state not in begun:
            yield f"  {state} --> [*]"
    yield "```"


def page() -> Iterator[str]:
    yield "<!-- Drawn by `make states` from the tables in services/*/*/domain.py. -->"
    yield "# States"
    yield ""
    yield "What may move an order, a ticket and a delivery; what is not drawn changes nothing, or is refused."
    orders = ((start, end, str(event)) for (start, event), end in order.domain.MOVES.items())
    yield from diagram("An order", order.domain.OrderState.PLACED, orders)
    tickets = ((start, end, "") for start, ends in kitchen.domain.MOVES.items() for end in sorted(ends))
    yield from diagram("A ticket, in the kitchen", kitchen.domain.TicketState.QUEUED, tickets)
    deliveries = ((start, end, "") for start, ends in delivery.domain.MOVES.items() for end in sorted(ends))
    yield from diagram("A delivery", delivery.domain.DeliveryState.SCHEDULED, deliveries)


if __name__ == "__main__":
    print(*page(), sep="\n")
