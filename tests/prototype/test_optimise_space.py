"""The pipelines that a search tries, and what is said where its section of the recipe is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from supertiny.core.errors import UserErrors
from supertiny.core.methods import own_methods, validated
from supertiny.pipeline import _hashed, load_recipe
from supertiny.prototype.search.settings import Settings as Search
from supertiny.prototype.search.space import Candidate, candidates, present
from supertiny.prototype.settings import Settings


def settings(*steps: Any, **more: Any) -> Settings:
    made: Settings = validated(Settings, {"steps": steps or ("retrieve", "fill", "check"), **more}, "prototype")
    return made


def search(**said: Any) -> Search:
    made: Search = validated(Search, said, "optimise")
    return made


def shown(found: list[Candidate]) -> list[str]:
    return [candidate.name for candidate in found]


def test_what_is_not_said_is_derived_from_the_recipe() -> None:
    found = shown(candidates(search(), settings({"method": "retrieve", "examples": 5}, "fill", "check")))
    assert found[0] == "retrieve(examples=5) + fill + check"
    assert {"fill", "fill + check", "fill + vote", "fill + check + vote"} <= set(found)
    for count in (3, 5, 6, 10):
        for rest in ("fill", "fill + check", "fill + vote", "fill + check + vote"):
            assert f"retrieve(examples={count}) + {rest}" in found
    assert len(found) == len(set(found))
    assert not [name for name in found if "fill" not in name and name != "plain"]


def test_the_recipes_own_steps_are_tried_with_and_without() -> None:
    found = shown(candidates(search(examples=[6], optional=None), settings("retrieve", "route", "fill")))
    assert {"retrieve(examples=6) + fill", "retrieve(examples=6) + route + fill"} <= set(found)


def test_what_is_said_is_tried_and_nothing_else() -> None:
    found = candidates(search(steps=[["fill"], ["route", "fill"]]), settings("fill", "check"))
    assert shown(found) == ["fill + check", "fill", "route + fill"]
    found = candidates(
        search(steps=[["fill"]], examples=[0, 4], optional=[{"method": "vote", "samples": 4}]), settings()
    )
    assert shown(found) == [
        "retrieve + fill + check",
        "fill",
        "fill + vote(samples=4)",
        "retrieve(examples=4) + fill",
        "retrieve(examples=4) + fill + vote(samples=4)",
    ]


def test_several_blocks_of_one_step_are_alternatives() -> None:
    votes = [{"method": "vote", "samples": count} for count in (2, 4)]
    found = shown(candidates(search(steps=[["fill", "check"]], optional=[*votes, "check"]), settings("fill")))
    assert set(found) == {
        f"fill{check}{vote}" for check in ("", " + check") for vote in ("", " + vote(samples=2)", " + vote(samples=4)")
    }


def test_examples_may_be_whole_blocks_and_take_the_place_of_retrieve() -> None:
    block = {"method": "retrieve", "examples": 2}
    found = shown(candidates(search(steps=[["route", "retrieve", "fill"]], examples=[block, 7]), settings("fill")))
    assert found == ["fill", "route + retrieve(examples=2) + fill", "route + retrieve(examples=7) + fill"]


def test_two_ways_of_saying_the_same_are_one() -> None:
    same = [["retrieve", "fill"], [{"method": "retrieve", "examples": 8}, "fill"], ["retrieve", {"method": "fill"}]]
    found = candidates(search(steps=same), settings("retrieve", "fill"))
    assert shown(found) == ["retrieve + fill"]
    assert found[0].key == present(settings("retrieve", "fill")).key


def test_engines_formats_and_wordings_are_crossed_and_told_apart() -> None:
    engines = [{"method": "openvino", "model": name} for name in ("a", "b")]
    said = search(
        steps=[["fill"]], engines=engines, formats=["compact", "chat_json"], wordings=["Be brief.", "Be kind."]
    )
    found = candidates(said, settings("fill", engine=engines[0], format="compact"))
    assert len(found) == len(set(shown(found))) == 2 * 2 * 3
    assert found[0].name == "fill (a, compact, wording 0)"
    assert {candidate.wording for candidate in found} == {"", "Be brief.", "Be kind."}
    other = found[-1].within(settings("fill"))
    assert (other.engine, other.format, other.wording) == (engines[1], "chat_json", "Be kind.")


def test_a_pipeline_without_each_of_its_steps() -> None:
    whole = present(settings("retrieve", "fill", "check"))
    rest = [(step, one.steps) for step, one in whole.without_each_step()]
    assert rest == [
        ("retrieve", ("fill", "check")),
        ("fill", ("retrieve", "check")),
        ("check", ("retrieve", "fill")),
    ]
    assert present(settings("fill")).without_each_step() == []


STACK = {"method": "stack", "steps": ["classify", {"method": "retrieve", "examples": 3}, "fill"]}


def stacked(*steps: Any) -> dict[str, Any]:
    return {"method": "stack", "steps": list(steps)}


def test_steps_within_others_are_left_out_one_by_one() -> None:
    three = {"method": "retrieve", "examples": 3}
    rest = dict(present(settings(STACK, "check")).without_each_step())
    assert {title: one.steps for title, one in rest.items()} == {
        "stack(steps=[classify + retrieve(examples=3) + fill])": ("check",),
        "classify within stack": (stacked(three, "fill"), "check"),
        "retrieve(examples=3) within stack": (stacked("classify", "fill"), "check"),
        "fill within stack": (stacked("classify", three), "check"),
        "check": (STACK,),
    }
    alone = present(settings("stack")).without_each_step()
    assert [(title, one.steps) for title, one in alone] == [
        ("retrieve within stack", (stacked("fill"),)),
        ("fill within stack", (stacked("retrieve"),)),
    ]


def test_examples_are_chosen_within_a_step_that_has_steps() -> None:
    found = candidates(search(steps=[[STACK]], examples=[0, 6]), settings("fill"))
    six = {"method": "retrieve", "examples": 6}
    assert [one.steps for one in found] == [
        ("fill",), (stacked("classify", "fill"),), (stacked("classify", six, "fill"),),
    ]  # fmt: skip
    cheap = {"method": "cascade", "engine": "openvino"}
    found = candidates(search(steps=[[cheap, "check"], [stacked("fill")]], examples=[6]), settings("fill"))
    assert [one.steps for one in found[1:]] == [
        ({**cheap, "steps": [six, "fill"]}, "check"),
        (stacked(six, "fill"),),
    ], "shown where the answer is written, not before"


def test_optional_steps_within_others_are_tried_where_they_stand() -> None:
    found = candidates(search(examples=[3]), settings(STACK))
    three = {"method": "retrieve", "examples": 3}
    tried = [one.steps for one in found]
    assert (stacked(three, "fill"), "check") in tried
    assert (STACK, "vote") in tried
    assert all(str(steps).count("'retrieve'") <= 1 for steps in tried)
    assert all(str(steps).count("classify") <= 1 for steps in tried)


def test_orders_that_cannot_work_are_not_tried() -> None:
    found = shown(candidates(search(examples=[0]), settings("plan", "execute")))
    assert {"plan + execute", "plan + execute + vote", "plan"} <= set(found)
    assert "plan + vote" not in found


def test_a_wordings_number_is_its_place_in_the_recipe() -> None:
    said = search(steps=[["fill"]], wordings=["Be brief.", "Be kind."])
    every = {one.wording: one.name for one in candidates(said, settings("fill"))}
    kept = {one.wording: one.name for one in candidates(said, settings("fill"), ["Be kind."])}
    assert kept == {"": "fill (wording 0)", "Be kind.": "fill (wording 2)"}
    assert kept.items() <= every.items()


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ({"steps": [["fill", "stack"]]}, "optimise.steps.0.1: stack stands behind fill"),
        ({"steps": []}, "optimise.steps: is empty, so there is nothing to try"),
        ({"steps": [["fill"], []]}, "optimise.steps.1: has no step (list steps"),
        ({"steps": [["fil"]]}, "optimise.steps.0.0: steps has no method 'fil' (did you mean 'fill'?)"),
        (
            {"steps": [["fill", {"method": "vote", "sample": 3}]]},
            "optimise.steps.0.1.vote: there is no setting 'sample'",
        ),
        ({"optional": ["chek"]}, "optimise.optional.0: steps has no method 'chek' (did you mean 'check'?)"),
        ({"examples": []}, "optimise.examples: is empty, so there is nothing to try"),
        ({"examples": [{"method": "fill"}]}, "optimise.examples.0: must be a number or a retrieve block"),
        ({"examples": [-1]}, "optimise.examples.0"),
        ({"selector": "mutual_information"}, "optimise.selector: there are no wordings to select from"),
        ({"selector": "mutual", "wordings": ["a"]}, "optimise.selector: selectors has no method 'mutual'"),
        ({"engines": ["opnvino"]}, "optimise.engines.0: engines has no method 'opnvino' (did you mean 'openvino'?)"),
        ({"engines": [{"method": "openvino", "model": "nix"}]}, "optimise.engines.0.model: there is no model 'nix'"),
        (
            {"optional": [{"method": "cascade", "engine": {"method": "openvino", "model": "nix"}, "steps": ["fill"]}]},
            "optimise.optional.0.engine.model: there is no model 'nix'",
        ),
        ({"steps": [["fill"]], "examples": list(range(301))}, "pipelines are more than 300 (list fewer"),
        ({"row": 3}, "optimise: there is no setting 'row'"),
        ({"keep": 1}, "optimise.keep: Input should be greater than or equal to 2"),
    ],
)
def test_mistakes_are_told_with_their_place(
    task_folder: Path, tmp_path: Path, section: dict[str, Any], line: str
) -> None:
    import yaml

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"task": str(task_folder), "optimise": section}), encoding="utf-8")
    with pytest.raises(UserErrors) as told:
        load_recipe(recipe)
    assert any(line in str(error) for error in told.value.errors), told.value


def test_a_recipe_may_have_the_section_and_keeps_it(task_folder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"task: {task_folder}\noptimise: {{examples: [0, 4]}}\n", encoding="utf-8")
    loaded = load_recipe(recipe, ["optimise.rows=20"])
    assert loaded.sections["optimise"] == {"examples": [0, 4], "rows": 20}
    assert "examples" in loaded.text


def test_steps_that_the_task_brings_along_may_be_tried(tmp_path: Path) -> None:
    (tmp_path / "shout.py").write_text(
        '"""Shouts."""\n\nfrom dataclasses import dataclass\n\n\n@dataclass(frozen=True)\nclass Shout:\n'
        '    """Shouts."""\n\n    calls_per_request = 1.0\n\n'
        "    def run(self, traces, bench):\n        return list(traces)\n",
        encoding="utf-8",
    )
    own = own_methods("steps", tmp_path)
    found = candidates(search(steps=[["shout"], ["fill", "shout"]]), settings("fill"), own=own)
    assert shown(found) == ["fill", "shout", "fill + shout"]


def test_a_wording_that_is_not_given_leaves_a_runs_key_as_it_was() -> None:
    assert "wording" not in _hashed(settings("fill"))
    assert _hashed(settings("fill", wording="Be brief."))["wording"] == "Be brief."
    assert {"engine", "steps", "valid_rows"} <= set(_hashed(settings("fill")))
    assert "budget" not in _hashed(settings("fill"))
