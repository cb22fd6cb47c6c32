"""What people read about methods: listings, a method's page, docs/methods.md. All is read from source, not imported."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from dataclasses import dataclass

from supertiny.core.errors import UserError, nearest_word
from supertiny.core.methods import FAMILIES, PACKAGE, Card, cards

_HEAD = """# Methods

What may be named in a recipe, by family. This page is printed from the methods' own docstrings: `make methods` writes
it, and a test compares it with the source. A method is used by its name, or as `{method: NAME, SETTING: VALUE}`.
"""


_EMPTY = {"dict": "{}", "list": "[]", "tuple": "()"}


@dataclass(frozen=True)
class Setting:
    """A field of a method's class."""

    name: str
    type: str
    default: str | None
    """As it is written in the source; None where the recipe must give it."""
    doc: str


def settings_of(card: Card) -> list[Setting]:
    """A method's settings in the order of its class."""
    tree = ast.parse(card.path.read_text(encoding="utf-8"))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == card.class_name)
    found = []
    for node, after in zip(body, [*body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        if ast.unparse(node.annotation).startswith("ClassVar") or node.target.id.startswith("_"):
            continue
        doc = ""
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
            doc = " ".join(after.value.value.split())
        default = None if node.value is None else _default(node.value)
        found.append(Setting(node.target.id, _type(node.annotation), default, doc))
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
    """All methods of this name, or FAMILY/NAME's one. Raises UserError with the nearest name."""
    family, slash, method = name.rpartition("/")
    families = [family] if slash else open_families()
    found = [cards(each)[method] for each in families if method in cards(each)]
    if not found:
        known = [each for one in families for each in cards(one)]
        raise UserError(f"there is no method {name!r}", nearest_word(method, known))
    return found


def page(card: Card) -> str:
    """A method's page for a terminal: its docstring, its settings, and how a recipe names it."""
    lines = [f"{card.family}/{card.name}", "", card.doc.strip(), ""]
    settings = settings_of(card)
    if settings:
        lines.append("Settings:")
        for setting in settings:
            given = "must be given" if setting.default is None else f"default {setting.default}"
            lines += [f"  {setting.name}: {setting.type}  ({given})", f"      {setting.doc}"]
    else:
        lines.append("It has no settings.")
    shown = "".join(f", {s.name}: {_as_yaml(s)}" for s in settings[:1])
    lines += ["", f"In a recipe: {card.name}" + (f", or {{method: {card.name}{shown}}}" if shown else "")]
    return "\n".join(lines)


def markdown() -> str:
    """The text of docs/methods.md."""
    lines = [_HEAD]
    for family in open_families():
        lines += [f"## {family}", "", *door_sign(family).strip().splitlines(), ""]
        for card in cards(family).values():
            lines += [f"### {card.name}", "", *_paragraphs(card.doc), ""]
            settings = settings_of(card)
            if settings:
                lines += ["| setting | type | default | meaning |", "|---|---|---|---|"]
                lines += [_row(setting) for setting in settings]
                lines.append("")
    return "\n".join(lines).rstrip() + "\n"


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


def _type(node: ast.expr) -> str:
    """A type as people read it: `Annotated[float, Field(ge=0, le=1)]` is float, ge=0, le=1."""
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Annotated" and isinstance(node.slice, ast.Tuple):
        kind, *limits = node.slice.elts
        keywords = [keyword for limit in limits if isinstance(limit, ast.Call) for keyword in limit.keywords]
        return ", ".join([ast.unparse(kind), *(ast.unparse(keyword) for keyword in keywords)])
    return ast.unparse(node)


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
