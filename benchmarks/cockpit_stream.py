"""What watching costs a training: its steps alone, and with 10 browsers on 20 events a second.

    python benchmarks/cockpit_stream.py [ROUNDS [THREADS]]

One process trains the embedded model and writes steps into a journal, 20 a second, as a run does; a second one serves,
and 10 clients in a third read everything. The watching goes on and off in turns, so that the machine's other work falls
on both sides alike; the order of each pair is drawn. Printed: steps a second and processor seconds a step, watched over
alone, with 95 % intervals over the pairs (bootstrap), and what the server itself takes.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import platform
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from cockpit_server import served
from recorded_run import make_run, step_event
from scaler_wizard.run import Run

CLIENTS, PERIOD, WARM_SECONDS, SECONDS, ROUNDS = 10, 0.05, 1.0, 5.0, 16
TOKENS = 96
"""Of one step: about 50 ms on a processor of today."""


def train(folder: Path, threads: int, done: Any, end: Event) -> None:
    """Train until told to end; `done` is what others read: steps, when the last one ended, processor seconds so far."""
    import torch

    from scaler_wizard.models import load_model, resolve

    torch.set_num_threads(threads)
    journal, me = Run(folder).journal, psutil.Process()
    model = load_model(resolve("embedded").folder, dtype="float32").train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5)
    ids = torch.randint(0, model.config.vocab_size, (4, TOKENS))
    told, steps = 0.0, 0
    while not end.is_set():
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        steps += 1
        if time.monotonic() - told >= PERIOD:
            told = time.monotonic()
            journal.add("step", step_event(steps, steps=10**6, loss=loss.item()), durable=False)
        used = me.cpu_times()
        with done.get_lock():
            done[:] = steps, time.monotonic(), used.user + used.system


def serve(runs: Path, port: Any, token: Any, end: Event) -> None:
    """A server, until told to end."""
    with served(runs) as server:
        token.value = server.keys.program_token.encode()
        port.value = server.port
        end.wait()


def watch(port: int, token: str, folder: Path, heard: Any, on: Event, end: Event) -> None:
    """CLIENTS readers that are connected while `on` is set; `heard` counts the events that reached them."""
    asyncio.run(_watch(port, token, folder, heard, on, end))


async def _watch(port: int, token: str, folder: Path, heard: Any, on: Event, end: Event) -> None:
    run = Run(folder)
    while not end.is_set():
        if on.is_set():
            newest = run.journal.newest().seq
            await asyncio.gather(*(_client(port, token, run.id, newest, heard, on) for _ in range(CLIENTS)))
        await asyncio.sleep(0.2)


async def _client(port: int, token: str, run_id: str, newest: int, heard: Any, on: Event) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    words = f"GET /api/runs/{run_id}/events?after={newest} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
    writer.write(f"{words}Authorization: Bearer {token}\r\n\r\n".encode())
    while on.is_set() and (told := await reader.read(65536)):
        heard.value += told.count(b"id: ")
    writer.close()


@dataclass(frozen=True)
class Look:
    """One stretch of the training."""

    steps_per_second: float
    cpu_per_step: float
    server_share: float
    """Processor seconds of the server a second."""
    heard: float
    """Events a second that reached a client."""


def look(done: Any, heard: Any, server: psutil.Process) -> Look:
    """Measure SECONDS, after a moment in which the change settles: from the end of one step to that of another."""
    time.sleep(WARM_SECONDS)
    before, begun, (first, since, used) = (heard.value, sum(server.cpu_times()[:2])), time.monotonic(), done[:]
    time.sleep(SECONDS)
    passed, (last, until, spent) = time.monotonic() - begun, done[:]
    told, served = heard.value - before[0], sum(server.cpu_times()[:2]) - before[1]
    made = last - first
    return Look(made / (until - since), (spent - used) / made, served / passed, told / CLIENTS / passed)


def interval(ratios: list[float]) -> dict[str, float]:
    """Mean of the pairs with its 95 % bootstrap interval."""
    draws = np.random.default_rng(0).choice(ratios, (10_000, len(ratios))).mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"mean": round(float(np.mean(ratios)), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def measure(threads: int, rounds: int) -> dict[str, Any]:
    """Pairs of stretches, watched and not, in an order that is drawn."""
    with tempfile.TemporaryDirectory() as scratch:
        run = make_run(Path(scratch) / "runs", committed=1, gate=False)
        port, heard, done = multiprocessing.Value("i", 0), multiprocessing.Value("q", 0), multiprocessing.Array("d", 3)
        token, on, end = multiprocessing.Array("c", 64), multiprocessing.Event(), multiprocessing.Event()
        trainer = multiprocessing.Process(target=train, args=(run.folder, threads, done, end), daemon=True)
        server = multiprocessing.Process(target=serve, args=(run.folder.parent, port, token, end), daemon=True)
        trainer.start()
        server.start()
        while done[0] < 20 or not port.value:
            time.sleep(0.1)
        watching = (port.value, token.value.decode(), run.folder, heard, on, end)
        watcher = multiprocessing.Process(target=watch, args=watching, daemon=True)
        watcher.start()
        pairs, seen, draw = [], psutil.Process(server.pid), random.Random(0)
        for _ in range(rounds):
            found = {}
            for watched in draw.sample([False, True], 2):
                (on.set if watched else on.clear)()
                found[watched] = look(done, heard, seen)
            pairs.append((found[False], found[True]))
        end.set()
        trainer.join(10)
    return {
        "threads": threads,
        "pairs": rounds,
        "steps_per_second_alone": round(float(np.mean([alone.steps_per_second for alone, _ in pairs])), 2),
        "speed_watched_over_alone": interval([two.steps_per_second / one.steps_per_second for one, two in pairs]),
        "cpu_a_step_watched_over_alone": interval([two.cpu_per_step / one.cpu_per_step for one, two in pairs]),
        "events_a_second_heard": round(float(np.mean([two.heard for _, two in pairs])), 2),
        "server_cores_watched": round(float(np.mean([two.server_share for _, two in pairs])), 4),
        "server_cores_idle": round(float(np.mean([one.server_share for one, _ in pairs])), 4),
    }


def main(arguments: list[str]) -> None:
    """With one processor left free, as a plan leaves it where it can, and with all of them in use."""
    rounds, cores = int(arguments[0]) if arguments else ROUNDS, psutil.cpu_count() or 1
    wanted = [int(arguments[1])] if arguments[1:] else sorted({max(1, cores - 1), cores})
    print(json.dumps({"python": platform.python_version(), "cores": cores, "clients": CLIENTS, "hz": 1 / PERIOD}))
    for threads in wanted:
        print(json.dumps(measure(threads, rounds), indent=1), flush=True)


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    main(sys.argv[1:])
