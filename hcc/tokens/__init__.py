"""Tokens (JWT) of requests: HAProxy asks about them over SPOP, one thread of the main process checks them.

`check` decides and reads the clock; `server` talks to HAProxy.
"""
