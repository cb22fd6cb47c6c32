"""Makes the task's files from Home Assistant's English sentence templates and the home of home.yaml.

    python -m examples.smart_home.make [--seed 7] [--labelled 200] [--unlabelled 800] [--valid 200] [--test 400]

The splits differ by sentence template. Of every function's templates a quarter (A) makes the labelled rows, A and about
half of the rest (B) the pool, and the others valid (C) and test (D). A sentence of valid or test that a template of
A or B could have made as well is not taken. The same seed makes the same bytes.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from supertiny.core.files import write_json, write_rows
from supertiny.core.leaks import SIMILARITY, grams, jaccard, normalised

from .functions import FUNCTIONS, arguments_of, tools
from .home import Home
from .hooks import verify
from .sentences import Grammar, Template, sounds_odd
from .small_talk import PATTERNS, fill

FOLDER = Path(__file__).parent
SPLITS = ("labelled", "unlabelled", "valid", "test")
GROUPS: Mapping[str, str] = {"labelled": "A", "unlabelled": "AB", "valid": "C", "test": "D"}
# Groups of templates that must not be able to make a split's sentence.
FORBIDDEN: Mapping[str, tuple[str, ...]] = {
    "labelled": (),
    "unlabelled": (),
    "valid": ("A", "B"),
    "test": ("A", "B", "C"),
}
NO_CALL_SHARE = 0.11
SMALL_TALK = "small talk"
# How often a function is asked for, beside the others' 1: what people say most to such a home.
ASKED_MORE = {"HassTurnOn": 4.0, "HassTurnOff": 4.0, "HassGetState": 4.0, "HassLightSet": 3.0, "HassStartTimer": 2.0}
ASKED_LESS = {
    "HassGetCurrentDate": 0.4,
    "HassGetCurrentTime": 0.4,
    "HassVacuumReturnToBase": 0.4,
    "HassGetWeather": 0.6,
}
POLITE = ("please ", "can you ", "could you ", "would you ")
POLITE_SHARE = 0.12
VERBS = {
    "turn",
    "switch",
    "set",
    "open",
    "close",
    "add",
    "play",
    "pause",
    "start",
    "stop",
    "dock",
    "vacuum",
    "make",
    "put",
}
TRIES = 400  # draws for one row
PROBES = 30  # draws after which a template has nothing to say in this home


@dataclass(frozen=True)
class Sizes:
    """Rows per split."""

    labelled: int = 200
    unlabelled: int = 800
    valid: int = 200
    test: int = 400


@dataclass
class Maker:
    """Draws rows split by split, and remembers what was drawn."""

    grammar: Grammar
    rng: random.Random
    group_of: dict[str, str] = field(default_factory=dict)
    """Template id to A, B, C or D."""
    said: dict[str, str] = field(default_factory=dict)
    """Normalised text to its split."""
    sets: dict[str, list[frozenset[str]]] = field(default_factory=lambda: defaultdict(list))

    def divide(self) -> None:
        """Shares templates that say something in this home among A, B, C and D, function by function."""
        kinds: dict[str, list[str]] = defaultdict(list)
        for template in self.grammar.templates:
            if any(self._call(template, "labelled") for _ in range(PROBES)):
                kinds[template.intent].append(template.id)
        kinds[SMALL_TALK] = [f"{SMALL_TALK}: {pattern}" for pattern in PATTERNS]
        for ids in kinds.values():
            self.rng.shuffle(ids)
            n = len(ids)
            a = max(1, round(n / 4))
            b = max(1, min(round((n - a) / 2), n - a - 2))
            c = max(1, (n - a - b) // 3)
            for place, one in enumerate(ids):
                self.group_of[one] = "A" if place < a else "B" if place < a + b else "C" if place < a + b + c else "D"

    def rows(self, split: str, size: int) -> list[dict[str, Any]]:
        talk = round(size * NO_CALL_SHARE)
        made = [*self._calls(split, size - talk), *self._talk(split, talk)]
        self.rng.shuffle(made)
        return [{"id": f"{split}-{number:04d}", **row} for number, row in enumerate(made, 1)]

    def _calls(self, split: str, size: int) -> Iterator[dict[str, Any]]:
        by_function: dict[str, list[Template]] = defaultdict(list)
        for template in self.grammar.templates:
            if self.group_of.get(template.id, "none") in GROUPS[split]:
                by_function[template.intent].append(template)
        wanted = self._quota(sorted(by_function), size)
        missing = 0
        for function, count in wanted.items():
            for _ in range(count):
                row = self._one(lambda f=function: self._call(self.rng.choice(by_function[f]), split), split)
                if row is None:
                    missing += 1
                else:
                    yield row
        functions = [function for function in wanted if function in ASKED_MORE]
        for _ in range(missing):  # functions with few sentences leave their place to those with many
            row = self._one(lambda: self._call(self.rng.choice(by_function[self.rng.choice(functions)]), split), split)
            if row is None:
                raise RuntimeError(f"the templates of {split} are used up")
            yield row

    def _quota(self, functions: Sequence[str], size: int) -> dict[str, int]:
        weights = {f: ASKED_MORE.get(f, ASKED_LESS.get(f, 1.0)) for f in functions}
        total = sum(weights.values())
        exact = {f: size * weight / total for f, weight in weights.items()}
        counts = {f: int(share) for f, share in exact.items()}
        for function in sorted(functions, key=lambda f: counts[f] - exact[f])[: size - sum(counts.values())]:
            counts[function] += 1
        return counts

    def _talk(self, split: str, size: int) -> Iterator[dict[str, Any]]:
        patterns = [p for p in PATTERNS if self.group_of[f"{SMALL_TALK}: {p}"] in GROUPS[split]]
        for number in range(size):
            pattern = patterns[number % len(patterns)]
            row = self._one(lambda p=pattern: self._talked(p), split) or self._one(
                lambda: self._talked(self.rng.choice(patterns)), split
            )
            if row is None:
                raise RuntimeError(f"the patterns of small talk of {split} are used up")
            yield row

    def _talked(self, pattern: str) -> dict[str, Any] | None:
        text = fill(pattern, self.rng)
        if self.grammar.read(text) is not None:
            return None
        return {"text": text, "calls": [], "provenance": {"intent": "", "template": f"{SMALL_TALK}: {pattern}"}}

    def _call(self, template: Template, split: str) -> dict[str, Any] | None:
        text = self.grammar.sample(template, self.rng)
        if text.split()[0] in VERBS and self.rng.random() < POLITE_SHARE:
            text = self.rng.choice(POLITE) + text
        if sounds_odd(text, self.grammar.home):
            return None
        reading = self.grammar.read(text)
        if reading is None or reading.intent != template.intent or template.source not in reading.sources:
            return None
        if any(self.group_of.get(source, "") in FORBIDDEN[split] for source in reading.sources):
            return None
        kind = reading.slots.get("media_class")
        if kind and reading.slots["search_query"] not in self.grammar.home.media[kind]:
            return None  # a film is no podcast
        call = {"name": reading.intent, "arguments": arguments_of(reading.intent, reading.slots)}
        if verify(text, [call])[0] != "pass":
            return None
        return {"text": text, "calls": [call], "provenance": {"intent": template.intent, "template": template.id}}

    def _one(self, draw: Callable[[], dict[str, Any] | None], split: str) -> dict[str, Any] | None:
        """The first drawn row that is new, and that leaks into no other split."""
        for _ in range(TRIES):
            row = draw()
            if row is None:
                continue
            plain = normalised(row["text"])
            own = grams(plain)
            others = [s for s in self.sets if s != split and {s, split} != {"labelled", "unlabelled"}]
            if plain in self.said or any(
                jaccard(own, one) >= SIMILARITY - 0.05 for s in others for one in self.sets[s]
            ):
                continue
            self.said[plain] = split
            self.sets[split].append(own)
            return row
        return None


def make(
    folder: Path, sizes: Sizes, seed: int, functions: Sequence[str] = tuple(FUNCTIONS)
) -> dict[str, list[dict[str, Any]]]:
    """Writes tools.json and the four splits into `folder`, and gives the rows. The home is the one beside this file."""
    home = Home.read(FOLDER)
    maker = Maker(Grammar(home, functions), random.Random(seed))
    maker.divide()
    rows = {split: maker.rows(split, getattr(sizes, split)) for split in SPLITS}
    write_json(folder / "tools.json", tools(home))
    for split, made in rows.items():
        write_rows(folder / f"{split}.jsonl", made)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--seed", type=int, default=7)
    for split in SPLITS:
        parser.add_argument(f"--{split}", type=int, default=getattr(Sizes, split))
    asked = parser.parse_args()
    rows = make(asked.folder, Sizes(*(getattr(asked, split) for split in SPLITS)), asked.seed)
    for split, made in rows.items():
        templates = {row["provenance"]["template"] for row in made}
        functions = Counter(row["provenance"]["intent"] for row in made)
        print(
            f"{split}: {len(made)} rows, {len(templates)} templates, {len(functions)} functions, none: {functions['']}"
        )


if __name__ == "__main__":
    main()
