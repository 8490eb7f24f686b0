"""What `deploy/bootstrap` and `deploy/debian-program` do, with the standard library alone.

It runs before `.venv` exists, so nothing here imports a third-party package or `hcc`.
"""
