"""Large bodies made of repeatable bytes, and their hashes, without holding them in memory."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from functools import cache

BLOCK = 1 << 16


@cache
def _block() -> bytes:
    return random.Random(20261122).randbytes(BLOCK)


def chunks(size: int) -> Iterator[bytes]:
    """`size` bytes in pieces, no two alike, so that a lost, doubled or swapped one shows in the hash."""
    for start in range(0, size, BLOCK):
        piece = start.to_bytes(8, "big") + _block()[8:]
        yield piece[: size - start]


@cache
def digest(size: int) -> str:
    """SHA-256 of `chunks(size)` in hex."""
    total = hashlib.sha256()
    for piece in chunks(size):
        total.update(piece)
    return total.hexdigest()
