"""Selectors: a ranking is an order of all prompts, and says nothing of how rows or labels happen to be ordered."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from supertiny.core.methods import build, cards
from supertiny.prototype.selectors._probabilities import clean, entropy

SELECTORS = sorted(cards("selectors"))
VARIANTS = [
    *SELECTORS,
    {"method": "mutual_information", "hard": True},
    *({"method": "zero_label", "ensemble": way} for way in ("mean", "votes")),
    *({"method": name, "calibrate": True} for name in SELECTORS if name != "first"),
]
SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 4))
TENSORS = SHAPES.flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.sampled_from([0.0, 1e-300, 0.1, 0.25, 0.5, 1.0, 3.0]))
)


def rank(variant, probabilities):
    return build("selectors", variant).rank([f"prompt {n}" for n in range(len(probabilities))], probabilities)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@given(probabilities=TENSORS)
def test_a_ranking_names_every_prompt_once_also_with_zeros(variant, probabilities):
    before = probabilities.copy()
    order = rank(variant, probabilities)
    assert sorted(order) == list(range(len(probabilities)))
    assert order == rank(variant, probabilities)
    assert all(type(place) is int for place in order)
    assert (probabilities == before).all()


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@given(probabilities=TENSORS, seed=st.integers(0, 99))
def test_the_order_of_rows_and_labels_does_not_matter(variant, probabilities, seed):
    draw = np.random.default_rng(seed)
    rows, labels = (draw.permutation(count) for count in probabilities.shape[1:])
    assert rank(variant, probabilities[:, rows]) == rank(variant, probabilities)
    assert rank(variant, probabilities[:, :, labels]) == rank(variant, probabilities)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_what_does_not_belong_together_is_refused(variant):
    selector = build("selectors", variant)
    for wrong in (
        np.ones((2, 3)),
        np.ones((3, 2, 2)),
        np.ones((2, 0, 2)),
        np.full((2, 1, 2), np.nan),
        -np.ones((2, 1, 2)),
    ):
        with pytest.raises(ValueError):
            selector.rank(["a", "b"], wrong)


CONSTANT = np.tile([0.98, 0.02], (4, 1))
UNSURE = np.tile([0.5, 0.5], (4, 1))
SURE = np.array([[0.98, 0.02], [0.02, 0.98]] * 2)


@pytest.mark.parametrize("hard", [False, True])
def test_mutual_information_wants_sure_answers_that_differ(hard):
    variant = {"method": "mutual_information", "hard": hard}
    assert rank(variant, np.stack([CONSTANT, UNSURE, SURE]))[0] == 2
    assert rank(variant, np.stack([SURE, CONSTANT]))[0] == 0


def test_mutual_information_is_that_of_the_formula():
    """A prompt that tells two labels apart for certain has one bit, one that is right in half of the rows none."""
    sure = clean(["a"], np.eye(2)[None])
    assert entropy(sure.mean(axis=1)) - entropy(sure).mean(axis=1) == pytest.approx(np.log(2))
    assert entropy(np.array([0.25, 0.75])) == pytest.approx(0.5623351446188083)


def test_the_others_prefer_what_their_papers_say():
    tensor = np.stack([CONSTANT, UNSURE, SURE])
    assert rank("global_entropy", tensor)[-1] == 0
    assert rank("local_entropy", tensor)[0] == 1
    assert rank("minimum_description_length", tensor)[-1] == 1
    assert rank("first", tensor) == [0, 1, 2]


@pytest.mark.parametrize("ensemble", ["log_mean", "mean", "votes"])
def test_zero_label_finds_the_odd_one_out(ensemble):
    tensor = np.stack([SURE[:, ::-1], SURE, 0.9 * SURE + 0.05])
    assert rank({"method": "zero_label", "ensemble": ensemble}, tensor) == [1, 2, 0]


def test_calibration_takes_away_what_a_prompt_prefers_whatever_is_asked():
    """Under a prompt that leans to the first label, the rows still differ: calibrated, they are told apart."""
    leaning = np.array([[0.95, 0.05], [0.70, 0.30]] * 2)
    assert (leaning.argmax(axis=1) == 0).all()
    (calibrated,) = clean(["a"], leaning[None], calibrate=True)
    assert list(calibrated.argmax(axis=1)) == [0, 1, 0, 1]
    assert calibrated.sum(axis=1) == pytest.approx(1.0)
    mean = leaning.mean(axis=0)
    assert calibrated[0, 0] == pytest.approx((0.95 / mean[0]) / (0.95 / mean[0] + 0.05 / mean[1]))
    (never,) = clean(["a"], np.array([[[1.0, 0.0]] * 2]), calibrate=True)
    assert never.tolist() == [[1.0, 0.0]] * 2


def drawn(qualities, leaning, seed, rows=200, labels=3):
    """Probabilities of prompts that tell labels apart more or less well and lean to labels of their own; accuracies."""
    draw = np.random.default_rng(seed)
    gold = draw.integers(0, labels, rows)
    lean = leaning * draw.normal(size=(len(qualities), 1, labels))
    logits = np.asarray(qualities)[:, None, None] * np.eye(labels)[gold] + lean
    logits = logits + draw.normal(size=(len(qualities), rows, labels))
    shares = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    return shares, gold, (shares.argmax(axis=-1) == gold).mean(axis=1)


@pytest.mark.parametrize(
    "variant", ["mutual_information", {"method": "mutual_information", "calibrate": True}], ids=str
)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_mutual_information_orders_prompts_as_their_accuracy_does(variant, seed):
    """What its paper claims, on drawn probabilities: no label is seen, and the order is nearly that of accuracy."""
    shares, _, accuracies = drawn(np.linspace(0.0, 4.0, 20), 0.5, seed)
    order = rank(variant, shares)
    places = np.argsort(np.argsort(-accuracies[order]))
    assert np.corrcoef(places, np.arange(20))[0, 1] > 0.8
    assert accuracies[order[0]] >= 0.94 * accuracies.max()
    assert accuracies[order[0]] > accuracies.mean() + 0.1


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_calibration_raises_the_accuracy_of_prompts_that_lean(seed):
    shares, gold, accuracies = drawn(np.full(20, 1.5), 2.0, seed)
    calibrated = clean(range(20), shares, calibrate=True)
    assert (calibrated.argmax(axis=-1) == gold).mean() > accuracies.mean() + 0.1
