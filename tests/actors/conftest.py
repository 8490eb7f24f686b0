"""A tree of probes that is gone when the test is."""

from collections.abc import Iterator

import pytest

from tests.actors.stage import Stage, Theatre


@pytest.fixture
def theatre() -> Iterator[Theatre]:
    theatre = Theatre(Stage())
    try:
        yield theatre
    finally:
        theatre.close()
