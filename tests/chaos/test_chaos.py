"""A short chaos run, and whether its checker would tell."""

import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from tests.chaos.checker import broken, read_books
from tests.chaos.isolation import measure
from tests.chaos.nemesis import plan
from tests.chaos.run import run
from tests.shop import Shop

# A database, what is done to it, and what the checker says of that.
_DOCTORED = [
    ("order", "delete from orders where state = 'DELIVERED'", "acknowledged and lost"),
    ("order", "update orders set order_id = 'stranger' where rowid = 1", "order that nobody asked for"),
    ("order", "update orders set state = 'READY' where state = 'DELIVERED'", "ended READY"),
    ("order", "update orders set state = 'CANCELLED' where state = 'DELIVERED'", "ended CANCELLED"),
    ("order", "update orders set lines = '[]'", "its lines is []"),
    ("order", "delete from order_changes where state = 'OUT_FOR_DELIVERY'", "may not go"),
    ("kitchen", "delete from tickets", "its ticket None"),
    ("kitchen", "update tickets set items = '[]'", "its ticket is for []"),
    (
        "kitchen",
        "insert into ticket_changes (ticket_id, state, update_time) select ticket_id, 'READY', 0 from tickets",
        "may not go",
    ),
    ("delivery", "delete from deliveries", "its delivery None"),
    ("delivery", "update deliveries set delivery_id = 'stranger' where rowid = 1", "delivery that nobody asked for"),
]


async def test_nothing_is_lost_nor_doubled_and_the_checker_would_tell(tmp_path: Path) -> None:
    """Kills lose and double nothing; whatever is doctored in a database or in the ledger afterwards is found."""
    shop = Shop(tmp_path, "processes", ORDER_CHECK_AFTER="3600")  # news alone must do
    result = await run(shop, seed=1, orders=60, kills=6)
    assert result.wrong == []
    assert re.match(r"SIGKILL 6 .*; SIGSTOP of 5 s 1 ", result.figures["struck"])

    for service, statement, complaint in _DOCTORED:
        copy = tmp_path / "doctored.db"
        shutil.copy(tmp_path / f"{service}.db", copy)
        with closing(sqlite3.connect(copy)) as database:
            assert database.execute(statement).rowcount > 0, statement
            database.commit()
        wrong = broken(result.ledger, read_books(shop.databases | {service: f"sqlite:///{copy}"}))
        assert any(complaint in line for line in wrong), statement

    books = read_books(shop.databases)
    watched = next(entry for entry in result.ledger.entries.values() if entry.watches)
    watched.watches[0].states.reverse()
    assert [line for line in broken(result.ledger, books) if line.startswith(f"{watched.order_id}: was seen as")]
    del result.ledger.entries[watched.order_id]
    assert f"{watched.order_id}: order that nobody asked for" in broken(result.ledger, books)


async def test_orders_go_on_with_kitchen_and_delivery_away(tmp_path: Path) -> None:
    """With both dead, and with both stopped, every call is answered, and what was placed is fulfilled afterwards."""
    phases = await measure(Shop(tmp_path, "processes"), calls=5)
    assert {phase: {method: len(seconds) for method, seconds in calls.items()} for phase, calls in phases.items()} == {
        phase: {"PlaceOrder": 5, "GetOrder": 5, "ListOrders": 5} for phase in ("healthy", "dead", "stopped")
    }


def test_a_seed_is_a_plan() -> None:
    """The same seed strikes the same at the same moments; another one does not."""
    assert plan(1, ["order", "kitchen"], 100, 10) == plan(1, ["kitchen", "order"], 100, 10)
    assert plan(1, ["order", "kitchen"], 100, 10) != plan(2, ["order", "kitchen"], 100, 10)
