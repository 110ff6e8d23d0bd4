"""Who issues tokens: an HTTP server that tells its public key, in good ways (`/keys`, `/moved`, discovery under `/issuer`) and bad ones."""

import json

from backends import _headers

# The private key was thrown away once the tokens of the cases were signed.
KEYS = {"keys": [{"kty": "EC", "crv": "P-256", "kid": "issuer", "alg": "ES256", "x": "s9E0zGkGtlt0fk6UBjYera_YPdGY9bizAQ5GQSbaves", "y": "KzMPyPPq89CmLQNPbegAh1OLElfpCWY2EfkaKjD_gDk"}]}


def http(backends, namespace, name, ip, port):
    """Serves there."""
    here = f"http://{ip}:{port}"
    discovery = {"issuer": f"{here}/issuer", "jwks_uri": f"{here}/keys"}
    answers = {
        "/keys": (200, KEYS, None),
        "/issuer/.well-known/openid-configuration": (200, discovery, None),
        "/moved": (302, {}, "/keys"),
        "/metadata": (302, {}, "http://169.254.169.254/latest/meta-data"),
        "/empty": (200, {"keys": []}, None),
        "/huge": (200, {**KEYS, "more": "x" * (2 << 20)}, None),
    }

    async def serve(reader, writer):
        while first := await reader.readline():
            path = first.decode("latin-1").split(" ", 2)[1]
            await _headers(reader)
            backends.calls.add(name, path)
            status, content, location = answers.get(path, (500, {}, None))
            body = json.dumps(content)
            more = f"location: {location}\r\n" if location else ""
            writer.write(f"HTTP/1.1 {status} Said\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n{more}\r\n{body}".encode())
            await writer.drain()

    backends._serve(namespace, ip, port, serve, None)
