"""What an operator may set stands in the READMEs, all of it and nothing else."""

import re
from pathlib import Path

import delivery.config
import kitchen.config
import order.config
import pytest
from pydantic_settings import BaseSettings

ROOT = Path(__file__).parents[2]
SETTINGS: dict[str, type[BaseSettings]] = {
    "order": order.config.Settings,
    "kitchen": kitchen.config.Settings,
    "delivery": delivery.config.Settings,
}


@pytest.mark.parametrize("service", SETTINGS)
def test_each_setting_of_a_service_stands_in_its_readme(service: str) -> None:
    """The table names the variables that the settings read."""
    read = {f"{service}_{field}".upper() for field in SETTINGS[service].model_fields}
    assert variables(ROOT / "services" / service / "README.md", service.upper()) == read


def test_each_variable_of_the_mesh_stands_in_its_readme() -> None:
    """The table names the MESH_ variables that the library reads."""
    read = set()
    for path in (ROOT / "libs/grpcmesh/grpcmesh").rglob("*.py"):
        read |= set(re.findall(r'"(MESH_\w+)"', path.read_text()))
    assert read
    assert variables(ROOT / "libs/grpcmesh/README.md", "MESH") == read


def variables(page: Path, prefix: str) -> set[str]:
    """Those in the first column of a page's tables."""
    firsts = [line.split("|")[1] for line in page.read_text().splitlines() if line.startswith("|")]
    return {name for first in firsts for name in re.findall(rf"`({prefix}_\w+)`", first)}
