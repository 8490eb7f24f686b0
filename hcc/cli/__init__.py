"""The commands: `hcc` and, for the Go program's users, `haproxy-consul-connect`.

`commands` runs one of those that the modules `run`, `actors`, .. offer as their `COMMANDS`; `arguments` makes the
parser of them, `instance` finds the running sidecar that a command is for, and `control` talks to its control
socket. `arguments` and `go_flags` are pure. Only what a command needs is imported, so that `hcc --help` answers
at once.
"""
