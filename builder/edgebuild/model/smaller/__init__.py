"""Making a checkpoint smaller before it is converted and quantised: pruning, and distilling what it forgot."""
