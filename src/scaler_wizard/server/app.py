"""The routes: what can be seen of runs, what can be wished of them, and the page itself. Every id is looked up."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response, StreamingResponse
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp
from starlette.websockets import WebSocketDisconnect

from scaler_wizard.errors import ScalerError
from scaler_wizard.payload import cockpit
from scaler_wizard.phases import Plan
from scaler_wizard.record import explicit, to_json
from scaler_wizard.run import Run, list_runs
from scaler_wizard.server import steer
from scaler_wizard.server.begin import Shop, contract_view, plan_view, recipe_fields
from scaler_wizard.server.feed import Feed, Feeds, socket_text
from scaler_wizard.server.foresee import Foresight
from scaler_wizard.server.glance import detail, difference, fusion, row
from scaler_wizard.server.guard import COOKIE, SESSION_SECONDS, Guard, Keys
from scaler_wizard.server.pack import tar_stream
from scaler_wizard.server.pages import FOREVER, Page, load_pages
from scaler_wizard.server.planned import plan_of
from scaler_wizard.server.prometheus import KIND, exposition
from scaler_wizard.server.uploads import Uploads
from scaler_wizard.server.wire import (
    Advised,
    Command,
    ContractView,
    Difference,
    Expected,
    Feedback,
    FusionView,
    Link,
    ModelRow,
    ModelWish,
    Outcome,
    PlanView,
    Preview,
    RunDetail,
    RunRow,
    Said,
    Session,
    Slug,
    Start,
    Started,
    Trouble,
    Upload,
    Wish,
)

RUN_ID = re.compile(r"[a-z0-9][A-Za-z0-9._-]{0,119}")
TAR = "application/x-tar"
TROUBLE: dict[int | str, dict[str, Any]] = {status: {"model": Trouble} for status in (401, 403, 404, 409, 422)}


def _as(kind: str) -> dict[str, Any]:
    """What a route that does not answer in JSON says of itself; what goes wrong there is told in JSON all the same."""
    return {"response_class": Response, "responses": {200: {"content": {kind: {}}}}}


@dataclass(frozen=True)
class Place:
    """Where the runs of this server are."""

    runs: Path

    def folder(self, wanted: str) -> Path:
        """The run with exactly this id; the id is compared, never made into a path."""
        known = {path.name: path for path in list_runs(self.runs)} if RUN_ID.fullmatch(wanted) else {}
        if wanted not in known:
            raise Unknown(f"{wanted[:80]!r}: no such run", "look at the list of runs")
        return known[wanted]

    @contextmanager
    def open(self, wanted: str) -> Iterator[tuple[Run, Plan]]:
        """A run and its plan, closed afterwards."""
        run = Run(self.folder(wanted))
        try:
            yield run, plan_of(run.folder)
        finally:
            run.journal.close()


class Unknown(ScalerError):
    """There is nothing under that id."""


def make_app(
    runs: Path,
    *,
    keys: Keys,
    hosts: tuple[str, ...],
    secure: bool = False,
    models: Path | None = None,
    feeds: Feeds | None = None,
) -> ASGIApp:
    """The whole application behind its guard; `hosts` are the names with ports that it answers to.

    `feeds` are from `make_feeds`, where the caller wants to end the event streams.
    """
    inner = routes(runs, keys=keys, secure=secure, models=models, feeds=feeds)
    return Guard(inner, keys=keys, hosts=hosts, secure=secure)


def make_feeds() -> Feeds:
    """The event streams of a server."""
    return Feeds(_snapshot)


def routes(
    runs: Path, *, keys: Keys, secure: bool = False, models: Path | None = None, feeds: Feeds | None = None
) -> FastAPI:
    """The application without its guard."""
    app = FastAPI(
        title="Scaler Wizard",
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
        responses=TROUBLE,
        generate_unique_id_function=lambda route: route.name,
    )
    app.add_exception_handler(ScalerError, _trouble)
    app.add_exception_handler(RequestValidationError, _misfit)
    _add_session(app, keys, secure=secure)
    _add_wizard(app, Shop(runs, Uploads(runs / ".uploads"), models), Foresight(runs))
    _add_runs(app, Place(runs))
    _add_streams(app, Place(runs), feeds or make_feeds())
    _add_pages(app, load_pages())
    return app


async def _trouble(request: Request, error: Exception) -> Response:
    assert isinstance(error, ScalerError)
    status = 404 if isinstance(error, Unknown) else 409
    return _json(Trouble(wrong=error.wrong, cure=error.cure), status)


async def _misfit(request: Request, error: Exception) -> Response:
    """A request of the wrong form: the first thing that is wrong with it."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
    message = str(first["msg"]).removeprefix("Value error, ")
    return _json(Trouble(wrong=f"{where}: {message}", cure="change this value and try again"), 422)


def _json(answer: BaseModel | list[Any], status: int = 200) -> Response:
    data = [explicit(one) for one in answer] if isinstance(answer, list) else answer
    return Response(to_json(data), status, media_type="application/json")


def _snapshot(folder: Path) -> str:
    run = Run(folder)
    try:
        return cockpit(run).model_dump_json(by_alias=True)
    finally:
        run.journal.close()


# -- session ---------------------------------------------------------------------------------------------------------


def _add_session(app: FastAPI, keys: Keys, *, secure: bool) -> None:
    @app.post("/api/session", status_code=204)
    def begin_session(ask: Session) -> Response:
        session = keys.exchange(ask.token)
        if session is None:
            return _json(Trouble(wrong="that link was used already or is not ours", cure="ask for a new one"), 401)
        answer = Response(status_code=204)
        answer.set_cookie(
            COOKIE, session, max_age=SESSION_SECONDS, httponly=True, samesite="strict", secure=secure, path="/"
        )
        return answer

    @app.post("/api/link", response_model=Link)
    def new_link() -> Response:
        return _json(Link(path=f"/#token={keys.link()}"))


# -- the wizard ------------------------------------------------------------------------------------------------------


def _add_wizard(app: FastAPI, shop: Shop, foresight: Foresight) -> None:
    @app.get("/api/models", response_model=list[ModelRow])
    def list_models() -> Response:
        return _json(shop.model_rows())

    @app.post("/api/models", response_model=ModelRow)
    def prepare_model(ask: ModelWish) -> Response:
        return _json(shop.prepare(ask.model))

    @app.post("/api/expected", response_model=Expected)
    def foresee(wish: Wish) -> Response:
        return _json(foresight.of(shop.plan(wish)))

    @app.post("/api/plan", response_model=PlanView)
    def make_plan_for(wish: Wish) -> Response:
        return _json(plan_view(shop.plan(wish), recipe_fields(wish), shop.runs))

    @app.post("/api/wish", response_model=Advised)
    def advise_on(said: Said) -> Response:
        return _json(shop.advise(said))

    @app.post("/api/contract", response_model=ContractView)
    def show_contract(wish: Wish) -> Response:
        return _json(contract_view(wish))

    @app.post("/api/runs", response_model=Started, status_code=201)
    def start_run(ask: Start) -> Response:
        run = shop.start(ask)
        try:
            if not steer.alive(run) and run.current is None:
                steer.spawn(run, standing=ask.standing)
            return _json(Started(id=run.id), 201)
        finally:
            run.journal.close()

    @app.get("/api/uploads", response_model=list[Upload])
    def list_uploads() -> Response:
        return _json(shop.uploads.list())

    @app.post("/api/uploads", response_model=Upload, status_code=201)
    async def receive_upload(request: Request, name: Annotated[str, Query(max_length=200)]) -> Response:
        return _json(await shop.uploads.receive(name, request.stream()), 201)

    @app.delete("/api/uploads/{wanted}", status_code=204)
    def remove_upload(wanted: str) -> Response:
        shop.uploads.remove(wanted)
        return Response(status_code=204)


# -- runs ------------------------------------------------------------------------------------------------------------


def _add_runs(app: FastAPI, place: Place) -> None:
    @app.get("/api/runs", response_model=list[RunRow])
    def show_runs() -> Response:
        return _json([row(folder) for folder in reversed(list_runs(place.runs))])

    @app.get("/api/runs/{run_id}", response_model=RunDetail)
    def show_run(run_id: str) -> Response:
        with place.open(run_id) as (run, plan):
            return _json(detail(run, plan))

    @app.post("/api/runs/{run_id}/commands", response_model=Outcome)
    def command(run_id: str, ask: Command) -> Response:
        with place.open(run_id) as (run, plan):
            return _json(steer.carry_out(run, plan, ask))

    @app.get("/api/runs/{run_id}/preview", response_model=Preview)
    def preview_rollback(run_id: str, to: Slug | None = None) -> Response:
        with place.open(run_id) as (run, _):
            return _json(steer.preview(run, to))

    @app.get("/api/runs/{run_id}/difference", response_model=Difference)
    def compare_checkpoints(run_id: str, first: Slug | None = None, second: Slug | None = None) -> Response:
        with place.open(run_id) as (run, _):
            return _json(difference(run, first, second))

    @app.get("/api/runs/{run_id}/fusion", response_model=FusionView)
    def preview_merge(run_id: str) -> Response:
        with place.open(run_id) as (run, plan):
            return _json(fusion(run, plan))

    @app.post("/api/runs/{run_id}/feedback", status_code=204)
    def note_feedback(run_id: str, ask: Feedback) -> Response:
        with place.open(run_id) as (run, _), run.journal.transaction():
            run.journal.set("feedback", ask.text)
            run.journal.add("feedback", {"text": ask.text, "who": steer.who()})
        return Response(status_code=204)

    @app.get("/api/runs/{run_id}/export", **_as(TAR))
    def download_model(run_id: str) -> Response:
        with place.open(run_id) as (run, _):
            if run.current is None:
                raise ScalerError(f"{run.id}: there is no checkpoint yet", "wait for the first phase")
            return _download(run.checkpoints / run.current, f"{run.id}-{run.current}")

    @app.get("/api/runs/{run_id}/report", **_as(TAR))
    def download_report(run_id: str) -> Response:
        with place.open(run_id) as (run, _):
            if not any(run.report.iterdir()):
                raise ScalerError(f"{run.id}: the report is not written yet", "it is written in the last phase")
            return _download(run.report, f"{run.id}-report")

    @app.get("/api/runs/{run_id}/report.html", **_as("text/html"))
    def download_page(run_id: str) -> Response:
        with place.open(run_id) as (run, _):
            page = run.report / "report.html"
            if not page.is_file():
                raise ScalerError(f"{run.id}: the report is not written yet", "it is written in the last phase")
            headers = {"content-disposition": f'attachment; filename="{run.id}.html"'}
            return Response(page.read_bytes(), media_type="text/html; charset=utf-8", headers=headers)

    @app.get("/metrics", **_as("text/plain"))
    def metrics() -> Response:
        return Response(exposition(place.runs), media_type=KIND)


def _download(folder: Path, name: str) -> Response:
    headers = {"content-disposition": f'attachment; filename="{name}.tar"'}
    return StreamingResponse(tar_stream(folder, name), media_type=TAR, headers=headers)


# -- streams ---------------------------------------------------------------------------------------------------------


def _add_streams(app: FastAPI, place: Place, feeds: Feeds) -> None:
    @app.get("/api/runs/{run_id}/events", **_as("text/event-stream"))
    async def events(request: Request, run_id: str, after: Annotated[int, Query(ge=0, le=2**53)] = 0) -> Response:
        feed = feeds.of(await run_in_threadpool(place.folder, run_id))
        last = request.headers.get("last-event-id", "")
        begin = int(last) if re.fullmatch(r"\d{1,15}", last) else after

        async def stream() -> AsyncIterator[bytes]:
            yield b"retry: 500\n\n"
            async for batch in feed.follow(begin):
                yield batch.server_sent

        return StreamingResponse(stream(), media_type="text/event-stream")

    @app.websocket("/api/runs/{run_id}/socket")
    async def socket(connection: WebSocket, run_id: str, after: int = 0) -> None:
        try:
            feed = feeds.of(await run_in_threadpool(place.folder, run_id))
        except Unknown as error:
            await connection.close(4404, error.wrong)
            return
        await connection.accept()
        telling = asyncio.create_task(_tell(connection, feed, max(0, after)))
        try:
            while (await connection.receive())["type"] != "websocket.disconnect":
                continue  # what a client says here has no meaning: commands are posts
        finally:
            telling.cancel()


async def _tell(connection: WebSocket, feed: Feed, after: int) -> None:
    async for batch in feed.follow(after):
        try:
            for item in batch.items:
                await connection.send_text(socket_text(item))
        except WebSocketDisconnect:
            return


# -- the page --------------------------------------------------------------------------------------------------------


def _add_pages(app: FastAPI, pages: dict[str, Page]) -> None:
    @app.api_route("/", methods=["GET", "HEAD"], response_class=HTMLResponse, include_in_schema=False)
    def shell(request: Request) -> Response:
        return _page(request, pages.get("/index.html"), "no-cache")

    @app.api_route("/assets/{name}", methods=["GET", "HEAD"], include_in_schema=False)
    def asset(request: Request, name: str) -> Response:
        return _page(request, pages.get(f"/assets/{name}"), FOREVER)


def _page(request: Request, page: Page | None, cache: str) -> Response:
    if page is None:
        return _json(Trouble(wrong="there is no such page", cure="open the cockpit's first page"), 404)
    packed = "gzip" in request.headers.get("accept-encoding", "")
    headers = {"cache-control": cache, "vary": "accept-encoding"} | ({"content-encoding": "gzip"} if packed else {})
    return Response(page.packed if packed else page.body, media_type=page.kind, headers=headers)
