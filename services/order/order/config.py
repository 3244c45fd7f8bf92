"""The order service's settings, from the environment (ORDER_...), and its menu, from menu.toml."""

import tomllib
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated

from grpcmesh import StartError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from order import domain

_DATA = Path(__file__).parent / "data" / "menu.toml"


def _seconds(value: str | float | timedelta) -> timedelta:
    try:
        return value if isinstance(value, timedelta) else timedelta(seconds=float(value))
    except OverflowError as error:
        raise ValueError(str(error)) from error


Seconds = Annotated[timedelta, BeforeValidator(_seconds)]
"""The environment has a number of seconds."""


class Settings(BaseSettings):
    """What an operator may set, each by ORDER_ and its name in the environment."""

    model_config = SettingsConfigDict(env_prefix="ORDER_")

    listen: str = "127.0.0.1:8080"
    """host:port. Everyone may call here, with or without a certificate."""
    tls: bool = False
    """Whether the port above speaks TLS, where there are certificates; plain text otherwise."""
    health_listen: str | None = None
    """host:port of one more port in plain text, for health checks alone."""
    database_url: str = "sqlite:///.data/order.db"
    menu: Path = _DATA
    kitchen_target: str | None = None
    """Where the kitchen is, as gRPC names targets: "dns:///kitchen:8081". None where it is in the same process."""
    delivery_target: str | None = None
    """The same for delivery."""
    hold: Annotated[Seconds, Field(ge=timedelta())] = timedelta()
    """For second thoughts: so long an order waits before it goes to the kitchen, and is cancelled at once."""
    check_after: Annotated[Seconds, Field(gt=timedelta())] = timedelta(minutes=1)
    """Without news of an order, after which the kitchen or delivery is asked for them."""
    give_up_after: Annotated[Seconds, Field(gt=timedelta())] = timedelta(hours=1)
    """For so long an order's step may come to a fault each time, before the order is set aside as FAILED."""
    log_level: str = "INFO"


class _Item(BaseModel):
    model_config = ConfigDict(extra="forbid")
    sku: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-z][a-z0-9-]*$")]  # as the contract has it
    name: Annotated[str, Field(min_length=1)]
    price: Annotated[Decimal, Field(ge=0, decimal_places=9)]


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid")
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")]
    items: Annotated[list[_Item], Field(min_length=1)]

    @model_validator(mode="after")
    def _each_sku_once(self) -> "_Data":
        skus = [item.sku for item in self.items]
        for sku in set(skus):
            if skus.count(sku) > 1:
                raise ValueError(f"{sku!r} stands on the menu twice")
        return self


def load_settings() -> Settings:
    """Raises StartError where the environment holds something that is no setting."""
    try:
        return Settings()
    except ValidationError as error:
        raise StartError(f"order settings: {_one_line(error)}") from error


def load_menu(settings: Settings) -> domain.Menu:
    """Raises StartError where the menu cannot be read or makes no sense."""
    try:
        data = _Data.model_validate(tomllib.loads(settings.menu.read_text(), parse_float=Decimal))
    except ValidationError as error:
        raise StartError(f"{settings.menu}: {_one_line(error)}") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise StartError(f"{settings.menu}: {error}") from error
    items = tuple(domain.MenuItem(item.sku, item.name, _money(data.currency, item.price)) for item in data.items)
    return domain.Menu(items)


def _money(currency: str, price: Decimal) -> domain.Money:
    units = int(price)
    return domain.Money(currency, units, int((price - units) * 1_000_000_000))


def _one_line(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}".lstrip(": ") for fault in error.errors())
