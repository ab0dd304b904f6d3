"""What the clients of all providers have in common: how a server is called, what it said, which keys can be sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx2

LONGEST_WORDS = 300


def address_of(url: httpx2.URL) -> str:
    """The server of a URL, without what may be secret in it."""
    return f"{url.scheme}://{url.netloc.decode('ascii')}"


def one_line(said: object, *secrets: str | None) -> str:
    """A server's words as one short printable line without the secrets, should it have repeated them."""
    text = str(said)
    for secret in secrets:
        text = text.replace(secret, "[key]") if secret else text
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= LONGEST_WORDS else line[: LONGEST_WORDS - 1] + "…"


def was_sent(error: BaseException) -> bool:
    """Whether a request that ended in this error of an SDK may have reached the server: not where none was reached."""
    import httpx2

    return not isinstance(error.__cause__ or error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout)


def can_be_sent(key: str) -> bool:
    """Whether a header can hold it: a line break copied with a key would be told by no SDK in a way that helps."""
    return key.isascii() and key.isprintable() and " " not in key
