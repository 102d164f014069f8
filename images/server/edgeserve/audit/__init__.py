"""The audit log: who asked what and what became of it, chained and signed; imported only where it is on. See docs/audit.md."""
