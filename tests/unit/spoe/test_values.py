from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcc.spoe.status import SpopError, Status
from hcc.spoe.values import FALSE, NULL, TRUE, Kind, Value, decode_string, decode_value, encode_string, encode_value

VALUES = st.one_of(
    st.sampled_from((NULL, TRUE, FALSE)),
    st.integers(-(2**31), 2**31 - 1).map(lambda number: Value(Kind.INT32, number)),
    st.integers(0, 2**32 - 1).map(lambda number: Value(Kind.UINT32, number)),
    st.integers(-(2**63), 2**63 - 1).map(lambda number: Value(Kind.INT64, number)),
    st.integers(0, 2**64 - 1).map(lambda number: Value(Kind.UINT64, number)),
    st.binary(min_size=4, max_size=4).map(lambda data: Value(Kind.IPV4, data)),
    st.binary(min_size=16, max_size=16).map(lambda data: Value(Kind.IPV6, data)),
    st.binary(max_size=300).map(lambda data: Value(Kind.STRING, data)),
    st.binary(max_size=300).map(lambda data: Value(Kind.BINARY, data)),
)


@given(VALUES, st.binary(max_size=3), st.binary(max_size=3))
def test_every_value_comes_back_and_stops_where_it_ends(value: Value, before: bytes, after: bytes) -> None:
    encoded = encode_value(value)
    assert decode_value(before + encoded + after, len(before)) == (value, len(before) + len(encoded))


@given(st.binary(min_size=1, max_size=40))
def test_bytes_that_decode_are_the_only_encoding_of_their_value(data: bytes) -> None:
    try:
        value, end = decode_value(data, 0)
    except SpopError:
        return
    assert encode_value(value) == data[:end]


@given(VALUES)
def test_a_value_cut_anywhere_is_invalid(value: Value) -> None:
    encoded = encode_value(value)
    for cut in range(len(encoded)):
        with pytest.raises(SpopError):
            decode_value(encoded[:cut], 0)


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (NULL, "00"),
        (FALSE, "01"),
        (TRUE, "11"),
        (Value(Kind.INT64, -1), "04fff0fefefefefefefe0e"),
        (Value(Kind.INT32, -1), "02fff0fefefefefefefe0e"),
        (Value(Kind.UINT32, 16380), "03fcf006"),
        (Value(Kind.IPV4, b"\x7f\x00\x00\x01"), "067f000001"),
        (Value(Kind.STRING, b"2.0"), "0803322e30"),
    ],
)
def test_known_values_have_their_known_bytes(value: Value, encoded: str) -> None:
    assert encode_value(value).hex() == encoded


@pytest.mark.parametrize(
    "encoded",
    [
        "0a",
        "0f00",
        "10",
        "21",
        "31",
        "1301",
        "18026161",
        "02ffffff",
        "02fff0fefe7e",
        "03fff1fefe7e",
        "09ff7f00",
        "0600",
    ],
)
def test_reserved_types_stray_flags_and_lengths_or_numbers_beyond_are_invalid(encoded: str) -> None:
    with pytest.raises(SpopError) as caught:
        decode_value(bytes.fromhex(encoded), 0)
    assert caught.value.status is Status.INVALID


@pytest.mark.parametrize(
    "value",
    [
        Value(Kind.NULL, 1),
        Value(Kind.BOOL, 1),
        Value(Kind.INT32, True),
        Value(Kind.UINT32, -1),
        Value(Kind.IPV4, b"\x01"),
        Value(Kind.STRING, None),
    ],
)
def test_data_that_does_not_fit_its_kind_is_not_encoded(value: Value) -> None:
    with pytest.raises(ValueError, match="expected data of kind"):
        encode_value(value)


@given(st.binary(max_size=300))
def test_a_bare_string_has_no_type(content: bytes) -> None:
    encoded = encode_string(content)
    assert decode_string(encoded, 0) == (content, len(encoded))
    assert encoded.endswith(content)
