"""`edgeserve bench`: how fast this device serves this model, through the same scheduler and engine as its clients."""
