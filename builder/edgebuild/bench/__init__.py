"""What images measure of themselves: run where they run, kept, and compared."""
