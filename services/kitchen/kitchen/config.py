"""The kitchen's settings, from the environment (KITCHEN_...), and its data, from recipes.toml."""

import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from grpcmesh import StartError
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from kitchen import domain

_DATA = Path(__file__).parent / "data" / "recipes.toml"


def _seconds(value: str | float | timedelta) -> timedelta:
    try:
        return value if isinstance(value, timedelta) else timedelta(seconds=float(value))
    except OverflowError as error:
        raise ValueError(str(error)) from error


Seconds = Annotated[timedelta, BeforeValidator(_seconds)]
"""The environment has a number of seconds."""


class Settings(BaseSettings):
    """What an operator may set, each by KITCHEN_ and its name in the environment."""

    model_config = SettingsConfigDict(env_prefix="KITCHEN_")

    listen: str | None = "127.0.0.1:8081"
    """host:port, or None where the kitchen is reached from its own process alone."""
    health_listen: str | None = None
    """host:port of one more port in plain text, for health checks alone."""
    database_url: str = "sqlite:///.data/kitchen.db"
    recipes: Path = _DATA
    time_scale: PositiveFloat = 1.0
    """1.0 is real time."""
    feed_retention: Annotated[Seconds, Field(gt=timedelta())] = timedelta(days=7)
    """For so long the feed keeps every change; after that, each ticket's last one."""
    log_level: str = "INFO"


class _Step(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    station: str
    seconds: Annotated[float, Field(ge=0)]


class _Recipe(BaseModel):
    model_config = ConfigDict(extra="forbid")
    steps: Annotated[list[_Step], Field(min_length=1)]


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid")
    stations: Annotated[dict[str, PositiveInt], Field(min_length=1)]
    recipes: Annotated[dict[str, _Recipe], Field(min_length=1)]

    @model_validator(mode="after")
    def _stations_exist(self) -> "_Data":
        for sku, recipe in self.recipes.items():
            for step in recipe.steps:
                if step.station not in self.stations:
                    raise ValueError(f"recipe {sku!r} wants a station {step.station!r} that is not among the stations")
        return self


def load_settings() -> Settings:
    """Raises StartError where the environment holds something that is no setting."""
    try:
        return Settings()
    except ValidationError as error:
        raise StartError(f"kitchen settings: {_one_line(error)}") from error


def load_kitchen(settings: Settings) -> domain.Kitchen:
    """Raises StartError where the recipes cannot be read or make no sense."""
    try:
        data = _Data.model_validate(tomllib.loads(settings.recipes.read_text()))
    except ValidationError as error:
        raise StartError(f"{settings.recipes}: {_one_line(error)}") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise StartError(f"{settings.recipes}: {error}") from error
    recipes = {
        sku: tuple(domain.Step(step.name, step.station, step.seconds) for step in recipe.steps)
        for sku, recipe in data.recipes.items()
    }
    return domain.Kitchen(data.stations, recipes, settings.time_scale)


def _one_line(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}".lstrip(": ") for fault in error.errors())
