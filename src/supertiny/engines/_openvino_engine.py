"""The engine that engines/openvino.py opens."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from supertiny.core.errors import UserError
from supertiny.core.protocols import Done
from supertiny.core.records import Completion, Grammar, Price, Prompt, Sampling, TokenScores
from supertiny.engines._families import family_of
from supertiny.engines._openvino_queue import Job, Queue

if TYPE_CHECKING:
    from supertiny.engines.openvino import OpenVino as Settings

_EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
# Unpacking 8-bit keys and values at each token takes longer than reading twice the bytes: see docs/log.md.
_FAST = {"KV_CACHE_PRECISION": "bf16"}


class OpenVinoEngine:
    """Runs one GGUF file; safe to call from several threads, which wait for each other."""

    def __init__(self, settings: Settings, path: Path, name: str) -> None:
        self.settings = settings
        self.path = path
        self.name = name
        self.bytes = path.stat().st_size
        self.price = Price(dollars_per_hour=settings.dollars_per_hour)
        self._prefix_cache = False
        self._lock = threading.Lock()
        self._queue: Queue | None = None
        self._load(prefix_cache=True)

    def complete(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        grammar: Sequence[Grammar | None] | None = None,
        done: Done | None = None,
    ) -> list[Completion]:
        """One completion per prompt, in order.

        `logprob` is the model's own, before temperature and grammar; `tokens_cached` counts declared shared parts.
        """
        grammars = grammar or [None] * len(prompts)
        with self._lock:
            queue = self._load(prefix_cache=True)
            jobs = [
                Job(index, self.tokens(prompt), self._config(sampling, form), family_of(prompt))
                for index, (prompt, form) in enumerate(zip(prompts, grammars, strict=True))
            ]
            return queue.run(jobs, sampling, done)

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[str], top: int = 0) -> list[TokenScores]:
        """Log-probabilities of the continuations' own tokens; the model is loaded anew when work changes to this.

        Raises UserError for top > 0: OpenVINO GenAI does not give the best tokens at a place.
        """
        if top > 0:
            raise UserError("openvino scores given tokens only (top=0)", "torch and llama_cpp give the best tokens too")
        with self._lock:
            queue = self._load(prefix_cache=False)  # of a cached prefix the pipeline gives no log-probabilities
            return [
                _score(queue.pipeline, self.tokens(prompt), self._encode(text), self._config(Sampling(0)))
                for prompt, text in zip(prompts, continuations, strict=True)
            ]

    def close(self) -> None:
        self._queue = None
        gc.collect()

    def _load(self, prefix_cache: bool) -> Queue:
        """The pipeline of the wanted kind; there is never more than one."""
        if self._queue is not None and self._prefix_cache == prefix_cache:
            return self._queue
        self.close()
        genai = _openvino_genai()
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = self.settings.cache_gigabytes
        scheduler.enable_prefix_caching = prefix_cache
        scheduler.max_num_seqs = self.settings.max_batch
        scheduler.max_num_batched_tokens = self.settings.batch_tokens
        properties: dict[str, Any] = dict(_EXACT if self.settings.precision == "float32" else _fast())
        if self.settings.threads:
            properties["INFERENCE_NUM_THREADS"] = self.settings.threads
        try:
            pipeline = genai.ContinuousBatchingPipeline(str(self.path), scheduler, "CPU", properties)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(
                f"{self.path}: OpenVINO cannot open it: {reason}", "the llama_cpp engine opens more kinds of GGUF"
            ) from error
        self._tokenizer = pipeline.get_tokenizer()
        self._prefix_cache = prefix_cache
        self._queue = Queue(pipeline, self.settings.max_batch, self._tokenizer.decode)
        return self._queue

    def tokens(self, prompt: Prompt) -> list[int]:
        """What the model reads of a prompt. Raises UserError for an empty one."""
        text = prompt.text
        if prompt.messages:
            history = [dict(message) for message in prompt.messages]
            text = self._tokenizer.apply_chat_template(history, add_generation_prompt=True) + text
        if not text:
            raise UserError("a prompt is empty", "an engine needs at least one character to continue")
        return self._encode(text)

    def _encode(self, text: str) -> list[int]:
        return [int(token) for token in self._tokenizer.encode(text, add_special_tokens=False).input_ids.data[0]]

    def _config(self, sampling: Sampling, form: Grammar | None = None) -> Any:
        genai = _openvino_genai()
        config = genai.GenerationConfig()
        config.max_new_tokens = sampling.max_tokens
        config.logprobs = 1
        config.apply_chat_template = False
        config.eos_token_id = self._tokenizer.get_eos_token_id()
        config.stop_token_ids = {config.eos_token_id}
        config.stop_strings = set(sampling.stop)
        if sampling.temperature > 0:
            config.do_sample = True
            config.temperature = sampling.temperature
            config.rng_seed = sampling.seed
        if form is not None:
            rules = genai.StructuredOutputConfig()
            setattr(rules, {"json_schema": "json_schema", "regex": "regex", "ebnf": "grammar"}[form.kind], form.text)
            config.structured_output_config = rules
        return config


def _score(pipeline: Any, prompt: list[int], continuation: list[int], config: Any) -> TokenScores:
    import numpy as np
    import openvino

    config.echo, config.max_new_tokens = True, 0
    tokens = openvino.Tensor(np.array([prompt + continuation], dtype=np.int64))
    handle = pipeline.add_request(0, tokens, config)
    while pipeline.has_non_finished_requests():
        pipeline.step()
    (output,) = handle.read_all()
    count = len(continuation)
    own = np.array(output.generated_log_probs[len(output.generated_log_probs) - count :], dtype=np.float32)
    none = np.empty((count, 0))
    read = len(prompt) + count
    return TokenScores(np.array(continuation), none.astype(np.int64), none.astype(np.float32), own, read)


def _fast() -> dict[str, str]:
    import openvino

    return _FAST if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else {}


def _openvino_genai() -> Any:
    """The package, with its telemetry off: OpenVINO falls back to a stub where the telemetry package is missing."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino_genai

    return openvino_genai
