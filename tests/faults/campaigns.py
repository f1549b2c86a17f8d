"""Campaigns of faults. Each makes its trials and counts how many lost something; tests and the report run the same."""

from __future__ import annotations

import fcntl
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import trial
from trial import Ended, Fault, begin, check_finished, conduct, expected, finish

from scaler_wizard.run import Run
from scaler_wizard.snapshots import newest_sound, take


@dataclass
class Result:
    """What a campaign found."""

    name: str
    trials: int = 0
    lost: list[str] = field(default_factory=list)
    """One line for each trial after which something did not hold."""
    seconds: list[float] = field(default_factory=list)
    """Of what the fault's figure is about: resuming, refusing, rolling back."""

    @property
    def worst(self) -> float:
        """The longest of the seconds."""
        return max(self.seconds, default=0.0)

    def resumed(self, ended: Ended) -> Ended:
        """Note the seconds from its restart until a run was at work, where something was left to do."""
        if ended.at_work is not None:
            self.seconds.append(ended.at_work)
        return ended

    def percentile(self, share: float) -> float:
        """Seconds that this share of the trials stayed below."""
        return sorted(self.seconds)[min(len(self.seconds) - 1, int(share * len(self.seconds)))]

    @contextmanager
    def trial(self, what: str) -> Iterator[None]:
        """Count one trial, and a loss where something does not hold."""
        self.trials += 1
        try:
            yield
        except AssertionError as error:
            self.lost.append(f"{what}: {str(error)[-500:]}")


def forked(do: Callable[[], Result]) -> Result:
    """The same in a process of its own, so that nothing of what it changes stays."""
    with tempfile.TemporaryDirectory(prefix="forked-") as scratch:
        return _waited_for(*_fork(do, Path(scratch) / "result"))


def spread(
    campaign: Callable[..., Result], place: Path, *, count: int, seed: int, processes: int = 6, **settings: Any
) -> Result:
    """The same campaign in several processes at once, each with its part of the trials: most of a trial is waiting."""
    children = []
    for number in range(processes):
        part = place / f"part-{number}"
        part.mkdir(parents=True)
        mine = {"count": -(-count // processes), "seed": seed * 100 + number, **settings}
        children.append(_fork(partial(campaign, part, **mine), part / "result"))
    parts = [_waited_for(*child) for child in children]
    whole = Result(parts[0].name)
    for one in parts:
        whole.trials += one.trials
        whole.lost += one.lost
        whole.seconds += one.seconds
    return whole


def _fork(do: Callable[[], Result], file: Path) -> tuple[int, Path]:
    """A child that does it and leaves what it found in `file`."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            file.write_bytes(pickle.dumps(do()))
            code = 0
        except BaseException:  # noqa: BLE001 - said, and the parent sees the code
            traceback.print_exc()
        finally:
            os._exit(code)
    return child, file


def _waited_for(child: int, file: Path) -> Result:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "a process of the campaign failed"
    found: Result = pickle.loads(file.read_bytes())  # noqa: S301 - our own
    return found


# -- R1: kill -9 -------------------------------------------------------------------------------------------------------


def points(place: Path) -> list[str]:
    """Every failpoint that an ordinary run reaches, in order of first appearance."""
    trace = place / "trace"
    ended = conduct(begin(place / "traced"), Fault(f"*=trace:{trace}"))
    assert ended.code == 0, ended.said
    return list(dict.fromkeys(trace.read_text(encoding="utf-8").split()))


def kill_at_points(place: Path, *, times: int = 1, before: Callable[[], None] | None = None) -> Result:
    """Kill at every point, its first time in one run and a later time in the next."""
    result, like = Result("kill at every point"), expected(place / "reference")
    for round_ in range(times):
        folder, told = begin(place / f"points-{round_}"), _none()
        for point in points(place / f"points-{round_}"):
            with result.trial(point):
                ended = conduct(folder, Fault(f"{point}=kill@{1 + round_}", before=before))
                if told:  # it had been killed before
                    result.resumed(ended)
                told += ended.acknowledged
                assert ended.code in (-signal.SIGKILL, 0), ended.said
                if ended.code == 0:  # the point did not come up so often any more
                    check_finished(folder, told, like)
                    folder, told = begin(place / f"points-{round_}-{point}"), _none()
        with result.trial("finish"):
            result.resumed(finish(folder, told, like))
    return result


def _none() -> list[str]:
    return []


def kill_at_random(
    place: Path, *, count: int, seed: int, by_clock: bool = False, before: Callable[[], None] | None = None
) -> Result:
    """Kill again and again, at the n-th point or after some milliseconds, until the run is done; then another run."""
    chance, like = random.Random(seed), expected(place / "reference")
    result = Result("kill at random moments" if by_clock else "kill at random points")
    runs = 0
    while result.trials < count:
        folder, told = begin(place / f"random-{seed}-{runs}"), _none()
        runs += 1
        for _ in range(40):
            if by_clock:
                fault = Fault(after_seconds=chance.uniform(0.0, 0.4), before=before)
            else:
                fault = Fault(f"*=kill@{chance.randint(1, 120)}", before=before)
            ended = conduct(folder, fault)
            if told:
                result.resumed(ended)
            told += ended.acknowledged
            if ended.code == 0:
                break
            with result.trial(f"run {runs}"):
                assert ended.code == -signal.SIGKILL, ended.said
        with result.trial(f"run {runs}"):
            result.resumed(finish(folder, told, like))
    return result


def kill_in_writes(place: Path) -> Result:
    """Killed in the n-th write of a file, for every n that a run comes to."""
    result, like = Result("kill in every write of a file"), expected(place / "reference")
    for number in range(1, 27):
        folder = begin(place / f"write-{number}")
        with result.trial(str(number)):
            ended = conduct(folder, Fault(f"write.opened=kill@{number}"))
            result.resumed(finish(folder, ended.acknowledged, like))
    return result


def kill_workers(place: Path, *, count: int, seed: int) -> Result:
    """Kill only the worker; the supervisor pauses the run and says why, and the run goes on."""
    chance, like, result = random.Random(seed), expected(place / "reference"), Result("kill the worker")
    runs = 0
    while result.trials < count:
        folder = begin(place / f"workers-{seed}-{runs}")
        runs += 1
        ended = _while_running(folder, lambda child: _kill_worker(child, chance.uniform(0.0, 2.0)))
        if ended.code == 0:  # each worker had said its last word before it was killed
            continue
        with result.trial(str(runs)):
            assert ended.code == 3, ended.said
            assert "killed" in ended.said, ended.said
            result.resumed(finish(folder, ended.acknowledged, like))
    return result


def _while_running(folder: Path, do: Callable[[int], None]) -> Ended:
    """Conduct in a child and do something to it meanwhile."""
    notes = folder.parent / f"{folder.name}.ended"
    holder = os.fork()
    if holder == 0:
        os.setpgid(0, 0)
        notes.write_bytes(pickle.dumps(conduct(folder)))
        os._exit(0)
    do(holder)
    os.waitpid(holder, 0)
    ended: Ended = pickle.loads(notes.read_bytes())  # noqa: S301 - our own
    return ended


def _kill_worker(holder: int, after: float) -> None:
    """Kill the worker that is there after some seconds: the child of the supervisor, which is the child of `holder`."""
    time.sleep(after)
    while (supervisors := _children(holder)) and not any(_children(one) for one in supervisors):
        time.sleep(0.002)
    for worker in (worker for supervisor in supervisors for worker in _children(supervisor)):
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    except FileNotFoundError:
        return []


# -- R2: power cuts ----------------------------------------------------------------------------------------------------

SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32): EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN
NO_LOG_FLUSH = 2
LOOP_BYTES = {"ext4": 96 * 2**20, "xfs": 320 * 2**20}


def can_cut_power(system: str) -> str | None:
    """Why power cannot be cut here; None where it can."""
    if os.geteuid() != 0:
        return "needs root"
    if shutil.which(f"mkfs.{system}") is None:
        return f"needs mkfs.{system}"
    with tempfile.TemporaryDirectory() as scratch:
        try:
            with _mounted(Path(scratch), system):
                return None
        except (OSError, subprocess.SubprocessError) as error:
            return f"no loop mount ({type(error).__name__})"


@contextmanager
def _mounted(scratch: Path, system: str) -> Iterator[Path]:
    """A fresh file system in a file."""
    image, mount = scratch / "image", scratch / "mount"
    with image.open("wb") as file:
        file.truncate(LOOP_BYTES[system])
    mount.mkdir(exist_ok=True)
    subprocess.run([f"mkfs.{system}", "-q", str(image)], check=True, capture_output=True)
    _mount(image, mount)
    try:
        yield mount
    finally:
        _unmount(mount)


def _mount(image: Path, mount: Path) -> None:
    subprocess.run(["mount", "-o", "loop", str(image), str(mount)], check=True, capture_output=True)


def _unmount(mount: Path) -> None:
    for _ in range(1200):
        if subprocess.run(["umount", str(mount)], check=False, capture_output=True).returncode == 0:
            return
        time.sleep(0.05)
    raise AssertionError(f"{mount} is still in use")


def cut_power(place: Path, *, system: str, count: int, seed: int, before: Callable[[], None] | None = None) -> Result:
    """Run on a file system of its own, cut its power at a random moment, mount it again, go on."""
    chance, result = random.Random(seed), Result(f"power cut, {system}")
    like = expected(place / "reference")
    for number in range(count):
        with (
            tempfile.TemporaryDirectory(dir=place) as scratch,
            _mounted(Path(scratch), system) as mount,
            result.trial(f"cut {number}"),
        ):
            told = _cut_once(Path(scratch), mount, chance, before)
            folders = list((mount / "runs").glob("trial-*"))
            assert folders, "the run is gone"
            result.resumed(finish(folders[0], told, like))
    return result


def _cut_once(scratch: Path, mount: Path, chance: random.Random, before: Callable[[], None] | None) -> list[str]:
    """Acknowledged facts up to the cut; they are noted on another disk."""
    notes = scratch / "acknowledged"
    folder = begin(mount)
    subprocess.run(["sync", "-f", str(mount)], check=True)
    handle = os.open(mount, os.O_RDONLY)
    wait = chance.uniform(0.0, 1.0)
    child = os.fork()
    if child == 0:
        _wait_for_a_decision(notes)  # earlier, there is nothing that could be lost
        time.sleep(wait)
        fcntl.ioctl(handle, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        os._exit(0)
    ended = conduct(folder, Fault(before=before), acknowledgements=notes)
    os.waitpid(child, 0)
    os.close(handle)
    _unmount(mount)
    _mount(scratch / "image", mount)
    return ended.acknowledged


def _wait_for_a_decision(notes: Path) -> None:
    for _ in range(600):
        if notes.exists() and "decision" in notes.read_text(encoding="utf-8"):
            return
        time.sleep(0.05)


def cut_power_after_snapshots(place: Path, *, system: str, count: int, seed: int) -> Result:
    """A training's snapshots on a disk whose power is cut right behind the last one: that very one is gone on from."""
    chance, result = random.Random(seed), Result(f"power cut behind a snapshot, {system}")
    for number in range(count):
        with (
            tempfile.TemporaryDirectory(dir=place) as scratch,
            _mounted(Path(scratch), system) as mount,
            result.trial(str(number)),
        ):
            last = chance.randint(1, 5)
            handle = os.open(mount, os.O_RDONLY)
            for step in range(1, last + 1):
                state = chance.randbytes(chance.randint(1, 2**20))
                take(mount, "grown", step, lambda stream, state=state: stream.write(state), best=step)
            fcntl.ioctl(handle, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
            os.close(handle)
            _unmount(mount)
            _mount(Path(scratch) / "image", mount)
            found, damaged = newest_sound(mount, "grown")
            assert (found and found.step, damaged) == (last, []), f"{found} of {last}; {damaged}"
    return result


# -- R3: full disks ----------------------------------------------------------------------------------------------------


def can_mount() -> str | None:
    """Why a small disk cannot be mounted here; None where it can."""
    return None if os.geteuid() == 0 else "needs root, to mount a small disk"


@contextmanager
def _small_disk(place: Path, size: int) -> Iterator[Path]:
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        _unmount(place)


SMALLEST_DISK, LARGEST_DISK = 100_000, 1_600_000


def fill_disk(place: Path, *, count: int, seed: int, least: int = SMALLEST_DISK, most: int = LARGEST_DISK) -> Result:
    """A run on a disk of some size; where it does not fit it pauses, and goes on when the disk has grown."""
    chance, result, like = random.Random(seed), Result("full disk"), expected(place / "reference")
    for number in range(count):
        size = int(least + (most - least) * (number + chance.random()) / count)
        with _small_disk(place / "small", size) as disk, result.trial(f"{size} bytes"):
            notes = place / f"full-{size}"
            try:
                folder = begin(disk)
            except Exception as error:  # noqa: BLE001 - sqlite3, OSError: a run that could not begin left nothing
                assert trial.is_full(error), repr(error)
                assert not list((disk / "runs").glob("trial-*"))
                continue
            ended = conduct(folder, acknowledgements=notes)
            assert ended.code in (0, 3), ended.said
            assert ended.code == 0 or "bytes" in ended.said or "disk is full" in ended.said, ended.said
            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
            result.resumed(finish(folder, ended.acknowledged, like))
    return result


def limit_files(place: Path, *, count: int, seed: int) -> Result:
    """No file may grow beyond some size, as a quota would have it; the run pauses, and goes on without the limit."""
    chance, result, like = random.Random(seed), Result("files that may not grow"), expected(place / "reference")
    for number in range(count):
        size = int(SMALLEST_FILE + (LARGEST_FILE - SMALLEST_FILE) * (number + chance.random()) / count)
        folder = begin(place / f"limited-{number}")
        with result.trial(f"{size} bytes"):
            ended = conduct(folder, Fault(before=lambda size=size: _limit_files(size)))  # type: ignore[misc]
            assert ended.code in (0, 3), ended.said
            assert ended.code == 0 or "bytes" in ended.said or "disk is full" in ended.said, ended.said
            result.resumed(finish(folder, ended.acknowledged, like))
    return result


SMALLEST_FILE, LARGEST_FILE = 4_000, 300_000


def _limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def refuse_writes(place: Path, *, points: list[str]) -> Result:
    """No space at every point; the run pauses, or had written all it must, and goes on."""
    result, like = Result("no space at every point"), expected(place / "reference")
    for point in points:
        folder = begin(place / f"space-{point}")
        with result.trial(point):
            ended = conduct(folder, Fault(f"{point}=full@1"))
            assert ended.code in (0, 3), ended.said
            assert ended.code == 0 or "disk is full" in ended.said, ended.said
            result.resumed(finish(folder, ended.acknowledged, like))
    return result


# -- R4: corrupt bytes -------------------------------------------------------------------------------------------------

KINDS = (
    "run.db",
    "plan.yaml",
    "contract.yaml",
    "current",
    "run.json",
    "flight_log.jsonl",
    "checkpoints/*/manifest.json",
    "checkpoints/*/model.safetensors",
    "checkpoints/*/config.json",
)


def damage(place: Path, *, count: int, seed: int, before: Callable[[], None] | None = None) -> Result:
    """Flip a bit of a file of a half-done run, or cut the file; resume; the end must be as if nothing had happened."""
    chance, result = random.Random(seed), Result("flipped bits and cut files")
    like, stopped = expected(place / "reference"), _half_done(place / "half")
    for number in range(count):
        folder = copy(stopped, place / f"damaged-{number}")
        kind = KINDS[number % len(KINDS)]
        file = chance.choice(sorted(folder.glob(kind)))
        what = _harm(file, chance)
        with result.trial(f"{file.relative_to(folder)}: {what}"):
            result.resumed(_finish_damaged(folder, like, before))
        shutil.rmtree(folder)
    return result


def _half_done(place: Path) -> Path:
    """A run that was killed when its fourth phase had begun."""
    folder = begin(place)
    ended = conduct(folder, Fault("phase.started=kill@4"))
    assert ended.code == -signal.SIGKILL, ended.said
    return folder


def copy(folder: Path, place: Path) -> Path:
    """A folder again, with links kept between the checkpoints in it."""
    subprocess.run(["cp", "-a", str(folder), str(place)], check=True)
    return place


def _harm(file: Path, chance: random.Random) -> str:
    raw = bytearray(file.read_bytes())
    if chance.random() < 0.25:
        at = chance.randrange(len(raw))
        os.truncate(file, at)
        return f"cut at {at}"
    at = chance.randrange(len(raw))
    raw[at] ^= 1 << chance.randrange(8)
    file.write_bytes(raw)  # the same inode: every checkpoint that shares the file is harmed
    return f"bit flipped at {at}"


def _finish_damaged(folder: Path, like: dict[str, dict[str, str]], before: Callable[[], None] | None) -> Ended:
    ended = conduct(folder, Fault(before=before))
    assert ended.code == 0, ended.said
    check_sound(folder, like)
    return ended


def check_sound(folder: Path, like: dict[str, dict[str, str]]) -> None:
    """The current model is the one that it should be; an older one that has rotted does not pass for a whole one."""
    run = Run(folder)
    try:
        run.journal.verify()
        assert run.current == max(like)
        assert trial.contents(folder)[run.current] == like[run.current]
        trial.verify(run.checkpoints / run.current, run.manifest(run.current), hashes=True)
        for slug, files in trial.contents(folder).items():
            if files != like[slug]:
                assert not _passes(run, slug), f"{slug} is not what it should be and nobody noticed"
    except trial.ScalerError as error:
        raise AssertionError(str(error)) from None
    finally:
        run.journal.close()


def _passes(run: Run, slug: str) -> bool:
    try:
        trial.verify(run.checkpoints / slug, run.manifest(slug), hashes=True)
    except trial.ScalerError:
        return False
    return True


# -- R5: two processes -------------------------------------------------------------------------------------------------


def race_writers(place: Path, *, count: int) -> Result:
    """Two processes want the same run at the same moment; exactly one gets it."""
    from scaler_wizard.errors import ScalerError
    from scaler_wizard.run import locked

    folder, result = begin(place / "race"), Result("two processes on one run")

    def want(gate: int, answer: int, hold: int) -> None:
        signal.alarm(30)
        run = Run(folder)
        os.read(gate, 1)
        try:
            with locked(run):
                os.write(answer, b"w")
                os.read(hold, 1)
        except ScalerError as error:
            os.write(answer, b"n" if "process" in error.wrong else b"?")
        os._exit(0)

    for number in range(count):
        pipes = [os.pipe() for _ in range(3)]
        (gate_read, gate), (answer, answer_write), (hold_read, hold) = pipes
        children = []
        for _ in range(2):
            child = os.fork()
            if child == 0:
                want(gate_read, answer_write, hold_read)
            children.append(child)
        os.write(gate, b"gg")
        said = os.read(answer, 1) + os.read(answer, 1)
        os.write(hold, b"hh")
        for child in children:
            os.waitpid(child, 0)
        for end in (end for pipe in pipes for end in pipe):
            os.close(end)
        with result.trial(str(number)):
            assert sorted(said) == sorted(b"wn"), said
    return result


def takeover(place: Path, *, count: int) -> Result:
    """The holder of a run is killed; how long until another process has the run."""
    from scaler_wizard.errors import ScalerError
    from scaler_wizard.run import locked

    result = Result("takeover after a kill")
    folder = begin(place / "takeover")
    for number in range(count):
        ready_read, ready = os.pipe()
        child = os.fork()
        if child == 0:
            with locked(Run(folder)):
                os.write(ready, b"r")
                time.sleep(60)
        os.read(ready_read, 1)
        os.kill(child, signal.SIGKILL)
        begun = time.monotonic()
        with result.trial(str(number)):
            while time.monotonic() - begun < 30:
                try:
                    with locked(Run(folder)):
                        break
                except ScalerError:
                    time.sleep(0.005)
            else:
                raise AssertionError("nobody could take the run over")
            result.seconds.append(time.monotonic() - begun)
        os.waitpid(child, 0)
        os.close(ready_read)
        os.close(ready)
    return result


def steal_the_lease(place: Path) -> Result:
    """A file system without locks: a second writer takes the run over; the first one's next word is refused."""
    from scaler_wizard.journal import Fenced

    result = Result("an older writer is refused")
    folder = begin(place / "lease")
    first, second = Run(folder), Run(folder)
    first.journal.lease()
    first.journal.add("note", {"text": "first"})
    second.journal.lease()
    with result.trial("lease"):
        try:
            first.journal.add("note", {"text": "too late"})
        except Fenced:
            pass
        else:
            raise AssertionError("the older writer was not refused")
        second.journal.add("note", {"text": "second"})
        assert [row.data["text"] for row in second.journal.events(kinds=("note",))] == ["first", "second"]
    return result


# -- R6: out of memory -------------------------------------------------------------------------------------------------

MEMORY_GROUPS = Path("/sys/fs/cgroup/memory")
GREEDY = "held = []\nwhile True: held.append(b'x' * 2**27)\n"


def can_limit_memory() -> str | None:
    """Why memory cannot be limited here; None where it can."""
    if os.geteuid() != 0 or not (MEMORY_GROUPS / "memory.limit_in_bytes").exists():
        return "needs root and memory control groups (version 1)"
    return None


def run_out_of_memory(place: Path, *, count: int, seed: int = 0) -> Result:
    """The worker eats all memory of a control group: it goes first, the supervisor lives, the run pauses."""
    result, like = Result("out of memory"), expected(place / "reference")
    greedy = place / "greedy.py"
    greedy.write_text(GREEDY, encoding="utf-8")
    group = MEMORY_GROUPS / f"scaler-test-{os.getpid()}"
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(str(512 * 2**20), encoding="ascii")
    try:
        for number in range(count):
            folder = begin(place / f"memory-{number}")
            with result.trial(str(number)):
                command = (trial.sys.executable, "-S", "-E", str(greedy))
                ended = conduct(folder, Fault(before=lambda: _join(group), command=command))
                assert ended.code in (2, 3), ended.said  # the breaker may see it before the kernel does
                assert "emory" in ended.said
                assert Run(folder).status == ("paused" if ended.code == 3 else "stopped")
                result.resumed(finish(folder, ended.acknowledged, like))
    finally:
        for _ in range(50):
            with suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.1)
    return result


def _join(group: Path) -> None:
    (group / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")


# -- R8: rollback ------------------------------------------------------------------------------------------------------


def roll_back(place: Path, *, size: int, count: int) -> Result:
    """From the call to the verified pointer, over checkpoints of `size` bytes each; holes are as large as bytes here.

    A rollback reads names, sizes and the manifest, never weights; those are read before the next step is made.
    """
    result = Result(f"rollback at {size / 2**30:.1f} GB")
    folder = _large_run(place / f"large-{size}", size)
    run = Run(folder)
    for number in range(count):
        weighs = _bytes_on_disk(folder)
        with result.trial(str(number)):
            begun = time.perf_counter()
            run.rollback("000-first", who="tester")
            result.seconds.append(time.perf_counter() - begun)
            assert run.current == "000-first"
            begun = time.perf_counter()
            run.undo(who="tester")
            result.seconds.append(time.perf_counter() - begun)
            assert run.current == "001-second"
            assert _bytes_on_disk(folder) - weighs < 2**18, "a rollback copied something"
    run.journal.close()
    return result


def roll_back_by_command(place: Path, *, size: int, count: int) -> Result:
    """`scaler rollback` and `scaler undo` as a person runs them, from the start of Python to the end."""
    result = Result(f"scaler rollback at {size / 2**30:.1f} GB")
    folder = _large_run(place / "command", size)
    for number in range(count):
        with result.trial(str(number)):
            for verb, slug in (("rollback", "000-first"), ("undo", "001-second")):
                begun = time.perf_counter()
                command = [trial.sys.executable, "-m", "scaler_wizard", verb, "--runs", str(folder.parent)]
                subprocess.run(command, check=True, capture_output=True)
                result.seconds.append(time.perf_counter() - begun)
                assert Run(folder).current == slug
    return result


def _bytes_on_disk(folder: Path) -> int:
    """Of every file once, however many names it has."""
    files = {file.stat().st_ino: file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file()}
    return sum(files.values())


def _large_run(place: Path, size: int) -> Path:
    """A run with two checkpoints of real bytes."""
    folder = begin(place)
    run = Run(folder)
    piece = random.Random(size).randbytes(2**20)
    for number, name in enumerate(("000-first", "001-second")):
        run.staging.mkdir(exist_ok=True)
        for shard in range(4):
            with (run.staging / f"model-{shard}.safetensors").open("wb") as file:
                file.write(bytes([number]))
                for _ in range(size // 4 // len(piece)):
                    file.write(piece)
        run.commit(name, {"gate": "", "sentence": "", "stage": "P0", "measurement": None, "evidence": {}})
    run.journal.close()
    return folder


# -- R12: clocks -------------------------------------------------------------------------------------------------------


def jump_clocks(place: Path, *, count: int, seed: int) -> Result:
    """The clock of the wall jumps by up to a year at every look at it; order and the gate's time do not care."""
    chance, like, result = random.Random(seed), expected(place / "reference"), Result("clock jumps")
    for number in range(count):
        folder = begin(place / f"clock-{number}")
        with result.trial(str(number)):
            ended = conduct(folder, Fault(before=lambda: _wild_clock(chance.random())))
            assert ended.code == 0, ended.said
            check_finished(folder, ended.acknowledged, like)
            rows = Run(folder).journal.events()
            assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
            times = [row.time for row in rows]
            assert times != sorted(times), "the clock did not jump"
    return result


def _wild_clock(seed: float) -> None:
    chance, real = random.Random(seed), time.time
    time.time = lambda: real() + chance.uniform(-3.2e7, 3.2e7)  # type: ignore[assignment]


GATE_ERROR = 1.0
"""Seconds that a gate's window may be wrong by."""


def gate_window(place: Path, *, seconds: float, count: int) -> Result:
    """A gate that nobody answers pauses the run after its window, however the clock of the wall jumps."""
    result = Result("an unanswered gate pauses in time")
    for number in range(count):
        folder = begin(place / f"gate-{number}")
        with result.trial(str(number)):
            ended = conduct(folder, Fault(answer="", window=seconds, before=lambda: _wild_clock(1.0)))
            assert ended.code == 3, ended.said
            late = ended.at("decision") - ended.at("gate") - seconds
            result.seconds.append(late)
            assert -0.001 < late <= GATE_ERROR, f"it paused {late:.2f} s too late"
            assert Run(folder).status == "paused"
    return result


FAKE_TIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
TIMES = ("+365d", "-365d", "+0", "+3600", "-3600", "@2026-03-29 01:59:59", "@2026-10-25 02:59:59")
"""A year, an hour, and the last second before either change of summer time in Berlin."""


def can_fake_time() -> str | None:
    """Why the clock cannot be made to lie here; None where it can."""
    return "needs libfaketime" if FAKE_TIME is None else None


def lie_about_time(place: Path, *, count: int, seed: int) -> Result:
    """Under libfaketime, which supervisor, SQLite and worker all believe, the date jumps ten times a second.

    One run goes to its end, another waits at a gate; the seconds are those that the gate's window was wrong by.
    """
    chance, like, result = random.Random(seed), expected(place / "reference"), Result("clock jumps under libfaketime")
    for number in range(count):
        folder, waiting = begin(place / f"lied-{number}"), begin(place / f"lied-gate-{number}")
        with result.trial(str(number)):
            ended = _lied_to(folder, Fault(), chance)
            assert ended.code == 0, ended.said
            check_finished(folder, ended.acknowledged, like)
            rows = Run(folder).journal.events()
            assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
            assert [row.time for row in rows] != sorted(row.time for row in rows), "the clock did not jump"
            ended = _lied_to(waiting, Fault(answer="", window=1.0), chance)
            assert ended.code == 3, ended.said
            result.seconds.append(abs(ended.at("decision") - ended.at("gate") - 1.0))
            assert result.seconds[-1] <= GATE_ERROR
    return result


def _lied_to(folder: Path, fault: Fault, chance: random.Random) -> Ended:
    """Conduct in a process whose clock jumps meanwhile."""
    file = folder.parent / "time"
    file.write_text("+0", encoding="ascii")
    lie = {
        "LD_PRELOAD": str(FAKE_TIME),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # a real jump of the date leaves the monotonic clock alone
        "TZ": "Europe/Berlin",
    }
    command = [trial.sys.executable, trial.__file__, str(folder)]
    child = subprocess.Popen(command, env=os.environ | lie, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write(pickle.dumps(fault))
    child.stdin.close()
    while child.poll() is None:
        file.write_text(chance.choice(TIMES), encoding="ascii")
        time.sleep(0.1)
    ended: Ended = pickle.loads(child.stdout.read())  # noqa: S301 - our own
    return ended


# -- R13: decisions ----------------------------------------------------------------------------------------------------


def decide_at_once(place: Path, *, count: int, seed: int) -> Result:
    """Several people answer one gate at the same moment, some twice, some on stale evidence: one answer counts."""
    from scaler_wizard.errors import ScalerError

    chance, result = random.Random(seed), Result("duplicate, late and stale decisions")
    folder = begin(place / "decisions")
    run = Run(folder)
    for number in range(count):
        gate, evidence = f"gate{number}", f"hash{number}"
        run.journal.add("gate", {"gate": gate, "evidence_hash": evidence, "phase": "000-baseline", "on": None})
        answers = [chance.choice(("approve", "abort", "pause")) for _ in range(3)]
        stale = chance.random() < 0.5
        children = [_answer(folder, gate, evidence, answer) for answer in answers]
        if stale:
            children.append(_answer(folder, gate, "hash of something else", "approve"))
            children.append(_answer(folder, f"gate{number - 1}", f"hash{number - 1}", "approve"))
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        with result.trial(str(number)):
            assert codes[:3].count(0) == 1, codes
            assert not stale or codes[3:] == [2, 2], codes
            rows = [row for row in run.journal.events(kinds=("decision",)) if row.data["gate"] == gate]
            assert len(rows) == 1
            assert rows[0].data["action"] == answers[codes.index(0)]
            assert rows[0].data["evidence_hash"] == evidence
            try:
                assert not run.decide(gate, evidence, "approve", who="late", how="test")
            except ScalerError as error:
                raise AssertionError(str(error)) from None
    run.journal.close()
    return result


def _answer(folder: Path, gate: str, evidence: str, action: str) -> int:
    """A process that answers: exit code 0 where its answer counts, 1 where another did, 2 where it is refused."""
    from scaler_wizard.errors import ScalerError

    child = os.fork()
    if child:
        return child
    code = 99
    try:
        code = 0 if Run(folder).decide(gate, evidence, action, who="tester", how="test") else 1
    except ScalerError:
        code = 2
    finally:
        os._exit(code)
