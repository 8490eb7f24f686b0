"""Faults that other tests inject: rows of docs/faults.md without load, each with the test that shows it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reference:
    """One row: a test, by what its node ID begins with."""

    injected: str
    promised: str
    test: str


_CLIENT = "tests/integration/test_consul_client.py::"
_WATCH = "tests/integration/test_consul_watch.py::"
_FAULTS = "tests/e2e/test_faults.py::"
_DRAIN = "tests/e2e/test_drain.py::"

REFERENCES = (
    Reference(
        "agent with ACLs, default deny; the token replaced in its file and the old one deleted",
        "default deny is kept; a change arrives with the new token",
        "tests/e2e/test_acl.py::test_without_an_intention_nobody_is_let_in_and_with_one_the_caller_is",
    ),
    Reference(
        "a refused token, a new one in the file",
        "read again and tried at once, without a signal",
        _WATCH + "test_a_refused_token_is_read_again_and_a_new_one_tried_at_once",
    ),
    Reference(
        "permission lost: Consul filters a list to nothing",
        "a refusal, not news: nothing is taken away",
        _WATCH + "test_an_empty_list_that_acls_made_is_a_refusal_and_no_news",
    ),
    Reference(
        "agent by TLS that demands a client certificate",
        "reached, and a held query can be broken off",
        _CLIENT + "test_tls_with_certificates_both_ways_reaches_the_agent_and_can_be_broken_off",
    ),
    Reference(
        "agent with ACLs and no plain HTTP: HTTPS with verify_incoming, or a unix socket",
        "a mesh stands on it",
        "tests/e2e/test_agent_addresses.py::"
        "test_a_mesh_stands_on_an_agent_reached_by_mutual_tls_and_by_its_unix_socket",
    ),
    Reference("an index that goes back", "dropped, asked anew", _WATCH + "test_an_index_that_goes_back_is_dropped"),
    Reference(
        "SIGKILL of the leader of three servers, under load",
        "no request lost, what Consul said last stays; a change arrives after the election",
        "tests/e2e/test_leader.py::test_a_lost_leader_costs_no_request_and_the_next_one_s_changes_arrive",
    ),
    Reference(
        "start with the agent down",
        "serves from the last answers, marked stale, until Consul confirms them",
        _FAULTS + "test_with_the_agent_down_hcc_starts_from_its_last_answers_and_says_that_they_are_stale",
    ),
    Reference(
        "all SPOE workers killed while an intention denies",
        "nobody is let in who is denied",
        _FAULTS + "test_all_spoe_workers_killed_at_once_come_back",
    ),
    Reference(
        "the disk is full while an intention denies; SIGKILL of the HAProxy worker",
        "denied at once, and by the next HAProxy; written once there is room",
        _FAULTS + "test_on_a_full_disk_a_denial_is_enforced_and_kept_when_haproxy_is_killed",
    ),
    Reference(
        "HAProxy's sockets, or the whole state directory, removed while an intention changes",
        "not ready until HAProxy is started again, within some 10 s; then the denial is enforced",
        _FAULTS + "test_a_denial_is_enforced_although_somebody_removed_haproxys_sockets_or_all_of_its_directory",
    ),
    Reference(
        "the port of one upstream taken while HAProxy is down",
        "that upstream alone is missing until the port is free",
        _FAULTS + "test_a_port_that_somebody_takes_while_haproxy_is_down_costs_that_upstream_alone",
    ),
    Reference(
        "SIGSTOP of the HAProxy worker, SIGKILL of its master",
        "the worker is ended, too, so that it keeps no share of the ports",
        "tests/integration/test_haproxy_process.py::test_a_worker_that_hangs_does_not_outlive_its_master",
    ),
    Reference(
        "SIGSTOP of hcc and HAProxy of an upstream's instance, which Consul goes on to call healthy",
        "left out after some seconds, and back when it answers; no reload",
        "tests/e2e/test_discovery.py::test_an_instance_that_hangs_is_left_out_until_it_answers_again_without_a_reload",
    ),
    Reference(
        "host names of instances without an answer",
        "nobody else is held up; they come when they have one",
        _WATCH + "test_names_without_an_answer_hold_up_nobody_else_and_come_when_they_have_one",
    ),
    Reference(
        "SIGTERM during a reload",
        "what the new worker opened is closed as well",
        _DRAIN + "test_a_drain_closes_what_the_reload_under_way_has_opened",
    ),
    Reference(
        "SIGTERM after a reload, with a tcp connection of before it",
        "it goes on, and the application's upstreams with it",
        _DRAIN + "test_who_came_before_a_reload_is_served_with_the_help_of_upstreams_while_it_drains",
    ),
    Reference(
        "SIGTERM of one of two instances under load",
        "no request lost, those that still need an upstream included; exit 0, nothing left",
        _DRAIN + "test_sigterm_under_load_costs_no_request_where_there_is_another_instance",
    ),
    Reference(
        "SIGTERM with a request in flight",
        "finished; exit 0, nothing left",
        _FAULTS + "test_sigterm_under_load_finishes_what_is_in_flight_exits_0_and_leaves_nothing",
    ),
)
