"""Reads the bytes that a client received.

Input: one line for each stream, with the first request's method (the second is GET), "end" or "reset", and
the bytes in hex. Output: one line for each stream, with the status and body of each final response, and "!"
if something was cut or refused.
"""
import http.client
import io
import sys


class Source(io.RawIOBase):
    def __init__(self, stream, reset):
        self.rest, self.reset = stream, reset

    def readable(self):
        return True

    def readinto(self, buffer):
        if not self.rest and self.reset:
            raise ConnectionResetError
        part, self.rest = self.rest[: len(buffer)], self.rest[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)


class Shared(io.BufferedReader):
    """A reader that stays open for the next response and serves as its own socket."""

    def makefile(self, mode):
        return self

    def close(self):
        pass


def by_http_client(methods, stream, reset):
    source, seen = Shared(Source(stream, reset)), []
    try:
        for method in methods:
            if not source.peek(1):
                break
            while True:
                response = http.client.HTTPResponse(source, method=method)
                response.begin()
                # http.client skips 100 itself, and takes other interim responses for final ones.
                if response.status >= 200:
                    break
            seen.append((response.status, response.read()))
            if response.will_close:
                break
    except (http.client.HTTPException, OSError, ValueError):
        return seen, "!"
    return seen, ""


def by_h11(methods, stream, reset):
    import h11

    connection, seen = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20), []
    # Empty data would mean the end.
    if stream:
        connection.receive_data(stream)
    if not reset:
        connection.receive_data(b"")
    try:
        for method in methods:
            if connection.trailing_data == (b"", True):
                break
            length = [("content-length", "0")] if method == "POST" else []
            connection.send(h11.Request(method=method, target="/", headers=[("host", "a"), *length]))
            connection.send(h11.EndOfMessage())
            status, body = 0, b""
            while True:
                event = connection.next_event()
                if isinstance(event, h11.Response):
                    status = event.status_code
                elif isinstance(event, h11.Data):
                    body += event.data
                elif isinstance(event, h11.EndOfMessage):
                    break
                elif not isinstance(event, h11.InformationalResponse):
                    return seen, "!"
            seen.append((status, body))
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                break
            connection.start_next_cycle()
    except h11.RemoteProtocolError:
        return seen, "!"
    return seen, ""


read = {"http.client": by_http_client, "h11": by_h11}[sys.argv[1]]
for line in sys.stdin:
    method, end, stream = line.rstrip("\n").split(" ")
    seen, fault = read([method, "GET"], bytes.fromhex(stream), end == "reset")
    print(";".join(f"{status},{body.hex()}" for status, body in seen) + fault)
