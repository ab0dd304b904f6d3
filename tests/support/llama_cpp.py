"""llama.cpp as a reference: the PyPI package xllamacpp, whose server runs inside the process."""

from __future__ import annotations

import ctypes
import json
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.conftest import skip


class LlamaCpp:
    """A GGUF file loaded by llama.cpp. Skips the test if llama.cpp is not installed."""

    def __init__(self, path: Path) -> None:
        if find_spec("xllamacpp") is None:
            skip("llama.cpp is not installed: pip install xllamacpp")
        import xllamacpp

        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(path)
        parameters.n_ctx = 256
        parameters.n_gpu_layers = 0
        parameters.warmup = False
        parameters.verbosity = -1
        parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._server = xllamacpp.Server(parameters)
        # The destructor can wait forever for its own thread to leave accept(), so it must never run.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._server))

    def tokens(self, text: str) -> list[int]:
        """Return token ids; control tokens in the text are recognised."""
        answer = self._post("/tokenize", {"content": text, "add_special": False, "parse_special": True})
        return [int(token) for token in answer["tokens"]]

    def text(self, tokens: list[int]) -> str:
        """Return the text of token ids."""
        return str(self._post("/detokenize", {"tokens": tokens})["content"])

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        """Return up to `count` greedy tokens after `prompt`, then -1 if the model ended its turn."""
        body = {"prompt": prompt, "n_predict": count, "temperature": 0, "return_tokens": True, "cache_prompt": False}
        answer = self._post("/completion", body)
        tokens = [int(token) for token in answer["tokens"]]
        return [*tokens, -1] if answer["stop_type"] == "eos" else tokens

    def next_logprobs(self, prompt: list[int], count: int) -> dict[int, float]:
        """Return the log-probabilities of the `count` most probable next tokens."""
        body = {"prompt": prompt, "n_predict": 1, "temperature": -1, "n_probs": count, "cache_prompt": False}
        first = self._post("/completion", body)["completion_probabilities"][0]
        return {int(token["id"]): float(token["logprob"]) for token in first["top_logprobs"]}

    def chat(self, messages: list[dict[str, str]], max_tokens: int) -> dict[str, Any]:
        """Return one greedy answer through the model's own chat template."""
        body = {"messages": messages, "max_tokens": max_tokens, "temperature": 0}
        choice: dict[str, Any] = self._post("/v1/chat/completions", body)["choices"][0]
        return choice

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        data = json.dumps(body).encode()
        request = urllib.request.Request(
            self._server.listening_address + path, data, {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            answer: dict[str, Any] = json.load(response)
        return answer
