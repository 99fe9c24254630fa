"""One process for all tests of this folder that start trainings."""

import pytest

from tests.faults.servers import Server


@pytest.fixture(scope="session")
def server():
    started = Server()
    yield started
    started.close()
