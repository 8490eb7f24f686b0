"""HAProxy as the data plane: what it should do, what it does, and how the one becomes the other.

`desired` says what HAProxy should do, `render` how that is written, `replies` and `stats` what it says of itself,
`plan` what is to be done, `control` who does it. The pure modules, which do no input or output, are named in a
contract of `pyproject.toml`.
"""
