"""A provider's batch API: prompts go up as one file, answers come back within a day, at a discount.

The account notes that a call is to go into a batch before anything is sent, and before the batch is made a token of
ours, which it carries in its metadata. So a run that was killed finds its batch again, whenever it was killed, and pays
nothing twice. A batch that the provider has forgotten is ordered anew, and may be paid again.
"""

from __future__ import annotations

import json
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx

from supertiny.core.errors import BudgetReached, UserError
from supertiny.core.payments import UNORDERED, Payments
from supertiny.engines._openai_calls import Caller, Send, Session
from supertiny.engines._openai_refusals import NotFoundError
from supertiny.engines._openai_wire import MalformedError

_ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
_MOST_ROWS, _MOST_BYTES = 20_000, 90_000_000  # of one file; OpenAI takes 50,000 and 200 MB
_POLL_SECONDS = 30.0
_OURS = "supertiny"
_UNMADE = UNORDERED  # before the token of a batch of which it is not known yet whether it was made
Asked = tuple[str, Mapping[str, Any]]
"""Path and body of a completion."""
Tell = Callable[[int, Any], None]
"""Takes an answer's body; raises MalformedError."""


class Batches:
    """Completes prompts by batches; rows that fail go into the next one, `retries` times at most."""

    def __init__(self, caller: Caller, payments: Payments, tell: Tell) -> None:
        self._caller = caller
        self._payments = payments
        self._tell = tell
        self._told: set[int] = set()
        self._failures: Counter[int] = Counter()
        self._reasons: dict[int, str] = {}

    async def run(self, asked: Sequence[Asked], orders: bool) -> None:
        """Tells of every row, in any order; without `orders`, of those alone that earlier batches hold.

        Raises UserError, with what is done told before.
        """
        async with self._caller.session(self._payments, at_once=2) as session:  # looks a batch up while it orders one
            await self._collect(session, range(len(asked)))
            while orders and (todo := [index for index in range(len(asked)) if index not in self._told]):
                worst = max(todo, key=lambda index: self._failures[index])
                if self._failures[worst] > self._caller.settings.retries:
                    raise UserError(
                        f"{self._caller.base_url}: a request of a batch failed {self._failures[worst]} times: "
                        f"{self._caller.shown(self._reasons.get(worst, 'no reason given'))}",
                        "run again, or set batch: false; what is done is not paid again",
                    )
                failed = self._failures.total()
                taken, stopped = self._taken(todo)
                await self._send(session, asked, taken)
                await self._collect(session, taken)
                if stopped:
                    raise stopped
                if self._failures.total() > failed:  # perhaps the provider's queue is full
                    await self._caller.sleep(min(_POLL_SECONDS, max(0.0, self._payments.seconds_left())))

    async def _collect(self, session: Session, indexes: Sequence[int]) -> None:
        """Waits for the batches that these calls are in and reads them; a call that is in none is passed over."""
        batches: dict[str, list[int]] = {}
        for index in indexes:
            if batch := self._payments.batch_of(index):
                batches.setdefault(batch, []).append(index)
        self._forget(batches.pop(UNORDERED, ()))
        for batch, members in batches.items():
            name = await self._find(session, batch[1:]) if batch.startswith(_UNMADE) else batch
            if name:
                self._payments.put_into(name, members)
                await self._collect_one(session, name, members)
            else:
                for index in members:
                    self._fail(index, "the batch was never made")

    async def _collect_one(self, session: Session, name: str, members: Sequence[int]) -> None:
        """Waits for a batch and reads it; where it, or a file of it, is gone, its members may go into another."""
        try:
            await self._read(session, await self._ended(session, name), members)
        except NotFoundError as gone:
            left = [index for index in members if self._payments.batch_of(index) == name]
            words = f"batch {name} is gone; its {len(left)} requests are sent again and may be billed twice"
            warnings.warn(f"{words}: {gone.problem}", stacklevel=2)
            for index in left:
                self._fail(index, f"batch {name} is gone", billed=True)

    def _forget(self, indexes: Sequence[int]) -> None:
        """Calls whose batch was never ordered are never billed."""
        for index in indexes:
            self._payments.end(index, billed=False)

    def _taken(self, todo: Sequence[int]) -> tuple[list[int], BudgetReached | None]:
        """Calls that the budget has room for, all at their worst; with the reason where no more may ever go."""
        self._payments.settle()
        taken: list[int] = []
        for index in todo:
            try:
                if self._payments.begin(index, UNORDERED) is None:
                    break  # what is taken goes first; the rest may fit when its price is known
            except BudgetReached as reached:
                return taken, reached
            taken.append(index)
        return taken, None

    async def _send(self, session: Session, asked: Sequence[Asked], taken: Sequence[int]) -> None:
        try:
            for path, part in _parts(asked, taken):
                await self._make(session, path, {index: asked[index][1] for index in part})
        except UserError:
            self._forget([index for index in taken if self._payments.batch_of(index) == UNORDERED])
            raise

    async def _make(self, session: Session, path: str, bodies: Mapping[int, Mapping[str, Any]]) -> None:
        base, token = self._caller.base_url, uuid.uuid4().hex
        version = httpx.URL(base).path.rstrip("/").rpartition("/")[2] or "v1"
        lines = (
            {"custom_id": self._payments.key_of(index), "method": "POST", "url": f"/{version}{path}", "body": body}
            for index, body in bodies.items()
        )
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode(errors="replace")
        upload = {"file": ("batch.jsonl", text, "application/jsonl")}
        file = await self._json(
            session,
            f"{base}/files",
            lambda client, headers: client.post(f"{base}/files", files=upload, data={"purpose": "batch"}),
        )
        self._payments.put_into(_UNMADE + token, list(bodies))
        order = {
            "input_file_id": file["id"],
            "endpoint": f"/{version}{path}",
            "completion_window": "24h",
            "metadata": {_OURS: token},
        }
        tries = 0

        async def make(client: httpx.AsyncClient, headers: Mapping[str, str]) -> httpx.Response:
            nonlocal tries
            tries += 1
            # A try without an answer may have made it all the same.
            if tries > 1 and (name := await self._find(session, token)):
                return await client.get(f"{base}/batches/{name}")
            return await client.post(f"{base}/batches", json=order, headers={"Idempotency-Key": token})

        made = await self._json(session, f"{base}/batches", make)
        self._payments.put_into(str(made["id"]), list(bodies))

    async def _find(self, session: Session, token: str) -> str:
        """Name of the batch that carries the token; empty where there is none."""
        url = f"{self._caller.base_url}/batches"
        query = {"limit": "100"}
        while True:
            page = await self._json(session, url, lambda client, headers: client.get(url, params=query))
            for batch in page.get("data") or []:
                if (batch.get("metadata") or {}).get(_OURS) == token:
                    return str(batch["id"])
            if not page.get("has_more") or not page.get("data"):
                return ""
            query["after"] = str(page["data"][-1]["id"])

    async def _ended(self, session: Session, name: str) -> Mapping[str, Any]:
        """The batch when it has ended. Raises BudgetReached where the minutes are over before it has."""
        url = f"{self._caller.base_url}/batches/{name}"
        while True:
            batch = await self._json(session, url, lambda client, headers: client.get(url))
            if batch.get("status") in _ENDED:
                return batch
            left = self._payments.seconds_left()
            if left <= 0:
                raise BudgetReached(
                    f"the budget of minutes is reached while batch {name} is under way",
                    "raise prototype.budget and run the same command: the batch is read then, and not paid again",
                )
            await self._caller.sleep(min(_POLL_SECONDS, left))

    async def _read(self, session: Session, batch: Mapping[str, Any], members: Sequence[int]) -> None:
        """Tells of the rows that were answered; the others are free to go into another batch."""
        waiting = {self._payments.key_of(index): index for index in members}
        for file in (batch.get("output_file_id"), batch.get("error_file_id")):
            for line in await self._lines(session, file) if file else ():
                index = waiting.pop(str(line.get("custom_id")), None)
                if index is not None:
                    self._judge(index, line)
        reasons = (batch.get("errors") or {}).get("data") or [{}]
        for index in waiting.values():
            self._fail(index, str(reasons[0].get("message") or f"the batch has {batch.get('status')}"))

    def _judge(self, index: int, line: Mapping[str, Any]) -> None:
        response = line.get("response") or {}
        if response.get("status_code") == 200:
            try:
                self._tell(index, response.get("body"))
                self._told.add(index)
            except MalformedError as error:
                self._fail(index, str(error), billed=True)
            return
        said = line.get("error") or (response.get("body") or {}).get("error") or {}
        self._fail(index, str(said.get("message") or said or f"HTTP status {response.get('status_code')}"))

    def _fail(self, index: int, reason: str, billed: bool = False) -> None:
        self._failures[index] += 1
        self._reasons[index] = reason
        self._payments.end(index, billed, new_key=True)

    async def _lines(self, session: Session, file: str) -> list[dict[str, Any]]:
        url = f"{self._caller.base_url}/files/{file}/content"

        def read(response: httpx.Response, _: float) -> list[dict[str, Any]]:
            try:
                rows = [json.loads(line) for line in response.text.split("\n") if line.strip()]
            except ValueError as error:
                raise MalformedError(f"a file that is not JSON lines: {error}") from error
            return [row for row in rows if isinstance(row, dict)]

        return await self._caller.ask(session, 0, url, lambda client, headers: client.get(url), read)

    async def _json(self, session: Session, url: str, send: Send) -> dict[str, Any]:
        def read(response: httpx.Response, _: float) -> dict[str, Any]:
            got = self._caller.json_of(response)
            if not isinstance(got, dict):
                raise MalformedError("a body that is not an object")
            return got

        return await self._caller.ask(session, 0, url, send, read)


def _parts(asked: Sequence[Asked], taken: Sequence[int]) -> list[tuple[str, list[int]]]:
    """Rows of one path each, as many as a file may have."""
    parts: list[tuple[str, list[int]]] = []
    sizes: dict[str, int] = {}
    places: dict[str, int] = {}
    for index in taken:
        path, body = asked[index]
        size = len(json.dumps(body)) + 200
        if path in places and sizes[path] + size <= _MOST_BYTES and len(parts[places[path]][1]) < _MOST_ROWS:
            parts[places[path]][1].append(index)
            sizes[path] += size
        else:
            places[path], sizes[path] = len(parts), size
            parts.append((path, [index]))
    return parts
