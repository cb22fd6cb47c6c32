"""What learners by reinforcement share: trials of a request, their advantages, and the clipped policy loss."""

from __future__ import annotations

import copy
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from supertiny.core.errors import UserError
from supertiny.core.methods import build
from supertiny.core.protocols import Reward
from supertiny.training.lessons import Batch, Lesson, Trial, collate
from supertiny.training.practice import Practice, Sample
from supertiny.training.pupil import Pupil
from supertiny.training.rollout import roll_out

_SPREAD = 1e-6  # rewards that differ by less teach nothing
_EPSILON = 1e-4  # beside the spread of a group, so that a small one is not blown up
_RIGHT = 0.9  # mean reward from which answers that are all alike are taken for right ones
_ASKED_BEFORE = 32  # requests of the pre-flight


@dataclass(frozen=True)
class Rules:
    """How answers are drawn and what they are worth."""

    reward: Any
    samples: int
    temperature: float
    redraws: int
    kl: float
    least_signal: float


@dataclass
class Trials:
    """Draws answers of the pupil as it is now; those of a request whose rewards do not differ are dropped."""

    pupil: Pupil
    practice: Practice
    rules: Rules
    lessons: Sequence[Lesson]
    seed: int
    told: dict[str, float] = field(default_factory=dict)
    """Of the last draw: mean reward, share of requests with signal, tokens an answer."""

    def __post_init__(self) -> None:
        self.reward: Reward = self.practice.served(build("rewards", self.rules.reward))
        self.asked = [lesson for lesson in self.lessons if _has_gold(lesson)]
        if not self.asked:
            raise UserError("no lesson has an answer to hold the student's own against", "give labelled rows")
        # Held in the pupil's own precision; only where something is asked of it.
        self.reference = copy.deepcopy(self.pupil.model).eval() if self.rules.kl else None

    def check_signal(self) -> None:
        """Raises UserError where hardly any request has both better and worse answers: nothing could be learned."""
        generator = random.Random(self.seed)
        asked = generator.sample(self.asked, min(_ASKED_BEFORE, len(self.asked)))
        groups = self._groups(asked, self.seed)
        spread = sum(len(_trials(*group)) > 0 for group in groups) / len(groups)
        mean = statistics.fmean(value for _, _, rewards in groups for value in rewards)
        times = self.rules.samples
        self.pupil.note(
            f"  before training: {times} answers to each of {len(asked)} requests, mean reward {mean:.2f}, "
            f"{spread:.0%} of the requests have better and worse ones"
        )
        if spread < self.rules.least_signal:
            fault = "all right" if mean > _RIGHT else "all wrong"
            raise UserError(
                f"reinforcement has no signal: for {1 - spread:.0%} of {len(asked)} requests all {times} answers are "
                f"worth the same (mean reward {mean:.2f}: nearly {fault})",
                "leave this learner out"
                if mean > _RIGHT
                else "teach by imitate first, or take a graded reward: similarity",
            )

    def drawn(self, group: Sequence[Lesson], step: int) -> list[Lesson]:
        """Trials of the group's requests; of others where all of a request were alike, `redraws` times at most."""
        generator = random.Random(f"{self.seed} {step}")
        asked = [lesson for lesson in group if _has_gold(lesson)] or generator.sample(self.asked, 1)
        wanted = len(asked)
        found: list[Lesson] = []
        groups: list[Any] = []
        for turn in range(1 + self.rules.redraws):
            fresh = self._groups(asked, seed_of(self.seed, step, turn))
            groups += fresh
            found += [trial for one in fresh for trial in _trials(*one)]
            used = sum(bool(_trials(*one)) for one in groups)
            if used >= wanted:
                break
            asked = generator.sample(self.asked, min(wanted - used, len(self.asked)))
        rewards = [value for _, _, values in groups for value in values]
        lengths = [len(sample.ids) for _, samples, _ in groups for sample in samples]
        signal, length = used / len(groups), statistics.fmean(lengths)
        self.told = {"reward": statistics.fmean(rewards), "signal": signal, "answer_tokens": length}
        return self._with_reference(found) if self.reference is not None else found

    def _groups(self, asked: Sequence[Lesson], seed: int) -> list[tuple[Lesson, list[Sample], list[float]]]:
        rules = self.rules
        written = roll_out(self.pupil, asked, self.practice, rules.samples, seed, rules.temperature)
        return [
            (lesson, samples, self.reward(lesson.example, samples))  # type: ignore[arg-type]  # `_has_gold`
            for lesson, samples in zip(asked, written, strict=True)
        ]

    def _with_reference(self, trials: Sequence[Lesson]) -> list[Lesson]:
        now = replace(self.pupil, model=self.reference)
        known: list[Lesson] = []
        for trial in trials:
            batch = collate([trial], self.pupil.pad_id).to(self.pupil.device)
            with torch.inference_mode():
                logprobs = own_logprobs(now.logits_at(batch.ids, batch.mask, batch.wanted), batch.targets)
            known.append(replace(trial, reference=tuple(logprobs.tolist())))  # type: ignore[call-arg]
        return known


def seed_of(*parts: int) -> int:
    """One seed of several numbers, the same on every machine."""
    return random.Random(" ".join(map(str, parts))).getrandbits(63)


def _has_gold(lesson: Lesson) -> bool:
    answer = lesson.example.answer if lesson.example is not None else None
    return answer is not None and answer.readable


def _trials(lesson: Lesson, samples: Sequence[Sample], rewards: Sequence[float]) -> list[Trial]:
    """Advantages are rewards less their mean, over their spread; none where all are alike."""
    mean, spread = statistics.fmean(rewards), statistics.pstdev(rewards)
    if spread < _SPREAD:
        return []
    prompt = lesson.ids[: lesson.answer_start]
    return [
        Trial((*prompt, *s.ids), len(prompt), lesson.example, (value - mean) / (spread + _EPSILON), s.logprobs)
        for s, value in zip(samples, rewards, strict=True)
    ]


def own_logprobs(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(positions,) log-probability of the tokens that stand there."""
    return -torch.nn.functional.cross_entropy(logits, targets, reduction="none")


@dataclass(frozen=True)
class PolicyLoss:
    """The clipped surrogate of PPO over answer tokens, and a pull towards the reference.

    Ratios are bounded on both sides, the upper one further away (DAPO's clip-higher). With one update for each draw the
    ratio is 1 and the gradient is that of REINFORCE with a group's advantages.
    """

    clip_low: float
    clip_high: float
    kl: float
    on_policy: bool
    temperature: float = 1.0

    def __call__(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """(positions,) losses of the batch's answer tokens, all of trials."""
        trials = [row for row in batch.rows if isinstance(row, Trial)]
        logprobs = own_logprobs(logits / self.temperature, batch.targets)
        row = batch.row_of_position
        worth = [row.advantage if isinstance(row, Trial) else 0.0 for row in batch.rows]
        advantage = torch.tensor(worth, device=logits.device)[row]
        # As numbers of another kernel would make the ratio of untouched weights differ from 1, they are used only
        # where the weights have moved since.
        old = logprobs.detach() if self.on_policy else _spread([t.old for t in trials], logits)
        ratio = (logprobs - old).exp()
        bounded = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        loss = -torch.minimum(ratio * advantage, bounded * advantage)
        if self.kl:
            apart = own_logprobs(logits, batch.targets) - _spread([t.reference for t in trials], logits)
            loss = loss + self.kl * 0.5 * apart.square()  # the estimator k2
        return loss


def _spread(rows: Sequence[Sequence[float]], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor([value for row in rows for value in row], device=like.device)
