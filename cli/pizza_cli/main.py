"""The commands of `pizza`."""

import getpass
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import typer
from pizza.order.v1 import order_service_pb2 as contract

from pizza_cli import arguments, trace
from pizza_cli.failure import CommandError, MalformedError, NotDeliveredError
from pizza_cli.shop import Shop
from pizza_cli.show import Json, People, Show

EXIT_STATUSES = """Exit statuses:

0  done

1  refused by the shop

2  wrong usage

3  the shop is not reachable, or gave no answer in time

4  the watched order ended CANCELLED or FAILED
"""

app = typer.Typer(no_args_is_help=True, add_completion=False, epilog=EXIT_STATUSES)


@dataclass(frozen=True)
class Settings:
    """The global options."""

    target: str
    show: Show


def os_user() -> str:
    """Return the name of the operating system's user, or "guest" where it has none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # the last two before Python 3.13
        return "guest"


OrderId = Annotated[str, typer.Argument(metavar="ORDER_ID", help="The order's id.", show_default=False)]
Customer = Annotated[
    str,
    typer.Option(envvar="PIZZA_CUSTOMER", default_factory=os_user, show_default="the OS user", help="Who orders."),
]
Patience = Annotated[
    float, typer.Option(min=0.1, max=86_400, metavar="SECONDS", help="How long to keep watching without any answer.")
]


@app.callback()
def pizza(
    context: typer.Context,
    target: Annotated[
        str, typer.Option(envvar="PIZZA_TARGET", help="The order service, as a gRPC target.")
    ] = "localhost:8080",
    json: Annotated[bool, typer.Option("--json", help="Answer JSON, for scripts.")] = False,
) -> None:
    """Order from the pizza shop and follow what becomes of it."""
    context.obj = Settings(target, Json() if json else People())


@app.command()
def menu(context: typer.Context) -> None:
    """Show what can be ordered."""
    with _shop(context) as (shop, show):
        show.menu(shop.menu())


@app.command()
def order(
    context: typer.Context,
    items: Annotated[
        list[str], typer.Argument(metavar="ITEM", help="SKU, or SKU:QUANTITY for more than one.", show_default=False)
    ],
    to: Annotated[str, typer.Option(help='"street, city" or "street, city, postal code".', show_default=False)],
    customer: Customer,
    order_id: Annotated[
        str | None,
        typer.Option(metavar="UUID", help="The order's id; to repeat an order safely, give the same. New if left out."),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Then follow the order as `watch` does.")] = False,
    patience: Patience = 60,
) -> None:
    """Place an order."""
    with _shop(context) as (shop, show):
        placed = shop.place(
            contract.PlaceOrderRequest(
                order_id=order_id or str(uuid.uuid4()),
                customer_id=customer,
                lines=[arguments.item(item) for item in items],
                address=arguments.address(to),
            )
        )
        if not watch:
            show.order(placed)
        else:
            _follow(shop, show, placed.order_id, patience, placed)


@app.command()
def status(context: typer.Context, order_id: OrderId) -> None:
    """Show an order as it now stands."""
    with _shop(context) as (shop, show):
        show.order(shop.order(order_id))


@app.command("list")
def list_orders(
    context: typer.Context,
    customer: Customer,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many. All if left out.")] = None,
) -> None:
    """List a customer's orders, newest first."""
    with _shop(context) as (shop, show):
        show.orders(shop.orders(customer, limit))


@app.command()
def watch(context: typer.Context, order_id: OrderId, patience: Patience = 60) -> None:
    """Follow an order until it is delivered, cancelled or failed."""
    with _shop(context) as (shop, show):
        _follow(shop, show, order_id, patience)


@app.command()
def cancel(context: typer.Context, order_id: OrderId) -> None:
    """Ask for an order to be cancelled."""
    with _shop(context) as (shop, show):
        show.order(shop.cancel(order_id))


@app.command("trace")
def show_trace(
    context: typer.Context,
    order_id: OrderId,
    jaeger: Annotated[str, typer.Option(envvar="PIZZA_JAEGER", help="Jaeger's address.")] = "http://localhost:16686",
    link: Annotated[bool, typer.Option("--open", help="Then say where Jaeger shows it in a browser.")] = False,
) -> None:
    """Show where an order's time went, from Jaeger."""
    with _failures():
        found = trace.find(jaeger, order_id)
        context.obj.show.trace(found)
        if link:
            print(f"{jaeger}/trace/{found.id}")


def _follow(
    shop: Shop, show: Show, order_id: str, patience_seconds: float, first: contract.Order | None = None
) -> None:
    with show.progress(first) as step:
        for order in shop.watch(order_id, patience_seconds, first):
            step(order)
            if order.state in (contract.ORDER_STATE_CANCELLED, contract.ORDER_STATE_FAILED):
                raise NotDeliveredError(order)


@contextmanager
def _shop(context: typer.Context) -> Iterator[tuple[Shop, Show]]:
    """Open the shop for a command."""
    settings: Settings = context.obj
    with _failures(), Shop(settings.target) as shop:
        yield shop, settings.show


@contextmanager
def _failures() -> Iterator[None]:
    """Turn a command's failure into one line on stderr and the exit status that is its own."""
    try:
        yield
    except CommandError as failure:
        raise _told(failure) from None
    except UnicodeEncodeError:
        raise _told(MalformedError("text that is not Unicode, or that this terminal cannot write")) from None


def _told(failure: CommandError) -> typer.Exit:
    typer.echo(f"error: {failure}", err=True)
    return typer.Exit(failure.exit_status)
