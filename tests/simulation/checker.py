"""What must hold once faults have ended and all had time to end."""

from collections.abc import Iterable, Iterator
from itertools import pairwise

from order.domain import Order, OrderState, Preparation, Transport

from tests.simulation.shop import NO_RECIPE, NO_ROAD, Customer, Shop

# The life of an order as the contract tells it.
_MOVES = {
    OrderState.PLACED: {"PREPARING", "CANCELLING", "CANCELLED", "FAILED"},
    OrderState.PREPARING: {"READY", "CANCELLING"},
    OrderState.READY: {"OUT_FOR_DELIVERY", "CANCELLING", "FAILED"},
    OrderState.OUT_FOR_DELIVERY: {"DELIVERED"},
    OrderState.CANCELLING: {"CANCELLED", "OUT_FOR_DELIVERY"},
}
# Where databases are lost, a check finds an order further than the last news did, or not at all.
_MOVES_BY_CHECKS = {
    OrderState.PLACED: {"READY"},
    OrderState.READY: {"DELIVERED"},
    OrderState.OUT_FOR_DELIVERY: {"FAILED"},
    OrderState.CANCELLING: {"DELIVERED", "FAILED"},
}
# What ticket and delivery may be at the end of an order; what a lost database knew is free of this.
_TICKETS: dict[OrderState, set[Preparation | None]] = {
    OrderState.DELIVERED: {Preparation.READY},
    # Nobody asked the kitchen, or it refuses; in time; or it was made already and stays in the shop.
    OrderState.CANCELLED: {None, Preparation.CANCELLED, Preparation.READY},
    # The kitchen refuses; or it was made, and delivery refuses.
    OrderState.FAILED: {None, Preparation.READY},
}
_DELIVERIES: dict[OrderState, set[Transport | None]] = {
    OrderState.DELIVERED: {Transport.DELIVERED},
    OrderState.CANCELLED: {None, Transport.CANCELLED},
    OrderState.FAILED: {None},
}


def settled(shop: Shop) -> bool:
    """Whether all orders, tickets and deliveries have ended, and the last news of them is read."""
    tokens = shop.database.tokens()
    return all(order.state.last for order in shop.database.orders().values()) and all(
        provider.read_to_its_end(tokens.get(provider.name, "")) and provider.last >= {*provider.things.values()}
        for provider in (shop.kitchen, shop.delivery)
    )


def broken(shop: Shop, customers: Iterable[Customer]) -> Iterator[str]:
    """The promises that are broken, in words.

    That an order has at most one ticket and one delivery follows from the key, which is the order's: so here it is that
    each of them belongs to an order.
    """
    orders, tokens, lives = shop.database.orders(), shop.database.tokens(), shop.database.lives()
    placed = {customer.order_id: customer for customer in customers}
    for order_id, customer in placed.items():
        if customer.acknowledged and order_id not in orders:
            yield f"{order_id} was acknowledged and is not stored"
    for provider in (shop.kitchen, shop.delivery):
        if not provider.read_to_its_end(tokens.get(provider.name, "")):
            yield f"the feed of {provider.name} is not read to its end"
        for order_id, progress in provider.things.items():
            if order_id not in orders:
                yield f"{provider.name} has {order_id}, which is no order"
            if progress not in provider.last:
                yield f"{provider.name} has {order_id} {progress} for ever"
    for order_id, order in orders.items():
        if order_id not in placed:
            yield f"{order_id} was never placed"
            continue
        yield from _false_moves(order_id, lives[order_id], shop)
        if lives[order_id][-1] is not order.state:
            yield f"{order_id} is {order.state}, and its watchers were told {lives[order_id]}"
        ticket, delivery = shop.kitchen.things.get(order_id), shop.delivery.things.get(order_id)
        for fault in _faults(order, placed[order_id], shop):
            yield f"{order_id} {fault}: {order.state}, step {order.step}, ticket {ticket}, delivery {delivery}"


def _false_moves(order_id: str, life: list[OrderState], shop: Shop) -> Iterator[str]:
    for before, after in pairwise(life):
        checks = _MOVES_BY_CHECKS.get(before, ()) if shop.world.loses_databases else ()
        if after not in _MOVES.get(before, ()) and after not in checks:
            yield f"{order_id} went from {before} to {after}"


def _faults(order: Order, customer: Customer, shop: Shop) -> Iterator[str]:
    order_id, state, kitchen, delivery = order.order_id, order.state, shop.kitchen, shop.delivery
    if not state.last:
        yield "has not ended"
        return
    impossible = customer.sku == NO_RECIPE or customer.city == NO_ROAD
    if state is OrderState.CANCELLED and not customer.cancels:
        yield "was cancelled by nobody"
    if state is OrderState.FAILED and not impossible and order_id not in delivery.lost:
        yield "failed without a reason"
    if state is OrderState.DELIVERED and impossible:
        yield "was delivered, which cannot be"
    if order_id not in kitchen.lost and kitchen.things.get(order_id) not in _TICKETS[state]:
        yield "has a ticket that does not fit"
    if order_id not in delivery.lost and delivery.things.get(order_id) not in _DELIVERIES[state]:
        yield "has a delivery that does not fit"
