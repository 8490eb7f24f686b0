"""A worker in a thread of the test, whose main process is a pipe: how long it goes on when that is gone."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hcc.mesh.intentions import Action, Intention, Policy
from hcc.spoe import worker
from hcc.spoe.channel import Channel
from hcc.spoe.control import MAX_ORDER_BYTES, ControlMessage, Topic
from hcc.spoe.counters import CounterMemory, CounterSlots
from hcc.spoe.listener import Listener
from hcc.spoe.policy_codec import encode_policy
from hcc.spoe.worker import Worker
from tests.haproxy_stage import wait_until
from tests.spoe_certificates import TRUST_DOMAIN

pytestmark = pytest.mark.integration

POLICY = Policy("server", TRUST_DOMAIN, (Intention("*", Action.ALLOW, 8),), False, 1)


@contextmanager
def serving(path: Path) -> Iterator[tuple[threading.Thread, Channel, int]]:
    """The worker's thread, our end of its control socket, and what is closed when the main process ends."""
    listener, memory = Listener(str(path)), CounterMemory(1)
    ours, theirs = socket.socketpair()
    gone, alive = os.pipe()
    channel = Channel(ours, MAX_ORDER_BYTES)
    made = Worker(listener.sock.dup(), (), theirs, CounterSlots(memory.fd, 0), gone)
    thread = threading.Thread(target=made.run, daemon=True)
    thread.start()
    try:
        yield thread, channel, alive
    finally:
        channel.close()
        thread.join(10)
        theirs.close()
        listener.close()
        os.close(gone)
        os.close(memory.fd)
        assert not thread.is_alive()


def test_a_worker_that_is_alone_goes_on_for_a_while_and_then_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "ALONE_S", 3.0)
    path = tmp_path / "w.sock"
    with serving(path) as (thread, channel, alive):
        channel.send(ControlMessage(Topic.POLICY, encode_policy(POLICY)))
        wait_until(lambda: any(one.topic is Topic.POLICY_APPLIED for one in channel.receive()), "the policy")
        os.close(alive)
        channel.close()
        thread.join(0.2)
        assert thread.is_alive()

        wait_until(lambda: not thread.is_alive(), "its end")
