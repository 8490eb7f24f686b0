from __future__ import annotations

from pathlib import Path

import pytest

from hcc.haproxy.capabilities import (
    NEWEST,
    SINCE,
    Build,
    BuildTextError,
    Feature,
    HAProxyBuildError,
    Version,
    capabilities,
    capabilities_of,
    checked_build,
    is_newer_than_known,
    parse_build,
)

CAPTURED = Path(__file__).parent / "captured"
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


def captured(branch: str) -> str:
    """What `haproxy -vv` of the tested build of that branch said, without the machine it ran on."""
    return (CAPTURED / f"haproxy-{branch}-vv.txt").read_text()


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


@pytest.mark.parametrize(
    ("branch", "version", "openssl"),
    [
        ("2.2", Version(2, 2, 9), "OpenSSL 1.1.1w  11 Sep 2023"),
        ("2.6", Version(2, 6, 12), "OpenSSL 3.0.20 7 Apr 2026"),
        ("2.8", Version(2, 8, 25), "OpenSSL 3.0.15 3 Sep 2024"),
        ("3.0", Version(3, 0, 11), "OpenSSL 3.5.9 29 Sep 2026"),
        ("3.2", Version(3, 2, 26), "OpenSSL 3.6.5 29 Sep 2026"),
        ("3.4", Version(3, 4, 7), "OpenSSL 3.6.5 29 Sep 2026"),
    ],
)
def test_what_each_haproxy_that_is_tested_says_of_itself_is_understood(
    branch: str, version: Version, openssl: str
) -> None:
    build = checked_build(captured(branch))
    assert (build.version, build.openssl) == (version, openssl)
    assert {"OPENSSL", "THREAD"} <= build.features
    assert "SPOE" in build.filters
    assert not is_newer_than_known(build.version)


def test_everything_that_lacks_is_named_at_once_with_what_to_do() -> None:
    text = "HA-Proxy version 1.8.30 2021/04/12\n  OPTIONS = USE_LUA=1\n"
    with pytest.raises(HAProxyBuildError) as caught:
        checked_build(text)
    for phrase in ("1.8.30", "too old", "master socket (-S)", "HTTP/2", "OpenSSL", "SPOE", "apt-get", "--haproxy"):
        assert phrase in str(caught.value)
    assert "(-W)" not in str(caught.value)


@pytest.mark.parametrize(
    ("cut", "named"),
    [
        (("+OPENSSL ", "-OPENSSL "), "found 3.4.7-1, built without OpenSSL (USE_OPENSSL);"),
        (("[SPOE] spoe", ""), "found 3.4.7-1, built without the SPOE filter;"),
    ],
)
def test_a_build_that_lacks_one_thing_is_told_just_that(cut: tuple[str, str], named: str) -> None:
    text = captured("3.4")
    assert cut[0] in text
    with pytest.raises(HAProxyBuildError) as caught:
        checked_build(text.replace(*cut))
    assert named in str(caught.value)


def test_a_version_after_the_newest_is_known_to_be_unknown_and_can_what_the_newest_can() -> None:
    newer = Version(NEWEST.major, NEWEST.minor + 1)
    assert is_newer_than_known(newer)
    assert is_newer_than_known(Version(NEWEST.major + 1, 0))
    assert all(capabilities(newer).has(feature) for feature in Feature)


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


@pytest.mark.parametrize(
    ("version", "fits"),
    [
        ("2.8.0", True),
        ("2.8.30-1~bpo12+1", True),
        ("2.8-dev3-01ab23", True),
        ("of nobody's", True),
        ("2.7.9", False),
        ("2.9.1", False),
        ("3.2.26-1", False),
        ("3.4.7-1", False),
    ],
)
def test_one_version_fits_another_that_can_do_the_same(version: str, fits: bool) -> None:
    assert capabilities(Version(2, 8, 25)).fit(version) is fits


def test_a_version_fits_one_of_another_branch_that_can_do_the_same() -> None:
    assert capabilities(Version(2, 9, 1)).fit("3.0.11")


def test_a_build_without_pcre_cannot_look_at_rules() -> None:
    able_ones = (("PCRE2", "PCRE2_JIT"), ("PCRE",), ("STATIC_PCRE2", "OPENSSL"), ("STATIC_PCRE",))
    for features, able in (*((each, True) for each in able_ones), (("OPENSSL",), False)):
        build = Build(Version(3, 2, 0), "3.2.0", "OpenSSL", frozenset(features), frozenset(("SPOE",)))
        assert capabilities_of(build).has(Feature.LOOKAHEAD) is able
        assert capabilities_of(build).has(Feature.MATCH_LIMIT) is able


@pytest.mark.parametrize(("branch", "able"), [("2.6", True), ("2.8", False)])
def test_an_old_pcre_cannot_be_told_how_much_to_try(branch: str, able: bool) -> None:
    found = capabilities_of(checked_build(captured(branch)))
    assert found.has(Feature.MATCH_LIMIT) is able
    assert found.has(Feature.LOOKAHEAD)
