"""Copies of the shipped test prompts are caught however they are told; the shipped prompts are not."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mlx_distill.code_blocks import code_blocks
from mlx_distill.config import default_of
from mlx_distill.errors import InputError
from mlx_distill.prepare.decontaminate import NearCopies, ReservedPrompt, read_test_prompts, topic_words, words
from mlx_distill.prepare.run import PrepareConfig
from mlx_distill.records import TeacherRecord
from mlx_distill.storage.jsonl import read_jsonl
from mlx_distill.storage.package_data import shipped
from tests.support.dataset_records import record

THRESHOLD = default_of(PrepareConfig, "near_copy")

PARAPHRASED = {
    "test-balanced-tree": [
        "How can I determine in Python if a binary tree is height-balanced?",
        "Given the root of a binary tree, return True when it is balanced. Use Python.",
        "I'd like a Python routine that decides whether the binary tree I pass in is balanced at every node.",
        "How would one test a binary tree for balance in Python?",
        "Python interview question: height-balanced binary tree checker.",
    ],
    "test-connection-pool": [
        "Write a thread-safe pool of DB connections in Python.",
        "How would you implement connection pooling for a database in Python?",
        "My Flask threads each open their own Postgres connection. Give me a small connection pool in Python instead.",
        "Design a reusable pool of open database connections for a multithreaded Python program.",
        "How can I reuse database connections across threads in Python instead of opening one for each query?",
    ],
    "test-above-average": [
        "Using window functions, write a SQL query that returns employees whose salary is above their department's "
        "average.",
        "SQL: find all employees paid above the average of their department using AVG() OVER (PARTITION BY ...).",
        "Who earns more than the average of their own department? Answer with SQL window functions.",
        "Select employees with a salary greater than the departmental average in SQL, using windowing.",
        "Compare each employee's salary to the department's average with window functions and keep the higher ones.",
    ],
    "test-virtual-threads": [
        "What are Java virtual threads and how do you use them?",
        "Give a short introduction to Project Loom's virtual threads in Java.",
        "Show me how to start a virtual thread in Java and explain what happens.",
        "Explain how to run many tasks with Executors.newVirtualThreadPerTaskExecutor in Java.",
        "Explain lightweight threads (Project Loom) in Java, with a short example.",
    ],
}
REORDERED = {
    "test-balanced-tree": "Is a binary tree balanced? A function to check whether it is: write it in Python.",
    "test-connection-pool": "In Python, that several threads can share it: implement a connection pool for a database.",
    "test-above-average": "The employees who earn more than the average salary of their department: list them with a "
    "SQL query, with window functions.",
    "test-virtual-threads": "With a short example in Java, explain threads that are virtual and how to use them.",
}
RENAMED = {
    "test-balanced-tree": "Write a Python function `is_even(top: Knot)` to check whether a BinaryTree is balanced.",
    "test-connection-pool": "Implement a Postgres connection pool named Reservoir in Python that many workers share.",
    "test-above-average": "Write a SQL query with window functions that lists the staff(full_name, dept, wage) who "
    "earn more than the average wage of their dept.",
    "test-virtual-threads": "Explain how to use VirtualThread in Java, with a short example class called Crawler.",
}
OTHER_TASKS = [
    "Write a Python function to check whether a string is a palindrome.",
    "Write a Python function that checks whether brackets in a string are balanced.",
    "Write a Python function to invert a binary tree.",
    "Implement an LRU cache in Python that several threads can share.",
    "Open a SQLite database connection in Python and make sure that it is closed.",
    "Write a SQL query with window functions that ranks employees by salary within their department.",
    "Write a SQL query with a self join that lists the employees who earn more than their manager.",
    "Explain how to use streams in Java, with a short example.",
    "Explain how to use threads in Python, with a short example.",
]


@pytest.fixture(scope="module")
def reserved() -> list[ReservedPrompt]:
    return read_test_prompts(shipped("test_prompts.jsonl"))


@pytest.fixture(scope="module")
def near_copies(reserved: list[ReservedPrompt]) -> NearCopies:
    return NearCopies(reserved)


def test_every_shipped_test_prompt_has_a_known_answer_with_code(reserved: list[ReservedPrompt]) -> None:
    assert len(reserved) == 4
    assert all(code_blocks(test.answer) for test in reserved)


@pytest.mark.parametrize("test_id", PARAPHRASED)
def test_the_test_prompt_itself_is_caught(
    test_id: str, reserved: list[ReservedPrompt], near_copies: NearCopies
) -> None:
    text = next(test.text for test in reserved if test.id == test_id)
    found = near_copies.nearest(record(text, "Yes."))
    assert (found.value, found.test_id, found.measure) == (1.0, test_id, "topic")


@pytest.mark.parametrize(
    ("test_id", "prompt"),
    [
        *((test_id, prompt) for test_id, prompts in PARAPHRASED.items() for prompt in prompts),
        *REORDERED.items(),
        *RENAMED.items(),
    ],
)
def test_a_paraphrased_reordered_or_renamed_prompt_is_caught_by_its_topic(
    test_id: str, prompt: str, reserved: list[ReservedPrompt]
) -> None:
    answer = next(test.answer for test in reserved if test.id == test_id)
    by_topic = NearCopies([ReservedPrompt(test.id, test.text) for test in reserved])  # no known answers, no code
    found = by_topic.nearest(record(prompt, answer))
    assert found.value >= THRESHOLD
    assert found.test_id == test_id


@pytest.mark.parametrize("test_id", PARAPHRASED)
def test_a_renamed_answer_is_caught_whatever_its_prompt_says(
    test_id: str, reserved: list[ReservedPrompt], near_copies: NearCopies
) -> None:
    answer = next(test.answer for test in reserved if test.id == test_id)
    [block, *_] = code_blocks(answer)
    renamed = block.code
    for number, name in enumerate(
        ("height", "Node", "left", "idle", "connect", "salary", "name", "Page", "urls", "fetch")
    ):
        renamed = re.sub(rf"\b{name}\b", f"thing_{number}", renamed)
    assert renamed != block.code
    found = near_copies.nearest(record("And the third one?", f"Like this.\n\n```{block.language}\n{renamed}```"))
    assert (found.test_id, found.measure) == (test_id, "code")
    assert found.value >= 0.95


def test_a_copy_moved_to_another_field_is_caught_by_its_code(near_copies: NearCopies) -> None:
    query = """
        WITH prices AS (
            SELECT title, category, price, AVG(price) OVER (PARTITION BY category) AS category_average
            FROM products
        )
        SELECT title, category, price, ROUND(category_average, 1) AS usual FROM prices
        WHERE price > category_average ORDER BY category, price DESC;
    """
    moved = record("Which products cost more than is usual in their category?", f"So:\n```sql\n{query}\n```")
    found = near_copies.nearest(moved)
    assert found.measure == "code"
    assert found.value >= THRESHOLD


def test_no_shipped_prompt_comes_near(near_copies: NearCopies) -> None:
    prompts = [json.loads(line)["prompt"] for line in shipped("prompts.jsonl").read_text().splitlines()]
    assert max(near_copies.nearest(record(prompt)).value for prompt in prompts) == 0
    answered = read_jsonl(shipped("sample") / "teacher_data.jsonl", TeacherRecord.from_json)
    nearest = max((near_copies.nearest(item) for item in answered), key=lambda likeness: likeness.value)
    assert nearest.value < 0.6, str(nearest)  # 0.47 in the shipped sample; copies begin at 0.8


@pytest.mark.parametrize("prompt", OTHER_TASKS)
def test_another_task_in_the_same_words_is_kept(prompt: str, near_copies: NearCopies) -> None:
    assert near_copies.nearest(record(prompt, "An answer.")).value < THRESHOLD


def test_identifiers_are_words_and_cjk_text_is_pairs() -> None:
    assert words("isBalanced(HTTPServer, my_tree2)") == {"is", "balanced", "http", "server", "my", "tree2"}
    assert words("二叉树") == {"二叉", "叉树"}


def test_a_prompt_with_hardly_a_topic_is_measured_by_all_its_words() -> None:
    assert len(topic_words("Explain recursion in Python")) == 3
    near = NearCopies([ReservedPrompt("t", "Explain recursion in Python")])
    assert near.nearest(record("Walk a folder with recursion in Python")).value < THRESHOLD
    assert near.nearest(record("In Python, please explain recursion")).value == 1.0


def test_without_test_prompts_nothing_is_near() -> None:
    assert NearCopies([]).nearest(record("Anything")).value == 0.0


def test_a_test_prompt_may_bring_its_own_answer(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"id": "q", "prompt": "Sort this.", "answer": "So."}\n{"prompt": "Add this."}\n')
    assert [(test.text, test.answer) for test in read_test_prompts(file)] == [("Sort this.", "So."), ("Add this.", "")]
    file.write_text('{"prompt": "Sort this.", "answer": 3}\n')
    with pytest.raises(InputError, match=r'mine\.jsonl:1: "answer" must be text'):
        read_test_prompts(file)
