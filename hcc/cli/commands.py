"""The entry points: `hcc COMMAND ...` and `haproxy-consul-connect -flag ...`.

Exit codes: 0 done, 1 failed (the reason is one line on stderr), 2 wrong flag or value; `hcc explain` has more.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import cast

from hcc.cli import (
    actors,
    arguments,
    completion,
    doctor,
    explain,
    go_flags,
    instance,
    log_level,
    restart,
    review,
    run,
    settings,
    status,
    troubleshoot,
)
from hcc.errors import HccError, SettingError
from hcc.version import VERSION

DONE, FAILED, WRONG_USE = 0, 1, 2
# As a shell tells of who died of SIGINT.
INTERRUPTED = 130
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# And what else it may lack, or cannot do just now.
_LACKS = (*_FULL, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EROFS)
_NO_THREAD = "can't start new thread"

# As `hcc --help` shows them.
GROUPS = {
    "run a sidecar": (run, doctor, settings),
    "ask a running sidecar": (status, explain, actors, troubleshoot, review),
    "tell a running sidecar": (restart, log_level),
    "help": (completion,),
}
COMMANDS = {title: [command for module in those for command in module.COMMANDS] for title, those in GROUPS.items()}


def main(words: Sequence[str] | None = None) -> int:
    """Run `hcc` with `words` (default: the process's own); the exit code."""
    return _guarded("hcc", lambda: _command(sys.argv[1:] if words is None else words))


def main_go(words: Sequence[str] | None = None) -> int:
    """Run `haproxy-consul-connect`, the Go program's command; the exit code."""
    return _guarded("haproxy-consul-connect", lambda: _go_command(sys.argv[1:] if words is None else words))


def _guarded(program: str, command: Callable[[], int]) -> int:
    _open_missing_streams()
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        # A name of Consul's that the terminal has no letters for is still better shown than a traceback.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            return command()
        finally:
            # At exit nobody would hear of what cannot be written; also where --help ends the command.
            sys.stdout.flush()
    except SettingError as exc:
        _say(program, exc)
        return WRONG_USE
    except HccError as exc:
        _say(program, exc)
        return FAILED
    except BrokenPipeError:
        # The reader (head, less) went away.
        _drop_output()
        return DONE
    except (OSError, MemoryError, RuntimeError) as exc:
        lack = _lack(exc)
        if not lack:
            raise
        _say(program, HccError(lack))
        if isinstance(exc, OSError) and exc.errno in _FULL:
            _drop_output()
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


def _lack(exc: Exception) -> str:
    """What the machine lacks, in words; empty for what is a bug."""
    if isinstance(exc, OSError) and exc.errno in _LACKS:
        return f"{exc.strerror}: {exc.filename}" if exc.filename else str(exc.strerror)
    if isinstance(exc, MemoryError):
        return "there is no memory left"
    return "no further thread can be started" if str(exc) == _NO_THREAD else ""


def _say(program: str, error: HccError) -> None:
    """Why it ends: in the log once there is one, which a collector reads, and as a line for people before that."""
    import logging

    if logging.getLogger().handlers:
        logging.getLogger(__name__).critical("%s", error)
    else:
        from hcc.log import one_line

        print(f"{program}: {one_line(str(error))}", file=sys.stderr)


def _drop_output() -> None:
    """What is left of it must not be written again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _open_missing_streams() -> None:
    """Who starts us may have closed standard streams: what is opened next would be taken for one of them."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, number)
            if null != number:
                os.close(null)
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def _command(words: Sequence[str]) -> int:
    options = arguments.parse(arguments.parser(COMMANDS, only=words[0] if words else ""), words)
    instance.settle(options)
    return cast("int", options.run(options))


def _go_command(words: Sequence[str]) -> int:
    if go_flags.wants_help(words):
        print(go_flags.HELP, end="")
        return DONE
    translated = go_flags.translated(words)
    if "--version" in translated:
        print(f"haproxy-consul-connect (HAProxy Connect) {VERSION}")
        return DONE
    return _command(("run", *translated))
