"""The contract's values as text for people."""

from datetime import UTC

from google.protobuf.timestamp_pb2 import Timestamp
from google.type.money_pb2 import Money
from pizza.order.v1.order_service_pb2 import Address, OrderState

NANOS = 10**9


def printable(text: str) -> str:
    """Return `text` on one line and without control characters: what others wrote must not steer this terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def money(amount: Money) -> str:
    """Return the exact amount and its currency, with two decimals or as many more as it takes: "12.50 USD"."""
    total = amount.units * NANOS + amount.nanos
    units, nanos = divmod(abs(total), NANOS)
    decimals = f"{nanos:09d}".rstrip("0").ljust(2, "0")
    return f"{'-' if total < 0 else ''}{units}.{decimals} {amount.currency_code}"


def state_name(state: int) -> str:
    """Return a state's name less its prefix, or its number where the shop knows states that this client does not."""
    value = OrderState.DESCRIPTOR.values_by_number.get(state)
    return value.name.removeprefix("ORDER_STATE_") if value else str(state)


def local_time(time: Timestamp) -> str:
    """Return a time in this computer's zone, to the second: "2026-01-31 18:00:00"."""
    return time.ToDatetime(UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def address(to: Address) -> str:
    """Return an address in the form that `--to` takes."""
    return ", ".join(filter(None, (to.street, to.city, to.postal_code)))
