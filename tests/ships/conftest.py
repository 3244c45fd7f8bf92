"""The overlays, each of which is held to the same rules."""

import pytest

from tests.ships.manifests import OVERLAYS, Rendered, render


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def shop(overlay: str) -> Rendered:
    """An overlay's objects."""
    return render(f"overlays/{overlay}")
