"""Delivery's settings, from the environment (DELIVERY_...), and its data, from fleet.toml."""

import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from grpcmesh import StartError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from delivery import domain

_DATA = Path(__file__).parent / "data" / "fleet.toml"


def _seconds(value: str | float | timedelta) -> timedelta:
    try:
        return value if isinstance(value, timedelta) else timedelta(seconds=float(value))
    except OverflowError as error:
        raise ValueError(str(error)) from error


Seconds = Annotated[timedelta, BeforeValidator(_seconds)]
"""The environment has a number of seconds."""


class Settings(BaseSettings):
    """What an operator may set, each by DELIVERY_ and its name in the environment."""

    model_config = SettingsConfigDict(env_prefix="DELIVERY_")

    listen: str | None = "127.0.0.1:8082"
    """host:port, or None where delivery is reached from its own process alone."""
    health_listen: str | None = None
    """host:port of one more port in plain text, for health checks alone."""
    database_url: str = "sqlite:///.data/delivery.db"
    fleet: Path = _DATA
    time_scale: PositiveFloat = 1.0
    """1.0 is real time."""
    feed_retention: Annotated[Seconds, Field(gt=timedelta())] = timedelta(days=7)
    """For so long the feed keeps every change; after that, each delivery's last one."""
    log_level: str = "INFO"


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid")
    couriers: PositiveInt
    trip_seconds: Annotated[float, Field(ge=0)]


def load_settings() -> Settings:
    """Raises StartError where the environment holds something that is no setting."""
    try:
        return Settings()
    except ValidationError as error:
        raise StartError(f"delivery settings: {_one_line(error)}") from error


def load_fleet(settings: Settings) -> domain.Fleet:
    """Raises StartError where the fleet's data cannot be read or makes no sense."""
    try:
        data = _Data.model_validate(tomllib.loads(settings.fleet.read_text()))
    except ValidationError as error:
        raise StartError(f"{settings.fleet}: {_one_line(error)}") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise StartError(f"{settings.fleet}: {error}") from error
    return domain.Fleet(data.couriers, data.trip_seconds, settings.time_scale)


def _one_line(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}".lstrip(": ") for fault in error.errors())
