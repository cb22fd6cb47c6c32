"""BANKING77 with ten examples a label: TF-IDF and a line, one plain prompt with all labels, and a pipeline.

The pipeline shows the model the likeliest labels with their nearest examples, and weighs its word against the
classifier's probabilities; the weight is learned from labelled rows that neither of the two had seen.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.model_selection import StratifiedKFold

from benchmarks._data import Labelled, banking_split, folder_of
from benchmarks._measuring import Room, Row, shares
from benchmarks._slots import FunctionGuess
from supertiny.core.nearest import NearestExamples
from supertiny.core.protocols import Engine
from supertiny.core.records import Answer, Call, Example, Grammar, Prompt, Request, Sampling
from supertiny.core.scoring import paired_bootstrap

EACH = 10
HELD_OUT = 500
CANDIDATES = 6
SHOWN = 14
CALIBRATION = 200  # labelled rows that the model labels unseen, once
FOLDS = 5
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_SYSTEM = (
    "You sort questions of a bank's customers. Read the solved examples, then write the label of the last question: "
    "one of the labels that are listed, and nothing else."
)


@dataclass(frozen=True)
class Chosen:
    """A label per text, and seconds a text."""

    labels: tuple[str, ...]
    seconds: float


def banking(room: Room) -> tuple[list[Row], list[dict[str, Any]]]:
    """(figures, a table of what each part of the pipeline has to say)."""
    shown, held = banking_split(folder_of("banking77", room.data), EACH, HELD_OUT, room.seed)
    held = held[: room.count(HELD_OUT) or None]
    texts, gold = [row.text for row in held], [row.label for row in held]
    guess = FunctionGuess([row.text for row in shown], [row.label for row in shown])
    chances = guess(texts)
    line = [guess.names[best] for best in chances.argmax(axis=1)]
    plain = _told(room, "plain", lambda engine: plain_labels(engine, texts, guess.names), len(texts))
    led = _told(room, "pipeline", lambda engine: led_labels(engine, texts, shown, chances, guess.names), len(texts))
    weight = learn_weight(room, shown)
    mixed = weighed(chances, guess.names, led.labels, weight)
    hits = {
        name: [one == wanted for one, wanted in zip(labels, gold, strict=True)]
        for name, labels in (("line", line), ("plain", plain.labels), ("model", led.labels), ("pipeline", mixed))
    }
    figures = [
        *shares("banking77_tfidf_accuracy", "TF-IDF and logistic regression on the same examples", hits["line"]),
        *shares("banking77_plain_accuracy", "one plain prompt with all labels", hits["plain"]),
        *shares("banking77_pipeline_accuracy", "likeliest labels, nearest examples, weighed", hits["pipeline"]),
        ("banking77_plain_seconds", "seconds a request", plain.seconds),
        ("banking77_pipeline_seconds", "seconds a request", led.seconds),
        ("banking77_pipeline_weight", "of the model's word, in nats, learned from labelled rows", weight),
    ]
    return figures, [_line(name, hits[name], hits["line"]) for name in hits]


def _line(name: str, hits: Sequence[bool], against: Sequence[bool]) -> dict[str, Any]:
    names = {"line": "TF-IDF and a line", "plain": "plain prompt", "model": "the model's word alone"}
    difference, low, high = paired_bootstrap(hits, against, seed=0)
    share = sum(hits) / max(1, len(hits))
    return {
        "step": names.get(name, "both weighed: the pipeline"), "exact": share, "n": len(hits),
        "against": names["line"], "difference": difference, "low": low, "high": high,
    }  # fmt: skip


def _told(room: Room, name: str, work: Any, count: int) -> Chosen:
    with room.progress.task(f"banking77: {name}", count, "calls") as tick:
        chosen: Chosen = work(room.watched(f"banking77: {name}", tick))
    return chosen


def plain_labels(engine: Engine, texts: Sequence[str], names: Sequence[str]) -> Chosen:
    """One prompt that lists all labels and shows no example, under a grammar of the labels."""
    words = "Sort the question of a bank's customer. Answer with one of these labels and nothing else:\n"
    system = {"role": "system", "content": words + "\n".join(names)}
    prompts = [Prompt((system, {"role": "user", "content": text}), shared=1) for text in texts]
    return complete_among(engine, prompts, [names] * len(prompts))


def led_labels(
    engine: Engine, texts: Sequence[str], shown: Sequence[Labelled], chances: np.ndarray, names: Sequence[str]
) -> Chosen:
    """The model's choice among the likeliest labels, with their nearest examples before its eyes."""
    pairs = led_prompts(texts, shown, chances, names)
    return complete_among(engine, [prompt for prompt, _ in pairs], [known for _, known in pairs])


def led_prompts(
    texts: Sequence[str], shown: Sequence[Labelled], chances: np.ndarray, names: Sequence[str]
) -> list[tuple[Prompt, list[str]]]:
    """(prompt, labels to choose from) of each text: `chances` is (texts, names); the nearest example stands last."""
    examples = [_example(row) for row in shown]
    ranked = NearestExamples(examples).nearest(texts, len(examples))
    pairs = []
    for text, row, near in zip(texts, chances, ranked, strict=True):
        candidates = [names[place] for place in np.argsort(-row, kind="stable")[:CANDIDATES]]
        own = [shown[place] for place, _ in near if shown[place].label in candidates][:SHOWN]
        lines = [f"{one.text} => {one.label}" for one in reversed(own)]
        words = "\n".join(["Labels: " + ", ".join(candidates), "", *lines, "", f"{text} =>"])
        messages = ({"role": "system", "content": _SYSTEM}, {"role": "user", "content": words})
        pairs.append((Prompt(messages, shared=1), candidates))
    return pairs


def _example(row: Labelled) -> Example:
    return Example(Request.from_text(row.text, row.text), Answer((Call("classify", {"label": row.label}),)))


def complete_among(engine: Engine, prompts: Sequence[Prompt], choices: Sequence[Sequence[str]]) -> Chosen:
    """Free completions first; those that are no choice are written again under a grammar of the choices."""
    sampling = Sampling(24, stop=("\n",))
    first = engine.complete(prompts, sampling)
    labels = [completion.text.strip() for completion in first]
    seconds = sum(completion.seconds for completion in first)
    wrong = [place for place, label in enumerate(labels) if label not in choices[place]]
    grammars = [Grammar("regex", f"({'|'.join(map(re.escape, choices[place]))})") for place in wrong]
    again = engine.complete([prompts[place] for place in wrong], sampling, grammars) if wrong else []
    for place, completion in zip(wrong, again, strict=True):
        labels[place] = completion.text.strip()
        seconds += completion.seconds
    return Chosen(tuple(labels), seconds / max(1, len(prompts)))


def learn_weight(room: Room, shown: Sequence[Labelled]) -> float:
    """The weight of the model's word with which most labelled rows come out right, each unseen by both."""
    labels = np.array([row.label for row in shown])
    kept = max(2, round((CALIBRATION if not room.quick else 20) / FOLDS))
    parts = []
    watched = room.watched("banking77: labelled rows")
    for learned, out in StratifiedKFold(FOLDS, shuffle=True, random_state=room.seed).split(labels, labels):
        rows = [shown[place] for place in learned]
        asked = [shown[place] for place in np.random.default_rng(room.seed).permutation(out)[:kept]]
        guess = FunctionGuess([row.text for row in rows], [row.label for row in rows])
        chances = guess([row.text for row in asked])
        said = led_labels(watched, [row.text for row in asked], rows, chances, guess.names).labels
        parts.append((chances, guess.names, said, [row.label for row in asked]))
    right = []
    for weight in WEIGHTS:
        found = [(weighed(c, n, said, weight), gold) for c, n, said, gold in parts]
        right.append(sum(a == b for one, gold in found for a, b in zip(one, gold, strict=True)))
    best = [weight for weight, hits in zip(WEIGHTS, right, strict=True) if hits == max(right)]
    return best[len(best) // 2]


def weighed(chances: np.ndarray, names: Sequence[str], said: Sequence[str], weight: float) -> list[str]:
    """Per row the label of the highest log-probability, the model's own choice raised by `weight` nats."""
    scores = np.log(chances + 1e-12)
    for row, label in enumerate(said):
        if label in names:
            scores[row, list(names).index(label)] += weight
    return [names[best] for best in scores.argmax(axis=1)]
