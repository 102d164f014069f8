"""Content-addressed store, downloads pinned by hash, and the runner of recipes."""
