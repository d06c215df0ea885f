"""What the tests of reliability share."""

import jaxtyping
import pytest


@pytest.fixture
def unchecked():
    """As for a user: without the type checks that only tests have."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
