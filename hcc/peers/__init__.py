"""Other sidecars, as they are to be reached: whom a TLS handshake shows there.

`handshake` does no input or output; `tls` reads our leaf; `prober` connects.
"""
