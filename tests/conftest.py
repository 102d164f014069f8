"""Configuration of the whole test suite."""

import signal
import sys

import pytest

# Modules are imported from the store's trees too, where a file more is damage that makes the tree anew.
sys.dont_write_bytecode = True

pytest_plugins = (
    "tests.support.fixtures",
    "tests.support.built",
    "tests.support.bench",
    "tests.support.small_disk",
    "tests.support.llama",
    "tests.support.openai_client",
    "tests.support.torch",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what several test modules ask for."""
    parser.addoption(
        "--update-golden", action="store_true", help="write golden files anew instead of comparing"
    )


def pytest_configure() -> None:
    """Take SIGINT even where the run was started in the background, whose children inherit that it is ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
