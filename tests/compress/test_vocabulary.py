"""A trimmed tokenizer cuts kept text into the same pieces, any other text into bytes, and the model follows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from supertiny.compress.reshapers._tokenizer import Pieces, cut_rows, places_in
from supertiny.compress.reshapers.trim_vocabulary import TrimVocabulary
from supertiny.core.errors import UserError
from supertiny.core.methods import build
from supertiny.training.lessons import Batch, Lesson, collate

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CORPUS = [
    "turn on the kitchen light and the bedroom lamp, then turn off the heating in the living room",
    "switch the lights of the garden off; the temperature in the kitchen is twenty degrees today",
    "the quick brown fox jumps over the lazy dog while the turning lights are brightening the lane",
    "aaaa aaaaaa banana bananas on online only one another thermostat thermometer",
] * 3
UNSEEN = [
    "🦊💡 emoji",
    "打开厨房的灯，谢谢",
    "def f(x):\n    return x ** 2  # ok\n",
    "naïve Ω ŕ\u0301 \x00\t",
    "the lights",
]


def whole_tokenizer(splitter: str = "smollm") -> PreTrainedTokenizerFast:
    """Byte-level BPE as SmolLM2 has it, trained on a few lines: some 450 tokens."""
    tokenizer = Tokenizer(models.BPE())
    digits = [pre_tokenizers.Digits(individual_digits=True)] if splitter == "smollm" else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=460, special_tokens=SPECIAL, initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|im_end|>", special_tokens=[("<|im_end|>", tokenizer.token_to_id("<|im_end|>"))]
    )
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    made.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    return made


def whole_model(tokenizer: Any, tied: bool = True, spare: int = 5) -> Any:
    """With some rows more than the tokenizer has tokens, as Qwen2 has."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + spare,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=[2, 0],
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def rows(tokenizer: Any, *texts: str) -> list[Batch]:
    lessons = [Lesson(tuple(tokenizer.encode(text)), 1) for text in texts]
    return [collate(lessons, tokenizer.pad_token_id)]


def pieces(tokenizer: Any, text: str) -> list[str]:
    cut: list[str] = tokenizer.convert_ids_to_tokens(tokenizer.encode(text))
    return cut


def trimmed(tied: bool = True, **settings: Any) -> tuple[Any, Any, Any, Any]:
    """The old tokenizer and model beside the new ones."""
    old, model = whole_tokenizer(), whole_model(whole_tokenizer(), tied)
    reshaper = build("reshapers", {"method": "trim_vocabulary", **settings})
    small, new = reshaper.reshape(whole_model(old, tied), rows(old, CORPUS[0]), tokenizer=old)
    return old, model, new, small


@pytest.mark.parametrize("tied", [True, False])
def test_kept_text_has_the_same_pieces_and_the_same_logits(tied: bool) -> None:
    old, model, new, small = trimmed(tied, extra_tokens=0)
    assert len(new) < len(old)
    places = places_in(old, new)
    for text in (CORPUS[0], "turn off the kitchen light", " the the the", " bedroom"):
        assert pieces(new, text) == pieces(old, text)
        ids = new.encode(text)
        assert [places[place] for place in ids] == old.encode(text)
        with torch.inference_mode():
            there = model(torch.tensor([old.encode(text)])).logits[0][:, places]
            assert torch.allclose(small(torch.tensor([ids])).logits[0], there, atol=1e-5)
    assert (small.get_input_embeddings().weight is small.get_output_embeddings().weight) == tied
    assert small.get_input_embeddings().weight.shape == (len(new), 32)


@pytest.mark.parametrize("text", UNSEEN)
def test_any_text_is_still_written_and_read_back(text: str) -> None:
    old, _, new, _ = trimmed(extra_tokens=0)
    ids = new.encode(text, add_special_tokens=False)
    assert max(ids) < len(new)
    assert new.decode(ids) == old.decode(old.encode(text, add_special_tokens=False)) == text
    assert None not in new.convert_ids_to_tokens(ids)


def test_every_kept_token_can_be_reached_through_its_merges() -> None:
    old, _, new, _ = trimmed(extra_tokens=40, texts=("thermostat",))
    table = Pieces(new)
    for token, place in new.get_vocab().items():
        if place not in table.added and new.decode([place]).isascii():
            assert old.convert_tokens_to_ids(token) is not None
            assert new.encode(new.decode([place]), add_special_tokens=False) == [place], token
    assert pieces(new, "thermostat") == pieces(old, "thermostat")
    assert sorted(new.get_vocab().values()) == list(range(len(new))), "ids have gaps"
    order = [old.get_vocab()[text] for text, _ in sorted(new.get_vocab().items(), key=lambda item: item[1])]
    assert order == sorted(order), "tokens stand in another order"


def test_settings_decide_what_stays(tmp_path: Path) -> None:
    none = len(trimmed(extra_tokens=0)[2])
    some, all_of_them = len(trimmed(extra_tokens=100)[2]), trimmed(extra_tokens=10_000)
    assert none < some < len(all_of_them[2]) == len(all_of_them[0])
    (tmp_path / "page.txt").write_text(CORPUS[2], encoding="utf-8")
    old, _, new, _ = trimmed(extra_tokens=0, files=(str(tmp_path / "page.txt"),))
    assert pieces(new, CORPUS[2]) == pieces(old, CORPUS[2])
    assert pieces(trimmed(extra_tokens=0)[2], CORPUS[2]) != pieces(old, CORPUS[2])
    with pytest.raises(UserError, match=r"files: .*nowhere\.txt cannot be read"):
        trimmed(files=(str(tmp_path / "nowhere.txt"),))


def test_what_is_saved_opens_in_stock_transformers_with_its_special_tokens(tmp_path: Path) -> None:
    old, _, new, small = trimmed(extra_tokens=10)
    small.save_pretrained(tmp_path)
    new.save_pretrained(tmp_path)
    stock, model = AutoTokenizer.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)
    assert stock.is_fast
    assert model.config.vocab_size == len(stock) == model.get_input_embeddings().num_embeddings
    for text in (*UNSEEN, *CORPUS[:4], "<|im_start|>user<|im_end|>"):
        assert stock.encode(text) == new.encode(text)
    assert stock.encode("on")[-1] == stock.eos_token_id, "the rule that adds a token at the end has its old id"
    assert stock.chat_template == old.chat_template
    assert (stock.eos_token, stock.pad_token) == (old.eos_token, old.pad_token)
    named = [stock.convert_ids_to_tokens(place) for place in model.generation_config.eos_token_id]
    assert named == ["<|im_end|>", "<|endoftext|>"]
    assert stock.convert_ids_to_tokens(model.config.bos_token_id) == "<|im_start|>"
    written = model.generate(torch.tensor([stock.encode("turn on the")]), max_new_tokens=6, do_sample=False)
    assert int(written.max()) < len(stock)


def test_special_ids_move_with_their_tokens() -> None:
    """Special tokens at the end of the vocabulary, as Qwen2 has them."""
    old = whole_tokenizer()
    old.add_special_tokens({"additional_special_tokens": ["<|call|>"]})
    old.eos_token = "<|call|>"
    model = whole_model(old)
    place = old.convert_tokens_to_ids("<|call|>")
    model.config.eos_token_id = model.generation_config.eos_token_id = place
    small, new = TrimVocabulary(extra_tokens=0).reshape(model, rows(old, CORPUS[0]), tokenizer=old)
    assert new.eos_token_id == small.config.eos_token_id == small.generation_config.eos_token_id == len(new) - 1 < place
    assert new.encode("the<|call|>", add_special_tokens=False)[-1] == len(new) - 1


def test_a_teacher_is_cut_to_a_pupils_vocabulary() -> None:
    old, model, new, small = trimmed(extra_tokens=20)
    teacher = cut_rows(model, places_in(old, new))
    ids = torch.tensor([new.encode(CORPUS[0])])
    with torch.inference_mode():
        assert torch.equal(teacher(ids).logits, small(ids).logits)


def test_trimming_twice_is_trimming_once() -> None:
    _, _, new, small = trimmed(extra_tokens=0)
    again, newer = TrimVocabulary(extra_tokens=0).reshape(small, rows(new, CORPUS[0]), tokenizer=new)
    assert newer.get_vocab() == new.get_vocab()
    assert again.config.vocab_size == len(new)
    assert json.loads(newer.backend_tokenizer.to_str()) == json.loads(new.backend_tokenizer.to_str())


def test_other_tokenizers_are_named() -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    other = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="a")
    with pytest.raises(UserError, match="WordLevel.*byte-level BPE"):
        TrimVocabulary().reshape(whole_model(other), [], tokenizer=other)
