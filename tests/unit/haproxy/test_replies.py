from __future__ import annotations

import pytest

from hcc.haproxy.model import Server, TicketKeys
from hcc.haproxy.replies import (
    Activity,
    Message,
    ReplyError,
    alerts,
    count_streams,
    parse_activity,
    parse_backends,
    parse_ca_file,
    parse_certificate,
    parse_info,
    parse_processes,
    parse_reload,
    parse_servers,
    parse_session_counts,
    parse_ticket_keys,
)
from hcc.mesh.secret import Secret

# As printed by 2.6.12 and 2.8.25.
INFO = """Name: HAProxy
Version: 2.6.12-1+deb12u4
Pid: 16941
Uptime: 0d 0h00m00s
Uptime_sec: 3
Stopping: 0
description: hcc:0123456789abcdef
"""
COLUMNS = (
    "# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight "
    "srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state "
    "srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord"
)
SERVERS = f"""1
{COLUMNS}
3 up:web:9191 1 127.0.0.1:8000 127.0.0.1 2 0 3 3 1 1 0 2 0 0 0 0 - 8000 -
3 up:web:9191 2 ::1:8000 ::1 0 5 7 3 1 1 0 0 8 0 0 0 - 8000 -
4 app 1 app - 2 0 1 1 1 1 0 2 0 0 0 0 - 0 -

"""
CERTIFICATE = """Filename: /run/leaf.pem
Status: Used
Serial: 62F8E8F7B406D0EB98BEB032D25D0467B59C16F0
SHA1 FingerPrint: BA4229A4369FB7D2C1FD76608FCC5A456C3B8B82
"""
NOT_FOUND = "Can't display the certificate: Not found or the certificate is a bundle!\n\n"
PROC = """#<PID>          <type>          <reloads>       <uptime>        <version>
16938           master          2 [failed: 1]   0d00h00m02s     2.6.12-1+deb12u4
# workers
17317           worker          0               0d00h00m00s     2.6.12-1+deb12u4
# old workers
16941           worker          1               0d00h00m05s     2.6.12-1+deb12u4
# programs

"""


def test_info_tells_what_runs() -> None:
    info = parse_info(INFO)
    assert (info.version, info.pid, info.structure, info.stopping) == (
        "2.6.12-1+deb12u4",
        16941,
        "0123456789abcdef",
        False,
    )


def test_a_process_that_is_not_ours_has_no_structure() -> None:
    assert parse_info(INFO.replace("description: hcc:", "description: x:")).structure == ""
    assert parse_info(INFO.replace("description", "node")).structure == ""


def test_servers_are_grouped_by_backend() -> None:
    assert parse_servers(SERVERS) == (
        ("app", (Server("app", "", 0, 1, enabled=True),)),
        (
            "up:web:9191",
            (
                Server("127.0.0.1:8000", "127.0.0.1", 8000, 3, enabled=True),
                Server("::1:8000", "::1", 8000, 7, enabled=False),
            ),
        ),
    )


def test_backends_are_listed() -> None:
    assert parse_backends("# name\nup:web:9191\napp\n\n") == ("app", "up:web:9191")


def test_fingerprints_are_found() -> None:
    assert parse_certificate(CERTIFICATE) == "BA4229A4369FB7D2C1FD76608FCC5A456C3B8B82"
    twice = CERTIFICATE + "Certificate #2:\nSHA1 FingerPrint: " + "a" * 40 + "\n"
    assert parse_ca_file(twice) == frozenset(("BA4229A4369FB7D2C1FD76608FCC5A456C3B8B82", "A" * 40))


def test_sessions_are_told_by_server() -> None:
    text = "# pxname,svname,qcur,qmax,scur,smax,\nup:web:1:to,s1,0,0,3,4,\nup:web:1:to,s2,0,0,0,0,\n\n"
    assert parse_session_counts(text) == {"s1": 3, "s2": 0}
    with pytest.raises(ReplyError, match="show stat"):
        parse_session_counts("No such proxy.\n")


def test_a_file_that_is_not_loaded_is_none() -> None:
    assert parse_certificate(NOT_FOUND) is None
    assert parse_ca_file("Can't display the CA file : Not found!\n") is None


FAILED_2_2 = """#<PID>          <type>          <relative PID>  <reloads>       <uptime>        <version>
12417           master          0               2               0d00h00m02s     2.2.9-2+deb11u6
# workers
# old workers
12300           worker          [was: 1]        4               0d00h00m09s     2.2.9-2+deb11u6
12419           worker          [was: 1]        2               0d00h00m02s     2.2.9-2+deb11u6
# programs
"""


def test_before_2_5_processes_have_one_more_column() -> None:
    found = parse_processes(FAILED_2_2)
    assert (found.reloads, found.failed) == (2, 0)
    # After a failed reload the worker that serves counts as old.
    assert (found.current, found.serving) == (0, 12419)


UPGRADED = """#<PID>          <type>          <reloads>       <uptime>        <version>
22943           master          0 [failed: 0]   0d00h00m10s     2.6.12-1+deb12u3
# workers
23164           worker          0               0d00h00m05s     2.6.12-1+deb12u3
22946           worker          0               0d00h00m10s     2.2.9-2+deb11u6
# programs
"""
SWAPPED = "\n".join(UPGRADED.splitlines()[line] for line in (0, 1, 2, 4, 3, 5))


@pytest.mark.parametrize("text", [UPGRADED, SWAPPED])
def test_a_worker_of_another_version_than_its_master_is_of_before(text: str) -> None:
    found = parse_processes(text)
    assert found.current == 23164
    assert [worker.pid for worker in found.workers if not worker.current] == [22946]


def test_processes_are_told_apart() -> None:
    found = parse_processes(PROC)
    assert (found.reloads, found.failed, found.current) == (2, 1, 17317)
    assert [worker.pid for worker in found.workers if not worker.current] == [16941]


def test_the_outcome_of_a_reload_is_read_where_it_is_told() -> None:
    assert parse_reload("").success is None
    assert parse_reload("Success=1\n--\n[NOTICE] x\n").success is True
    assert parse_reload("Success=0\n--\nAnother reload is still in progress.\n").busy
    answer = parse_reload("Success=0\n--\n[ALERT] y\n")
    assert not answer.busy
    assert (answer.success, answer.log) == (False, "[ALERT] y")


@pytest.mark.parametrize(
    "parse",
    [parse_info, parse_servers, parse_backends, parse_certificate, parse_ca_file, parse_processes, parse_reload],
)
@pytest.mark.parametrize("text", ["Unknown command: 'x', but maybe one of the following ones is a better match:", "1"])
def test_another_answer_is_an_error_that_shows_it(parse: object, text: str) -> None:
    assert callable(parse)
    with pytest.raises(ReplyError, match=text.partition(":")[0]):
        parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[ALERT]    (26211) : config : parsing [t.cfg:2] : parsing [t.cfg:2] : 'stats socket' : too long",
            Message("'stats socket' : too long", 2),
        ),
        (
            "[ALERT]    (1) : config : [h.cfg:24] : 'server up/x' : Couldn't open the ca-file '/x'.",
            Message("'server up/x' : Couldn't open the ca-file '/x'.", 24),
        ),
        (
            "[ALERT]    (1) : Starting frontend up:web:9191: cannot bind socket (Address already in use) [127.0.0.1:9]",
            Message("Starting frontend up:web:9191: cannot bind socket (Address already in use) [127.0.0.1:9]"),
        ),
    ],
)
def test_an_alert_is_read_with_its_line(text: str, message: Message) -> None:
    noise = "[NOTICE] (1) : hi\n[WARNING] (1) : config : parsing [x:1] : no\n"
    end = "\n[ALERT] (1) : config : Fatal errors found in configuration.\n"
    assert alerts(noise + text + end) == (message,)


STAT_COLUMNS = "# pxname,svname,qcur,qmax,scur,smax,slim,stot,\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{STAT_COLUMNS}app,BACKEND,0,0,3,3,1000,7,\n\n", {"app": Activity(3, 7)}),
        (f"{STAT_COLUMNS}app,BACKEND,2,2,3,3,1000,7,\n\n", {"app": Activity(5, 7)}),
        (f"{STAT_COLUMNS}app,BACKEND,,,0,3,1000,7,\n\n", {"app": Activity(0, 7)}),
        (
            f"{STAT_COLUMNS}app,BACKEND,0,0,1,3,1000,7,\nup:web:9191:to,BACKEND,0,0,0,3,1000,9,\n\n",
            {"app": Activity(1, 7), "up:web:9191:to": Activity(0, 9)},
        ),
        (f"{STAT_COLUMNS}\n", {}),
        ("", {}),
    ],
)
def test_what_backends_do_is_counted(text: str, expected: dict[str, Activity]) -> None:
    assert parse_activity(text) == expected


@pytest.mark.parametrize("text", ["nonsense\n", "a,b,c,d,e,f\n", "a,b,c,d,e,f,g,h\n"])
def test_what_is_no_line_of_statistics_is_an_error(text: str) -> None:
    with pytest.raises(ReplyError, match="statistics"):
        parse_activity(text)


def test_streams_of_a_backend_are_counted() -> None:
    # As printed by 2.2.9 in a worker that stops, shortened.
    text = """\
0x5618bf2c51b0: proto=tcpv4 src=127.0.0.1:59398 fe=public be=app srv=app ts=00 age=0s calls=2 exp=4s
0x5618bf2c51c0: proto=tcpv4 src=127.0.0.1:59399 fe=public be=app srv=<none> ts=00 age=0s calls=2 exp=4s
0x5618bf2c51d0: proto=tcpv4 src=127.0.0.1:59400 fe=up:app:9191 be=up:app:9191:to srv=1 ts=00 age=0s calls=2 exp=4s
0x5618bf2d4570: proto=sockpair src=unix:2 fe=GLOBAL be=<NONE> srv=<none> ts=00 age=0s calls=1 exp=

"""
    assert count_streams(text, "app") == 2
    assert count_streams("\n", "app") == 0


def test_ticket_keys_are_known_by_a_digest() -> None:
    # As printed by 2.8.25.
    keys = ["a" * 64, "b" * 63 + "+", "c" * 64]
    text = "# id secret\n# 0 (/run/hcc/tickets.keys)\n" + "".join(f"0.{n} {key}\n" for n, key in enumerate(keys)) + "\n"
    assert parse_ticket_keys(text) == TicketKeys("any", tuple(map(Secret, keys))).digest
    assert parse_ticket_keys("# id (file)\n") == ""
    assert parse_ticket_keys("'show tls-keys' unable to locate referenced filename\n") == ""
