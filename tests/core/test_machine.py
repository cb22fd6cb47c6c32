from __future__ import annotations

import os
import subprocess
import sys

import pytest

from supertiny.core.machine import processor_name, usable_cores

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


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="one process has all cores")
def test_two_workers_do_not_share_a_core() -> None:
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    if (os.cpu_count() or 1) >= workers > 1:
        assert usable_cores() < (os.cpu_count() or 1)
