"""Sentences of Home Assistant's English templates, and the reading that its recogniser gives them in this home.

The recogniser makes gold and nothing else: nothing that a model says is ever judged by it.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from itertools import permutations
from typing import Any

from hassil.expression import (
    Alternative,
    Expression,
    Group,
    ListReference,
    Permutation,
    RuleReference,
    Sequence,
    TextChunk,
)
from hassil.intents import Intents, RangeSlotList, RangeType, SlotList, TextSlotList, WildcardSlotList
from hassil.numbers import get_rbnf_engine
from hassil.recognize import RecognizeResult, recognize_all
from hassil.util import normalize_whitespace

from .functions import FUNCTIONS
from .home import Home

SPOKEN_NUMBERS_SHARE = 0.2  # of the numbers that are written as words
# Words that people say more often than the others of a choice.
USUAL = {
    "the": 6.0,
    "in": 20.0,
    "on": 6.0,
    "from": 6.0,
    "turn": 6.0,
    "switch": 3.0,
    "set": 3.0,
    "all": 3.0,
    "lights": 3.0,
    "what's": 2.0,
    "music": 6.0,
    "room": 3.0,
    "our": 0.4,
}
_ONE = "(light|lamp|lighting|fan|switch|lock|door|window|gate|shutter|blind|curtain|shade|awning)"
_MANY = "(lights|lamps|fans|switches|locks|doors|windows|gates|shutters|blinds|curtains|shades|awnings)"
_STATE = "(on|off|open|closed|shut|securely|locked|unlocked|opening|closing|shutting|detected|clear)"
_ODD = (
    r"\b(the|my|our|any|some|there) (the|my|our|any|some|all|every|each|upstairs|downstairs|here)\b",
    r"\b(\w+) \1\b",
    rf"\b(each|every)( single| and every)?( of)? (\w+ )*{_MANY}\b",
    rf"\b(all|how many)( of)? (\w+ )*{_ONE}\b",
    rf"\b({_ONE}|{_MANY}|open|closed|shut|locked|unlocked|opening|closing|shutting) ((the|my|our) )?PLACE\b",
    r"\b(on|off) ((the|my|our) )?PLACE$",
    r"\bPLACE (the|my|our)\b",
    rf"\b(is|are) (the|my|our|there) {_STATE}\b",
    r"\b(lights?|lamps?|spots|strip|chandelier|backlight) (lights?|lighting|lamps?)\b",
    r"\b(at|on|of|across|around|throughout) ((the|my|our) )?AREA\b",
    r"\b(at|in|of|across|around) ((the|my|our) )?(upper|ground) floor\b",
    r"\b(at|on|of|across|around) ((the|my|our) )?basement\b",
    r"\b(in|on) (upper|ground) floor\b",
    r"^((the|my|our) )?PLACE (to )?\S+( ?%| percent)?$",
    r"\bmake\b.* to\b",
    r"\bswitch out\b",
    r"^are (every|each)\b",
    rf"^are ((the|my|our) )?(?!all|any|some)(\w+ )*{_ONE} {_STATE}",
    r"^(lights?|lamps?|lighting) \w+$",
    rf"^(any|some|all|each|every)\b.* {_STATE}$",
    r"\b(the|our) PERSON\b",
    r"\b(PERSON|(every|some|any)(one|body)|people|persons|is|are) ((the|my|our) )?(work|school|gym)\b",
    r"\b(my|our) room\b",
    r"\bspeed ((the|my|our) )?fans?\b",
    r"\b(upstairs|downstairs) floor\b",
    r"\b(delete|remove)\b.* (in|on) (.* )?(list|packing|chores)$",
    r"\b(packing|chores)$",
    r"\b(put|check|complete)\b.* in (.* )?list$",
    r"\b(in|on|at|of|across|around|throughout|the|my|our) (upstairs|downstairs)\b",
    r"\bis (all|some|any) of\b",
    r"\bwho is (the|my|our)\b",
    r"\b(change|bring) (\w+ )*(on|off|out)\b",
    r"\b(shut|lower) up\b",
    r"\b(raise|lift) (up )?(the |my |our )?(\w+ )*(gates?|doors?|valve|curtains?)\b",
    r"\b(lower|close) (up|down) .*\b(valve|gates?|doors?|curtains?)\b",
    r"\b(area|space)s?\b",
    r"^((the|my|our) )?(color|brightness|temperature|speed)\b",
    r"\b(check|complete|delete|remove) off\b.*\boff\b",
    r"^(delete|remove) off\b",
)
FEWEST_TEMPLATES = 8  # an intent with fewer has its templates divided by their first choices
ROUND_STEP = 5
ROUND_SHARE = 0.7  # most people say round numbers


def mended(text: str) -> str:
    """The templates leave number and article open; this sets them as people say them."""
    text = re.sub(r"\b(\S+)[ -](hour|minute|second)s?\b( timer)?", _counted, text)
    text = re.sub(r"\bdegree$", "degrees", text)
    text = re.sub(r"(?<=\w) (?=[%°])", "", text)
    text = re.sub(r"(?<=\d)(?=(k|kelvin)\b)", " ", text)
    text = re.sub(r"\b(\w+s) is\b", lambda m: f"{m[1]} are" if re.fullmatch(_MANY, m[1]) else m[0], text)
    text = re.sub(r"\b(\w+) are\b", lambda m: f"{m[1]} is" if re.fullmatch(_ONE, m[1]) else m[0], text)
    text = re.sub(rf"^is (?=(there )?(any|all|some)\b.*\b{_MANY}\b)", "are ", text)
    return re.sub(r"\ban? (?=(\w))", lambda m: "an " if m[1] in "aeio8" else "a ", text)


def _counted(found: re.Match[str]) -> str:
    number, unit, timer = found.groups()
    if timer:
        return f"{number}-{unit}{timer}"
    return f"{number} {unit}" if number in ("a", "an", "1", "one", "half") else f"{number} {unit}s"


def sounds_odd(text: str, home: Home) -> bool:
    """Whether a sentence is one that the templates allow and nobody says."""
    if re.sub(r"^(please )?((the|my|our) )?", "", text) in {w for name in home.entities for w in home.words(name)}:
        return True
    areas, floors = ("|".join(w for name in kind for w in home.words(name)) for kind in (home.areas, home.floors))
    people = "|".join(home.names(("person",)))
    named = {"PLACE": f"({areas}|{floors})", "AREA": f"({areas})", "PERSON": f"({people})"}
    return any(re.search(re.sub("PLACE|AREA|PERSON", lambda m: named[m[0]], odd), text) for odd in _ODD)


@dataclass(frozen=True)
class Template:
    """One of an intent's sentence templates, or one choice within it where the intent has few."""

    id: str
    intent: str
    source: str
    """The text of the package's template, which recognised sentences are traced to."""
    expression: Expression
    domains: frozenset[str]
    """Kinds of device that `name` may mean here; empty allows any."""


@dataclass(frozen=True)
class Reading:
    """What the recogniser understands: slots are (name, value) pairs; sources are all templates that match."""

    intent: str
    slots: Mapping[str, Any]
    sources: frozenset[str]


class Grammar:
    """Templates of the functions that this home serves, and the recogniser over them."""

    def __init__(self, home: Home, functions: Collection[str] = tuple(FUNCTIONS)) -> None:
        data = json.loads(resources.files("home_assistant_intents").joinpath("data/en.json").read_text("utf-8"))
        data["intents"] = {name: _told_apart(name, data["intents"][name]) for name in functions}
        data["lists"]["bs_open_states"] = _values({"open": "open", "(closed|shut)": "closed"})
        data["lists"]["bs_occupancy_states"] = _values({"(occupied|detected|triggered)": "detected", "clear": "clear"})
        self.home = home
        self.intents = Intents.from_dict(data)
        self.lists: dict[str, SlotList] = {**self.intents.slot_lists, **_home_lists(home)}
        self.templates = [template for name in functions for template in self._templates_of(name)]

    def sample(self, template: Template, rng: random.Random) -> str:
        """One random sentence of a template."""
        said = self._said(template.expression, template.domains, rng)
        return mended(normalize_whitespace(said).strip())

    def read(self, text: str) -> Reading | None:
        """The one reading of a sentence, or None where it has none or several.

        Readings that leave less of the text to free-text slots come first, as in the recogniser itself.
        """
        found = list(recognize_all(text, self.intents, self.lists, intent_context=_HERE, language="en"))
        if not found:
            return None
        fewest = min(_free(result) for result in found)
        best = [result for result in found if _free(result) == fewest]
        readings = {(r.intent.name, json.dumps(_slots(r), sort_keys=True)) for r in best}
        if len(readings) > 1:
            return None
        sources = frozenset(_source(r.intent.name, r.intent_sentence.text or "") for r in best if r.intent_sentence)
        return Reading(best[0].intent.name, _slots(best[0]), sources)

    def _templates_of(self, intent: str) -> list[Template]:
        made: dict[str, Template] = {}
        for data in self.intents.intents[intent].data:
            for sentence in data.sentences:
                source = _source(intent, sentence.text or "")
                domains = _domains(data.requires_context)
                made.setdefault(source, Template(source, intent, source, sentence.expression, domains))
        parts = list(made.values())
        while len(parts) < FEWEST_TEMPLATES:
            divided = [part for whole in parts for part in self._divided(whole)]
            if len(divided) == len(parts):
                break
            parts = divided
        return parts

    def _divided(self, whole: Template) -> list[Template]:
        """A template once per choice of its first alternative."""
        choices = self._choices(whole.expression)
        if len(choices) < 2:
            return [whole]
        return [replace(whole, id=f"{whole.id} #{n}", expression=one) for n, one in enumerate(choices, 1)]

    def _choices(self, part: Expression) -> list[Expression]:
        if isinstance(part, RuleReference) and part.rule_name != "the":
            return self._choices(self.intents.expansion_rules[part.rule_name].expression)
        if isinstance(part, Alternative):
            return list(part.items) if len(part.items) > 1 else self._choices(part.items[0])
        if isinstance(part, Permutation):
            return [Sequence(items=_spaced(order)) for order in permutations(part.items)]
        if isinstance(part, Sequence):
            for place, item in enumerate(part.items):
                choices = self._choices(item)
                if len(choices) > 1:
                    return [Sequence(items=[*part.items[:place], one, *part.items[place + 1 :]]) for one in choices]
        return [part]

    def _said(self, part: Expression, domains: frozenset[str], rng: random.Random) -> str:
        if isinstance(part, TextChunk):
            return part.original_text
        if isinstance(part, Alternative):
            weights = [USUAL.get(_word(item), 1.0) for item in part.items]
            return self._said(rng.choices(part.items, weights)[0], domains, rng)
        if isinstance(part, Permutation):
            order = rng.sample(part.items, len(part.items))
            return " ".join(self._said(item, domains, rng).strip() for item in order)
        if isinstance(part, Group):
            return "".join(self._said(item, domains, rng) for item in part.items)
        if isinstance(part, RuleReference):
            return self._said(self.intents.expansion_rules[part.rule_name].expression, domains, rng)
        if isinstance(part, ListReference):
            return self._value(part.list_name, domains, rng)
        raise TypeError(f"unknown part of a template: {part!r}")

    def _value(self, name: str, domains: frozenset[str], rng: random.Random) -> str:
        values = self.lists[name]
        if isinstance(values, WildcardSlotList):
            return rng.choice(self.home.fillers[name])
        if isinstance(values, RangeSlotList):
            return _number(values, rng)
        assert isinstance(values, TextSlotList)
        fitting = [v for v in values.values if not domains or not v.context or v.context.get("domain") in domains]
        return self._said(rng.choice(fitting or values.values).text_in, frozenset(), rng)


_LONGEST = {"timer_hours": 12, "timer_minutes": 59, "timer_seconds": 59}
_HERE = {"area": {"value": "here", "text": ""}}


def _told_apart(name: str, intent: Mapping[str, Any]) -> dict[str, Any]:
    """Without the sentences on the lights of the room in which it is asked, which read like those on all lights."""

    def here(block: Mapping[str, Any]) -> bool:
        return "area" in block.get("requires_context", {}) and block.get("slots", {}) == {"domain": "light"}

    switched = name in ("HassTurnOn", "HassTurnOff")
    return {"data": [block for block in intent["data"] if not (switched and here(block))]}


def _values(pairs: Mapping[str, str]) -> dict[str, Any]:
    return {"values": [{"in": said, "out": meant} for said, meant in pairs.items()]}


def _home_lists(home: Home) -> dict[str, SlotList]:
    entities = [
        (word, name, {"domain": entity["domain"]})
        for name, entity in home.entities.items()
        for word in home.words(name)
    ]
    areas = [(word, name) for name in home.areas for word in home.words(name)]
    floors = [(word, name) for name in home.floors for word in home.words(name)]
    lists = {"name": entities, "area": areas, "floor": floors}
    return {key: TextSlotList.from_tuples(values, name=key) for key, values in lists.items()}


def _word(part: Expression) -> str:
    """The text of a part that is one piece of text."""
    while isinstance(part, Group) and len(part.items) == 1:
        part = part.items[0]
    return part.text.strip() if isinstance(part, TextChunk) else ""


def _source(intent: str, text: str) -> str:
    return f"{intent}: {text}"


def _domains(context: Mapping[str, Any]) -> frozenset[str]:
    wanted = context.get("domain", ())
    return frozenset([wanted] if isinstance(wanted, str) else wanted)


def _slots(result: RecognizeResult) -> dict[str, Any]:
    slots = {}
    for name, entity in result.entities.items():
        value = entity.value
        slots[name] = value.strip() if isinstance(value, str) else value
    return slots


def _free(result: RecognizeResult) -> tuple[int, int]:
    free = [entity for entity in result.entities_list if entity.is_wildcard]
    return len(free), sum(len(entity.text.strip()) for entity in free)


def _spaced(order: tuple[Expression, ...]) -> list[Expression]:
    spaced: list[Expression] = []
    for item in order:
        spaced += [TextChunk(" "), item] if spaced else [item]
    return spaced


def _number(values: RangeSlotList, rng: random.Random) -> str:
    low, high = values.start, values.stop
    if values.type == RangeType.TEMPERATURE:
        low, high = 16, 26  # what people ask of a room
    elif values.name in _LONGEST:
        high = _LONGEST[values.name]
    elif rng.random() < ROUND_SHARE:
        number = rng.randrange(low + (-low % ROUND_STEP), high + 1, max(values.step, ROUND_STEP))
        return _written(number, rng)
    return _written(rng.randrange(low, high + 1, values.step), rng)


def _written(number: int, rng: random.Random) -> str:
    if number > 100 or rng.random() >= SPOKEN_NUMBERS_SHARE:
        return str(number)
    words = get_rbnf_engine("en").format_number(number).text_by_ruleset.values()
    return sorted(word for word in words if not any(letter.isdigit() for letter in word))[0]
