"""Keeps one of several requests that say the same in nearly the same words and have the same answer.

Paper: Broder, On the Resemblance and Containment of Documents, 1997.
Use when: the pool comes from logs, where the same request stands thousands of times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from datasketch import MinHash, MinHashLSH
from pydantic import Field

from supertiny.core.leaks import asked_text, jaccard
from supertiny.core.records import Call, Example
from supertiny.core.scoring import exact
from supertiny.core.task import Task
from supertiny.prototype.curators._reasons import is_labelled, left_out


@dataclass(frozen=True)
class Deduplicate:
    """Character 4-grams of the whole conversation; MinHash proposes, the exact similarity decides.

    The first stays, gold rows first. Rows with other calls stay too: "switch it on" and "switch it off" are near.
    """

    similarity: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Jaccard similarity from which two requests with the same calls count as one."""
    permutations: Annotated[int, Field(ge=1)] = 128
    """Size of the signature."""

    def curate(self, examples: Sequence[Example], task: Task, seed: int) -> list[Example]:
        index = MinHashLSH(threshold=self.similarity, num_perm=self.permutations)
        gold_first = sorted(range(len(examples)), key=lambda place: not is_labelled(examples[place]))
        kept: dict[int, frozenset[str]] = {}
        for place in gold_first:
            grams = _grams(asked_text(examples[place].request.messages))
            calls = _calls(examples[place])
            signature = MinHash(num_perm=self.permutations, seed=seed + 1)
            signature.update_batch([gram.encode() for gram in sorted(grams)])
            same = (
                near
                for near in index.query(signature)
                if jaccard(grams, kept[near]) >= self.similarity and exact(calls, _calls(examples[near]), task.tool_map)
            )
            if (near := next(same, None)) is not None:
                left_out(examples[place], f"says the same as row {examples[near].request.id}")
                continue
            index.insert(place, signature)
            kept[place] = grams
        return [examples[place] for place in sorted(kept)]


def _calls(example: Example) -> Sequence[Call]:
    return example.answer.calls if example.answer else ()


def _grams(text: str) -> frozenset[str]:
    plain = " ".join(text.casefold().split())
    return frozenset(plain[i : i + 4] for i in range(max(1, len(plain) - 3)))
