"""What a recipe asks of its student and its teacher, compared with what there is, before anything is spent."""

from __future__ import annotations

from pathlib import Path

from supertiny.core.errors import UserError
from supertiny.core.methods import build
from supertiny.core.models import absent_models, catalogue
from supertiny.transfer.settings import Settings


def mistakes(settings: Settings) -> list[UserError]:
    """Models that are nowhere or are single files, and a teacher that no learner uses; engines are not looked at."""
    named = {"transfer.student": settings.student}
    if settings.teacher and isinstance(settings.teacher, str):
        named["transfer.teacher"] = settings.teacher
    errors = absent_models(named)
    hint = "give a Hugging Face folder or a model of the catalogue; a teacher may be {method: llama_cpp, model: FILE}"
    files = {place: name for place, name in named.items() if Path(name).is_file() and name not in catalogue()}
    errors += [UserError(f"{place}: {name!r} is a single file", hint) for place, name in files.items()]
    wanted = "live_teacher" if isinstance(settings.teacher, str) else "token_scores"
    learners = [build("learners", block) for block in (*settings.learners, *settings.labelled_only)]
    words = [word for each in learners for word in (*getattr(each, "needs", ()), *getattr(each, "takes", ()))]
    if settings.teacher and not any(wanted in word.split("|") for word in words):
        errors.append(UserError("no learner uses transfer.teacher", "take one that does, such as distil, or drop it"))
    return errors
