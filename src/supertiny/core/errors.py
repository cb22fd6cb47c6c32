"""Mistakes that a person can mend, as opposed to bugs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches


class UserError(Exception):
    """Something a person can mend: shown as one line without a traceback, exit status 2.

    `problem` says what is wrong and where; `hint` says what to do about it.
    """

    def __init__(self, problem: str, hint: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.problem} ({self.hint})" if self.hint else self.problem


class UserErrors(UserError):
    """Several mistakes found in one reading; each is shown on a line of its own."""

    def __init__(self, errors: Sequence[UserError]) -> None:
        super().__init__("; ".join(str(error) for error in errors))
        self.errors = list(errors)


@contextmanager
def gathered(errors: list[UserError]) -> Iterator[None]:
    """Adds the mistakes that its block is left with to `errors`, and goes on after it."""
    try:
        yield
    except UserErrors as several:
        errors += several.errors
    except UserError as error:
        errors.append(error)


class BudgetReached(UserError):
    """The next call could cross the budget of the recipe, so it was not made."""


def nearest_word(word: str, known: Iterable[str]) -> str:
    """A hint that names the nearest right word, or all words where none is near."""
    known = sorted(known)
    near = get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else "known: " + ", ".join(known)
