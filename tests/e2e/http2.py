"""HTTP/2 in clear text with prior knowledge, both sides, over the library h2."""

from __future__ import annotations

import hashlib
import socket
import socketserver
from dataclasses import dataclass, field

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)

BLOCK = 1 << 16
Headers = list[tuple[str, str]]


@dataclass
class Answer:
    """One response: status 0 until its head came."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    ended: bool = False
    reset: bool = False


class Http2Client:
    """One connection on a connected socket; streams are used one after the other or several at once."""

    def __init__(self, sock: socket.socket, authority: str) -> None:
        self._sock = sock
        self._authority = authority
        self._h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self._answers: dict[int, Answer] = {}
        self._closed = False
        self._h2.initiate_connection()
        self._flush()

    def get(self, *paths: str) -> list[Answer]:
        """The answers to these paths, all asked at once on one connection."""
        return self._exchange([("GET", path, b"") for path in paths])

    def put(self, path: str, body: bytes) -> Answer:
        """The answer to a body of at most 16 KiB (one frame, so that no window is waited for)."""
        return self._exchange([("PUT", path, body)])[0]

    def close(self) -> None:
        self._sock.close()

    def _exchange(self, requests: list[tuple[str, str, bytes]]) -> list[Answer]:
        streams = [self._ask(*request) for request in requests]
        self._flush()
        while not all(self._answers[stream].ended or self._answers[stream].reset for stream in streams):
            if self._closed:
                raise ConnectionError("the connection ended before the answer")
            self._receive()
        return [self._answers.pop(stream) for stream in streams]

    def _ask(self, method: str, path: str, body: bytes) -> int:
        stream = self._h2.get_next_available_stream_id()
        head = [(":method", method), (":path", path), (":scheme", "http"), (":authority", self._authority)]
        self._h2.send_headers(stream, head, end_stream=not body)
        if body:
            self._h2.send_data(stream, body, end_stream=True)
        self._answers[stream] = Answer()
        return stream

    def _receive(self) -> None:
        data = self._sock.recv(BLOCK)
        if not data:
            self._closed = True
            return
        for event in self._h2.receive_data(data):
            self._take(event)
        self._flush()

    def _take(self, event: Event) -> None:
        if isinstance(event, ConnectionTerminated):
            self._closed = True
        elif isinstance(event, ResponseReceived):
            headers = {str(name): str(value) for name, value in event.headers}
            answer = self._answers[event.stream_id]
            answer.status, answer.headers = int(headers[":status"]), headers
        elif isinstance(event, DataReceived):
            self._answers[event.stream_id].body += event.data
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, StreamEnded):
            self._answers[event.stream_id].ended = True
        elif isinstance(event, StreamReset):
            self._answers[event.stream_id].reset = True

    def _flush(self) -> None:
        self._sock.sendall(self._h2.data_to_send())


class Http2App(socketserver.BaseRequestHandler):
    """GET anything says the instance's name; PUT gives the body's hash. Speaks nothing but HTTP/2."""

    def __init__(self, name: str, *args: object) -> None:
        self._name = name
        self._bodies: dict[int, bytes] = {}
        self._methods: dict[int, str] = {}
        super().__init__(*args)  # type: ignore[arg-type]  # socketserver's own three arguments, passed on

    def handle(self) -> None:
        self._h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self._h2.initiate_connection()
        self.request.sendall(self._h2.data_to_send())
        while data := self.request.recv(BLOCK):
            for event in self._h2.receive_data(data):
                self._take(event)
            self.request.sendall(self._h2.data_to_send())

    def _take(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            self._methods[event.stream_id] = dict(event.headers)[":method"]  # type: ignore[assignment,index]  # utf-8
            self._bodies[event.stream_id] = b""
        elif isinstance(event, DataReceived):
            self._bodies[event.stream_id] += event.data
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, StreamEnded):
            self._answer(event.stream_id)

    def _answer(self, stream: int) -> None:
        method, body = self._methods.pop(stream), self._bodies.pop(stream)
        text = self._name if method == "GET" else hashlib.sha256(body).hexdigest()
        head: Headers = [(":status", "200"), ("x-app", self._name)]
        self._h2.send_headers(stream, head)
        self._h2.send_data(stream, f"{text}\n".encode(), end_stream=True)
