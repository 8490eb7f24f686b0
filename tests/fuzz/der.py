"""Coverage-guided fuzzing of the walk over certificates, against the cryptography package.

`python -m tests.fuzz.der [libFuzzer's flags] [CORPUS]`. What the walk takes is what cryptography finds, or something
that cryptography refuses; and what it refuses, it refuses with its own error.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["hcc.spoe", "hcc.mesh"]):
    from hcc.spoe.der import CertificateError, parse_certificate
from tests.spoe_certificates import by_cryptography


def one_input(data: bytes) -> None:
    """Run one input, a certificate or none."""
    try:
        found = parse_certificate(data)
    except CertificateError:
        return
    assert by_cryptography(data) in (found, None), f"we find {found} in {data.hex()}"


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
