"""The files beside haproxy.cfg that its text names."""

from __future__ import annotations

from pathlib import Path

from hcc.haproxy.files import read_text, remove, write_private
from hcc.haproxy.model import TicketKeys
from hcc.haproxy.render import SIDE_FILE, Rendered, SideFile


def write_side_files(rendered: Rendered) -> None:
    """Bring them on disk, before a text that names them."""
    for file in rendered.files:
        if read_text(file.path) != file.text:
            write_private(file.path, file.text)
    if rendered.desired.ticket_keys:
        write_ticket_keys(rendered.desired.ticket_keys)


def side_files_there(rendered: Rendered) -> tuple[SideFile, ...]:
    """Those that are on disk as they should be; none where the ticket keys are not, which are written with them."""
    keys = rendered.desired.ticket_keys
    if keys and read_text(keys.name) != keys.text.reveal():
        return ()
    return tuple(file for file in rendered.files if read_text(file.path) == file.text)


def write_ticket_keys(file: TicketKeys) -> None:
    """Bring them on disk, for the next start."""
    write_private(file.name, file.text.reveal())


def remove_old_side_files(rendered: Rendered) -> None:
    """Remove those of earlier texts, once nobody starts with these any more."""
    kept = {file.path for file in rendered.files}
    found = Path(rendered.desired.options.spoe_directory).glob(f"*{SIDE_FILE}")
    remove(*(str(path) for path in found if str(path) not in kept))
