"""Here the server makes batches too."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.batches_server import BatchesServer
from tests.support.collecting import KEY


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[BatchesServer]:
    server = BatchesServer()
    with server.running():
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
        yield server
