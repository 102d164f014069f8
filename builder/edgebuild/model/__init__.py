"""Models: resolve, size, quantise."""
