"""A method is a file: found by its name, built from a recipe's block, with every mistake told at once."""

from __future__ import annotations

import importlib
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest

from supertiny.core.errors import UserError, UserErrors
from supertiny.core.methods import FAMILIES, PACKAGE, build, cards, find, validated

OPEN = sorted(family for family, place in FAMILIES.items() if (PACKAGE / place).is_dir())


@dataclass(frozen=True)
class Limits:
    """Settings within settings."""

    rows: int = 1


@dataclass(frozen=True)
class Plan:
    """Settings of a test."""

    rows: int = 3
    share: float = 0.5
    steps: tuple[Any, ...] = field(default=("fill",), metadata={"family": "steps"})
    form: Any = field(default="compact", metadata={"family": "formats"})
    either: Any = field(default=None, metadata={"family": "steps|curators"})
    learner: Any = field(default=None, metadata={"family": "learners", "lacks": ("live_teacher", "token_scores")})
    scored: Any = field(default=None, metadata={"family": "learners", "lacks": lambda values: values["words"]})
    words: tuple[str, ...] = ()
    limits: Limits = Limits()
    maybe: Limits | None = None


def mistakes(settings: dict[str, Any]) -> list[str]:
    with pytest.raises(UserError) as told:
        validated(Plan, settings, "plan")
    return [str(error) for error in getattr(told.value, "errors", [told.value])]


@pytest.mark.parametrize("family", OPEN)
def test_every_file_of_a_family_is_a_method_with_a_card(family: str) -> None:
    for name, card in cards(family).items():
        assert card.name == name
        assert card.summary.endswith((".", ":", "?")), f"{card.path} has no first line"
        assert card.load().__name__ == card.class_name


def test_listing_imports_no_method() -> None:
    program = (
        "import sys; from supertiny.core.methods import FAMILIES, cards\n"
        "assert all(card.summary for family in FAMILIES for card in cards(family).values())\n"
        "assert 'torch' not in sys.modules and 'openvino_genai' not in sys.modules"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=PACKAGE.parent, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr.decode()


def test_a_block_is_a_name_or_a_mapping() -> None:
    assert build("steps", "vote") == build("steps", {"method": "vote"})
    assert build("steps", {"method": "vote", "samples": 5}).samples == 5


def test_unknown_names_are_told_with_the_nearest() -> None:
    with pytest.raises(UserError) as told:
        find("steps", "retreive")
    assert "'retrieve'" in told.value.hint
    with pytest.raises(UserError) as told:
        cards("step")
    assert "'steps'" in told.value.hint
    for block in (3, None, ["fill"], {"samples": 3}, {"method": 3}):
        with pytest.raises(UserError, match=r"here: needs a method's name"):
            build("steps", block, "here")


def test_all_mistakes_of_a_block_are_told_at_once_with_their_places() -> None:
    with pytest.raises(UserErrors) as told:
        build("steps", {"method": "vote", "sampels": 3, "temperature": "hot"}, "prototype.steps.2")
    first, second = map(str, told.value.errors)
    assert first == "prototype.steps.2.vote: there is no setting 'sampels' (did you mean 'samples'?)"
    assert second.startswith("prototype.steps.2.vote.temperature: ")
    assert "'hot'" in second


def test_methods_inside_settings_are_checked_too() -> None:
    told = mistakes(
        {"rowz": 1, "steps": ["fill", "chek", {"method": "vote", "sampels": 1}], "form": "compac", "either": "verifyed"}
    )
    assert told == [
        "plan: there is no setting 'rowz' (did you mean 'rows'?)",
        "plan.steps.1: steps has no method 'chek' (did you mean 'check'?)",
        "plan.steps.2.vote: there is no setting 'sampels' (did you mean 'samples'?)",
        "plan.form: formats has no method 'compac' (did you mean 'compact'?)",
        "plan.either: curators has no method 'verifyed' (did you mean 'verified'?)",
    ]
    assert validated(Plan, {"either": "verified"}, "plan").either == "verified"
    assert validated(Plan, {"either": "fill"}, "plan").either == "fill"


def test_settings_within_settings_are_checked_too() -> None:
    told = mistakes({"limits": {"rowz": 3, "rows": 1}, "maybe": {"rosw": 3}})
    assert told == [
        "plan.limits: there is no setting 'rowz' (did you mean 'rows'?)",
        "plan.maybe: there is no setting 'rosw' (did you mean 'rows'?)",
    ]
    assert validated(Plan, {"limits": {"rows": 2}, "maybe": None}, "plan").limits == Limits(2)


@pytest.mark.parametrize(
    ("stage", "within", "key", "meant"),
    [("prototype", "budget", "dolars", "dollars"), ("serve", "limits", "bodybytes", "body_bytes")],
)
def test_a_limit_misspelt_is_not_taken_for_none(stage: str, within: str, key: str, meant: str) -> None:
    schema = importlib.import_module(f"supertiny.{stage}.settings").Settings
    with pytest.raises(UserError, match=rf"{stage}.{within}: there is no setting '{key}' \(did you mean '{meant}'"):
        validated(schema, {within: {key: 3}}, stage)


def test_a_method_that_needs_what_is_not_there_is_told() -> None:
    assert mistakes({"learner": "distil"}) == [
        "plan.learner: needs live_teacher or token_scores, which is not there (choose another method)"
    ]
    # One of the two is enough, and what is lacking may depend on the other settings.
    assert validated(Plan, {"scored": "distil", "words": ["live_teacher"]}, "plan").scored == "distil"
    assert mistakes({"scored": "distil_online", "words": ["live_teacher"]}) == [
        "plan.scored: needs live_teacher, which is not there (choose another method)"
    ]
    assert validated(Plan, {"learner": "imitate"}, "plan").learner == "imitate"


def test_wrong_types_are_told_with_what_was_found() -> None:
    (told,) = mistakes({"rows": "many"})
    assert told.startswith("plan.rows: ")
    assert "'many'" in told


def test_a_list_that_is_a_word_is_told_as_a_person_would() -> None:
    (told,) = mistakes({"words": "one"})
    assert told == "plan.words: must be a list, such as [one]; found 'one'"


def test_what_our_own_validators_say_is_not_echoed() -> None:
    with pytest.raises(UserError) as told:
        build("pruners", {"method": "wanda", "pattern": "5:x"}, "here")
    assert str(told.value).startswith("here.wanda: pattern must be")
    assert str(told.value).endswith("found '5:x'")
