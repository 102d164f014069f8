"""Real peers for the tests: registries, daemons and tools of others, pinned by sha256 in `peers.toml`."""
