"""Names of the files that stages write and read."""

from __future__ import annotations

# In a data folder: `collect`, `expand` and `prepare`.
TEACHER_DATA = "teacher_data.jsonl"
PROMPT_INDEX = "collect.json"
EXPANSIONS = "expand.jsonl"
TEST_ANSWERS = "test_answers.jsonl"
JUDGEMENTS = "judgements.jsonl"
JOURNALS = (TEACHER_DATA, EXPANSIONS, TEST_ANSWERS, JUDGEMENTS)
"""Journals of teachers' answers: together they hold what a project's answers cost."""
SPENDING = "spending.json"
LEDGER = "ledger.jsonl"
BATCHES = "batches"
TRAIN, VALID, TEST = "train.jsonl", "valid.jsonl", "test.jsonl"
REJECTED = "rejected.jsonl"
STATS = "stats.json"

# In a data folder: the teacher's log-probabilities.
LOGPROBS = "logprobs"
LOGPROBS_MANIFEST = "manifest.json"
LOGPROBS_SHARDS = "*.safetensors"

# In a model folder.
MODEL_CONFIG = "config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", MODEL_CONFIG)
PROVENANCE = "mlx_distill.json"

# In an adapter folder: mlx-lm's names, then ours.
ADAPTER_WEIGHTS = "adapters.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
METRICS = "metrics.jsonl"
ROLLOUTS = "rollouts.jsonl"
TRAINING_RUN = "run.json"
CHECKPOINT = "checkpoint.safetensors"

# In a report folder.
REPORT_JSON, REPORT_MARKDOWN, REPORT_HTML = "report.json", "report.md", "report.html"
MANIFESTS = "manifests"
RUN_LOG = "runs.jsonl"

# In a project folder.
PROJECT_FILE = "distill.toml"
