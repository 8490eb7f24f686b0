"""The commands: `hcc` and, for the Go program's users, `haproxy-consul-connect`.

`arguments` and `go_flags` are pure; `commands` runs one; `control` talks to a running sidecar's control
socket. Only what a command needs is imported, so that `hcc --help` answers at once.
"""
