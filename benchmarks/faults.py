"""Requests to a server that fails at every fourth try: none lost, none paid twice, no budget crossed, also when killed.

Three parts, each against a server in a process of its own. `killed`: the labelling process is ended by kill -9 at
random moments and started again on the same ledger; the server honours `Idempotency-Key`. `budget`: the same with a
budget that is too small, against a server that ignores the key. An answer that was lost or broken on its way is then
billed again, which no client can prevent; these are counted apart. Last, against a server without faults: throughput
with 64 requests under way over what its delay allows, at one and at two seconds, about what hosted models take for a
short answer.
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

from benchmarks._faulty_server import DOLLARS_PER_MILLION_IN, DOLLARS_PER_MILLION_OUT, SHARES, Plan
from benchmarks._table import arguments, publish
from supertiny.core.errors import BudgetReached, UserError
from supertiny.core.ledger import Budget, Ledger
from supertiny.core.methods import build
from supertiny.core.records import Prompt, Sampling, Tool
from supertiny.formats._lawful import complete_lawfully, is_lawful

ROOT = Path(__file__).parents[1]
CONCURRENCY = 64
TOOLS = [
    Tool("set_light", "Switches a light", {"type": "object", "properties": {"number": {"type": "integer"}}}),
    Tool("none", "Nothing serves", {"type": "object", "properties": {}}),
]
SAMPLING = Sampling(max_tokens=40)
OVER_BUDGET, GIVEN_UP = 3, 4  # exit status of a child that the budget stopped, and of one that a request did


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], "faults")
    parser.add_argument("--seed", type=int, default=7, help="of faults and kills")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        sys.exit(_label(**options.child))
    count = 150 if options.quick else 1000
    kills = 10
    killed = faulty_run(count, kills, options.seed, budget=count * 0.01, honours=True)
    # The budget must hold some times 64 calls at their worst, or it is used up by what is under way.
    most = 400 if options.quick else count
    small = faulty_run(most, 3 if options.quick else kills, options.seed, budget=most * 0.0008, honours=False)
    print("without faults", file=sys.stderr, flush=True)
    waves = 5 if options.quick else 15
    share, client_seconds = throughput(CONCURRENCY * waves, delay_seconds=1.0)
    slow_share, _ = throughput(CONCURRENCY * waves, delay_seconds=2.0)
    runs = (killed, small)
    publish(
        f"faults: {count} requests, {killed['faulty_share']:.0%} of the tries faulty, {killed['kills']} kills",
        [
            ("requests", "requests of the run with kills", float(count)),
            ("lost", "of these without a right answer in the end", float(killed["lost"])),
            ("paid_twice", "answers billed again by a server that honours keys", float(killed["paid_twice"])),
            ("over_budget", "runs whose bill is above their budget", float(sum(run["over"] for run in runs))),
            ("kills", "kill -9 while requests were under way", float(killed["kills"])),
            ("throughput_share", f"{CONCURRENCY} under way, over what a delay of 1 s allows", share),
            ("throughput_share_2_seconds", "the same at a delay of 2 s", slow_share),
            ("client_milliseconds", "processor time of the client for a request", client_seconds * 1000),
            ("retries", "tries beyond one a call", float(killed["retries"])),
            ("given_up", "runs stopped by a request's seventh failure, and begun again", float(killed["given_up"])),
            ("faulty_share", "of all tries", killed["faulty_share"]),
            ("billed_but_lost", "answers billed that did not arrive whole; asked for again", killed["lost_answers"]),
            ("tries_told_lost", "tries that the ledger counts as perhaps billed", float(killed["told_lost"])),
            ("budget_dollars", f"the small budget, for {most} requests", small["budget"]),
            ("budget_kills", "kill -9 under it", float(small["kills"])),
            ("budget_billed_dollars", "what the server bills under it", small["dollars"]),
            ("budget_told_dollars", "what the ledger says at most", small["told"]),
            ("paid_again_keys_ignored", "answers billed again by a server that ignores keys", small["paid_twice"]),
        ],
        ["supertiny", "httpx", "uvicorn", "starlette"],
        options.json,
    )


def faulty_run(count: int, kills: int, seed: int, budget: float, honours: bool) -> dict[str, Any]:
    """Labels until it is done or the budget is reached, killed `kills` times; gives what server and ledger say."""
    plan = {"seed": seed, "shares": SHARES, "most_faults": 99, "delay_seconds": 0.25, "honours_keys": honours}
    with tempfile.TemporaryDirectory() as folder, server_of(plan) as url:
        place, generator = Path(folder) / "ledger.sqlite", Random(seed)
        child = {"place": str(place), "url": url, "count": count, "budget": budget}
        # So early that much is left to do at the last kill; the small budget ends its run earlier.
        goals = sorted(generator.sample(range(1, int(count * (0.6 if honours else 0.2))), kills))
        done = sum(_killed(child, url, goal, generator) for goal in goals)
        print(f"{done} kills, {stats(url)['billed']:.0f} answers billed", file=sys.stderr, flush=True)
        given_up = 0
        while (
            status := subprocess.run(_command(child), cwd=ROOT, check=False).returncode
        ) == GIVEN_UP and given_up < 5:
            given_up += 1
        if status not in (0, OVER_BUDGET):
            raise RuntimeError(f"the labelling process ended with status {status}")
        seen, ledger = stats(url), Ledger(place)
        calls = sum(bill.calls for bill in ledger.bills())
        result = {
            "kills": done,
            "given_up": given_up,
            "lost": _missing(ledger, count),
            "paid_twice": seen["paid_twice"],
            "lost_answers": seen["billed_but_lost"],
            "told_lost": sum(bill.calls for bill in ledger.lost()),
            "retries": seen["tries"] - calls,
            "faulty_share": seen["faults"] / seen["tries"],
            "budget": budget,
            "dollars": seen["dollars"],
            "told": ledger.spent().dollars,
            "over": seen["dollars"] > budget or ledger.spent().dollars > budget,
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


def _killed(child: Mapping[str, Any], url: str, goal: int, generator: Random) -> int:
    """Starts the labelling process and kills it soon after the server has billed `goal` answers; 1 where it lived."""
    process = subprocess.Popen(_command(child), cwd=ROOT)
    before = stats(url)["tries"]
    while process.poll() is None:
        seen = stats(url)
        if seen["billed"] >= goal and seen["tries"] > before:
            break
        time.sleep(0.01)
    time.sleep(generator.uniform(0, 0.2))
    process.send_signal(signal.SIGKILL)
    return int(process.wait() == -signal.SIGKILL)


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


def _label(place: str, url: str, count: int, budget: float) -> int:
    """What is killed: answers all requests with lawful calls, through the ledger."""
    ledger = Ledger(Path(place), Budget(dollars=budget))
    engine, prompts = ledger.wrap(_engine(url, timeout_seconds=1.5), "labels"), prompts_of(count)
    try:
        complete_lawfully(engine, prompts, SAMPLING, build("formats", "chat_json"), [TOOLS] * count)
    except BudgetReached:
        return OVER_BUDGET
    except UserError as error:
        print(error, file=sys.stderr)
        return GIVEN_UP
    return 0


def _missing(ledger: Ledger, count: int) -> int:
    """Requests for which the ledger holds no lawful call with their own number."""
    form, tools = build("formats", "chat_json"), {tool.name: tool for tool in TOOLS}
    right = set()
    for prompt, key in ledger.ask("SELECT prompt, key FROM calls"):
        number = json.loads(prompt)["messages"][-1]["content"].rpartition(" ")[2]
        completion = ledger.find(key)
        if completion is not None and is_lawful(completion, form, tools):
            (call,) = form.decode(completion.text).calls
            right |= {int(number)} if call.arguments.get("number") == int(number) else set()
    return len(set(range(count)) - right)


if __name__ == "__main__":
    main()
