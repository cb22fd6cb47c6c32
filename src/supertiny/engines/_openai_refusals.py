"""What a person is told where a server refuses: the server's own words, short, and what to do about them."""

from __future__ import annotations

import re

import httpx

from supertiny.core.errors import UserError, nearest_word

API_ADDRESS = "base_url must be an API's address, such as http://HOST:8000/v1"
# The first whose pattern is in the server's words says what to do.
_HINTS = (
    (
        r"context.{0,20}(length|window|size)|maximum.{0,20}tokens|too (long|many tokens)|exceeds? the .*(length|limit)",
        "show fewer examples (`examples` of the step retrieve), or take a model with a larger context",
    ),
    (r"log_?prob", "the model gives no log-probabilities: set logprobs: false and leave out steps that need them"),
    (
        r"tool|function.?call",
        "supertiny writes calls as text and needs no tool support: leave tools out of extra_body",
    ),
    (
        r"response_format|json_schema|json schema|structured|guided|grammar",
        "the model cannot be bound by a schema: take another format or model, or set strict_schema: false",
    ),
    (r"max_completion_tokens|max_tokens", "set max_tokens_name: max_completion_tokens, or back"),
    (r"temperature", "set send_temperature: false"),
    (r"seed", "the model takes no seed: use steps with temperature 0"),
    (r"stop", "the model takes no stop words: leave out the step route"),
)


class NotFoundError(UserError):
    """What was asked for by its name is not there."""


def without_key(text: str, key: str) -> str:
    """What may be shown of a text: some servers repeat the key that they were sent."""
    return text.replace(key, "(key)") if key else text


def refusal(response: httpx.Response, key: str) -> UserError:
    """The error for a status that no further try can mend. The key is never part of it."""
    status, url, words = response.status_code, str(response.request.url), said(response, key)
    if status in (401, 403):
        state = "the key was refused" if key else "a key is wanted"
        hint = "set the variable that api_key_env names to a key that this server takes, for this model"
        return UserError(f"{url}: {state} (HTTP status {status}): {words}", hint)
    if 300 <= status < 400:
        to = without_key(response.headers.get("location", "elsewhere"), key)
        return UserError(f"{url}: redirects to {to}; a key is not sent on", "set base_url to where the API is")
    return UserError(f"{url}: refused with HTTP status {status}: {words}", _hint_for(words))


def _hint_for(words: str) -> str:
    """What to do about a server's complaint."""
    return next((hint for pattern, hint in _HINTS if re.search(pattern, words, re.I)), "see the engine's settings")


def not_found(response: httpx.Response, key: str, model: str, listed: list[str] | None) -> NotFoundError:
    """The error for status 404, where `listed` are the server's models, None where it lists none."""
    url = str(response.request.url)
    if response.request.url.path.endswith(("/files", "/batches")):
        return NotFoundError(
            f"{url}: HTTP status 404: {said(response, key)}", "the server has no batch API: set batch: false"
        )
    if listed is None:
        what = "a web page" if is_page(response) else said(response, key)
        return NotFoundError(f"{url}: HTTP status 404: {what}", API_ADDRESS)
    if model in listed:
        hint = "the server has the model, but not this path"
        return NotFoundError(f"{url}: HTTP status 404: {said(response, key)}", hint)
    place = f"{response.request.url.scheme}://{response.request.url.netloc.decode()}"
    return NotFoundError(f"{place} has no model {model!r}", nearest_word(model, listed[:40]))


def said(response: httpx.Response, key: str) -> str:
    """The server's own words, on one line, short, and without the key, which some servers repeat."""
    try:
        body = response.json()
        error = body.get("error", body)
        words = str(error.get("message") or error) if isinstance(error, dict) else str(error)
    except (ValueError, AttributeError):
        words = "a web page" if is_page(response) else response.text
    return shortened(without_key(words, key), 300) or "nothing said"


def shortened(text: str, most: int) -> str:
    """A text on one line, of so many characters at most and dots where there were more."""
    words = " ".join(text.split())
    return words[:most] + "..." if len(words) > most else words


def is_page(response: httpx.Response) -> bool:
    """Whether a web page came in place of an answer."""
    return "html" in response.headers.get("content-type", "") or response.content.lstrip()[:1] == b"<"
