"""The files beside haproxy.cfg that its text names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hcc.haproxy.files import read_text, remove, write_private
from hcc.haproxy.model import TicketKeys
from hcc.haproxy.render import SIDE_FILE, Rendered
from hcc.mesh.secret import Secret


def write_side_files(rendered: Rendered) -> None:
    """Bring them on disk, before a text that names them."""
    for file in rendered.files:
        if read_text(file.path) != file.text:
            write_private(file.path, file.text)
    if rendered.desired.ticket_keys:
        write_ticket_keys(rendered.desired.ticket_keys)


def stored_digest(file: TicketKeys | None) -> str:
    """`TicketKeys.digest` of those on disk; empty when there are none."""
    text = read_text(file.name) if file else None
    return "" if file is None or text is None else replace(file, keys=tuple(map(Secret, text.splitlines()))).digest


def write_ticket_keys(file: TicketKeys) -> None:
    """Bring them on disk, for the next start."""
    write_private(file.name, file.text.reveal())


def remove_old_side_files(rendered: Rendered) -> None:
    """Remove those of earlier texts, once nobody starts with these any more."""
    kept = {file.path for file in rendered.files}
    found = Path(rendered.desired.options.state_directory).glob(f"*{SIDE_FILE}")
    remove(*(str(path) for path in found if str(path) not in kept))
