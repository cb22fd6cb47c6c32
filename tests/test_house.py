"""The house's own rules: who may import whom, how big a file may be, what a method's card says."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from supertiny import method_pages
from supertiny.core.methods import FAMILIES, cards
from supertiny.core.recipe import STAGES, read_recipe

REPOSITORY = Path(__file__).parents[1]
SOURCE = REPOSITORY / "src" / "supertiny"
WORKSHOPS = ("engines", "formats", "training")
# The door between rooms and people: they know all stages.
EVERYWHERE = {"pipeline.py", "cli.py"}
LIMITS = {"method file": 150, "other file": 400, "function": 50, "protocols page": 200}
CONCEPTS = {"families": 24, "methods": 130, "public names": 700, "lines": 34_200}
FORBIDDEN = {"utils", "util", "helpers", "helper", "common", "base", "manager", "factory", "handler", "misc"}
HEAVY = ("torch", "transformers", "openvino_genai", "sklearn", "scipy")

FILES = sorted(SOURCE.rglob("*.py"))
METHOD_FILES = {card.path for family in FAMILIES for card in cards(family).values()}
RECIPES = sorted((REPOSITORY / "examples").rglob("recipe*.yaml"))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def shown(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def imports_of(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(module, line) of every import, within functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import on line {node.lineno}"
            if node.module == "supertiny":
                yield from ((f"supertiny.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield str(node.module), node.lineno


def allowed_rooms(path: Path) -> set[str]:
    """Rooms that a file may import from."""
    room = path.relative_to(SOURCE).parts[0]
    if room in EVERYWHERE:
        return {"core", *WORKSHOPS, *STAGES, "pipeline", "method_pages", "task_commands"}
    if room in WORKSHOPS:
        return {"core", *WORKSHOPS[: WORKSHOPS.index(room) + 1]}
    if room in STAGES:
        return {"core", *WORKSHOPS, room}
    return {"core"}


def test_rooms_import_only_what_stands_before_them() -> None:
    wrong = [
        f"{shown(path)}:{line} imports {module}"
        for path in FILES
        for module, line in imports_of(tree_of(path))
        if module.startswith("supertiny.")
        and module != "supertiny.__version__"
        and module.split(".")[1] not in allowed_rooms(path)
    ]
    assert not wrong, "\n".join(wrong)


def test_modules_are_imported_by_computed_name_in_two_places_only() -> None:
    """Otherwise the import rule could be walked around."""
    users = {
        shown(path) for path in FILES for module, _ in imports_of(tree_of(path)) if module.split(".")[0] == "importlib"
    }
    users -= {shown(path) for path in FILES if "import_module" not in path.read_text(encoding="utf-8")}
    assert users <= {"src/supertiny/core/methods.py", "src/supertiny/pipeline.py"}


def test_torch_is_imported_at_the_top_of_learning_rooms_alone() -> None:
    wrong = []
    for path in FILES:
        place = path.relative_to(SOURCE)
        learning = place.parts[0] in {"training", "transfer", "compress"}
        if learning or (place.parts[0] == "engines" and "torch" in path.stem):
            continue
        top = ast.Module([n for n in tree_of(path).body if isinstance(n, ast.Import | ast.ImportFrom)], [])
        wrong += [f"{shown(path)}:{line}" for module, line in imports_of(top) if module.split(".")[0] == "torch"]
    assert not wrong, "\n".join(wrong)


def test_every_foreign_import_is_a_declared_dependency() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    declared = {plain_name(requirement) for group in groups for requirement in group}
    owners = importlib.metadata.packages_distributions()
    owners = dict(owners) | {"llama_cpp": ["llama-cpp-python"], "pydantic_core": ["pydantic"], "datasets": ["datasets"]}
    wrong = {
        f"{shown(path)}:{line} imports {module}"
        for path in FILES
        for module, line in imports_of(tree_of(path))
        if (root := module.split(".")[0]) not in sys.stdlib_module_names | {"supertiny", "xgrammar"}
        and not {plain_name(owner) for owner in owners.get(root, [])} & declared
    }
    assert not wrong, "\n".join(sorted(wrong))
    pinned = [line for line in (REPOSITORY / "constraints.txt").read_text("utf-8").splitlines() if line[:1] not in "#"]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._]+", line) for line in pinned)
    assert declared <= {plain_name(line) for line in pinned}


def plain_name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower().replace("_", "-")


def python_files() -> list[Path]:
    return [*FILES, *sorted((REPOSITORY / "tests").rglob("*.py")), *sorted((REPOSITORY / "benchmarks").rglob("*.py"))]


def test_files_and_functions_are_small() -> None:
    wrong = []
    for path in python_files():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        kind = "method file" if path in METHOD_FILES else "other file"
        kind = "protocols page" if path.name == "protocols.py" else kind
        if lines > LIMITS[kind]:
            wrong.append(f"{shown(path)}: {lines} lines; a {kind} has at most {LIMITS[kind]}")
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > LIMITS["function"]:
                    wrong.append(f"{shown(path)}:{node.lineno}: {node.name} has {length} lines, at most 50")
    assert not wrong, "\n".join(wrong)


def test_files_folders_and_classes_say_what_is_inside() -> None:
    wrong = []
    for path in python_files():
        names = [(part.removesuffix(".py"), 1) for part in path.relative_to(REPOSITORY).parts]
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                names.append((node.name, node.lineno))
        for name, line in names:
            words = {word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", name)}
            if words & FORBIDDEN:
                wrong.append(f"{shown(path)}:{line}: {name}")
    assert not wrong, "\n".join(wrong)


def test_a_method_file_has_one_public_frozen_dataclass_with_a_card() -> None:
    wrong: list[str] = []
    for path in sorted(METHOD_FILES):
        wrong += [f"{shown(path)}: {problem}" for problem in card_problems(path)]
    assert not wrong, "\n".join(wrong)


def card_problems(path: Path) -> Iterator[str]:
    tree = tree_of(path)
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name[0] != "_"]
    if functions:
        yield f"public functions {functions}: a method file has one public name, its class"
    (method,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name[0] != "_"]
    decorators = [ast.unparse(decorator) for decorator in method.decorator_list]
    if not any(re.match(r"dataclass\(.*frozen=True", decorator) for decorator in decorators):
        yield f"{method.name} is not a frozen dataclass"
    if not ast.get_docstring(method):
        yield f"{method.name} has no docstring"
    if method.name.lower() != path.stem.replace("_", ""):
        yield f"the class {method.name} and the file {path.stem} have different names"
    first, *rest = (ast.get_docstring(tree) or "").splitlines() or [""]
    if not first.endswith("."):
        yield "the docstring's first line must say what the method does, as a sentence"
    labels = [line.partition(":")[0] for line in rest if line.partition(":")[0] in CARD]
    if "Use when" not in labels:
        yield "the docstring has no `Use when:` line"
    if labels != sorted(labels, key=CARD.index) or (rest and rest[0]):
        yield f"the docstring's shape is: a line, a blank line, then {', '.join(CARD)} in this order"
    card = next(card for family in FAMILIES for card in cards(family).values() if card.path == path)
    yield from (f"setting {s.name} has no docstring" for s in method_pages.settings_of(card) if not s.doc)


CARD = ["Paper", "Use when", "Differs from the paper"]


def test_method_classes_have_names_of_their_own() -> None:
    for family in FAMILIES:
        repeated = [n for n, count in Counter(card.class_name for card in cards(family).values()).items() if count > 1]
        assert not repeated, f"{family}: {repeated}"


@pytest.mark.parametrize("family", method_pages.open_families())
def test_an_open_family_has_a_door_sign_and_laws(family: str) -> None:
    sign = method_pages.door_sign(family)
    assert re.search(r"\b[Gg]ets\b", sign), f"{family}/__init__.py: say what it gets"
    assert re.search(r"\b[Gg]ives\b", sign), f"{family}/__init__.py: say what it gives"
    assert re.search(r"\b[Mm]ay touch\b", sign), f"{family}/__init__.py: say what it may touch"
    laws = REPOSITORY / "tests" / "laws" / f"test_{family}.py"
    assert laws.exists(), f"{shown(laws)} is missing: each family has one contract test"
    assert family in laws.read_text(encoding="utf-8")
    assert f"`{family}`" in (REPOSITORY / "README.md").read_text(encoding="utf-8"), f"README's table lacks {family}"


def test_every_room_has_a_sign() -> None:
    for path in FILES:
        assert ast.get_docstring(tree_of(path)), f"{shown(path)} does not say what it is for"
    for room in (*WORKSHOPS, *STAGES):
        assert (SOURCE / room / "__init__.py").exists(), room


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["methods"], ["show", "forward_kl"], ["models", "list"]]
)
def test_help_and_listings_load_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom supertiny.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as exit:\n    assert not exit.code, exit.code\n"
        f"sys.exit(' '.join(name for name in {HEAVY!r} if name in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_settings_are_free_of_torch() -> None:
    """So that `supertiny check` answers at once."""
    loads = "; ".join(f"import supertiny.{stage}.settings" for stage in STAGES)
    script = f"import sys; {loads}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_the_methods_page_is_what_the_docstrings_say() -> None:
    written = (REPOSITORY / "docs" / "methods.md").read_text(encoding="utf-8")
    assert written == method_pages.markdown(), "docs/methods.md is not up to date: run `make methods`"


@pytest.mark.parametrize("path", RECIPES, ids=shown)
def test_every_shipped_recipe_is_without_mistakes(path: Path) -> None:
    from supertiny.pipeline import check

    assert set(check(read_recipe(path))) == set(STAGES)


def test_recipes_are_shipped() -> None:
    assert RECIPES, "no recipe under examples/: the test above would check nothing"


def committed_text() -> Iterator[tuple[Path, str]]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        path = REPOSITORY / name
        if name and path.is_file():
            try:
                yield path, path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


def test_committed_files_speak_of_the_project_alone() -> None:
    folders = "|".join(("wo" + "rk", "ro" + "ot", "t" + "mp"))
    words = re.compile(
        rf"(?<![\w.$}})])/(?:{folders})/|/home/[a-z]+/|--(?:extra-)?index-"
        + r"url|--find-"
        + r"links|\bpypi\.(?:org|io)\b"
    )
    wrong = [
        f"{shown(path)}:{number}: {line.strip()[:100]}"
        for path, text in committed_text()
        for number, line in enumerate(text.splitlines(), 1)
        if words.search(line)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_house_stays_small(capsys: pytest.CaptureFixture[str]) -> None:
    names = [
        node.name
        for path in FILES
        if path not in METHOD_FILES
        for node in tree_of(path).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name[0] != "_"
    ]
    counts = {
        "families": len(method_pages.open_families()),
        "methods": len(METHOD_FILES),
        "public names": len(names),
        "lines": sum(len(path.read_text(encoding="utf-8").splitlines()) for path in FILES),
    }
    with capsys.disabled():
        print(
            "\nconcepts: "
            + ", ".join(f"{count:,} {what} (at most {CONCEPTS[what]:,})" for what, count in counts.items())
        )
    assert all(count <= CONCEPTS[what] for what, count in counts.items())


def test_who_lacks_llama_cpp_is_told_the_version_that_is_tested() -> None:
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (pinned,) = extras["optional-dependencies"]["llama-cpp"]
    assert f"pip install {pinned} " in (SOURCE / "engines" / "_llama_model.py").read_text(encoding="utf-8")
