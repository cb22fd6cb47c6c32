"""Brings teacher and student onto one support, once, whatever their tokenizers.

Same tokens: the teacher's k best tokens plus one bucket for the rest. Different tokens: spans of text that end at the
same character in both, each against all else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

Tokenizers = Literal["same", "padded", "different"]
LEAST = -1e4  # log-probability of what cannot be: finite, and far below what float32 tells from zero


def compared(teacher: Any, student: Any) -> Tokenizers:
    """What two Hugging Face tokenizers have in common.

    `same`: every token has the same id in both. `padded`: every token of the smaller vocabulary, special ones too, has
    its id in the larger as well, which has more. All else is `different`, tokens of one text at other ids with them.
    """
    if teacher is student:
        return "same"
    smaller, larger = sorted((teacher.get_vocab(), student.get_vocab()), key=len)
    if any(larger.get(token) != place for token, place in smaller.items()):
        return "different"
    return "same" if len(smaller) == len(larger) else "padded"


def on_teacher_support(
    teacher_logits: torch.Tensor, student_logits: torch.Tensor, top_k: int, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of both, each (positions, top_k + 1), from logits (positions, vocabulary).

    Vocabularies padded to different sizes are cut to the shorter one. Where top_k covers the vocabulary there is no
    rest, and the support is the whole vocabulary.
    """
    size = min(teacher_logits.shape[-1], student_logits.shape[-1])
    teacher = torch.log_softmax(teacher_logits[..., :size] / temperature, dim=-1)
    student = torch.log_softmax(student_logits[..., :size] / temperature, dim=-1)
    if top_k >= size:
        return teacher, student
    ids = teacher.topk(top_k, dim=-1).indices
    return with_rest(teacher, ids), with_rest(student, ids)


def on_stored_support(
    ids: torch.Tensor, teacher: torch.Tensor, student_logits: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of both, each (positions, k + 1), from the teacher's k best `ids` (positions, k).

    `teacher` (positions, k + 1) are its log-probabilities of these and, last, of the rest. An id of -1 is a token that
    the student lacks: it counts as impossible on both sides. k must be smaller than the student's vocabulary.
    """
    lacking = ids < 0
    # Another token of the row stands in for one that lacks: both are left out of the rest, and it is so once.
    known = torch.where(lacking, ids.amax(dim=-1, keepdim=True), ids).clamp(min=0).long()
    student = with_rest(torch.log_softmax(student_logits, dim=-1), known)
    lacking = torch.nn.functional.pad(lacking, (0, 1))
    told, own = (side.masked_fill(lacking, LEAST) for side in (teacher.float(), student))
    return torch.log_softmax(told, dim=-1), torch.log_softmax(own, dim=-1)


def on_spans(
    spans: torch.Tensor, teacher: torch.Tensor, student_logits: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of both, each (spans, 2): of each span of text, and of all else that could stand there.

    `spans` (spans, longest) are the positions of a span's tokens, -1 where there are no more; `teacher` (spans,) the
    sums of the teacher's log-probabilities of its own tokens of it. Both sides count one way to cut the span into
    tokens, the given one, and so a little less than the text's whole probability.
    """
    pairs = with_rest(torch.log_softmax(student_logits, dim=-1), targets[:, None])
    there = spans >= 0
    own, rest = pairs[spans.clamp(min=0)].unbind(dim=-1)
    own = own.masked_fill(~there, 0.0)
    # Something else: the first token differs, or it does not and the second does, and so on. Summed, not taken as
    # 1 - P(span), whose slope is lost where the student is sure.
    before = own.cumsum(dim=-1) - own
    other = (before + rest).masked_fill(~there, -torch.inf).logsumexp(dim=-1)
    sure = teacher.double().clamp(max=-1e-7)
    told = torch.stack([sure, torch.log(-torch.expm1(sure))], dim=-1).clamp(min=LEAST)
    return told.to(pairs.dtype), torch.stack([own.sum(dim=-1), other], dim=-1)


def with_rest(logprobs: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """(positions, k + 1): the log-probabilities of the `ids` (positions, k), and of all other tokens together."""
    # The rest is summed, not taken as 1 - sum of the k best, which is rounding noise where those hold all the mass.
    rest = logprobs.scatter(-1, ids, -torch.inf).logsumexp(dim=-1, keepdim=True)
    return torch.cat([logprobs.gather(-1, ids), rest], dim=-1)


def common_cuts(
    teacher: Any, teacher_ids: Sequence[int], student: Any, student_ids: Sequence[int]
) -> list[tuple[int, int]]:
    """Ends of the smallest spans that both tokenizations of one text share, as (teacher's, student's) token counts.

    The last one is the end of both. Empty where the tokens do not say the same text, so nothing can be compared.
    """
    (text, left), (same, right) = _ends(teacher, teacher_ids), _ends(student, student_ids)
    return [(left[end], right[end]) for end in left if end in right] if text == same else []


def _ends(tokenizer: Any, ids: Sequence[int]) -> tuple[str, dict[int, int]]:
    """The text of the tokens, and by number of characters the number of tokens after which so much of it is written.

    Tokens that write nothing belong to the span before them, those at the very beginning to the first.
    """
    written = [text_of(tokenizer, ids[:count]) for count in range(1, len(ids) + 1)]
    text = written[-1] if written else ""
    # Within a character what is written ends in a replacement mark, and is no beginning of the text.
    return text, {len(begun): count for count, begun in enumerate(written, 1) if begun and text.startswith(begun)}


def text_of(tokenizer: Any, ids: Sequence[int]) -> str:
    """What the tokens write, special ones by their names."""
    text: str = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text
