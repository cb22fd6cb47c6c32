"""What every engine obeys: one completion per prompt, in order; greedy repeats itself; grammars and batches hold.

Engines that open a model run on the same weights, SmolLM2-135M in 16 bits: as GGUF and as a Hugging Face folder. All
compute in float32, so that an answer differs only where two tokens are as good as equal; no prompt has such a place.
(From the 4-bit file itself they would not agree: OpenVINO rounds the zero points of Q4_1 to whole numbers.)
`openai` asks a server on a loopback port that runs the same folder; `replay` gives back what another one answered.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from supertiny.core.ledger import Ledger
from supertiny.core.methods import build, cards
from supertiny.core.models import path_of
from supertiny.core.protocols import Engine
from supertiny.core.records import Completion, Grammar, Prompt, Sampling
from tests.engines.plain_gguf import write_sixteen_bits
from tests.local_server import served

MODEL = "smollm2-135m-instruct-q4_1"
BLOCKS = {
    "openvino": {"method": "openvino", "precision": "float32", "cache_gigabytes": 1},
    "torch": {"method": "torch", "precision": "float32", "max_batch": 4},
    "llama_cpp": {"method": "llama_cpp", "context_tokens": 4096, "max_batch": 4},
    "openai": {"method": "openai", "model": "small-one", "dialect": "vllm", "logprobs": True},
}
REPLAYS = {"replay"}  # it knows no prompt but those that were answered before, so it has a law of its own
if importlib.util.find_spec("llama_cpp") is None:  # an extra
    del BLOCKS["llama_cpp"]

SCHEMA = {
    "type": "object",
    "properties": {"light": {"enum": ["on", "off"]}, "level": {"type": "string", "maxLength": 5}},
    "required": ["light", "level"],
    "additionalProperties": False,
}
GREEDY = Sampling(max_tokens=16)


def _chat(text: str, shared: int = 1) -> Prompt:
    system = {"role": "system", "content": "You are a helpful assistant that answers in few words. " * 4}
    return Prompt((system, {"role": "user", "content": text}), shared=shared)


PROMPTS = [
    _chat("Name three colours."),
    Prompt(text="1, 2, 3, 4, 5,"),
    _chat("Count from one to ten, as digits."),
    Prompt(text="def add(a, b):\n    return"),
    _chat("What is the capital of France?"),
    _chat("Переведи: кошка 🎉"),
]
pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from supertiny.engines._gguf_to_hf import load_gguf_student

    folder = tmp_path_factory.mktemp("models")
    load_gguf_student(path_of(MODEL), folder / "hugging_face")
    write_sixteen_bits(path_of(MODEL), folder / "sixteen.gguf")
    return {"gguf": folder / "sixteen.gguf", "folder": folder / "hugging_face"}


@pytest.fixture(scope="module", params=sorted(BLOCKS))
def engine(request: pytest.FixtureRequest, models: dict[str, Path]) -> Iterator[Engine]:
    if request.param == "openai":
        behind = build("engines", BLOCKS["torch"]).open(models["folder"])
        with served(behind) as url:
            yield build("engines", {**BLOCKS["openai"], "base_url": url}).open()
        behind.close()
        return
    method = build("engines", BLOCKS[request.param])
    opened = method.open(models["folder" if request.param == "torch" else "gguf"])
    yield opened
    opened.close()


def _scores_tokens(engine: Engine) -> bool:
    return not engine.name.startswith("openai")  # how a server is asked to score stands in engines/test_openai.py


def test_every_engine_stands_under_these_laws() -> None:
    absent = {"llama_cpp"} if importlib.util.find_spec("llama_cpp") is None else set()
    assert set(BLOCKS) | REPLAYS | absent == set(cards("engines"))


def test_replay_gives_back_what_was_answered(models: dict[str, Path], tmp_path: Path) -> None:
    engine = build("engines", BLOCKS["openvino"]).open(models["gguf"])
    ledger = Ledger(tmp_path / "ledger.sqlite")
    first = ledger.wrap(engine, "laws").complete(PROMPTS, GREEDY)
    engine.close()
    ledger.close()
    replay = build("engines", {"method": "replay", "source": str(tmp_path / "ledger.sqlite")}).open()
    told: list[int] = []
    again = replay.complete(PROMPTS[::-1], GREEDY, done=lambda index, completion: told.append(index))
    assert _texts(again) == _texts(first)[::-1]
    assert sorted(told) == list(range(len(PROMPTS)))


_answers: dict[str, list[Completion]] = {}


def _plain(engine: Engine) -> list[Completion]:
    """The greedy answers of a whole batch, computed once per engine."""
    if engine.name not in _answers:
        _answers[engine.name] = engine.complete(PROMPTS, GREEDY)
    return _answers[engine.name]


def _texts(completions: list[Completion]) -> list[str]:
    return [completion.text for completion in completions]


def test_one_completion_per_prompt_in_order(engine: Engine) -> None:
    told: dict[int, Completion] = {}
    completions = engine.complete(PROMPTS, GREEDY, done=lambda index, completion: told.update({index: completion}))
    assert [told[index] for index in range(len(PROMPTS))] == completions
    assert completions[1].text.startswith(" 6, 7, 8")
    assert completions[3].text.startswith(" a + b")
    for completion in completions:
        assert 0 < completion.tokens_out <= GREEDY.max_tokens
        assert 0 <= completion.tokens_cached < completion.tokens_in
        assert completion.logprob is not None
        assert completion.logprob < 0
        assert completion.finish == ("length" if completion.tokens_out == GREEDY.max_tokens else "stop")
        assert "<|im_end|>" not in completion.text
    assert engine.complete([], GREEDY) == []


def test_the_same_answer_alone_in_a_batch_and_with_a_shared_prefix_or_not(engine: Engine) -> None:
    alone = [engine.complete([prompt], GREEDY)[0] for prompt in PROMPTS]
    apart = engine.complete([Prompt(prompt.messages, prompt.text) for prompt in PROMPTS], GREEDY)
    assert _texts(alone) == _texts(_plain(engine)) == _texts(apart)


def test_all_engines_give_the_same_answers_from_the_same_weights(engine: Engine) -> None:
    first = next(iter(_answers.values()), _plain(engine))
    mine = _plain(engine)
    assert _texts(mine) == _texts(first)
    assert [c.tokens_in for c in mine] == [c.tokens_in for c in first]
    assert np.allclose([c.logprob for c in mine], [c.logprob for c in first], atol=0.1)


def test_sampling_repeats_itself_by_seed(engine: Engine) -> None:
    once, again, other = (
        _texts(engine.complete(PROMPTS, Sampling(12, temperature=1.0, seed=seed))) for seed in (3, 3, 4)
    )
    assert once == again
    assert once != other


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar("regex", r"(yes|no|may\-be): [0-9]{3}"),
        Grammar("json_schema", json.dumps(SCHEMA)),
        Grammar("ebnf", 'root ::= "свет " ("on" | "off") "; "? [a-c]+ "."'),
    ],
    ids=lambda grammar: grammar.kind,
)
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_grammar_is_never_left(engine: Engine, grammar: Grammar, temperature: float) -> None:
    grammars = [grammar, None] * (len(PROMPTS) // 2)
    completions = engine.complete(PROMPTS, Sampling(64, temperature, seed=1), grammars)
    for completion in completions[::2]:
        if completion.finish == "length":
            continue  # cut off within the grammar
        if grammar.kind == "json_schema":
            jsonschema.validate(json.loads(completion.text), SCHEMA)
        elif grammar.kind == "regex":
            assert re.fullmatch(grammar.text, completion.text)
        else:
            assert re.fullmatch(r"свет (on|off)(; )?[a-c]+\.", completion.text)
    assert any(completion.finish == "stop" for completion in completions[::2])


def test_stop_strings_end_a_completion_and_are_no_part_of_it(engine: Engine) -> None:
    (completion,) = engine.complete([Prompt(text="1, 2, 3, 4, 5,")], Sampling(32, stop=(" 9",)))
    assert completion.text == " 6, 7, 8,"
    assert completion.finish == "stop"


def test_scores_are_the_log_probabilities_of_what_was_written(engine: Engine) -> None:
    if not _scores_tokens(engine):
        return
    (written,) = engine.complete([PROMPTS[1]], GREEDY)
    (scores,) = engine.score([PROMPTS[1]], [written.text], 0)
    assert scores.ids.shape == scores.logprobs.shape == (len(scores.tokens), 0)
    assert len(scores.tokens) == written.tokens_out
    assert float(scores.token_logprobs.sum()) == pytest.approx(written.logprob, abs=0.05)
    assert _texts(engine.complete([PROMPTS[1]], GREEDY)) == [written.text]  # scoring leaves the engine usable


def test_the_best_tokens_are_ordered_and_hold_the_greedy_one(engine: Engine) -> None:
    if not _scores_tokens(engine):
        return
    if engine.name.startswith("openvino"):
        with pytest.raises(Exception, match="torch and llama_cpp"):
            engine.score([PROMPTS[1]], [" 6"], 3)
        return
    (scores,) = engine.score([PROMPTS[1]], [_plain(engine)[1].text], 3)
    assert scores.ids.shape == scores.logprobs.shape == (len(scores.tokens), 3)
    assert np.array_equal(scores.ids[:, 0], scores.tokens)
    assert np.allclose(scores.logprobs[:, 0], scores.token_logprobs)
    assert (np.diff(scores.logprobs, axis=1) <= 0).all()
    assert (np.exp(scores.logprobs).sum(axis=1) <= 1 + 1e-5).all()


def test_the_student_folder_is_stock(models: dict[str, Path]) -> None:
    from safetensors import safe_open

    config = json.loads((models["folder"] / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["architectures"] == ["LlamaForCausalLM"]
    with safe_open(models["folder"] / "model.safetensors", "numpy") as tensors:
        names = set(tensors.keys())
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names
