"""What must hold once faults have ended and all had time to end."""

from collections.abc import Iterable, Iterator

from order.domain import Order, OrderState, Preparation, Transport

from tests.simulation.shop import NO_RECIPE, NO_ROAD, Customer, Shop

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
    database = shop.database
    return all(order.state.last for order in database.orders.values()) and all(
        provider.read_to_its_end(database.tokens.get(provider.name, ""))
        and provider.last >= {*provider.things.values()}
        for provider in (shop.kitchen, shop.delivery)
    )


def broken(shop: Shop, customers: Iterable[Customer]) -> Iterator[str]:
    """The promises that are broken, in words.

    That an order has at most one ticket and one delivery follows from the key, which is the order's: so here it is that
    each of them belongs to an order.
    """
    orders, placed = shop.database.orders, {customer.order_id: customer for customer in customers}
    for order_id, customer in placed.items():
        if customer.acknowledged and order_id not in orders:
            yield f"{order_id} was acknowledged and is not stored"
    for provider in (shop.kitchen, shop.delivery):
        if not provider.read_to_its_end(shop.database.tokens.get(provider.name, "")):
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
        ticket, delivery = shop.kitchen.things.get(order_id), shop.delivery.things.get(order_id)
        for fault in _faults(order, placed[order_id], shop):
            yield f"{order_id} {fault}: {order.state}, step {order.step}, ticket {ticket}, delivery {delivery}"


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
