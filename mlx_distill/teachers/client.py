"""What the clients of all providers have in common: how a server is called, what it said, which keys can be sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlx_distill.teachers.protocol import TryLaterError

if TYPE_CHECKING:
    import httpx2

LONGEST_WORDS = 300
AGAIN = "then run the same command again: everything answered so far is saved."
"""What comes after mending an account."""


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


def no_connection(error: BaseException, address: str, *secrets: str | None) -> TryLaterError:
    """What it means when an SDK's connection to that address failed: what never reached a server costs nothing."""
    import httpx2

    cause = error.__cause__ or error
    never_sent = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.UnsupportedProtocol)
    return TryLaterError(
        f"no connection to {address} ({one_line(cause, *secrets) or type(cause).__name__})",
        may_be_charged=not isinstance(cause, never_sent),
    )


def count(value: object) -> int:
    """A number of tokens as a provider says it, 0 where it is left out; TypeError for what none can mean (-1, NaN)."""
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 53:
        raise TypeError(f"{value!r} is no number of tokens")
    return value


def word(value: object) -> str:
    """A word as a provider says it, empty where it is left out; TypeError for anything else."""
    if not isinstance(value, str | None):
        raise TypeError(f"{value!r} is no word")
    return value or ""


def can_be_sent(key: str) -> bool:
    """Whether a header can hold it: a line break copied with a key would be told by no SDK in a way that helps."""
    return key.isascii() and key.isprintable() and " " not in key
