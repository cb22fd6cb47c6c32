"""`make setup` ends well whatever an earlier one was killed in; no network, no real environment."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
WHOLE = "#!/bin/sh\nexit 0\n"
HALF = "#!/bin/sh\necho 'No module named pip' >&2\nexit 1\n"
# Stands for the Python that makes the environment: a whole one needs --clear where something is left of another.
MAKER = f"""#!/bin/sh
case "$*" in
  "-m venv --clear .venv")
    echo "made anew"
    mkdir -p .venv/bin
    printf '{WHOLE.encode("unicode_escape").decode()}' | tee .venv/bin/python > .venv/bin/supertiny
    chmod +x .venv/bin/python .venv/bin/supertiny ;;
esac
"""


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


def setup(folder: Path) -> subprocess.CompletedProcess[str]:
    maker = script(folder / "maker", MAKER)
    command = ["make", "setup", f"PYTHON={maker}"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_an_environment_without_pip_is_made_anew(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(REPOSITORY / name, tmp_path)
    script(tmp_path / ".venv" / "bin" / "python", HALF)
    done = setup(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "made anew" in done.stdout
    (tmp_path / ".venv" / ".installed").unlink()
    assert "made anew" not in setup(tmp_path).stdout, "a whole environment is kept"
