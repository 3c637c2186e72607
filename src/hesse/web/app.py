"""The web application: who may ask (a token, this machine's names), what a browser may do with the pages, and routes.

Pages are static files; everything else is JSON under /api. Requests are served by a pool of threads, since reading
scores waits for the disk.
"""

import hmac
import json
import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from hesse._optional import require
from hesse.errors import ArgumentError, ArtifactError, HesseError
from hesse.influence.run import open_folder
from hesse.web.answers import Answers, find_runs, questions_of
from hesse.web.asking import AskFunction, Asking
from hesse.web.health import health

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = ["create_app", "serve"]

_log = logging.getLogger(__name__)
_OPENED = 4  # questions kept open
_BODY = 1 << 16  # bytes of a posted question
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; style-src 'self'; object-src 'none'; "
    "base-uri 'none'; frame-ancestors 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class _Runs:
    """The runs on show; the questions opened last stay open."""

    def __init__(self, paths: Mapping[str, Path], cache: Path | None) -> None:
        self.paths, self._cache = dict(paths), cache
        self._opened: OrderedDict[tuple[str, str], Answers] = OrderedDict()

    def path(self, name: str) -> Path:
        if name not in self.paths:
            raise _Absent(f"run: no {name!r} here")
        return self.paths[name]

    def answers(self, name: str, question: str | None) -> Answers:
        if not question:
            question = str(open_folder(self.path(name)).stage("score").get("latest", "")).removeprefix("scores/")
        key = (name, question)
        if key not in self._opened:
            self._opened[key] = Answers(self.path(name), question or None, self._cache)
            while len(self._opened) > _OPENED:
                self._opened.popitem(last=False)
        return self._opened[key]


class _Absent(ArgumentError):
    """What was asked for is not there."""


def create_app(
    runs: list[Path], *, token: str | None = None, ask_fn: AskFunction | None = None, cache: Path | None = None
) -> "Starlette":
    """Make the application.

    Parameters
    ----------
    runs : list of Path
        Runs, or folders of runs.
    token : str, optional
        Whoever opens ``/?token=...`` gets a cookie, and nothing is served without it. Default: no token is asked for,
        which is for tests and for servers that let nobody else in.
    ask_fn : callable, optional
        Scores a new question. Default: none can be asked.
    cache : Path, optional
        Folder of search indexes. Default: ``$HESSE_CACHE/viewer``, else ``~/.cache/hesse/viewer``.

    Returns
    -------
    Starlette
        Any ASGI server runs it.

    Raises
    ------
    ArgumentError
        If a path holds no run.
    MissingDependencyError
        Without the extra ``web``.
    """
    require("starlette", extra="web", feature="the viewer")
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.responses import FileResponse, JSONResponse
    from starlette.routing import Mount, Route
    from starlette.staticfiles import StaticFiles

    shown = _Runs(find_runs(runs), cache)
    asking = None if ask_fn is None else Asking(ask_fn)
    static, shared = (Path(str(files(package) / "static")) for package in ("hesse.web", "hesse.influence"))

    def api(path: str, work: Callable[["Request", Any], Any], method: str = "GET") -> Route:
        async def endpoint(request: "Request") -> "Response":
            try:
                body = await _posted(request) if method == "POST" else None
                found = await run_in_threadpool(work, request, body)
            except _Absent as error:
                return JSONResponse({"error": str(error)}, 404)
            except ArtifactError as error:
                return JSONResponse({"error": str(error)}, 409)
            except HesseError as error:
                return JSONResponse({"error": str(error)}, 400)
            return _strict_json(found)

        return Route(f"/api{path}", endpoint, methods=[method])

    def answers(request: "Request") -> Answers:
        return shown.answers(request.path_params["run"], request.query_params.get("question"))

    def ask(request: "Request", body: Any) -> dict[str, Any]:
        if asking is None:
            raise ArgumentError("ask: no model is loaded; start the viewer with --model")
        if not isinstance(body, dict) or not all(isinstance(body.get(k), str) for k in ("prompt", "completion")):
            raise ArgumentError('ask: expected {"prompt": text, "completion": text}')
        return {"job": asking.put(shown.path(request.path_params["run"]), body["prompt"], body["completion"])}

    def job(request: "Request", _body: Any) -> dict[str, Any]:
        if asking is None:
            raise _Absent("job: no question was asked")
        return asking.state(request.path_params["job"])

    async def page(_request: "Request") -> "Response":
        return FileResponse(static / "index.html")

    routes = [
        api("/runs", lambda _r, _b: {"runs": [_summary(n, p) for n, p in shown.paths.items()], "ask": bool(asking)}),
        api("/runs/{run}/queries", lambda r, _b: {"queries": answers(r).queries(), "tags": _tags(answers(r))}),
        api("/runs/{run}/query", lambda r, _b: answers(r).query(_text(r, "query"))),
        api("/runs/{run}/list", lambda r, _b: _list(answers(r), r)),
        api(
            "/runs/{run}/terms",
            lambda r, _b: {
                "rows": answers(r).terms(_text(r, "query"), r.query_params.getlist("row"), _number(r, "target"))
            },
        ),
        api("/runs/{run}/pair", lambda r, _b: answers(r).pair(_text(r, "query"), _text(r, "row"))),
        api(
            "/runs/{run}/layers",
            lambda r, _b: answers(r).layers(
                _text(r, "query"),
                sign=_number(r, "sign") or 1,
                count=_number(r, "count") or 40,
                tag=r.query_params.get("tag", ""),
            ),
        ),
        api("/runs/{run}/health", lambda r, _b: health(answers(r))),
        api("/runs/{run}/ask", ask, "POST"),
        api("/jobs/{job}", job),
        Route("/", page),
        Mount("/static", StaticFiles(directory=static)),
        Mount("/shared", StaticFiles(directory=shared)),
    ]
    app = Starlette(routes=routes, middleware=[Middleware(_Guard, token=token)])
    app.state.runs = shown
    return app


class _Guard:
    """Lets in this machine's names and holders of the token, and puts the headers on every answer."""

    def __init__(self, app: Any, token: str | None) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":  # a lifespan; there are no sockets
            await self.app(scope, receive, send)
            return
        from starlette.requests import Request
        from starlette.responses import PlainTextResponse, RedirectResponse

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                added = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *added]}
            await send(message)

        request = Request(scope)
        given = request.query_params.get("token")
        refusal: Response | None = None
        if _host(request)[0] not in ("127.0.0.1", "localhost"):  # another site's name may point here
            refusal = PlainTextResponse("This server answers to 127.0.0.1 and localhost only.", 400)
        elif self.token is not None and given is not None and request.url.path == "/":
            if hmac.compare_digest(given.encode(), self.token.encode()):
                refusal = RedirectResponse("/", 303)  # the token leaves the address bar and the history
                refusal.set_cookie(_cookie(request), self.token, httponly=True, samesite="strict", path="/")
            else:
                refusal = PlainTextResponse("This token is of another server; open the address it printed.", 403)
        elif self.token is not None and not hmac.compare_digest(
            request.cookies.get(_cookie(request), "").encode(), self.token.encode()
        ):
            refusal = PlainTextResponse("Open the address that the server printed: it carries a token.", 403)
        elif request.method == "POST" and not _same_origin(request):
            refusal = PlainTextResponse("Questions are taken from this server's own pages only.", 403)
        await (self.app if refusal is None else refusal)(scope, receive, send_with_headers)


def serve(
    runs: list[Path],
    *,
    port: int = 0,
    token: str | None = None,
    ask_fn: AskFunction | None = None,
    started_fn: Callable[[str], None] | None = None,
) -> None:
    """Serve runs on 127.0.0.1 until interrupted.

    Parameters
    ----------
    runs : list of Path
        Runs, or folders of runs.
    port : int, default 0
        0: a free one.
    token : str, optional
        Default: a new random one.
    ask_fn : callable, optional
        Scores a new question.
    started_fn : callable, optional
        Told the address, token and all, once the port is open.

    Raises
    ------
    ArgumentError
        If a path holds no run, or the port is taken.
    """
    import socket

    uvicorn = require("uvicorn", extra="web", feature="the viewer")
    token = token or secrets.token_urlsafe(24)
    app = create_app(runs, token=token, ask_fn=ask_fn)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            raise ArgumentError(
                f"port: {port} cannot be had on 127.0.0.1 ({error.strerror}); choose another"
            ) from error
        _open_first(app.state.runs)
        if started_fn is not None:
            started_fn(f"http://127.0.0.1:{listener.getsockname()[1]}/?token={token}")
        config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, lifespan="off")
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        listener.close()


def _open_first(shown: _Runs) -> None:
    # what is looked at first is read before the address is told, so that the page finds it ready
    name = next(iter(shown.paths))
    try:
        answers = shown.answers(name, None)
        answers.ranked(answers.scores.query_ids[0], limit=1)
    except HesseError as error:
        _log.warning("%s: %s", name, error)  # the page says so too, in its place


def _host(request: "Request") -> tuple[str | None, int | None]:
    try:
        parts = urlsplit(f"//{request.headers.get('host', '')}")
        return parts.hostname, parts.port
    except ValueError:  # no name at all, and so not ours
        return None, None


def _cookie(request: "Request") -> str:
    # cookies know no ports: two viewers on one machine must not overwrite each other's
    return f"hesse-{_host(request)[1] or 80}"


def _same_origin(request: "Request") -> bool:
    origin = request.headers.get("origin")
    return origin is None or origin.partition("://")[2] == request.headers.get("host")


async def _posted(request: "Request") -> Any:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _BODY:
            raise ArgumentError(f"ask: expected at most {_BODY:,} bytes")
    try:
        return json.loads(bytes(body))
    except ValueError as error:
        raise ArgumentError("ask: expected JSON") from error


def _strict_json(value: Any) -> "Response":
    from starlette.responses import Response

    # refused scores are never NaN; what else is not finite shows as nothing
    text = json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))
    return Response(text, media_type="application/json")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def _summary(name: str, path: Path) -> dict[str, Any]:
    try:
        run = open_folder(path)
    except HesseError as error:
        return {"name": name, "error": str(error)}
    config = run.manifest.config
    info = config.get("info", {})
    told = {key: config.get(key) for key in ("strategy", "fisher", "damping", "num_sequences", "dtype")}
    told |= {key: Path(str(info[key])).name for key in ("model", "data") if info.get(key)}
    fitted = bool(run.stage("fit").get("done"))
    return {"name": name, "fitted": fitted, **told, "questions": questions_of(run)}


def _tags(answers: Answers) -> list[dict[str, object]]:
    ready = answers.search is not None and answers.search.wait(0)
    return answers.search.tags() if ready and answers.search is not None else []


def _list(answers: Answers, request: "Request") -> dict[str, Any]:
    wanted = {}
    for given in request.query_params.getlist("where"):
        key, colon, value = given.partition(":")
        if not colon:
            raise ArgumentError(f"where: expected key:value, got {given!r}")
        wanted[key] = value
    return answers.ranked(
        _text(request, "query"),
        sign=_number(request, "sign") or 1,
        target=_number(request, "target"),
        words=request.query_params.get("text", ""),
        tags=wanted,
        offset=_number(request, "offset") or 0,
        limit=_number(request, "limit") or 50,
    )


def _text(request: "Request", name: str) -> str:
    if name not in request.query_params:
        raise ArgumentError(f"{name}: it is missing")
    return request.query_params[name]


def _number(request: "Request", name: str) -> int | None:
    given = request.query_params.get(name)
    if given is None or given == "":
        return None
    try:
        return int(given)
    except ValueError:
        raise ArgumentError(f"{name}: expected a whole number, got {given!r}") from None
