"""Results that are remembered for each of many endpoints, until most of them are of endpoints that are gone.

Of ten thousand endpoints those that did not change are told by identity, so that what is made of one must be the same
object the next time. A limit alone, that the largest services need, would let every sidecar grow by 100 MB with the
endpoints that come and go in weeks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from functools import _lru_cache_wrapper

MOST = 65_536
# For each endpoint there are a few results, as its health changes. So many more are no reason to forget.
FEW = 8
SPARE = 4_096

P = ParamSpec("P")
T = TypeVar("T")
_caches: list[_lru_cache_wrapper[Any]] = []


def remembered(function: Callable[P, T]) -> Callable[P, T]:
    """The same function, which makes each result once; its arguments must be hashable."""
    cached = lru_cache(maxsize=MOST)(function)
    _caches.append(cached)
    return cached  # type: ignore[return-value] # the wrapper takes any arguments


def forget_gone(endpoints: int) -> None:
    """Forget everything where much more is remembered than so many endpoints need; all of it can be made anew."""
    for cache in _caches:
        if cache.cache_info().currsize > FEW * endpoints + SPARE:
            cache.cache_clear()
