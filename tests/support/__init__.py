"""What the tests stand on: real peers, a registry with faults, fixtures."""
