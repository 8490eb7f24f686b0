"""Why a thing failed, as classes, split by whose fault it is.

Every package adds a few classes below these roots. A bug of ours is none of them: it crashes its actor.
"""


class HccError(Exception):
    """Something went wrong that a person can act on; its text says what was expected and what was found."""


class SettingError(HccError):
    """The operator gave a flag, a variable or a file that cannot be used."""


class PeerError(HccError):
    """Another program (Consul, HAProxy, the Data Plane API) answered something that cannot be used."""
