"""BANKING77 with ten examples a label: TF-IDF and a linear classifier, one plain prompt with all labels, a pipeline.

Each label is a function without arguments. The pipeline shows the model the likely ones with the nearest examples, and
weighs its choice against the classifier's probabilities by a weight that is learned from labelled rows.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from benchmarks._data import Labelled, banking_split, folder_of
from benchmarks._measuring import Room, Row, line, measured, shares
from supertiny.core.records import Answer, Call, Example, Request, Tool
from supertiny.core.task import Task

EACH = 10
HELD_OUT = 500
WEIGHED_ROWS = 200  # labelled rows that the model answers unseen, once
WITHIN: tuple[Any, ...] = ({"method": "classify", "risk": 0.1}, {"method": "retrieve", "examples": 8}, "fill")


def banking(room: Room) -> tuple[list[Row], list[dict[str, Any]]]:
    """(figures, a table of what each part of the pipeline has to say)."""
    task = banking_task(*banking_split(folder_of("banking77", room.data), EACH, HELD_OUT, room.seed))
    rows = task.valid[: room.count(HELD_OUT) or None]
    weighed = 20 if room.quick else WEIGHED_ROWS
    ways = {
        name: {"method": "stack", "steps": list(WITHIN), "rows": weighed, "reader": reader}
        for name, reader in (("pipeline", ""), ("pipeline, with a reader", room.reader))
    }
    linear = measured(room, task, "TF-IDF and logistic regression", rows, [{"method": "stack", "steps": []}])
    plain = measured(room, task, "plain", rows, ["plain"], "chat_json")
    alone = measured(room, task, "the model's choice among the likely", rows, WITHIN)
    # Which of them is taken, the labelled rows say that `stack` draws and answers unseen; the held-out rows do not.
    drawn = random.Random(room.seed).sample(task.labelled, weighed)
    unseen = {name: measured(room, task, f"labelled rows, {name}", drawn, [way]) for name, way in ways.items()}
    tried = {name: measured(room, task, name, rows, [way]) for name, way in ways.items()}
    led = tried[max(unseen, key=lambda name: unseen[name].share)]
    figures = [
        *shares("banking77_tfidf_accuracy", "TF-IDF and logistic regression on the same examples", linear.hits),
        *shares("banking77_plain_accuracy", "one plain prompt with all labels", plain.hits),
        *shares("banking77_pipeline_accuracy", "likely labels, nearest examples, weighed", led.hits),
        ("banking77_plain_seconds", "seconds a request", plain.seconds),
        ("banking77_pipeline_seconds", "seconds a request", led.seconds),
        ("banking77_pipeline_preparation_seconds", "labelled rows answered once", led.once_seconds),
    ]
    against = linear.name, linear.hits
    choice = [line(f"choice, on labelled rows: {name}", one.hits) for name, one in unseen.items()]
    compared = (linear, plain, alone, *tried.values())
    return figures, [*choice, *(line(one.name, one.hits, against, seconds=one.seconds) for one in compared)]


def banking_task(shown: list[Labelled], held: list[Labelled]) -> Task:
    tools = tuple(
        Tool(label, "", {"type": "object", "properties": {}, "additionalProperties": False})
        for label in sorted({row.label for row in shown})
    )
    words = "Sort the question of a bank's customer: call the one function whose name is what the question is about."
    labelled, valid = (
        [_example(row, n, place) for place, row in enumerate(rows)] for n, rows in enumerate((shown, held))
    )
    return Task("banking77", words, Path("banking77"), tools, tuple(labelled), (), tuple(valid), (), {}, "banking77")


def _example(row: Labelled, split: int, place: int) -> Example:
    return Example(Request.from_text(row.text, f"{split}-{place}"), Answer((Call(row.label),)))
