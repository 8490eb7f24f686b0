"""One end of a control socket: never blocks, keeps what the other end is slow to read."""

from __future__ import annotations

import socket
from collections import deque

from hcc.spoe.control import ControlMessage, ControlReader, Topic, encode_control

_RECEIVE_BYTES = 262_144
# Then others get their turn; what is left is reported again.
_READS_AT_ONCE = 16


class Channel:
    """Messages over a stream socket, both ways; the owner waits for readiness.

    Args:
        sock: connected; owned from now on.
        max_message_bytes: most that a message of the other end may have.
    """

    def __init__(self, sock: socket.socket, max_message_bytes: int) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._reader = ControlReader(max_message_bytes)
        self._waiting: deque[tuple[Topic, bytes]] = deque()
        # Bytes of the first waiting message that are already out.
        self._sent = 0
        self.waiting_bytes = 0
        self.ended = False

    def fileno(self) -> int:
        return self._sock.fileno()

    @property
    def receiving(self) -> bool:
        """Whether the beginning of a message has come, and not its end."""
        return self._reader.waits

    def send(self, sent: ControlMessage) -> None:
        """Send as much as goes out now; the rest waits for `flush`."""
        data = encode_control(sent)
        self._waiting.append((sent.topic, data))
        self.waiting_bytes += len(data)
        self.flush()

    def replace(self, sent: ControlMessage) -> None:
        """Send a message that makes waiting ones about the same topic pointless."""
        begun = [self._waiting.popleft()] if self._sent else []
        self._waiting = deque(begun + [entry for entry in self._waiting if entry[0] is not sent.topic])
        self.waiting_bytes = sum(len(data) for _, data in self._waiting) - self._sent
        self.send(sent)

    def flush(self) -> None:
        """Send what waits, as far as the other end takes it now; a broken socket ends the channel."""
        while self._waiting and not self.ended:
            data = self._waiting[0][1]
            try:
                count = self._sock.send(memoryview(data)[self._sent :])
            except BlockingIOError:
                return
            except OSError:
                self.ended = True
                return
            self._sent += count
            self.waiting_bytes -= count
            if self._sent == len(data):
                self._waiting.popleft()
                self._sent = 0

    def receive(self) -> list[ControlMessage]:
        """Messages that have come; `ended` is set at the end of the stream.

        Raises:
            ControlMessageError: the other end sent nonsense.
        """
        received: list[ControlMessage] = []
        for _ in range(_READS_AT_ONCE):
            if self.ended:
                break
            try:
                data = self._sock.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            self.ended = not data
            received += self._reader.receive_data(data)
        return received

    def leave(self) -> None:
        """Say nothing any more, and leave the socket open: the other end sees the end of our process, not before."""
        self.ended = True
        self._sock.detach()

    def close(self) -> None:
        """Close the socket; the other end sees the end of the stream."""
        self.ended = True
        self._waiting.clear()
        self.waiting_bytes = 0
        self._sock.close()
