"""Protocol buffers of edgebuild."""
