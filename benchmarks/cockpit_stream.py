"""What watching costs a training: its speed beside an idle server, and with 10 browsers on 20 events a second.

    python benchmarks/cockpit_stream.py

One process computes and writes 20 steps a second into a journal, as a training does; a second one serves and watches.
Rounds alternate, so that the machine's other work falls on both sides alike.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import multiprocessing.synchronize
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from cockpit_server import Served, served
from recorded_run import make_run, step_event
from scaler_wizard.run import Run

CLIENTS, STEPS, ROUNDS, PERIOD = 10, 100, 5, 0.05


def work(folder: Path, seconds: float) -> float:
    """Matrix products a second of processor time, while one event goes out every 50 ms."""
    journal = Run(folder).journal
    square = np.ones((400, 400), np.float32)
    begun, told, products = time.monotonic(), 0, 0
    while (now := time.monotonic() - begun) < seconds:
        square @ square
        products += 1
        if now >= told * PERIOD:
            told += 1
            journal.add("step", step_event(told, steps=1000), durable=False)
    return products / seconds


def serve_and_watch(runs: Path, run_id: str, ready: multiprocessing.synchronize.Event, clients: int) -> None:
    """A server, and clients that read everything, until killed."""
    with served(runs) as server:
        asyncio.run(_watch(server, run_id, ready, clients))


async def _watch(server: Served, run_id: str, ready: multiprocessing.synchronize.Event, clients: int) -> None:
    await asyncio.gather(*(_client(server, run_id) for _ in range(clients)), _say(ready))


async def _say(ready: multiprocessing.synchronize.Event) -> None:
    await asyncio.sleep(1.0)
    ready.set()


async def _client(server: Served, run_id: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    words = f"GET /api/runs/{run_id}/events?after=1000000 HTTP/1.1\r\nHost: {server.host}\r\n"
    writer.write(f"{words}Authorization: Bearer {server.keys.program_token}\r\n\r\n".encode())
    while await reader.read(65536):
        continue


def main() -> None:
    """Print the ratio, with the spread of the rounds."""
    with tempfile.TemporaryDirectory() as scratch:
        run = make_run(Path(scratch) / "runs", committed=1, gate=False)
        rates: dict[int, list[float]] = {0: [], CLIENTS: []}
        for turn in range(2 * ROUNDS):
            clients = (0, CLIENTS)[turn % 2]
            ready = multiprocessing.Event()
            watcher = multiprocessing.Process(
                target=serve_and_watch, args=(run.folder.parent, run.id, ready, clients), daemon=True
            )
            watcher.start()
            ready.wait(30)
            rates[clients].append(work(run.folder, STEPS * PERIOD))
            watcher.kill()
        alone, watched = (statistics.median(rates[clients]) for clients in (0, CLIENTS))
        result = {"products_per_s_alone": alone, "products_per_s_watched": watched, "ratio": watched / alone}
        print(json.dumps(result | {"rounds": rates}, indent=1))


if __name__ == "__main__":
    main()
