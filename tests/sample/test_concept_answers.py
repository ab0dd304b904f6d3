"""Checks that every concept answer in the embedded sample has its form and names the facts of its subject."""

from __future__ import annotations

import re

import pytest

from tests.sample.answers import ids, records

TABLE = r"""
concept-cap: partition; either consistency or availability; latest write; every node that is up answers; CP store
    refuses; AP store answers with possibly stale
concept-cap-shopping-cart: availability over consistency; eventual consistency; converge; version vectors; union; last
    write wins.*throws away
concept-cap-quorum: R \+ W > N; 2 \+ 2 > 3; overlaps every write set; one replica may be down; newest by a version or
    timestamp
concept-idempotency: twice leaves the system in the same state as doing it once; timeout.*cannot know; "add 10 to the
    balance" is not; unique request id; DELETE may respond 404
concept-idempotency-payment-key: idempotency key; same one on every retry; unique index before it charges; saved result
    of the first; race
concept-idempotency-queue-consumer: no acknowledgement; crashes after the work but before the acknowledgement; message
    id.*unique constraint; together with the change; at-least-once delivery plus an idempotent consumer
concept-idempotency-http-methods: GET, HEAD and OPTIONS only read; PUT replaces.*DELETE removes; POST usually creates;
    PATCH.*not idempotent in general; safe methods change nothing
concept-index: sorted; without reading the whole table; B-tree; O\(log n\); INSERT and DELETE.*maintain every affected
    index; disk; BETWEEN
concept-index-composite: from the left; country and city, can use it; city alone generally cannot; after the first
    range condition no longer narrow; equality first; table itself is not touched
concept-index-ignored: lower\(email\).*needs an index on that expression; LIKE '%@example.com' has no known prefix;
    selectivity; implicit conversion; outdated statistics; EXPLAIN
concept-caching: cache-aside the application fills the cache on a miss; write-through every write goes through the
    cache; delete the entry when the data changes; TTL; every write is slower; read-heavy
concept-caching-stampede: cache stampede; same moment; lock per key; serving the expired value; random amount to each
    TTL
concept-caching-http-validation: max-age; without contacting the server; If-None-Match; 304 Not Modified.*without a
    body; no-cache still allows storing; no-store forbids
concept-transport: TCP delivers an ordered, reliable stream; UDP sends single datagrams; retransmits what is lost;
    handshake of one round trip; congested network; DNS, voice calls and QUIC
concept-transport-game-state: head-of-line blocking; stream must stay in order; whole current state in each datagram;
    sequence number; discard those older; limit its own rate
concept-transport-handshake: \*\*SYN\*\*; \*\*SYN-ACK\*\*; \*\*ACK\*\*; initial sequence number; three messages;
    delayed SYN of an earlier connection
concept-locking: pessimistic locking keeps others out; FOR UPDATE; version = [?] changes no row if somebody was faster;
    rare conflicts favour optimistic; never hold a database lock while a human thinks
concept-locking-deadlock: four conditions; mutual exclusion; hold and wait; no preemption; circular wait; one global
    order; aborted transaction has to be retried
concept-locking-fencing: lease expired; crashed holder does not block; between its check of the lease and its write;
    number that grows with each grant; highest token it has seen and refuses smaller
"""
"""One answer an entry: its prompt id and regular expressions, all of which the answer matches in any case."""

FACTS = {
    prompt_id: " ".join(facts.split()).split("; ")
    for prompt_id, facts in re.findall(r"^(\S+): (.+(?:\n .+)*)", TABLE, re.MULTILINE)
}


def test_every_concept_answer_has_facts() -> None:
    assert sorted(FACTS) == sorted(ids("concepts"))


@pytest.mark.parametrize("prompt_id", FACTS)
def test_a_concept_answer_names_every_fact(prompt_id: str) -> None:
    text = records()[prompt_id]["answer"].replace("`", "")

    assert [fact for fact in FACTS[prompt_id] if not re.search(fact, text, re.IGNORECASE)] == []


@pytest.mark.parametrize("prompt_id", FACTS)
def test_a_concept_answer_has_three_or_four_named_points(prompt_id: str) -> None:
    first, points, closing = records()[prompt_id]["answer"].split("\n\n")
    assert "**" not in first
    assert 3 <= len(points.splitlines()) <= 4
    assert all(re.fullmatch(r"- \*\*[^*]+\*\*: .+\.", point) for point in points.splitlines())
    assert closing.startswith(("Rule of thumb: ", "Watch out: ", "Why: "))
