"""What edgebuild takes in time, memory and bytes, beside the peers' figures of the same run; see README.md."""
