"""Keeps one of several requests that say the same in nearly the same words and have the same answer.

Paper: Broder, On the Resemblance and Containment of Documents, 1997.
Use when: the pool comes from logs, where the same request stands thousands of times.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from supertiny.core.leaks import NearTexts, asked_text, normalised
from supertiny.core.records import Call, Example
from supertiny.core.scoring import exact
from supertiny.core.task import Task
from supertiny.prototype.curators._reasons import is_labelled, left_out


@dataclass(frozen=True)
class Deduplicate:
    """Whole conversations are compared by the leak guard's measure, character 5-grams without case and punctuation.

    The first stays, gold rows first. Rows with other calls stay too: "switch it on" and "switch it off" are near.
    """

    similarity: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Jaccard similarity from which two requests with the same calls count as one."""

    def curate(self, examples: Sequence[Example], task: Task, seed: int) -> list[Example]:
        gold_first = sorted(range(len(examples)), key=lambda place: not is_labelled(examples[place]))
        index = NearTexts(self.similarity)
        saying: defaultdict[str, list[int]] = defaultdict(list)  # places of the rows that stay, by their text
        for place in gold_first:
            text, calls = normalised(asked_text(examples[place].request.messages)), _calls(examples[place])
            near = (other for _, found in index.near(text) for other in saying[found])
            same = next((other for other in near if exact(calls, _calls(examples[other]), task.tool_map)), None)
            if same is not None:
                left_out(examples[place], f"says the same as row {examples[same].request.id}")
                continue
            index.add(text)
            saying[text].append(place)
        return [examples[place] for place in sorted(place for places in saying.values() for place in places)]


def _calls(example: Example) -> Sequence[Call]:
    return example.answer.calls if example.answer else ()
