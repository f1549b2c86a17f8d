"""Campaigns over the wire: streams that are cut, servers that are killed, answers by several people, odd numbers."""

from __future__ import annotations

import http.client
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from campaigns import Result
from jsonschema import ValidationError as SchemaError
from pydantic import ValidationError

from cockpit_server import Served, served
from recorded_run import make_run, step_event
from scaler_wizard import flight_log
from scaler_wizard.breaker import CircuitBreaker
from scaler_wizard.errors import ScalerError
from scaler_wizard.events import Cockpit
from scaler_wizard.payload import check, cockpit
from scaler_wizard.recipe import Breaker
from scaler_wizard.run import Run, locked

TOKEN = "program-token-of-the-tests"


@contextmanager
def in_a_process(do: Callable[[int], None]) -> Iterator[tuple[int, int]]:
    """A child that does something until it is killed; its number, and the end of a pipe that it writes to."""
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            do(there)
        finally:
            os._exit(0)
    try:
        yield child, here
    finally:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(here)
        os.close(there)


# -- R9: the stream ----------------------------------------------------------------------------------------------------


def reconnect(place: Path, *, count: int, seed: int, kill_every: int = 20) -> Result:
    """Cut the stream `count` times and kill its server now and then, while events are added; every one comes once."""
    chance, result = random.Random(seed), Result("event stream cut, server killed")
    run = make_run(place / "runs", committed=1, gate=False)
    begin = run.journal.newest().seq
    seen: list[int] = []
    with in_a_process(lambda _: _add(run.folder)):
        while result.trials < count:
            with in_a_process(lambda pipe: _serve(run.folder.parent, pipe)) as (_, pipe):
                port = int(os.read(pipe, 16))
                for _ in range(kill_every):
                    with result.trial(str(result.trials)):
                        last = seen[-1] if seen else begin
                        seen += _some(port, run.id, last, chance.randint(1, 6))
                        assert seen == list(range(begin + 1, begin + 1 + len(seen))), "a gap or a double"
    run.journal.close()
    return result


def _serve(runs: Path, pipe: int) -> None:
    with served(runs) as server:
        os.write(pipe, str(server.port).encode())
        time.sleep(3600)


def _add(folder: Path) -> None:
    journal = Run(folder).journal
    while True:
        journal.add("step", step_event(1), durable=False)
        time.sleep(0.01)


def _some(port: int, run_id: str, after: int, count: int) -> list[int]:
    """The next few numbers of the stream, then hang up in the middle."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with closing(connection):
        headers = {"Host": f"127.0.0.1:{port}", "Authorization": f"Bearer {TOKEN}", "Last-Event-ID": str(after)}
        connection.request("GET", f"/api/runs/{run_id}/events", headers=headers)
        answer, found = connection.getresponse(), list[int]()
        while len(found) < count and (line := answer.readline()):
            if line.startswith(b"id: "):
                found.append(int(line[4:]))
        return found


# -- R10: numbers that are none ----------------------------------------------------------------------------------------

ODD = (math.nan, math.inf, -math.inf, -0.0, 0.0, 1e308, -1e308, 5e-324, 1.5)


def odd_numbers(place: Path, *, count: int, seed: int) -> Result:
    """Any number as a loss or an evaluation: the breaker speaks in that step, and every layer has valid JSON."""
    chance, result = random.Random(seed), Result("NaN, infinity, -0, 1e308 in metrics")
    run = make_run(place / "odd", committed=1, gate=False)
    run.journal.add("phase_started", {"slug": "001-grow", "stage": "P1"}, phase="001-grow")
    for number in range(count):
        value = chance.choice(ODD) if number % 2 else chance.uniform(-1e3, 1e3) * 10.0 ** chance.randint(-300, 300)
        with result.trial(repr(value)):
            breaker = CircuitBreaker(Breaker(action="warn"))
            told = [breaker.observe(7, value), breaker.observe_evaluation(7, value)]
            for telegram in told:
                assert (telegram is not None and telegram.step == 7 and telegram.hard) == (not math.isfinite(value))
            for telegram in [one for one in told if one is not None]:
                run.journal.add("telegram", telegram.model_dump(), durable=False)
            seq = run.journal.add("step", step_event(7, loss=value), durable=False)
            evaluated = {"kind": "evaluated", "step": 7, "nll": value, "perplexity": value, "arm": "grown"}
            run.journal.add("evaluated", evaluated, durable=False)
            assert _same(run.journal.events(seq - 1, until=seq)[0].data["loss"], value), "stored as something else"
            check(strict(cockpit(run).model_dump_json(by_alias=True)))
    with result.trial("flight log"):
        flight_log.export(run.journal, run.folder)
        for line in (run.folder / flight_log.NAME).read_text(encoding="utf-8").splitlines():
            strict(line)
        assert flight_log.first_fault(run.folder / flight_log.NAME) is None
    with (
        result.trial("stream"),
        served(run.folder.parent) as server,
        server.stream(f"/api/runs/{run.id}/events?after=0") as events,
    ):
        numbered = (event for event in events if "id" in event)
        for row in run.journal.events():
            assert next(numbered)["data"]["data"].keys() == row.data.keys()
    run.journal.close()
    return result


def strict(text: str) -> Any:
    """JSON as the standard has it; Python alone would take NaN."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def _same(one: float, two: float) -> bool:
    return (math.isnan(one) and math.isnan(two)) or (one == two and math.copysign(1, one) == math.copysign(1, two))


# -- R13: answers from the cockpit and the command line ----------------------------------------------------------------


def decide_from_everywhere(place: Path, *, count: int, seed: int) -> Result:
    """Posts and the command line answer one gate at once, some stale: one counts, and both get the same verdict."""
    chance, result = random.Random(seed), Result("answers by HTTP and by command at once")
    run = make_run(place / "answers", gate=False)
    phase = run.committed()[-1].data["slug"]
    following = f"{int(phase[:3]) + 1:03d}-extend-512"
    with in_a_process(lambda pipe: _hold(run.folder, pipe)) as (_, pipe), served(run.folder.parent) as server:
        os.read(pipe, 1)
        for number in range(count):
            gate, evidence = f"gate{number}", f"hash{number}"
            verdict = {"action": "ask", "sentence": "Ready; approve?", "reasons": ()}
            data = {"gate": gate, "phase": following, "sentence": "Ready; approve?", "verdict": verdict}
            run.journal.add("gate", {**data, "evidence": {}, "evidence_hash": evidence}, phase=following)
            stale = chance.choice(("", "hash", "gate"))
            wanted = [(gate, evidence)] * 3
            if stale:
                wanted.append((f"gate{number - 1}", f"hash{number - 1}") if stale == "gate" else (gate, "stale"))
            chance.shuffle(wanted)
            answers = _at_once([_way(server, run, one, chance.random() < 0.5) for one in wanted])
            with result.trial(f"{number} {stale}"):
                counted = [one for one, asked in zip(answers, wanted, strict=True) if one and asked == (gate, evidence)]
                assert len(counted) == 1, answers
                assert sum(answers) == 1, answers
                rows = [row for row in run.journal.events(kinds=("decision",)) if row.data["gate"] == gate]
                assert [row.data["evidence_hash"] for row in rows] == [evidence]
    run.journal.close()
    return result


def _hold(folder: Path, pipe: int) -> None:
    """A process conducts the run, so that an approval starts none."""
    with locked(Run(folder)):
        os.write(pipe, b"h")
        time.sleep(3600)


def _way(server: Served, run: Run, wanted: tuple[str, str], over_http: bool) -> Callable[[], bool]:
    gate, evidence = wanted

    def post() -> bool:
        body = {"key": uuid.uuid4().hex, "action": "Approve", "gate": gate, "evidenceHash": evidence}
        return server.ask("POST", f"/api/runs/{run.id}/commands", body).status == 200

    def command() -> bool:
        mine = Run(run.folder)
        try:
            return mine.decide(gate, evidence, "approve", who="Ada", how="scaler approve")
        except ScalerError:
            return False
        finally:
            mine.journal.close()

    return post if over_http else command


def _at_once(ways: list[Callable[[], bool]]) -> list[bool]:
    said: dict[int, bool] = {}
    threads = [threading.Thread(target=lambda at=at, way=way: said.update({at: way()})) for at, way in enumerate(ways)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return [said[at] for at in range(len(ways))]


# -- R11: what fits the schema -----------------------------------------------------------------------------------------

# Not 1.0: JSON has one kind of number, so to a schema it is the integer 1; pydantic alone tells them apart.
VALUES = (
    *(None, True, False, 0, 1, -1, 2, 0.5, -0.5, 1.01, 29, 30, 120, 600, 601, 100, 100.5, -1e-308, 2**53, "", "x"),
    *("x" * 120, "x" * 121, "x" * 501, "P0", "P5", "running", "sleeping", "Approve", "Destroy", [], {}, ["Approve"]),
    *(["Approve", "Approve"], [1], {"value": None, "nonfinite": "nan"}, {"value": None, "nonfinite": "none"}),
    *({"nonfinite": "inf"}, {"extra": 1}, "2026-01-02T03:04:05Z", "2026-01-02T03:04:05", "2026-13-02T03:04:05Z"),
    *("yesterday", "12345678-1234-1234-1234-123456789abc", "12345678-1234-1234-1234-12345678", "é" * 120, "🙂" * 120),
)
MODULES = Path(__file__).parents[2] / "cockpit" / "node_modules"
SCHEMA = Path(__file__).parents[2] / "schemas" / "cockpit.schema.json"


def no_ajv() -> str | None:
    """Why ajv cannot be asked here."""
    if shutil.which("node") is None or not (MODULES / "ajv").is_dir():
        return "needs Node and `npm ci` in cockpit/"
    return None


def same_verdict(place: Path, *, count: int, seed: int) -> Result:
    """Payloads with up to three fields changed: pydantic, jsonschema and ajv say the same of every one."""
    chance, result = random.Random(seed), Result("payloads, three validators")
    run = make_run(place / "runs", committed=2)
    good = json.loads(cockpit(run).model_dump_json(by_alias=True))
    run.journal.close()
    made = [_changed(good, chance) for _ in range(count)]
    (place / "lines").write_text("".join(json.dumps(one) + "\n" for one in made), encoding="utf-8")
    command = ["node", str(Path(__file__).with_name("verdicts.mjs")), str(SCHEMA), str(place / "lines"), str(MODULES)]
    ajv = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    for one, third in zip(made, ajv, strict=True):
        with result.trial(json.dumps(one)):
            said = (_pydantic(one), _jsonschema(one), third == "1")
            assert len(set(said)) == 1, said
    with result.trial("both verdicts are there"):
        assert 0.02 < ajv.count("1") / count < 0.9, ajv.count("1")
    return result


def _changed(good: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    made = json.loads(json.dumps(good))
    for _ in range(chance.randint(0, 3)):
        place = made
        while chance.random() < 0.6 and (inner := [one for one in place.values() if isinstance(one, dict) and one]):
            place = chance.choice(inner)
        if not place:
            continue
        field = chance.choice([*place, "unheardOf"])
        if chance.random() < 0.15:
            place.pop(field, None)
        else:
            place[field] = chance.choice(VALUES)
    return made


def _pydantic(payload: dict[str, Any]) -> bool:
    try:
        Cockpit.model_validate_json(json.dumps(payload), strict=True, by_name=False, by_alias=True)
    except ValidationError:
        return False
    return True


def _jsonschema(payload: dict[str, Any]) -> bool:
    try:
        check(payload)
    except SchemaError:
        return False
    return True
