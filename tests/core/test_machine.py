from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from supertiny.core.machine import processor_name, usable_cores

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system does not pin processes")


def test_cores_that_a_process_may_not_use_are_not_counted() -> None:
    core = min(os.sched_getaffinity(0))
    program = (
        f"import os; os.sched_setaffinity(0, {{{core}}})\nfrom supertiny.core.machine import *\nprint(usable_cores())"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "1"
    assert usable_cores() == len(os.sched_getaffinity(0))


def test_the_processor_has_a_name() -> None:
    assert processor_name()


def test_two_workers_do_not_share_a_core(all_cores: None) -> None:
    every = usable_cores()
    program = "import tests.conftest, os; print(*os.sched_getaffinity(0))"
    seen = []
    for number in range(2):
        worker = {**os.environ, "PYTEST_XDIST_WORKER": f"gw{number}", "PYTEST_XDIST_WORKER_COUNT": "2"}
        told = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=worker, cwd=ROOT
        )
        seen.append(set(told.stdout.split()))
    assert every < 2 or not seen[0] & seen[1]
    assert len(seen[0] | seen[1]) == every
