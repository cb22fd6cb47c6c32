"""The stage as a whole, over answerers whose faults are known beforehand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from supertiny.core.errors import UserError
from supertiny.core.files import read_json, read_rows, write_json
from supertiny.core.methods import validated
from supertiny.report.settings import Settings
from supertiny.report.stage import drawn, run
from tests.report.fakes import HOSTILE, FakeAnswerer

Openers = dict[str, Callable[[], FakeAnswerer]]
QUICK = Settings(latency_requests=5, warm_up_requests=1)
KEYS = {"name", "exact", "exact_low", "exact_high", "n", "argument_f1", "p50_seconds", "p95_seconds", "bytes"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / ".report.key"
    place.mkdir()
    return place


def test_it_writes_the_four_files_and_nothing_else(fake_run: SimpleNamespace, folder: Path, answerers: Openers) -> None:
    summary = run(QUICK, fake_run, folder, answerers)
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.json", "report.md", "rows.jsonl"]
    report = read_json(folder / "report.json")
    names = [entry["name"] for entry in report["answerers"]]
    assert names == ["tfidf_floor", "plain_prompt", "pipeline", "student", "artifact"]
    assert all(KEYS | {"tokens_in", "tokens_out", "dollars_per_1000"} <= set(entry) for entry in report["answerers"])
    by_name = {entry["name"]: entry for entry in report["answerers"]}
    assert by_name["pipeline"]["exact"] == pytest.approx(48 / 60)
    assert by_name["artifact"]["exact"] == pytest.approx(50 / 60)
    assert by_name["pipeline"]["dollars_per_1000"] == pytest.approx(1000 * 6 / 3600 * 0.10)
    assert report["rows"] == "rows.jsonl"
    assert summary["verdict"] == report["verdict"]
    assert summary["verdict"].startswith("The artifact is 3.3 points above the pipeline (95 %: ")
    assert summary["verdict"].endswith("92.0 MB.")


def test_rows_hold_request_gold_and_every_answer_in_every_script(
    fake_run: SimpleNamespace, folder: Path, answerers: Openers
) -> None:
    run(QUICK, fake_run, folder, answerers)
    rows = read_rows(folder / "rows.jsonl")
    assert [row["id"] for row in rows] == [f"test-{place}" for place in range(60)]
    row = rows[12]
    assert row["request"] == "lights on in спальня at 12 percent"
    assert row["gold"] == [{"name": "light_on", "arguments": {"area": "спальня", "level": 12}}]
    assert (row["function"], row["template"]) == ("light_on", "template 0")
    assert set(row["answers"]) == {"tfidf_floor", "plain_prompt", "pipeline", "student", "artifact"}
    pipeline, artifact = row["answers"]["pipeline"], row["answers"]["artifact"]
    assert pipeline["exact"]
    assert not artifact["exact"]
    assert artifact["calls"] == [{"name": "light_on", "arguments": {"area": "garage", "level": 12}}]
    assert 0 < artifact["similarity"] < 1 == pipeline["similarity"]
    assert artifact["raw"] == "as the model wrote it"
    assert "спальня" in (folder / "rows.jsonl").read_text(encoding="utf-8")


def test_answerers_are_opened_one_at_a_time_and_closed(
    fake_run: SimpleNamespace, folder: Path, answerers: Openers
) -> None:
    opened: list[FakeAnswerer] = []

    def watched(opens: Callable[[], FakeAnswerer]) -> Callable[[], FakeAnswerer]:
        def open_() -> FakeAnswerer:
            assert all(one.closed for one in opened)
            opened.append(opens())
            return opened[-1]

        return open_

    run(QUICK, fake_run, folder, {name: watched(opens) for name, opens in answerers.items()})
    assert [one.name for one in opened] == list(answerers)
    assert all(one.closed for one in opened)


def test_a_killed_stage_goes_on_where_it_was(fake_run: SimpleNamespace, folder: Path, answerers: Openers) -> None:
    def killed() -> FakeAnswerer:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(QUICK, fake_run, folder, {**answerers, "artifact": killed})

    def opened_again() -> FakeAnswerer:
        raise AssertionError("measured twice")

    done = dict.fromkeys(("plain_prompt", "pipeline", "student"), opened_again)
    run(QUICK, fake_run, folder, {**done, "artifact": answerers["artifact"]})
    names = [entry["name"] for entry in read_json(folder / "report.json")["answerers"]]
    assert names == ["tfidf_floor", "plain_prompt", "pipeline", "student", "artifact"]


def test_an_answerer_is_closed_when_it_fails(fake_run: SimpleNamespace, folder: Path, answerers: Openers) -> None:
    broken = answerers["student"]()

    def fails(requests: object) -> list[object]:
        raise RuntimeError("engine is gone")

    broken.answer = fails  # type: ignore[assignment, method-assign]
    with pytest.raises(RuntimeError, match="engine is gone"):
        run(QUICK, fake_run, folder, {"student": lambda: broken})
    assert broken.closed


def test_settings_choose_answerers_and_rows(fake_run: SimpleNamespace, folder: Path, answerers: Openers) -> None:
    chosen = replace(QUICK, answerers=("artifact", "tfidf_floor"), test_rows=20)
    run(chosen, fake_run, folder, answerers)
    report = read_json(folder / "report.json")
    assert [(entry["name"], entry["n"]) for entry in report["answerers"]] == [("tfidf_floor", 20), ("artifact", 20)]
    assert len(read_rows(folder / "rows.jsonl")) == 20
    assert report["break_even"] is None


def test_drawn_rows_follow_the_seed_and_keep_their_order() -> None:
    rows = list(range(100))
    first = drawn(rows, 30, 7)  # type: ignore[type-var]
    assert first == sorted(first) == drawn(rows, 30, 7)  # type: ignore[type-var]
    assert first != drawn(rows, 30, 8)  # type: ignore[type-var]
    assert drawn(rows, None, 7) == drawn(rows, 200, 7) == rows  # type: ignore[type-var]


def test_mistakes_are_told(fake_run: SimpleNamespace, folder: Path, answerers: Openers) -> None:
    with pytest.raises(UserError, match="nothing answers as"):
        run(replace(QUICK, answerers=("labelled_only",)), fake_run, folder, answerers)
    fake_run.task.test = ()
    with pytest.raises(UserError, match="no test rows"):
        run(QUICK, fake_run, folder, answerers)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"answerers": ["artefact"]}, "report.answerers: .*no answerer 'artefact', did you mean 'artifact'"),
        ({"answerers": "artifact"}, "report.answerers: .*must be `all` or a list of tfidf_floor"),
        ({"answerers": []}, "report.answerers: .*must be `all` or a list"),
        ({"test_rows": 0}, r"report\.test_rows: .*greater than or equal to 1"),
        ({"latency_requests": "many"}, r"report\.latency_requests: "),
        ({"batches": 3}, "no setting 'batches'.*batch_requests"),
    ],
)
def test_mistakes_of_a_recipe_are_told_with_their_place(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        validated(Settings, wrong, "report")


def test_settings_are_read_from_plain_values() -> None:
    read = validated(Settings, {"answerers": ["artifact"], "test_rows": None}, "report")
    assert read.answerers == ("artifact",)
    assert read == Settings(answerers=("artifact",))


def test_no_secret_of_the_recipe_gets_out(fake_run: SimpleNamespace, folder: Path, answerers: Openers) -> None:
    run(QUICK, fake_run, folder, answerers)
    for path in folder.iterdir():
        assert "sk-abcdefghijklmnopqrstuvwx" not in path.read_text(encoding="utf-8"), path.name
    assert "api_key: [redacted]" in read_json(folder / "report.json")["settings"]


def test_compression_steps_and_hashes_of_the_run_are_shown(
    fake_run: SimpleNamespace, folder: Path, answerers: Openers
) -> None:
    steps = [
        {"name": "drop_blocks", "parameters": 113_000_000, "bytes": 226_000_000, "exact": 0.775},
        {"name": "gguf", "type": "q8_0", "exact": 0.77, "agreement": 0.985, "tried": {"q4_0": 0.965, "q8_0": 0.985}},
    ]
    write_json(fake_run.folder / "compress" / "steps.json", steps)
    write_json(fake_run.folder / "compress" / "artifact" / "artifact.json", {"sha256": "ab" * 32})
    run(QUICK, fake_run, folder, answerers)
    report = read_json(folder / "report.json")
    assert report["compress_steps"] == steps
    assert report["hashes"]["artifact sha256"] == "ab" * 32
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "drop_blocks" in html
    assert "77.5 %" in html
    assert "98.5 %" in html
    assert "refused: q4_0 agreed on 96.5 %" in html


def test_hostile_text_stays_text(fake_run: SimpleNamespace, folder: Path, answerers: Openers) -> None:
    fake_run.task.description = HOSTILE
    fake_run.task.name = "a | b"
    run(QUICK, fake_run, folder, answerers)
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "alert('hi')</script>" not in html
    assert html.count("<script") == html.count("</script>") == 2
    assert "&lt;/script&gt;&lt;script&gt;alert" in html
    assert (folder / "report.md").read_text(encoding="utf-8").startswith("# a \\| b: report")
