from __future__ import annotations

import pytest

from hcc.haproxy.capabilities import (
    SINCE,
    Build,
    BuildTextError,
    Feature,
    HAProxyBuildError,
    Version,
    capabilities,
    capabilities_of,
    checked_build,
    parse_build,
)

DEBIAN = """HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/
Build options :
  OPTIONS = USE_PCRE2=1 USE_OPENSSL=1 USE_PROMEX=1

Feature list : -51DEGREES +EPOLL +OPENSSL +PROMEX -QUIC

Built with OpenSSL version : OpenSSL 3.0.22 25 Aug 2026
Running on OpenSSL version : OpenSSL 3.0.19 27 Jan 2026
Available services : prometheus-exporter
Available filters :
\t[CACHE] cache
\t[  OT] opentracing
\t[SPOE] spoe
"""
OLD = """HA-Proxy version 2.0.33 2023/02/14 - https://haproxy.org/
  OPTIONS = USE_LINUX_TPROXY=1 USE_OPENSSL=1 USE_LUA=1
Running on OpenSSL version : OpenSSL 1.1.1n
Available filters :
\t[SPOE] spoe
"""


def test_a_build_tells_version_library_and_features() -> None:
    build = checked_build(DEBIAN)
    assert build.version == Version(2, 6, 12)
    assert build.openssl == "OpenSSL 3.0.19 27 Jan 2026"
    assert "QUIC" not in build.features
    assert build.filters == {"CACHE", "OT", "SPOE"}
    assert build.label() == "HAProxy 2.6.12-1+deb12u4 (OpenSSL 3.0.19 27 Jan 2026)"


def test_a_build_without_a_feature_list_is_read_from_its_options() -> None:
    build = checked_build(OLD)
    assert build.version == Version(2, 0, 33)


def test_a_development_version_counts_as_its_branch() -> None:
    assert parse_build("HAProxy version 3.5-dev5-abc 2026/08/01 - x").version == Version(3, 5)


def test_everything_that_lacks_is_named_at_once() -> None:
    text = "HA-Proxy version 1.8.30 2021/04/12\n  OPTIONS = USE_LUA=1\n"
    with pytest.raises(HAProxyBuildError) as caught:
        checked_build(text)
    for phrase in ("1.8.30", "too old", "OpenSSL", "SPOE", "--haproxy"):
        assert phrase in str(caught.value)


def test_other_text_is_no_build() -> None:
    with pytest.raises(BuildTextError, match="found 'nginx version: 1'"):
        parse_build("nginx version: 1\n")


@pytest.mark.parametrize("feature", Feature)
def test_a_feature_is_there_from_its_first_version_on(feature: Feature) -> None:
    first = SINCE[feature]
    before = Version(first.major, first.minor - 1, 99)
    assert capabilities(first).has(feature)
    assert not capabilities(before).has(feature)
    assert capabilities(Version(9, 0)).has(feature)


def test_a_build_without_pcre_cannot_look_at_rules() -> None:
    for features, able in ((("PCRE2", "PCRE2_JIT"), True), (("PCRE",), True), (("OPENSSL",), False)):
        build = Build(Version(3, 2, 0), "3.2.0", "OpenSSL", frozenset(features), frozenset(("SPOE",)))
        assert capabilities_of(build).has(Feature.LOOKAHEAD) is able
