"""The contract's values as text."""

import pytest
from google.type.money_pb2 import Money
from pizza_cli import text


@pytest.mark.parametrize(
    ("units", "nanos", "shown"),
    [
        (12, 0, "12.00 USD"),
        (12, 500_000_000, "12.50 USD"),
        (0, 50_000_000, "0.05 USD"),
        (0, 1, "0.000000001 USD"),
        (-1, -750_000_000, "-1.75 USD"),
        (0, -500_000_000, "-0.50 USD"),
        (9_007_199_254_740_993, 10_000_000, "9007199254740993.01 USD"),
    ],
)
def test_money_is_exact(units: int, nanos: int, shown: str) -> None:
    """An amount is shown to its last digit, with at least two decimals; also one that no float can hold."""
    assert text.money(Money(currency_code="USD", units=units, nanos=nanos)) == shown


def test_printable() -> None:
    """Control characters and line breaks in the shop's texts become blanks."""
    assert text.printable("a\x1b[2Jb\nc") == "a [2Jb c"


def test_unknown_states_have_a_number() -> None:
    """A state that a newer shop knows and this client does not is shown by its number."""
    assert text.state_name(1) == "PLACED"
    assert text.state_name(99) == "99"
