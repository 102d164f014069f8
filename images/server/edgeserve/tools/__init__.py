"""Calls of functions by the model: how its template spells them, the grammar that they follow, and their reading."""
