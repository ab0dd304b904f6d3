"""Replies of a hostile server of teachers: a redirect to another host, a gzip bomb, and an endless response."""

from __future__ import annotations

import zlib
from functools import cache

from tests.support.messages_server import Reply

HOSTILE = {
    "redirect": "307",
    "gzip bomb": "the response is compressed",
    "long": "the response has more than 16 MiB",
    "endless": "the response has more than 16 MiB",
}
"""The trouble, and words of the error that names it."""


@cache
def gzip_bomb() -> bytes:
    """Return about 0.4 MB that unpack to 400 MB."""
    compressor = zlib.compressobj(wbits=31)
    return b"".join(compressor.compress(bytes(1_000_000)) for _ in range(400)) + compressor.flush()


def hostile_reply(trouble: str, elsewhere: str) -> Reply:
    """Return the reply for one of HOSTILE; a redirect goes to the URL `elsewhere`."""
    if trouble == "redirect":
        return Reply(307, {}, {"location": elsewhere})
    if trouble == "endless":
        return Reply(body=b" " * 65_536, endless=True)
    if trouble == "long":
        return Reply(body=b" " * (17 << 20))
    return Reply(body=gzip_bomb(), headers={"content-encoding": "gzip"})
