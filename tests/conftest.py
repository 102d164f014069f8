"""Configuration of the whole test suite."""

pytest_plugins = ("tests.support.fixtures", "tests.support.built")
