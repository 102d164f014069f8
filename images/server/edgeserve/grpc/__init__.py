"""The gRPC interface, for images whose profile asks for it; its modules import grpcio, which other images lack."""

import os
from typing import Final

PROBES: Final = frozenset({"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"})

# Before grpcio is imported: its own library logs to standard error in a form of its own, what clients do wrong above all.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
