"""What Prometheus reads at /metrics; imported only where it is on."""
