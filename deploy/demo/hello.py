"""The test server: says hello, and what it received. It knows nothing about the mesh."""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hello(BaseHTTPRequestHandler):
    """Answers GET with plain text."""

    count = 0

    def do_GET(self) -> None:
        """Answer with the request's number, line, headers and where it came from."""
        Hello.count += self.path == "/"
        lines = [
            f"Hello! I am the test server on port {self.connection.getsockname()[1]}.",
            f"This is request number {Hello.count}: {self.requestline}",
            f"It came from {self.client_address[0]} and said:",
            *(f"  {name}: {value}" for name, value in self.headers.items()),
        ]
        body = ("\n".join(lines) + "\n").encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    """Serve on the port given as the only argument, until killed."""
    with ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Hello) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
