"""Keeps a model's tokens within a grammar, by the package xgrammar."""

from __future__ import annotations

from typing import Any

from supertiny.core.errors import UserError
from supertiny.core.records import Grammar

INSTALL = "pip install --no-deps xgrammar apache-tvm-ffi"


class TokenGrammars:
    """Compiles grammars for one tokenizer and masks logits by them."""

    def __init__(self, tokenizer: Any, vocabulary: int, stop_ids: list[int]) -> None:
        try:
            import xgrammar
        except ImportError:
            raise UserError("a grammar with the torch engine needs the package xgrammar", INSTALL) from None
        self._xgrammar = xgrammar
        info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocabulary, stop_token_ids=stop_ids)
        self._compiler = xgrammar.GrammarCompiler(info)
        self._vocabulary = vocabulary

    def matcher(self, grammar: Grammar) -> Any:
        """State of one completion under a grammar."""
        compilers: dict[str, Any] = {
            "json_schema": self._compiler.compile_json_schema,
            "regex": self._compiler.compile_regex,
            "ebnf": self._compiler.compile_grammar,
        }
        return self._xgrammar.GrammarMatcher(compilers[grammar.kind](grammar.text))

    def mask(self, logits: Any, matchers: list[Any | None]) -> None:
        """Sets logits (rows, vocabulary) of forbidden tokens to minus infinity, in place; None leaves its row free."""
        bits = self._xgrammar.allocate_token_bitmask(len(matchers), self._vocabulary)
        for row, matcher in enumerate(matchers):
            if matcher is not None and not matcher.is_terminated():
                matcher.fill_next_token_bitmask(bits, row)
        self._xgrammar.apply_token_bitmask_inplace(logits, bits.to(logits.device))
