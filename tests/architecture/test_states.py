"""The tables of states, and the page that is drawn from them."""

import subprocess
import sys
from collections.abc import Collection, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import delivery.domain
import kitchen.domain
import order.domain
import pytest

ROOT = Path(__file__).parents[2]
ORDERS: dict[StrEnum, set[StrEnum]] = {state: set() for state in order.domain.OrderState}
for (start, _), end in order.domain.MOVES.items():
    ORDERS[start].add(end)
TABLES: dict[str, tuple[StrEnum, Mapping[Any, Collection[Any]]]] = {
    "order": (order.domain.OrderState.PLACED, ORDERS),
    "ticket": (kitchen.domain.TicketState.QUEUED, kitchen.domain.MOVES),
    "delivery": (delivery.domain.DeliveryState.SCHEDULED, delivery.domain.MOVES),
}


def test_the_page_is_what_the_tables_say() -> None:
    """docs/states.md is what `make states` draws."""
    drawn = subprocess.run([sys.executable, "tools/states.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (ROOT / "docs/states.md").read_text() == drawn.stdout


@pytest.mark.parametrize("name", TABLES)
def test_every_state_leads_to_an_end(name: str) -> None:
    """Each state can be reached from the first, and from each an end can be reached."""
    first, moves = TABLES[name]
    assert reached(first, moves) == set(type(first))
    ends = {state for state in moves if not moves[state]}
    assert all(reached(state, moves) & ends for state in moves)
    if name == "order":
        assert ends == {state for state in order.domain.OrderState if state.last}


def reached(start: StrEnum, moves: Mapping[Any, Collection[Any]]) -> set[StrEnum]:
    found, new = {start}, [start]
    while new:
        ahead = set(moves[new.pop()]) - found
        found |= ahead
        new += ahead
    return found
