"""The arguments that have a form of their own. What they may say is the shop's to judge; here only the form counts."""

import re

from pizza.order.v1.order_service_pb2 import Address, OrderLine

from pizza_cli.failure import MalformedError

# Nine digits fit the contract's int32; the shop's own limit is far below.
_ITEM = re.compile(r"(?P<sku>[^:\s]+)(:(?P<quantity>[1-9][0-9]{0,8}))?")


def item(argument: str) -> OrderLine:
    """Return the line that `SKU` (one of it) or `SKU:QUANTITY` asks for; raise MalformedError for any other form."""
    match = _ITEM.fullmatch(argument)
    if match is None:
        raise MalformedError(f"ITEM {argument!r} is not SKU or SKU:QUANTITY with a whole quantity from 1")
    return OrderLine(sku=match["sku"], quantity=int(match["quantity"] or 1))


def address(argument: str) -> Address:
    """Return the address of "street, city" or "street, city, postal code"; raise MalformedError for any other form."""
    parts = [part.strip() for part in argument.split(",")]
    if len(parts) not in (2, 3) or not all(parts):
        raise MalformedError(f'--to {argument!r} is not "street, city" or "street, city, postal code"')
    return Address(street=parts[0], city=parts[1], postal_code=parts[2] if len(parts) == 3 else "")
