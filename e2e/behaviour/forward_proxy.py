"""A forward proxy: tunnels by CONNECT (HTTP/1.1 and HTTP/2) and by POST, to the address that the authority names. Whoever cannot be
connected to is answered 502.
"""

import asyncio

import h2.config
import h2.connection
import h2.events

PORT = 3128
PREFACE_LINE = b"PRI * HTTP/2.0\r\n"
CHUNK = 65536


async def serve(namespace, reader, writer):
    """One client; tunnels begin in `namespace`."""
    first = await reader.readline()
    if first == PREFACE_LINE:
        return await _http2(namespace, first, reader, writer)
    method, target, _ = first.decode("latin-1").split(" ", 2)
    headers = {}
    while (line := await reader.readline()) not in (b"\r\n", b""):
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    chunked = "chunked" in headers.get("transfer-encoding", "")
    known = method == "CONNECT" or method == "POST" and target == "/" and chunked
    ends = await _connect(namespace, headers["host"]) if known and (method == "POST" or headers["host"] == target) else None
    if ends is None:
        writer.write(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n")
        return await writer.drain()
    if method == "CONNECT":
        writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
        sending, receiving = _copy(reader, ends[1]), _copy(ends[0], writer)
    else:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        sending, receiving = _unchunked(reader, ends[1]), _chunked(ends[0], writer)
    try:
        await asyncio.gather(sending, receiving)
    finally:
        ends[1].close()


async def _connect(namespace, authority):
    host, _, port = authority.rpartition(":")
    end = namespace.socket()
    end.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(end, (host, int(port)))
        return await asyncio.open_connection(sock=end)
    except (OSError, ValueError):
        end.close()
        return None


async def _copy(reader, writer):
    while piece := await reader.read(CHUNK):
        writer.write(piece)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


async def _unchunked(reader, writer):
    while size := int((await reader.readline()).split(b";")[0], 16):
        writer.write(await reader.readexactly(size))
        await writer.drain()
        await reader.readline()
    writer.write_eof()


async def _chunked(reader, writer):
    while piece := await reader.read(CHUNK):
        writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        await writer.drain()
    writer.write(b"0\r\n\r\n")
    await writer.drain()


async def _http2(namespace, first, reader, writer):
    session = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
    session.initiate_connection()
    session.receive_data(first)
    tunnels, tasks = {}, set()

    async def answers(stream, source):
        while piece := await source.read(CHUNK):
            session.send_data(stream, piece)
            writer.write(session.data_to_send())
            await writer.drain()
        session.end_stream(stream)
        writer.write(session.data_to_send())

    async def request(stream, fields):
        ends = await _connect(namespace, fields.get(":authority", "")) if fields.get(":method") == "CONNECT" else None
        session.send_headers(stream, [(":status", "200" if ends else "502")], end_stream=not ends)
        if ends:
            tunnels[stream] = ends[1]
            task = asyncio.ensure_future(answers(stream, ends[0]))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    writer.write(session.data_to_send())
    try:
        while piece := await reader.read(CHUNK):
            for event in session.receive_data(piece):
                if isinstance(event, h2.events.RequestReceived):
                    await request(event.stream_id, dict(event.headers))
                elif isinstance(event, h2.events.DataReceived):
                    session.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    if event.stream_id in tunnels:
                        tunnels[event.stream_id].write(event.data)
                elif isinstance(event, (h2.events.StreamEnded, h2.events.StreamReset)) and event.stream_id in tunnels:
                    tunnels.pop(event.stream_id).write_eof()
            writer.write(session.data_to_send())
            await writer.drain()
    finally:
        for end in tunnels.values():
            end.close()
