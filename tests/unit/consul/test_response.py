from __future__ import annotations

import pytest

from hcc.consul.errors import (
    ConsulAnswerError,
    ConsulCutOffError,
    ConsulNotFoundError,
    ConsulPermissionError,
    ConsulStatusError,
)
from hcc.consul.response import Result, result_of, status_error


def test_the_headers_that_matter_are_read() -> None:
    headers = {
        "X-Consul-Index": "42",
        "X-Consul-ContentHash": "abc",
        "X-Consul-Results-Filtered-By-ACLs": "true",
        "X-Consul-Default-ACL-Policy": "deny",
    }
    assert result_of("/v1/x", headers, b"[1]") == Result([1], 42, "abc", True, "deny")


def test_missing_and_odd_headers_are_nothing() -> None:
    assert result_of("/v1/x", {}, b"null") == Result(None)
    for odd in ("x", "-1", "1.5", "\u00b2", "\u0663", "", "9" * 5000):
        assert result_of("/v1/x", {"X-Consul-Index": odd}, b"").index == 0


@pytest.mark.parametrize("body", [b"<html>", b'{"a":', b"\xff\xfe", b"[" * 200_000])
def test_what_is_not_json_is_an_answer_error(body: bytes) -> None:
    with pytest.raises(ConsulAnswerError, match="/v1/x: expected JSON"):
        result_of("/v1/x", {}, body)


def test_a_refusal_names_the_missing_right() -> None:
    error = status_error(403, "GET /v1/agent/connect/ca/leaf/web", "Permission denied: token lacks", {})
    assert isinstance(error, ConsulPermissionError)
    assert "service:write" in str(error)


def test_a_refusal_of_an_agent_that_cannot_ask_about_the_token_is_no_matter_of_rights() -> None:
    said = "Permission denied: token with AccessorID 'primary-dc-down' lacks permission 'service:read' on \"web\""
    error = status_error(403, "GET /v1/agent/service/web", said, {})
    assert type(error) is ConsulCutOffError
    assert ("lost Consul's servers" in str(error), "give it" in str(error)) == (True, False)


def test_an_unknown_token_is_said_to_be_one() -> None:
    assert "does not know this token" in str(status_error(403, "GET /v1/agent/self", "ACL not found", {}))


def test_a_refusal_elsewhere_points_to_consul_s_own_words() -> None:
    assert "names" in str(status_error(403, "GET /v1/other", "Permission denied", {}))


@pytest.mark.parametrize(
    ("request_", "says"), [("GET /v1/agent/service/web-proxy", True), ("PUT /v1/agent/service/deregister/web", False)]
)
def test_a_proxy_that_is_gone_may_have_another_id_now(request_: str, *, says: bool) -> None:
    error = status_error(404, request_, "unknown service ID: web-proxy", {})
    assert isinstance(error, ConsulNotFoundError)
    assert ("started again" in str(error)) is says


def test_not_found_and_other_statuses_are_told_apart() -> None:
    assert isinstance(status_error(404, "GET /v1/x", "unknown service ID: x", {}), ConsulNotFoundError)
    error = status_error(429, "GET /v1/x", "slow\ndown", {"Retry-After": "7"})
    assert type(error) is ConsulStatusError
    assert (error.code, error.retry_after_s) == (429, 7)
    assert "slow down" in str(error)


def test_an_agent_without_a_connection_left_is_said_to_need_more() -> None:
    said = "Your IP is issuing too many concurrent connections, please rate limit your calls\n"
    assert "raise limits.http_max_conns_per_client" in str(status_error(429, "GET /v1/agent/services", said, {}))
    assert "raise" not in str(status_error(429, "GET /v1/x", "rate limit exceeded", {}))


def test_a_long_error_text_is_cut() -> None:
    assert len(str(status_error(500, "GET /v1/x", "x" * 10_000, {}))) < 300
