from __future__ import annotations

from typing import Any

import pytest

from hcc.consul.errors import ConsulAnswerError
from hcc.consul.mesh_entry import normalization
from hcc.mesh.request import CONSULS_DEFAULT, EscapedSlashes, Normalization, Underscores


def entry(**said: Any) -> list[dict[str, Any]]:
    return [
        {"Kind": "mesh", "HTTP": {"SanitizeXForwardedClientCert": False, "Incoming": {"RequestNormalization": said}}}
    ]


@pytest.mark.parametrize(
    "data", [[], None, [{"Kind": "mesh"}], [{"HTTP": None}], [{"HTTP": {"Incoming": None}}], entry()]
)
def test_without_a_word_consuls_default_counts(data: object) -> None:
    assert normalization(data) == CONSULS_DEFAULT == Normalization(True, False, EscapedSlashes.KEEP, Underscores.ALLOW)


def test_every_field_is_read() -> None:
    found = normalization(
        entry(
            InsecureDisablePathNormalization=True,
            MergeSlashes=True,
            PathWithEscapedSlashesAction="UNESCAPE_AND_FORWARD",
            HeadersWithUnderscoresAction="DROP_HEADER",
        )
    )
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
    assert normalization(entry(PathWithEscapedSlashesAction=word)).escaped_slashes is action


@pytest.mark.parametrize(
    ("word", "action"),
    [("ALLOW", Underscores.ALLOW), ("REJECT_REQUEST", Underscores.REJECT), ("NEWER", Underscores.REJECT)],
)
def test_each_word_on_underscores_has_its_action_and_an_unknown_one_refuses(word: str, action: Underscores) -> None:
    assert normalization(entry(HeadersWithUnderscoresAction=word)).underscores is action


@pytest.mark.parametrize(
    "data", [{}, [1], [{"HTTP": []}], entry(MergeSlashes="yes"), entry(PathWithEscapedSlashesAction=1)]
)
def test_another_shape_is_an_error(data: object) -> None:
    with pytest.raises(ConsulAnswerError):
        normalization(data)
