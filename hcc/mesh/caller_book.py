"""Who has called and may call: certificates by digest, and a verdict for each service among them.

The book decides; putting its words into HAProxy is left to others (`hcc.haproxy.caller_maps`). It reads no clock.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from hcc.mesh.caller import Remembered, caller_key, caller_name, parse_remembered
from hcc.mesh.identity import ServiceIdentity
from hcc.mesh.judgement import Judgement

# About 4 MB in HAProxy's memory. One more, and the one known longest has to be asked about again.
MAX_REMEMBERED = 10_000
# Connections that came before their caller had a server line of its own.
MAX_PEERS = 4_096


class CallerBook:
    """Changes as certificates are met, expire, or are too many; one owner.

    Args:
        most: certificates remembered.
    """

    def __init__(self, most: int = MAX_REMEMBERED) -> None:
        # Oldest first, as dicts keep their order.
        self._remembered: dict[str, Remembered] = {}
        self._certificates: dict[str, int] = {}
        self._identities: dict[str, ServiceIdentity] = {}
        self._peers: dict[str, str] = {}
        self._news: dict[str, str | None] = {}
        # What was judged last, and what it says of those that are here.
        self._judgement: Judgement | None = None
        self._verdicts: dict[str, str] = {}
        self._most = most

    def __contains__(self, digest: str) -> bool:
        """Whether that certificate is remembered."""
        return digest in self._remembered

    def __len__(self) -> int:
        """How many certificates are."""
        return len(self._remembered)

    @property
    def callers(self) -> tuple[str, ...]:
        """Keys of the services that have a certificate here."""
        return tuple(self._identities)

    def identities(self, but: Collection[str] = ()) -> dict[str, str]:
        """The map of identities: digest, and what it stands for; without those of callers of some names."""
        return {digest: one.text() for digest, one in self._remembered.items() if not (but and _is_of(one, but))}

    def take_news(self, but: Collection[str] = ()) -> dict[str, str | None]:
        """What changed in the map of identities since the last call: an entry's text, or None where it went.

        Args:
            but: names of callers whose new certificates are left for a later call.
        """
        news, left = self._news, set[str]()
        if but:
            left = {digest for digest in news if (one := self._remembered.get(digest)) and _is_of(one, but)}
        self._news = {digest: news[digest] for digest in news if digest in left}
        return {digest: text for digest, text in news.items() if digest not in left}

    def verdicts(self, judgement: Judgement) -> dict[str, str]:
        """The map of verdicts: by the caller's key; while it is the same judgement, only who is new is judged."""
        if judgement is not self._judgement:
            self._judgement, self._verdicts = judgement, {}
        for key, identity in self._identities.items():
            if key not in self._verdicts:
                self._verdicts[key] = judgement.word_on(identity)
        return dict(self._verdicts)

    def remember(self, digest: str, caller: Remembered) -> None:
        """Note one more certificate; the oldest goes when there are too many."""
        if digest in self._remembered:
            return
        key = caller_key(caller.identity)
        self._remembered[digest] = caller
        self._news[digest] = caller.text()
        self._identities.setdefault(key, caller.identity)
        self._certificates[key] = self._certificates.get(key, 0) + 1
        if len(self._remembered) > self._most:
            self._forget(next(iter(self._remembered)))

    def forget_expired(self, now_s: float) -> bool:
        """Whether certificates were forgotten that are not valid any more."""
        expired = [digest for digest, one in self._remembered.items() if one.expires_s <= now_s]
        for digest in expired:
            self._forget(digest)
        return bool(expired)

    def keep_only(self, trust_domain: str) -> bool:
        """Whether certificates of another trust domain were forgotten."""
        others = [digest for digest, one in self._remembered.items() if one.identity.trust_domain != trust_domain]
        for digest in others:
            self._forget(digest)
        return bool(others)

    def restore(self, entries: Mapping[str, str]) -> None:
        """Take over what a map of identities says; entries that are not ours are left out."""
        for digest, text in entries.items():
            caller = parse_remembered(text)
            if caller is not None:
                self.remember(digest, caller)

    def note_peer(self, peer: str, caller: str) -> None:
        """Note where a connection of a caller comes from; the oldest note goes when there are too many."""
        self._peers.pop(peer, None)
        self._peers[peer] = caller
        if len(self._peers) > MAX_PEERS:
            del self._peers[next(iter(self._peers))]

    def owner(self, peer: str) -> str | None:
        """Whose connection comes from there; None when that was not noted."""
        return self._peers.get(peer)

    def _forget(self, digest: str) -> None:
        key = caller_key(self._remembered.pop(digest).identity)
        self._news[digest] = None
        self._certificates[key] -= 1
        if not self._certificates[key]:
            del self._certificates[key], self._identities[key]
            self._verdicts.pop(key, None)


def _is_of(one: Remembered, names: Collection[str]) -> bool:
    return caller_name(one.identity) in names
