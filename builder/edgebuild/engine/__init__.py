"""Engines: ways to run recipes and put an image together."""
