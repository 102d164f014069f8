"""Why a peer cannot be had."""


class PeerUnavailableError(Exception):
    """A peer could not be fetched, unpacked or started; the message says why and what to do."""
