"""A run folder: immutable checkpoints, a pointer to the current one, a journal; commit, roll back, undo, compare.

A commit stages, hashes, flushes, renames and moves the pointer last, so a kill at any moment leaves the folder before
or after it. Files with equal bytes are hard links, so a rollback copies nothing and frozen weights exist once.
This module loads in a few hundredths of a second, since a rollback has to be quick.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from scaler_wizard import flight_log
from scaler_wizard.errors import ScalerError
from scaler_wizard.failpoints import reach
from scaler_wizard.files import MANIFEST as MANIFEST
from scaler_wizard.files import file_hash as file_hash
from scaler_wizard.files import read_manifest as read_manifest
from scaler_wizard.files import seal, text_hash
from scaler_wizard.files import sync as sync
from scaler_wizard.files import verify as verify
from scaler_wizard.files import write_whole as write_whole
from scaler_wizard.journal import Journal, Row

if TYPE_CHECKING:
    from scaler_wizard.contract import SignedContract

ADAPTER = "adapter"
"""Folder in a checkpoint with the adapters that its model has merged."""
LOCK_TRIES = 5
STAND_STILL_SECONDS = 28
"""How long a rollback waits for the process that conducts the run; the contract allows 30 seconds for everything."""


class Run:
    """One run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.id = folder.name
        self.journal = Journal(folder / "run.db")

    def reopen(self, between: Callable[[], None]) -> None:
        """Close the journal, do something to its file, open it again; a lease goes on."""
        held = self.journal.leased
        self.journal.close()
        between()
        self.journal = Journal(self.folder / "run.db")
        if held:
            self.journal.lease()

    @property
    def checkpoints(self) -> Path:
        """Immutable model folders, one for each phase that passed."""
        return self.folder / "checkpoints"

    @property
    def staging(self) -> Path:
        """What the running phase writes."""
        return self.folder / "staging"

    @property
    def scratch(self) -> Path:
        """Training snapshots of the running phase."""
        return self.folder / "scratch"

    @property
    def report(self) -> Path:
        """The report."""
        return self.folder / "report"

    @property
    def current(self) -> str | None:
        """Name of the current checkpoint; None before the first."""
        try:
            return (self.folder / "current").read_text(encoding="utf-8", errors="replace").strip() or None
        except FileNotFoundError:
            return None

    def verified(self) -> Path:
        """Folder of the current checkpoint, after its hashes were checked."""
        if self.current is None:
            raise ScalerError(f"{self.id}: there is no checkpoint yet", "let the run pass its first gate")
        verify(self.checkpoints / self.current, hashes=True)
        return self.checkpoints / self.current

    @property
    def status(self) -> str:
        """Where the run stands, in the words of `events.Status`."""
        stored = self.journal.get("status") or "initializing"
        return "paused" if stored == "running" and not in_use(self.folder) else stored

    def set_status(self, status: str, why: str = "") -> None:
        """Change the status and say why."""
        with self.journal.transaction():
            self.journal.set("status", status)
            self.journal.add("status", {"status": status, "why": why})

    # -- events and decisions ------------------------------------------------------------------------------------------

    def last(self, kind: str, *, phase: str | None = None) -> Row | None:
        """The newest event of a kind."""
        return self.journal.last(kind, phase=phase)

    def committed(self) -> list[Row]:
        """The newest commit of every checkpoint that exists, in the order of the phases."""
        newest = {row.data["slug"]: row for row in self.journal.events(kinds=("committed",))}
        return [newest[slug] for slug in sorted(newest) if (self.checkpoints / slug).is_dir()]

    def evidence(self) -> dict[str, dict[str, Any]]:
        """What the gate of every checkpoint was judged by."""
        return {row.data["slug"]: row.data.get("evidence") or {} for row in self.committed()}

    def lineage(self) -> list[Row]:
        """The commits that the current checkpoint stands on, itself last."""
        current = self.current
        return [row for row in self.committed() if current is not None and row.data["slug"] <= current]

    def decide(self, gate: str, evidence_hash: str, action: str, *, who: str, how: str) -> bool:
        """Answer a gate; False where it was answered already. An answer to other evidence is refused."""
        opened = self.last("gate")
        if opened is None or opened.data["gate"] != gate:
            raise ScalerError(f"gate {gate} is not open", "see `scaler status` for the open one")
        if opened.data["evidence_hash"] != evidence_hash:
            raise ScalerError(f"gate {gate}: the evidence has changed", "look at it again: `scaler status`")
        if action == "continue" and "stopped" not in opened.data.get("evidence", {}):
            raise ScalerError(f"gate {gate}: nothing was stopped here", "approve it, or abort")
        return self.journal.add_once(
            "decision", {"gate": gate, "evidence_hash": evidence_hash, "action": action, "who": who, "how": how}
        )

    def decision(self, gate: str) -> Row | None:
        """How a gate was answered."""
        return next((row for row in self.journal.events(kinds=("decision",)) if row.data["gate"] == gate), None)

    def extend(self, gate: str, *, who: str) -> None:
        """Let the open gate wait once more as long."""
        opened = self.open_gate()
        if opened is None or opened.data["gate"] != gate:
            raise ScalerError(f"gate {gate} is not open", "see `scaler status` for the open one")
        self.journal.add("extended", {"gate": gate, "who": who}, phase=opened.phase)

    def extensions(self, gate: str) -> list[Row]:
        """Every time that a gate was given more time."""
        return [row for row in self.journal.events(kinds=("extended",)) if row.data["gate"] == gate]

    def open_gate(self) -> Row | None:
        """The gate that waits for an answer."""
        gate = self.last("gate")
        if gate is None or self.decision(gate.data["gate"]) is not None:
            return None
        return gate if gate.data.get("on", self.current) == self.current else None  # a rollback leaves it behind

    # -- commit --------------------------------------------------------------------------------------------------------

    def commit(self, slug: str, data: Mapping[str, Any], *, manifest: str | None = None) -> None:
        """Make the staged folder the checkpoint `slug`, and the current one.

        `manifest` is the hash that `seal_staging` gave, where the folder was sealed before a person was asked.
        """
        manifest = manifest or self.seal_staging()
        self.journal.add("committing", {"slug": slug, "manifest": manifest, **data})
        reach("commit.intended")
        self.finish_commit(slug, manifest, data)

    def seal_staging(self) -> str:
        """Hash, flush and share what is staged; the hash of its manifest stands for every byte of it."""
        return seal(self.staging, self._known_files())

    def finish_commit(self, slug: str, manifest: str, data: Mapping[str, Any]) -> None:
        """From the intention on; a recovery does the very same, so a commit that was begun only goes forward."""
        if self.holds(self.staging, manifest):  # not: "is it missing there", an older attempt may have equal files
            self._set_aside(slug)
            self.staging.rename(self.checkpoints / slug)
            reach("commit.renamed")
            sync(self.checkpoints)
            sync(self.folder)
        self._publish()
        self.journal.add("committed", {"slug": slug, "manifest": manifest, **data})
        reach("commit.recorded")
        self.point(slug)
        reach("commit.pointed")
        shutil.rmtree(self.scratch, ignore_errors=True)
        reach("commit.cleared")
        self.write_metadata()
        reach("commit.told")

    def _publish(self) -> None:
        """A report that the phase wrote is shown only now: its gate has passed."""
        written = self.scratch / "report"
        if written.is_dir():
            shutil.rmtree(self.report, ignore_errors=True)
            reach("publish.cleared")
            written.rename(self.report)
            sync(self.folder)

    def holds(self, folder: Path, manifest: str) -> bool:
        """Whether the folder has exactly this manifest."""
        file = folder / MANIFEST
        return file.is_file() and file_hash(file) == manifest

    def _known_files(self) -> dict[tuple[int, str], Path]:
        known: dict[tuple[int, str], Path] = {}
        for folder in sorted(self.checkpoints.iterdir()):
            for name, entry in read_manifest(folder).items():
                known.setdefault((entry["bytes"], entry["blake3"]), folder / name)
        return known

    def _set_aside(self, slug: str) -> None:
        """An earlier attempt at this phase, and what was built on it, make room; nothing is deleted."""
        aside = self.folder / "superseded"
        for folder in sorted(self.checkpoints.iterdir()):
            if folder.name[:3] >= slug[:3]:
                aside.mkdir(exist_ok=True)
                folder.rename(aside / f"{folder.name}-{uuid.uuid4().hex[:6]}")
                reach("commit.set-aside")
        if aside.is_dir():
            sync(aside)

    def point(self, slug: str | None) -> None:
        """Move the pointer; None: to before the first checkpoint."""
        if slug is None:
            (self.folder / "current").unlink(missing_ok=True)
            sync(self.folder)
        else:
            write_whole(self.folder / "current", slug + "\n")

    def manifest(self, slug: str) -> str | None:
        """Hash of a checkpoint's manifest, as it was committed; None where no commit is known."""
        return next((str(row.data["manifest"]) for row in self.committed() if row.data["slug"] == slug), None)

    # -- rollback ------------------------------------------------------------------------------------------------------

    def slug(self, wanted: str) -> str:
        """The checkpoint with this phase number or name."""
        known = [row.data["slug"] for row in self.committed()]
        for slug in known:
            if wanted == slug or wanted == slug[4:] or (wanted.isdigit() and int(slug[:3]) == int(wanted)):
                return str(slug)
        names = ", ".join(f"{int(slug[:3])} ({slug[4:]})" for slug in known) or "none yet"
        raise ScalerError(f"{self.id}: {wanted}: no such phase among its checkpoints", f"choose one of: {names}")

    def earlier(self, wanted: str | None = None) -> str:
        """The checkpoint to go back to: the wanted one, or the one before the current."""
        if wanted is not None:
            return self.slug(wanted)
        line = [row.data["slug"] for row in self.lineage()]
        if len(line) < 2:
            raise ScalerError(f"{self.id}: there is no phase before the current one", "see `scaler status`")
        return str(line[-2])

    def rollback(self, slug: str, *, who: str) -> str:
        """Make another checkpoint the current one; nothing is copied and nothing is deleted."""
        before = self.current
        if slug == before:
            raise ScalerError(f"{self.id}: is at phase {int(slug[:3])} ({slug[4:]}) already", "choose an earlier phase")
        verify(self.checkpoints / slug, self.manifest(slug))
        reach("rollback.verified")
        self.move("rolled_back", before, slug, who=who, status="paused")
        return f"Rollback complete; you are now at phase {int(slug[:3])} ({slug[4:]})."

    def undo(self, *, who: str) -> str:
        """Take the last rollback back."""
        last = self.last("moved")
        if last is None or last.data["how"] != "rolled_back" or last.data["after"] != self.current:
            raise ScalerError(f"{self.id}: there is no rollback to undo", "see `scaler log` for what happened")
        slug = str(last.data["before"])
        if not (self.checkpoints / slug).is_dir():
            raise ScalerError(
                f"{self.id}: {slug} was replaced after the rollback", f"it lies in {self.folder}/superseded"
            )
        verify(self.checkpoints / slug, self.manifest(slug))
        self.move("undone", self.current, slug, who=who, status=last.data.get("status", "paused"))
        return f"Rollback undone; you are at phase {int(slug[:3])} ({slug[4:]}) again."

    def move(self, how: str, before: str | None, after: str | None, *, who: str, status: str) -> None:
        """Write down that the pointer moves, then move it; a recovery finishes what was written down."""
        data = {"how": how, "before": before, "after": after, "who": who, "status": self.status}
        with self.journal.transaction():
            self.journal.add("moved", data)
            self.journal.set("status", status)
            self.journal.add("status", {"status": status, "why": f"{how.replace('_', ' ')} to {after}"})
        reach("move.recorded")
        self.point(after)
        reach("move.pointed")
        self.write_metadata()

    # -- run.json and the flight log -----------------------------------------------------------------------------------

    def write_metadata(self) -> None:
        """run.json and flight_log.jsonl, from the journal."""
        commits = self.committed()
        data = {
            "runId": self.journal.get("uuid"),
            "name": self.id,
            "status": self.status,
            "phases": [row.data["slug"] for row in commits],
            "checkpointPath": f"checkpoints/{self.current}" if self.current else None,
            "metrics": {row.data["slug"]: row.data.get("measurement") for row in commits},
            "snapshots": [f"checkpoints/{row.data['slug']}" for row in commits],
            "communityShare": False,
        }
        from scaler_wizard.record import explicit

        write_whole(self.folder / "run.json", json.dumps(explicit(data), indent=1) + "\n")
        flight_log.export(self.journal, self.folder)


# -- the folder of all runs --------------------------------------------------------------------------------------------


def create(runs: Path, plan_yaml: str, signed: SignedContract, *, name: str, identity: str, now: datetime) -> Run:
    """Begin a run. The contract must be valid: version, signature and words are checked here.

    `identity` tells whether a later command asks for the same run (`unfinished`).
    """
    import yaml

    from scaler_wizard.contract import read_signed

    contract = signed.model_dump(mode="json")
    read_signed(contract)
    folder = runs / f"{name}-{now:%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}"
    beside = folder.with_name(f".{folder.name}")
    for inner in ("checkpoints", "report"):
        (beside / inner).mkdir(parents=True)
    texts = {"plan.yaml": plan_yaml, "contract.yaml": yaml.safe_dump(contract, sort_keys=False)}
    for file, text in texts.items():
        write_whole(beside / file, text)
    reach("create.written")
    who = {"name": folder.name, "signed_by": signed.signature.name, "contract": signed.contract.version}
    known = {"uuid": str(uuid.uuid4()), "identity": identity}
    with closing(Journal(beside / "run.db")) as journal:
        with journal.transaction():
            for key, value in known.items():
                journal.set(key, value)
            # The texts stand in the journal, so that a file that was changed or damaged later is found and put right.
            journal.add("created", {**who, **known, "files": {n: [text_hash(t), t] for n, t in texts.items()}})
        flight_log.export(journal, beside)
    reach("create.recorded")
    beside.rename(folder)
    reach("create.renamed")
    sync(runs)
    return Run(folder)


def list_runs(runs: Path) -> list[Path]:
    """Run folders, oldest first."""
    found = [path for path in runs.iterdir() if (path / "run.db").is_file()] if runs.is_dir() else []
    return sorted((path for path in found if not path.name.startswith(".")), key=lambda path: path.name[-20:])


def unfinished(runs: Path, identity: str) -> Run | None:
    """The newest run of the same plan that is not complete."""
    for folder in reversed(list_runs(runs)):
        run = Run(folder)
        if run.journal.get("identity") == identity and run.status != "completed":
            return run
        run.journal.close()
    return None


def export_to(run: Run, out: Path) -> str:
    """Copy the current checkpoint to a new folder, hashes checked; the folder appears only when it is whole."""
    source = run.verified()
    _export(source, out)
    return f"{out}: the model of phase {int(source.name[:3])} ({source.name[4:]})"


def export_adapter(run: Run, out: Path) -> str:
    """Copy the adapters of the last training, which its model has merged, to a new folder; hashes checked."""
    found = [slug for row in run.committed() if (run.checkpoints / (slug := row.data["slug"]) / ADAPTER).is_dir()]
    if not found:
        raise ScalerError(f"{run.id}: no checkpoint with adapters of its own", "train some: heal.train: lora")
    verify(run.checkpoints / found[-1], hashes=True)
    _export(run.checkpoints / found[-1] / ADAPTER, out)
    base = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    return f"{out}: the adapters of {found[-1]}, for {base}"


def _export(source: Path, out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ScalerError(f"{out}: is there already", "name a folder that does not exist yet")
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.parent / f".{out.name}.new"
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(source, beside, ignore=shutil.ignore_patterns(MANIFEST))
    for file in beside.rglob("*"):
        sync(file)
    reach("export.copied")
    beside.rename(out)
    reach("export.renamed")
    sync(out.parent)


def open_run(runs: Path, wanted: str = "latest") -> Run:
    """The run with this id, or the only one that begins with it, or the latest."""
    return Run(find_run(runs, wanted))


def find_run(runs: Path, wanted: str = "latest") -> Path:
    """Its folder."""
    known = list_runs(runs)
    if not known:
        raise ScalerError(f"{runs}: there is no run here", "start one: scaler demo, or scaler run recipe.yaml")
    if wanted == "latest":
        return max(known, key=lambda path: (path / "run.db").stat().st_mtime)
    matches = [path for path in known if path.name == wanted] or [
        path for path in known if path.name.startswith(wanted)
    ]
    if len(matches) != 1:
        names = ", ".join(path.name for path in (matches or known)[-8:])
        wrong = "several runs begin with this" if matches else "no such run"
        raise ScalerError(f"{wanted}: {wrong}", f"known here: {names}")
    return matches[0]


# -- one writer --------------------------------------------------------------------------------------------------------


def in_use(folder: Path) -> bool:
    """Whether a process holds the run for writing; one that was killed does not."""
    try:
        with (folder / "lock").open("r", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextmanager
def locked(run: Run) -> Iterator[None]:
    """Hold the run for writing; a second writer is refused at once, and a dead one leaves no lock behind."""
    with (run.folder / "lock").open("a+", encoding="utf-8") as file:
        if not _taken(file):
            file.seek(0)
            raise ScalerError(
                f"{run.id}: in use by {file.read().strip() or 'another process'}",
                "wait for it, or pause it: scaler pause",
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC")
        file.flush()
        reach("lock.taken")
        run.journal.lease()  # where a file system has no locks that hold, the journal refuses the older writer
        try:
            yield
        finally:
            run.journal.release()


def _taken(file: IO[str]) -> bool:
    """Take the lock. A reader that only looks (`in_use`) holds it for a moment, so one refusal is not the last word."""
    for _ in range(LOCK_TRIES):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)
        else:
            return True
    return False


def stand_still(run: Run) -> None:
    """Ask the process that conducts the run to pause, and wait until it has let go."""
    deadline = time.monotonic() + STAND_STILL_SECONDS
    while in_use(run.folder):
        if run.journal.get("request") != "pause":
            run.journal.set("request", "pause")
        if time.monotonic() > deadline:
            raise ScalerError(f"{run.id}: its process does not let go", "see `scaler status` for what it does")
        time.sleep(0.02)
    run.journal.set("request", "")
