"""`supertiny serve` and `supertiny ask`: a run's artifact behind an endpoint, and on the command line."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
from pathlib import Path

import uvicorn

from supertiny.core.errors import UserError
from supertiny.core.protocols import Answerer
from supertiny.core.records import Answer
from supertiny.serve.endpoint import create_app
from supertiny.serve.service import Service, ask_all

__all__ = ["ask", "create_app", "printable", "serve"]

KEY_VARIABLE = "SUPERTINY_API_KEY"
_DRAIN_SECONDS = 30
_LOCAL = ("127.0.0.1", "::1", "localhost")
_log = logging.getLogger("supertiny.serve")


def serve(run_folder: Path, host: str = "127.0.0.1", port: int = 8000, fallback: Answerer | None = None) -> None:
    """Serves until it is told to stop; requests under way are answered first.

    Raises UserError before the model is loaded where the port is taken or the run is not fit to be served.
    """
    service = Service.read(run_folder)
    key = os.environ.get(KEY_VARIABLE)
    if key is not None and not key.strip():
        raise UserError(f"{KEY_VARIABLE} is empty", "give it a key, or unset it to serve without one")
    listener = listen(host, port)
    with listener, service.opened(run_folder) as answerer:
        settings = service.settings
        app = create_app(
            answerer, service.model, service.tools, settings.limits, fallback, service.routing, key, service.description
        )
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        if key is None and host not in _LOCAL:
            _log.warning("anyone who reaches %s may use this server: set %s to ask for a key", host, KEY_VARIABLE)
        _log.info("serving %r at %s/v1", service.model, _url(listener))
        config = uvicorn.Config(app, timeout_graceful_shutdown=_DRAIN_SECONDS, access_log=False, log_level="warning")
        uvicorn.Server(config).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, port 0 for any free one. Raises UserError where there is none to be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen on {host}:{port}: {error}", "give another --host or --port") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)
    except (OSError, OverflowError) as error:
        listener.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise UserError(f"port {port} of {host} is in use", "stop what uses it, or give another --port") from None
        raise UserError(f"cannot listen on {host}:{port}: {error}", "give another --host or --port") from None
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def ask(run_folder: Path, text: str) -> str:
    """The artifact's answer to one request, fit to be printed."""
    return printable(ask_all(run_folder, [text])[0])


def printable(answer: Answer) -> str:
    """The calls as JSON, one a line; where there are none, that and the text."""
    if answer.calls:
        return "\n".join(json.dumps(call.to_json(), ensure_ascii=False) for call in answer.calls)
    return f"no call: {answer.text}" if answer.text else "no call"
