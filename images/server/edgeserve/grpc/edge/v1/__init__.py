"""Version 1 of the interface: `inference.proto`, and what protoc makes of it (see docs/grpc.md)."""
