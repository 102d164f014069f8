"""A forward pass that fails is the misfortune of its requests; three in a row end the engine."""

import pytest

from edgeserve.engine.failures import Failures
from edgeserve.engine.protocol import EngineError


def test_three_in_a_row_are_the_end() -> None:
    failures = Failures()
    failures.add(1)
    failures.add(1)
    failures.in_a_row = 0
    failures.add(1)
    failures.add(-3)
    with pytest.raises(EngineError, match="3 forward passes failed in a row, the last with code -2"):
        failures.add(-2)
