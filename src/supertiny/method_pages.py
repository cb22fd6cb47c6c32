"""What people read about methods and recipes: listings, pages, docs/methods.md. All is read from source."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from supertiny.core.errors import UserError, nearest_word
from supertiny.core.methods import FAMILIES, PACKAGE, Card, cards
from supertiny.core.recipe import SEARCH, STAGES

_HEAD = """# Methods

What may be named in a recipe, by family. This page is printed from the methods' own docstrings: `make methods` writes
it, and a test compares it with the source. A method is used by its name, or as `{method: NAME, SETTING: VALUE}`.
"""


_SECTIONS = "They stand beside `task`, `name`, `folder` and `seed`; a setting may be typed: `SECTION.SETTING=VALUE`."
_EMPTY = {"dict": "{}", "list": "[]", "tuple": "()"}


@dataclass(frozen=True)
class Setting:
    """A field of a method's class."""

    name: str
    type: str
    default: str | None
    """As it is written in the source; None where the recipe must give it."""
    doc: str
    within: tuple[Path, str] | None = None
    """File and class of the section that it is."""


def settings_of(card: Card) -> list[Setting]:
    """A method's or a section's settings in the order of its class."""
    found = []
    tree = _tree(card.path)
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == card.class_name)
    for node, after in zip(body, [*body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        if ast.unparse(node.annotation).startswith("ClassVar") or node.target.id.startswith("_"):
            continue
        doc = ""
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
            doc = " ".join(after.value.value.split())
        found.append(_setting(card, node.target.id, node, doc))
    return found


def _setting(card: Card, name: str, node: ast.AnnAssign, doc: str) -> Setting:
    """With its type as people read it: `Annotated[float, Field(ge=0, le=1)]` is float, ge=0, le=1; or its family."""
    plain = _Plain(card.path)
    node = plain.visit(deepcopy(node))
    if not card.family and plain.classes:
        return Setting(name, f"see {card.name}.{name}", "{}", doc, plain.classes[0])
    kind = ", ".join([ast.unparse(node.annotation), *plain.limits])
    if family := re.search(r"'family': '([a-z_|]+)'", ast.unparse(node)):
        kind = ("methods of " if kind.startswith("tuple") else "a method of ") + family[1].replace("|", " or ")
    return Setting(name, kind, None if node.value is None else _default(node.value), doc)


class _Plain(ast.NodeTransformer):
    """Puts what a file means by a name of its own in the name's place, and takes the limits of types out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.limits: list[str] = []
        self.classes: list[tuple[Path, str]] = []

    def visit_Name(self, node: ast.Name) -> Any:
        path, meant = _meant(self.path, node.id) or (self.path, node)
        if meant is node or isinstance(meant, ast.ClassDef):
            self.classes += [(path, meant.name)] if isinstance(meant, ast.ClassDef) else []
            return node
        outer, self.path = self.path, path
        plain, self.path = self.visit(deepcopy(meant)), outer
        return plain

    def visit_Subscript(self, node: ast.Subscript) -> Any:
        if ast.unparse(node.value) != "Annotated" or not isinstance(node.slice, ast.Tuple):
            return self.generic_visit(node)
        kind, *limits = node.slice.elts
        self.limits += [ast.unparse(word) for limit in limits for word in getattr(limit, "keywords", ())]
        return self.visit(kind)


def _meant(path: Path, name: str) -> tuple[Path, ast.ClassDef | ast.expr] | None:
    """The class or value that a name of a file stands for, and the file that says so; None where it is not ours."""
    for node in _tree(path).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return path, node
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return path, node.value
        if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}:
            file = PACKAGE.parent.joinpath(*str(node.module).split(".")).with_suffix(".py")
            return _meant(file, name) if file.is_file() else None
    return None


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def sections() -> dict[str, Card]:
    """What a recipe may say, by place: `transfer`, and where a setting has settings itself `compress.gate`."""
    found: dict[str, Card] = {}
    folders = {**{stage: stage for stage in STAGES}, SEARCH: "prototype/search"}
    ahead = [(place, PACKAGE / folder / "settings.py", "Settings") for place, folder in folders.items()]
    while ahead:
        place, path, name = ahead.pop(0)
        own = next(node for node in _tree(path).body if isinstance(node, ast.ClassDef) and node.name == name)
        found[place] = Card("", place, path, ast.get_docstring(own) or "", name)
        ahead[:0] = [(f"{place}.{part.name}", *part.within) for part in settings_of(found[place]) if part.within]
    return found


def door_sign(family: str) -> str:
    """What the family's folder says of itself."""
    tree = ast.parse((PACKAGE / FAMILIES[family] / "__init__.py").read_text(encoding="utf-8"))
    return ast.get_docstring(tree) or ""


def open_families() -> list[str]:
    """Families whose folder has a method, in the order in which data meets them."""
    return [family for family in FAMILIES if cards(family)]


def listing(family: str | None = None) -> Iterator[tuple[str, str]]:
    """(name, summary) of each method, after a ("", family) line per family. Raises UserError for no such family."""
    for name in open_families() if family is None else [family]:
        methods = cards(name)
        yield "", name
        yield from ((card.name, card.summary) for card in methods.values())


def lookup(name: str) -> list[Card]:
    """All methods and sections of this name, or FAMILY/NAME's one. Raises UserError with the nearest name."""
    family, slash, method = name.rpartition("/")
    families = [family] if slash else open_families()
    found = [cards(each)[method] for each in families if method in cards(each)]
    within = {} if slash else sections()
    found += [card for place, card in within.items() if name in (place, place.rpartition(".")[2])]
    if not found:
        known = [*within, *(each for one in families for each in cards(one))]
        raise UserError(f"there is no method {name!r}", nearest_word(method, known))
    return found


def page(card: Card) -> str:
    """A method's or a section's page for a terminal: its docstring, its settings, and how a recipe names it."""
    title = f"{card.family}/{card.name}" if card.family else f"{card.name}: a section of a recipe"
    lines = [title, "", card.doc.strip(), ""]
    settings = settings_of(card)
    if settings:
        lines.append("Settings:")
        for setting in settings:
            given = "must be given" if setting.default is None else f"default {setting.default}"
            lines += [f"  {setting.name}: {setting.type}  ({given})", f"      {setting.doc}"]
    else:
        lines.append("It has no settings.")
    if not card.family:
        place = f"In a recipe under `{card.name}`; typed after a command as {card.name}.{settings[0].name}=VALUE"
        return "\n".join([*lines, "", place])
    shown = "".join(f", {s.name}: {_as_yaml(s)}" for s in settings[:1])
    lines += ["", f"In a recipe: {card.name}" + (f", or {{method: {card.name}{shown}}}" if shown else "")]
    return "\n".join(lines)


def markdown() -> str:
    """The text of docs/methods.md."""
    lines = [_HEAD]
    for family in open_families():
        lines += [f"## {family}", "", *door_sign(family).strip().splitlines(), ""]
        for card in cards(family).values():
            lines += _part(card)
    lines += ["## Sections of a recipe", "", _SECTIONS, ""]
    for card in sections().values():
        lines += _part(card)
    return "\n".join(lines).rstrip() + "\n"


def _part(card: Card) -> Iterator[str]:
    yield from (f"### {card.name}", "", *_paragraphs(card.doc), "")
    settings = settings_of(card)
    if settings:
        yield from ("| setting | type | default | meaning |", "|---|---|---|---|", *map(_row, settings), "")


def _paragraphs(doc: str) -> Iterator[str]:
    """The docstring, with each labelled line (`Paper:`, `Use when:`) on a line of its own when rendered."""
    for line in doc.strip().splitlines():
        label, colon, rest = line.partition(":")
        if colon and label in {"Paper", "Use when", "Differs from the paper"}:
            yield f"- **{label}:**{rest}"
        else:
            yield line


def _row(setting: Setting) -> str:
    default = "must be given" if setting.default is None else f"`{setting.default}`"
    cells = (f"`{setting.name}`", f"`{setting.type}`", default, setting.doc)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(node: ast.expr) -> str | None:
    """A default as it is written; `field(default_factory=...)` shows what is made, None where there is none."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "field":
        for keyword in node.keywords:
            if keyword.arg == "default":
                return ast.unparse(keyword.value)
            if keyword.arg == "default_factory":
                made = keyword.value.body if isinstance(keyword.value, ast.Lambda) else keyword.value
                return _EMPTY.get(ast.unparse(made), ast.unparse(made))
        return None
    return ast.unparse(node)


def _as_yaml(setting: Setting) -> str:
    try:
        return json.dumps(ast.literal_eval(setting.default or "..."), ensure_ascii=False)
    except (ValueError, TypeError):
        return "..."
