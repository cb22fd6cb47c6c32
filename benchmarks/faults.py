"""Requests to a server that fails at every fourth try: none lost, none paid twice, no budget crossed, also when killed.

All parts run against a server in a process of its own, and label by the steps fill and check: an answer in which the
server broke its own grammar is handed back. `killed`: the labelling process is ended by kill -9 at random moments and
started again on the same ledger; the server honours `Idempotency-Key`, and the budget is about what the
work and the lost tries can cost. Then the same with budgets that are too small, in dollars, tokens and minutes, against
a server that ignores the key: each must end its run. An answer that was lost or broken on its way is then billed
again, which no client can prevent; these are counted apart. Then against the same server without faults: throughput
with 64 requests under way over what its delay allows, and at one second, about what hosted models take for a short
answer. Last, what `--estimate` says of a run with the default steps against what the server bills for it.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import httpx

from benchmarks._estimating import WRONG_EVERY, estimate_errors
from benchmarks._faulty_server import DOLLARS_PER_MILLION_IN, DOLLARS_PER_MILLION_OUT, SHARES, Plan
from benchmarks._table import arguments, publish
from supertiny.core.errors import BudgetReached, UserError
from supertiny.core.ledger import Budget, Ledger
from supertiny.core.methods import build
from supertiny.core.nearest import NearestExamples
from supertiny.core.records import Call, Prompt, Request, Sampling, Tool
from supertiny.core.task import Task
from supertiny.prototype.bench import Bench
from supertiny.prototype.teacher import Pipeline

ROOT = Path(__file__).parents[1]
CONCURRENCY = 64
DELAY_SECONDS = 0.25  # of the server's answers, with faults and without
TOOLS = [
    Tool("set_light", "Switches a light", {"type": "object", "properties": {"number": {"type": "integer"}}}),
    Tool("none", "Nothing serves", {"type": "object", "properties": {}}),
]
SAMPLING = Sampling(max_tokens=40)
Figure = tuple[str, str, float]
OVER_BUDGET, GIVEN_UP = 3, 4  # exit status of a child that the budget stopped, and of one that a request did


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], "faults")
    parser.add_argument("--seed", type=int, default=7, help="of faults and kills")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        sys.exit(_label(**options.child))
    count, most, kills = (150, 400, 10) if options.quick else (1000, 1000, 10)
    killed = faulty_run(count, kills, options.seed, enough(count, kills), honours=True)
    # Each must hold some times 64 calls at their worst, or it is used up by what is under way.
    budgets = {"dollars": most * 0.002, "tokens": most * 75, "minutes": most / 20_000}
    small = {
        kind: faulty_run(most, 3 if options.quick else kills, options.seed, {kind: limit}, honours=False)
        for kind, limit in budgets.items()
    }
    print("without faults", file=sys.stderr, flush=True)
    waves = 5 if options.quick else 15
    share, client_seconds = throughput(CONCURRENCY * waves * 4, DELAY_SECONDS)
    slow_share, _ = throughput(CONCURRENCY * waves, delay_seconds=1.0)
    with tempfile.TemporaryDirectory() as folder, server_of({"wrong_every": WRONG_EVERY}) as url:
        estimated = estimate_errors(url, Path(folder), requests=300)
    publish(
        f"faults: {count} requests, {killed['faulty_share']:.0%} of the tries faulty, {killed['kills']} kills",
        [*_of_faults(count, killed, small), *_of_pace(share, slow_share, client_seconds), *_of_estimate(estimated)],
        ["supertiny", "httpx", "uvicorn", "starlette"],
        options.json,
        {"budgets": small},
    )


def _of_faults(count: int, killed: Mapping[str, Any], small: Mapping[str, Mapping[str, Any]]) -> list[Figure]:
    """Figures of the runs with faults."""
    runs, dollars = (killed, *small.values()), small["dollars"]
    return [
        ("requests", "requests of the run with kills", float(count)),
        ("lost", "of these without a right answer in the end", float(killed["lost"])),
        ("paid_twice", "answers billed again by a server that honours keys", float(killed["paid_twice"])),
        ("over_budget", "runs whose bill is above their budget", float(sum(run["over"] for run in runs))),
        ("kills", "kill -9 while requests were under way", float(killed["kills"])),
        ("retries", "tries beyond one a call", float(killed["retries"])),
        ("given_up", "runs stopped by a request's seventh failure, and begun again", float(killed["given_up"])),
        ("faulty_share", "of all tries", killed["faulty_share"]),
        ("billed_but_lost", "answers billed that did not arrive whole; asked for again", killed["lost_answers"]),
        ("tries_told_lost", "tries that the ledger counts as perhaps billed", float(killed["told_lost"])),
        ("enough_dollars", "the budget of the run with kills", killed["budget"]["dollars"]),
        ("told_dollars", "what the ledger says of it at most", killed["told"]["dollars"]),
        ("budget_runs", "runs with a budget that is too small", float(len(small))),
        ("budget_stopped", "of these, ended by their budget", float(sum(run["stopped"] for run in small.values()))),
        ("budget_kills", "kill -9 under such budgets", float(sum(run["kills"] for run in small.values()))),
        ("budget_dollars", "the small budget in dollars", dollars["budget"]["dollars"]),
        ("budget_billed_dollars", "what the server bills under it", dollars["used"]["dollars"]),
        ("budget_told_dollars", "what the ledger says at most", dollars["told"]["dollars"]),
        ("paid_again_keys_ignored", "answers billed again by a server that ignores keys", dollars["paid_twice"]),
    ]


def _of_pace(share: float, slow_share: float, client_seconds: float) -> list[Figure]:
    return [
        (
            "throughput_share",
            f"{CONCURRENCY} under way, over what the server's delay of {DELAY_SECONDS} s allows",
            share,
        ),
        ("throughput_share_1_second", "the same at a delay of 1 s", slow_share),
        ("client_milliseconds", "processor time of the client for a request", client_seconds * 1000),
    ]


def _of_estimate(estimated: Mapping[str, float]) -> list[Figure]:
    return [
        ("estimate_error", "of --estimate, in dollars, over what is then spent", estimated["error"]),
        ("estimate_error_corrected", "of what the run says after its first requests", estimated["corrected_error"]),
        (
            "estimate_requests",
            f"calls of that run, one of {WRONG_EVERY} requests answered wrong",
            estimated["requests"],
        ),
    ]


def enough(count: int, kills: int) -> dict[str, float]:
    """Dollars that the work may need with what is lost at each kill, and what is under way: hardly more than that."""
    return {"dollars": count * 0.003 + (kills + 1) * CONCURRENCY * 0.0035 + CONCURRENCY * 0.005}


def faulty_run(count: int, kills: int, seed: int, budget: Mapping[str, float], honours: bool) -> dict[str, Any]:
    """Labels until it is done or the budget is reached, killed `kills` times; gives what server and ledger say."""
    shares = {"shares": SHARES, "most_faults": 99}
    plan = {"seed": seed, **shares, "delay_seconds": DELAY_SECONDS, "honours_keys": honours}
    with tempfile.TemporaryDirectory() as folder, server_of(plan) as url:
        place, generator = Path(folder) / "ledger.sqlite", Random(seed)
        child = {"place": str(place), "url": url, "count": count, "budget": dict(budget)}
        # So early that much is left to do at the last kill; a small budget ends its run earlier.
        goals = sorted(generator.sample(range(1, int(count * (0.6 if honours else 0.2))), kills))
        runs = [_watched(child, url, goal, generator) for goal in goals]
        done = sum(status == -signal.SIGKILL for status, _ in runs)
        print(f"{done} kills, {stats(url)['billed']:.0f} answers billed", file=sys.stderr, flush=True)
        given_up = 0
        while (last := _watched(child, url))[0] == GIVEN_UP and given_up < 5:
            given_up += 1
            runs.append(last)
        runs.append(last)
        if last[0] not in (0, OVER_BUDGET):
            raise RuntimeError(f"the labelling process ended with status {last[0]}")
        seen, ledger = stats(url), Ledger(place)
        spent = ledger.spent()
        used = {**{kind: seen[kind] for kind in ("dollars", "tokens")}, "minutes": sum(s for _, s in runs) / 60}
        told = {"dollars": spent.dollars, "tokens": spent.tokens, "minutes": spent.seconds / 60}
        result = {
            "kills": done,
            "given_up": given_up,
            "stopped": last[0] == OVER_BUDGET,
            "lost": count - _finished(child["place"])["right"],
            "paid_twice": seen["paid_twice"],
            "lost_answers": seen["billed_but_lost"],
            "told_lost": sum(bill.calls for bill in ledger.lost()),
            "retries": seen["tries"] - sum(bill.calls for bill in ledger.bills()),
            "faulty_share": seen["faults"] / seen["tries"],
            "budget": dict(budget),
            "used": used,
            "told": told,
            "over": any(max(used[kind], told[kind]) > limit for kind, limit in budget.items()),
        }
        ledger.close()
        return result


def throughput(count: int, delay_seconds: float) -> tuple[float, float]:
    """Requests a second over what the server's delay allows, and processor seconds of this process for a request."""
    with tempfile.TemporaryDirectory() as folder, server_of({"delay_seconds": delay_seconds}) as url:
        ledger = Ledger(Path(folder) / "ledger.sqlite")
        engine = ledger.wrap(_engine(url, timeout_seconds=30.0), "throughput")
        prompts = prompts_of(count)
        began, used = time.perf_counter(), time.process_time()
        engine.complete(prompts, SAMPLING)
        seconds, used = time.perf_counter() - began, time.process_time() - used
        ledger.close()
    return count * delay_seconds / CONCURRENCY / seconds, used / count


def prompts_of(count: int) -> list[Prompt]:
    system = {"role": "system", "content": "Write calls as JSON."}
    return [Prompt((system, {"role": "user", "content": f"light {number}"}), shared=1) for number in range(count)]


@contextmanager
def server_of(plan: Mapping[str, Any]) -> Iterator[str]:
    """Address of a faulty server in a process of its own."""
    Plan(**plan)
    command = [sys.executable, "-m", "benchmarks._faulty_server", "--plan", json.dumps(plan)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{json.loads(process.stdout.readline())['port']}/v1"
    finally:
        process.terminate()
        process.wait()


def stats(url: str) -> dict[str, float]:
    seen: dict[str, float] = httpx.get(url.removesuffix("/v1") + "/stats", timeout=30, verify=False).json()
    return seen


def _watched(child: Mapping[str, Any], url: str, goal: int = 0, generator: Random | None = None) -> tuple[int, float]:
    """Runs the labelling process; with a `goal` it is killed soon after the server has billed so many answers.

    Gives its status, and the seconds that its engine was at work: as it wrote down, or from its first try to its kill.
    """
    process = subprocess.Popen(_command(child), cwd=ROOT)
    before, first = stats(url)["tries"], 0.0
    while process.poll() is None:
        seen, now = stats(url), time.perf_counter()
        first = first or (now if seen["tries"] > before else 0.0)
        if generator and first and seen["billed"] >= goal:
            time.sleep(generator.uniform(0, 0.2))
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.01)
    seconds = time.perf_counter() - first if first else 0.0
    status = process.wait()
    return status, seconds if status == -signal.SIGKILL else _finished(child["place"])["seconds"]


def _command(child: Mapping[str, Any]) -> list[str]:
    return [sys.executable, "-m", "benchmarks.faults", "--child", json.dumps(child)]


def _engine(url: str, timeout_seconds: float) -> Any:
    block = {
        "method": "openai",
        "model": "small-one",
        "base_url": url,
        "dialect": "vllm",  # so that the second try after a wrong answer goes under a grammar
        "concurrency": CONCURRENCY,
        "timeout_seconds": timeout_seconds,
        "backoff_seconds": 0.2,
        "dollars_per_million_in": DOLLARS_PER_MILLION_IN,
        "dollars_per_million_out": DOLLARS_PER_MILLION_OUT,
    }
    return build("engines", block).open()


def _label(place: str, url: str, count: int, budget: Mapping[str, Any]) -> int:
    """What is killed: answers all requests by fill and check, through the ledger."""
    ledger, hosted = Ledger(Path(place), Budget(**budget)), _engine(url, timeout_seconds=1.5)
    task = Task("faults", "Lights have numbers.", Path("faults"), tuple(TOOLS), (), (), (), (), pool_gold={}, hash="0")
    steps = [build("steps", {"method": name, "max_tokens": SAMPLING.max_tokens}) for name in ("fill", "check")]
    requests = [Request.from_text(f"light {number}") for number in range(count)]
    seconds, right, paid = 0.0, 0, hosted.complete_paid

    def timed(*asked: Any) -> Any:
        nonlocal seconds
        began = time.perf_counter()
        try:
            return paid(*asked)
        finally:
            seconds += time.perf_counter() - began

    hosted.complete_paid = timed
    try:
        engine, form = ledger.wrap(hosted, "labels"), build("formats", "chat_json")
        bench = Bench(engine, task, form, NearestExamples(()), seed=0)
        answers = Pipeline(steps, bench, count, "faults").answer(requests)
        right = sum(answer.calls == (Call("set_light", {"number": number}),) for number, answer in enumerate(answers))
    except BudgetReached:
        return OVER_BUDGET
    except UserError as error:
        print(error, file=sys.stderr)
        return GIVEN_UP
    finally:
        _notes(place).write_text(json.dumps({"seconds": seconds, "right": right}))
    return 0


def _notes(place: str) -> Path:
    """Where a labelling process that ends writes how long its engine was at work, and how many answers are right."""
    return Path(f"{place}.json")


def _finished(place: str) -> dict[str, float]:
    notes: dict[str, float] = json.loads(_notes(place).read_text())
    return notes


if __name__ == "__main__":
    main()
