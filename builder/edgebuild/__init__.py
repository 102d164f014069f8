"""edgebuild: from a device profile and a language model to a signed image that answers prompts on the device."""

__version__ = "0.1.0"
