"""Does what main.go does, with h11."""
import sys

import h11


def read(stream):
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    seen, head, body, refused = [], None, b"", ""
    connection.receive_data(stream)
    connection.receive_data(b"")
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                head, body = event, b""
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                host = dict(event_headers(head)).get(b"host", b"")
                seen.append(",".join(part.hex() for part in (head.method, head.target, host, body)))
                connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is not h11.DONE:
                    break
                connection.start_next_cycle()
            elif isinstance(event, h11.ConnectionClosed) or event is h11.NEED_DATA:
                break
            elif event is h11.PAUSED:
                break
    except h11.RemoteProtocolError:
        refused = "!"
    return ";".join(seen) + refused


def event_headers(head):
    return [(bytes(name), bytes(value)) for name, value in head.headers]


for line in sys.stdin:
    print(read(bytes.fromhex(line.strip())))
