from __future__ import annotations

from typing import Any

import pytest

from hcc.consul.errors import ConsulAnswerError
from hcc.consul.mesh_entry import mesh_entry
from hcc.mesh.request import CONSULS_DEFAULT, EscapedSlashes, Normalization, Underscores
from hcc.mesh.tls import MeshTls, TlsLimits, TlsVersion


def entry(**said: Any) -> list[dict[str, Any]]:
    return [
        {"Kind": "mesh", "HTTP": {"SanitizeXForwardedClientCert": False, "Incoming": {"RequestNormalization": said}}}
    ]


@pytest.mark.parametrize("data", [[], None, [{"Kind": "mesh"}], [{"Kind": "mesh", "HTTP": None}], entry()])
def test_without_a_word_consuls_default_counts(data: object) -> None:
    assert (
        mesh_entry(data).normalization
        == CONSULS_DEFAULT
        == Normalization(True, False, EscapedSlashes.KEEP, Underscores.ALLOW)
    )


def test_every_field_is_read() -> None:
    found = mesh_entry(
        entry(
            InsecureDisablePathNormalization=True,
            MergeSlashes=True,
            PathWithEscapedSlashesAction="UNESCAPE_AND_FORWARD",
            HeadersWithUnderscoresAction="DROP_HEADER",
        )
    ).normalization
    assert found == Normalization(False, True, EscapedSlashes.UNESCAPE, Underscores.DROP)


@pytest.mark.parametrize(
    ("word", "action"),
    [
        ("IMPLEMENTATION_SPECIFIC_DEFAULT", EscapedSlashes.KEEP),
        ("KEEP_UNCHANGED", EscapedSlashes.KEEP),
        ("REJECT_REQUEST", EscapedSlashes.REJECT),
        ("UNESCAPE_AND_REDIRECT", EscapedSlashes.REDIRECT),
        ("UNESCAPE_AND_FORWARD", EscapedSlashes.UNESCAPE),
        ("SOMETHING_NEWER", EscapedSlashes.REJECT),
    ],
)
def test_each_word_on_escaped_slashes_has_its_action_and_an_unknown_one_refuses(
    word: str, action: EscapedSlashes
) -> None:
    assert mesh_entry(entry(PathWithEscapedSlashesAction=word)).normalization.escaped_slashes is action


@pytest.mark.parametrize(
    ("word", "action"),
    [("ALLOW", Underscores.ALLOW), ("REJECT_REQUEST", Underscores.REJECT), ("NEWER", Underscores.REJECT)],
)
def test_each_word_on_underscores_has_its_action_and_an_unknown_one_refuses(word: str, action: Underscores) -> None:
    assert mesh_entry(entry(HeadersWithUnderscoresAction=word)).normalization.underscores is action


@pytest.mark.parametrize(
    "data",
    [
        {},
        [1],
        [{}],
        [{"Kind": "service-defaults"}],
        [{"Kind": "mesh", "TLS": []}],
        [{"Kind": "mesh", "TLS": {"Incoming": {"CipherSuites": [1]}}}],
        [{"Kind": "mesh", "HTTP": []}],
        entry(MergeSlashes="yes"),
        entry(PathWithEscapedSlashesAction=1),
        [{"Kind": "mesh", "HTTP": {"SanitizeXForwardedClientCert": "yes"}}],
    ],
)
def test_another_shape_is_an_error(data: object) -> None:
    with pytest.raises(ConsulAnswerError):
        mesh_entry(data)


def test_callers_are_told_to_the_application_unless_they_are_to_be_hidden() -> None:
    assert not mesh_entry([]).hides_callers
    assert not mesh_entry(entry()).hides_callers
    assert mesh_entry([{"Kind": "mesh", "HTTP": {"SanitizeXForwardedClientCert": True}}]).hides_callers


def test_without_a_word_tls_is_left_to_the_proxy() -> None:
    assert mesh_entry([]).tls == MeshTls()
    for said in (None, {"Incoming": {"TLSMinVersion": "TLS_AUTO"}, "Outgoing": None}):
        assert mesh_entry([{"Kind": "mesh", "TLS": said}]).tls == MeshTls()


def test_tls_is_read_for_both_directions() -> None:
    suite = "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"
    incoming = {"TLSMinVersion": "TLSv1_3"}
    outgoing = {"TLSMinVersion": "TLSv1_2", "TLSMaxVersion": "TLSv1_2", "CipherSuites": [suite]}
    found = mesh_entry([{"Kind": "mesh", "TLS": {"Incoming": incoming, "Outgoing": outgoing}}]).tls
    assert found.incoming == TlsLimits(TlsVersion.TLS_1_3)
    assert found.outgoing == TlsLimits(TlsVersion.TLS_1_2, TlsVersion.TLS_1_2, (suite,))


def test_a_lowest_version_that_is_not_known_is_the_highest_known() -> None:
    said = {"Incoming": {"TLSMinVersion": "TLSv1_4"}}
    assert mesh_entry([{"Kind": "mesh", "TLS": said}]).tls.incoming == TlsLimits(TlsVersion.TLS_1_3)
