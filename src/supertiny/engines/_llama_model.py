"""llama.cpp's C interface as far as the engine needs it: tokens, sequences, forward passes, grammars."""

from __future__ import annotations

import ctypes
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from supertiny.core.errors import UserError
from supertiny.core.records import Grammar, Prompt

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


@dataclass(frozen=True)
class Piece:
    """One token of a forward pass; `wanted` says whether its logits are read."""

    token: int
    place: int
    sequence: int
    wanted: bool


class LlamaModel:
    """One loaded GGUF file with its context."""

    def __init__(
        self, path: Path, metadata: Mapping[str, Any], context: int, batch: int, sequences: int, threads: int
    ) -> None:
        self._api = api = _api()
        settings = api.llama_model_default_params()
        self._model = api.llama_model_load_from_file(str(path).encode(), settings)
        if not self._model:
            architecture = metadata.get("general.architecture", "")
            raise UserError(f"{path}: llama.cpp cannot open it (architecture {architecture!r})", "export it again")
        run = api.llama_context_default_params()
        run.n_ctx, run.n_batch, run.n_ubatch, run.n_seq_max = context, batch, batch, sequences
        run.n_threads = run.n_threads_batch = threads
        run.kv_unified = True  # sequences share one cache, so that a prefix is copied by reference
        self._context = api.llama_init_from_model(self._model, run)
        if not self._context:
            raise UserError(f"{path}: no memory for {context} tokens of context", "lower context_tokens")
        self._memory = api.llama_get_memory(self._context)
        self._vocab = api.llama_model_get_vocab(self._model)
        self.vocabulary = int(api.llama_vocab_n_tokens(self._vocab))
        self._batch = api.llama_batch_init(batch, 0, 1)
        self._template = _chat_template(metadata)
        self._specials = {
            "bos_token": self._special(api.llama_vocab_bos(self._vocab)),
            "eos_token": self._special(api.llama_vocab_eos(self._vocab)),
        }

    def close(self) -> None:
        """Frees the model; a second call does nothing."""
        if self._model:
            self._api.llama_batch_free(self._batch)
            self._api.llama_free(self._context)
            self._api.llama_model_free(self._model)
            self._model = self._context = None

    def tokens_of(self, prompt: Prompt) -> list[int]:
        text = prompt.text
        if prompt.messages:
            history = [dict(message) for message in prompt.messages]
            text = self._template.render(messages=history, add_generation_prompt=True, **self._specials) + text
        if not text:
            raise UserError("a prompt is empty", "an engine needs at least one character to continue")
        return self.encode(text)

    def encode(self, text: str) -> list[int]:
        data = text.encode()
        found = (self._api.llama_token * (len(data) + 8))()
        count = self._api.llama_tokenize(self._vocab, data, len(data), found, len(found), False, True)
        return list(found[:count])

    def text_of(self, tokens: Sequence[int]) -> str:
        return b"".join(self._piece(token, special=False) for token in tokens).decode("utf-8", "replace")

    def ends(self, token: int) -> bool:
        return bool(self._api.llama_vocab_is_eog(self._vocab, token))

    def forget(self, sequence: int | None = None) -> None:
        self._api.llama_memory_seq_rm(self._memory, -1 if sequence is None else sequence, -1, -1)

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Gives `target` the first tokens of `source` without computing them."""
        self._api.llama_memory_seq_cp(self._memory, source, target, 0, tokens)

    def decode(self, pieces: Sequence[Piece]) -> None:
        self._batch.n_tokens = len(pieces)
        for place, piece in enumerate(pieces):
            self._batch.token[place] = piece.token
            self._batch.pos[place] = piece.place
            self._batch.n_seq_id[place] = 1
            self._batch.seq_id[place][0] = piece.sequence
            self._batch.logits[place] = piece.wanted
        status = self._api.llama_decode(self._context, self._batch)
        if status:
            raise RuntimeError(f"llama_decode gave {status} for {len(pieces)} tokens")

    def logits(self, place: int) -> np.ndarray:
        """(vocabulary,) of a wanted piece of the last forward pass."""
        pointer = self._api.llama_get_logits_ith(self._context, place)
        return np.ctypeslib.as_array(pointer, shape=(self.vocabulary,)).copy()

    def rules(self, grammar: Grammar) -> Any:
        """State of one completion under a grammar. Of a JSON Schema, limits of numbers are not kept."""
        text = grammar.text
        if grammar.kind == "json_schema":
            text = self._api.llama_grammar.json_schema_to_gbnf(text)
        if grammar.kind == "regex":
            text = _regex_rules(self._api, text)
        rules = self._api.llama_sampler_init_grammar(self._vocab, text.encode(), b"root")
        if not rules:
            raise UserError("llama.cpp cannot read the grammar", text[:200])
        return _Rules(self._api, rules)

    def choose(self, logits: np.ndarray, rules: Any, generator: np.random.Generator | None, temperature: float) -> int:
        """The next token; under a grammar the likeliest is tried alone before the whole vocabulary is masked."""
        if generator is None:
            token = int(logits.argmax())
            if rules is not None and not rules.allows(token):
                token = int(rules.masked(logits).argmax())
        else:
            scores = (rules.masked(logits) if rules is not None else logits).astype(np.float64) / temperature
            shares = np.exp(scores - scores.max()).cumsum()
            token = int(np.searchsorted(shares, generator.random() * shares[-1], side="right"))
        if rules is not None:
            rules.accept(token)
        return token

    def _piece(self, token: int, special: bool) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = self._api.llama_token_to_piece(self._vocab, token, buffer, size, 0, special)
            if count >= 0:
                return bytes(buffer.raw[:count])
            size = -count

    def _special(self, token: int) -> str:
        return self._piece(token, special=True).decode("utf-8", "replace") if token >= 0 else ""


class _Rules:
    """A grammar on its way through one completion."""

    def __init__(self, api: Any, sampler: Any) -> None:
        self._api = api
        self._sampler = sampler

    def allows(self, token: int) -> bool:
        alone = np.array([(token, 0.0, 0.0)], dtype=_CANDIDATE)
        return bool(np.isfinite(self._applied(alone)["logit"][0]))

    def masked(self, logits: np.ndarray) -> np.ndarray:
        candidates = np.empty(len(logits), dtype=_CANDIDATE)
        candidates["id"] = np.arange(len(logits))
        candidates["logit"] = logits
        candidates["p"] = 0
        return np.asarray(self._applied(candidates)["logit"])

    def accept(self, token: int) -> None:
        self._api.llama_sampler_accept(self._sampler, token)

    def _applied(self, candidates: np.ndarray) -> np.ndarray:
        pointer = candidates.ctypes.data_as(self._api.llama_token_data_p)
        row = self._api.llama_token_data_array(data=pointer, size=len(candidates), selected=-1, sorted=False)
        self._api.llama_sampler_apply(self._sampler, ctypes.byref(row))
        return candidates

    def __del__(self) -> None:
        self._api.llama_sampler_free(self._sampler)


def _regex_rules(api: Any, expression: str) -> str:
    """A regular expression as GBNF: llama.cpp's own reading of a JSON string's pattern, without the quotes."""
    # Its reader does not know escapes of characters that need none, as Python's `re.escape` writes them.
    plain = re.sub(r"\\([^\w\\.*+?()\[\]{}|^$\"])", r"\1", expression)
    text: str = api.llama_grammar.json_schema_to_gbnf(json.dumps({"type": "string", "pattern": f"^({plain})$"}))
    before, after = r'root ::= "\"" ', r' "\"" space'
    lines = [line.removeprefix(before).removesuffix(after) for line in text.splitlines()]
    return "\n".join(
        f"root ::= {new}" if new != old else old for new, old in zip(lines, text.splitlines(), strict=True)
    )


def logprobs_of(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - float(logits.max())
    return np.asarray(shifted - np.log(np.exp(shifted).sum()), dtype=np.float32)


def _chat_template(metadata: Mapping[str, Any]) -> Any:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise UserError(f"the model's chat template refuses these messages: {message}")

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    return environment.from_string(str(metadata.get("tokenizer.chat_template", "")))


def _api() -> Any:
    try:
        import llama_cpp
    except ImportError:
        raise UserError(
            "the llama_cpp engine needs llama-cpp-python",
            "pip install llama-cpp-python==0.3.36 (it compiles for minutes)",
        ) from None
    import llama_cpp.llama_grammar

    llama_cpp.llama_log_set(_SILENCE or _silence(llama_cpp), None)
    return llama_cpp


_SILENCE: Any = None  # kept, since C holds on to it


def _silence(llama_cpp: Any) -> Any:
    global _SILENCE
    _SILENCE = llama_cpp.llama_log_callback(lambda level, text, data: None)
    return _SILENCE
