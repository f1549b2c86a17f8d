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
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from scaler_wizard.errors import ScalerError
from scaler_wizard.journal import Journal, Row

if TYPE_CHECKING:
    from scaler_wizard.contract import SignedContract

MANIFEST = "manifest.json"
PIECE = 2**20


class Run:
    """One run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.id = folder.name
        self.journal = Journal(folder / "run.db")

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
            return (self.folder / "current").read_text(encoding="utf-8").strip()
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
        return gate if gate is not None and self.decision(gate.data["gate"]) is None else None

    # -- commit --------------------------------------------------------------------------------------------------------

    def commit(self, slug: str, data: Mapping[str, Any]) -> None:
        """Make the staged folder the checkpoint `slug`, and the current one."""
        manifest = self._seal(self.staging)
        self.journal.add("committing", {"slug": slug, **data})
        self._set_aside(slug)
        self.staging.rename(self.checkpoints / slug)
        sync(self.checkpoints)
        self._finish(slug, {**data, "manifest": manifest})

    def _finish(self, slug: str, data: Mapping[str, Any]) -> None:
        self.journal.add("committed", {"slug": slug, **data})
        self._point(slug)
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.write_metadata()

    def _seal(self, folder: Path) -> str:
        """Hash and flush every file, share those that an earlier checkpoint has, write the manifest; its hash."""
        known = self._known_files()
        files = {}
        for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST):
            size, digest = file.stat().st_size, file_hash(file)
            files[str(file.relative_to(folder))] = {"bytes": size, "blake3": digest}
            twin = known.get((size, digest))
            if twin is not None and not twin.samefile(file):
                share(twin, file)
            else:
                sync(file)
        text = json.dumps({"files": files}, indent=1, sort_keys=True)
        write_whole(folder / MANIFEST, text)
        sync(folder)
        return blake3(text.encode()).hexdigest()

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

    def _point(self, slug: str) -> None:
        write_whole(self.folder / "current", slug + "\n")
        sync(self.folder)

    def recover(self) -> None:
        """Finish a commit that was cut short; the approval was given, so it only goes forward."""
        begun, done = self.last("committing"), self.last("committed")
        if begun is None or (done is not None and done.seq > begun.seq):
            return
        data = {key: value for key, value in begun.data.items() if key != "slug"}
        slug = begun.data["slug"]
        if not (self.checkpoints / slug / MANIFEST).exists():
            if not (self.staging / MANIFEST).exists():
                return
            self._set_aside(slug)
            self.staging.rename(self.checkpoints / slug)
            sync(self.checkpoints)
        verify(self.checkpoints / slug, hashes=True)
        self._finish(slug, {**data, "manifest": file_hash(self.checkpoints / slug / MANIFEST)})

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
        """Make an earlier checkpoint the current one; nothing is copied and nothing is deleted."""
        before = self.current
        verify(self.checkpoints / slug)
        self._move("rolled_back", before, slug, who)
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
        verify(self.checkpoints / slug)
        self._move("undone", self.current, slug, who)
        return f"Rollback undone; you are at phase {int(slug[:3])} ({slug[4:]}) again."

    def _move(self, how: str, before: str | None, after: str, who: str) -> None:
        self.journal.add("moved", {"how": how, "before": before, "after": after, "who": who})
        self._point(after)
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
        self._export_log()

    def _export_log(self) -> None:
        from scaler_wizard.record import to_json

        path, trace = self.folder / "flight_log.jsonl", self.journal.get("uuid")
        after = last_sequence(path)
        with path.open("a", encoding="utf-8") as log:
            for row in self.journal.events(after):
                moment = datetime.fromtimestamp(row.time, UTC).isoformat()
                entry = {"seq": row.seq, "time": moment, "traceId": trace, "phase": row.phase, "kind": row.kind}
                log.write(to_json({**entry, "data": row.data}) + "\n")


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
    (beside / "plan.yaml").write_text(plan_yaml, encoding="utf-8")
    (beside / "contract.yaml").write_text(yaml.safe_dump(contract, sort_keys=False), encoding="utf-8")
    journal = Journal(beside / "run.db")
    journal.set("uuid", str(uuid.uuid4()))
    journal.set("identity", identity)
    journal.add(
        "created", {"name": folder.name, "signed_by": signed.signature.name, "contract": signed.contract.version}
    )
    journal.close()
    beside.rename(folder)
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
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ScalerError(f"{out}: is there already", "name a folder that does not exist yet")
    source = run.verified()
    slug = source.name
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.parent / f".{out.name}.new"
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(source, beside, ignore=shutil.ignore_patterns(MANIFEST))
    for file in beside.rglob("*"):
        sync(file)
    beside.rename(out)
    sync(out.parent)
    return f"{out}: the model of phase {int(slug[:3])} ({slug[4:]})"


def open_run(runs: Path, wanted: str = "latest") -> Run:
    """The run with this id, or the only one that begins with it, or the latest."""
    known = list_runs(runs)
    if not known:
        raise ScalerError(f"{runs}: there is no run here", "start one: scaler demo, or scaler run recipe.yaml")
    if wanted == "latest":
        return Run(max(known, key=lambda path: (path / "run.db").stat().st_mtime))
    matches = [path for path in known if path.name == wanted] or [
        path for path in known if path.name.startswith(wanted)
    ]
    if len(matches) != 1:
        names = ", ".join(path.name for path in (matches or known)[-8:])
        wrong = "several runs begin with this" if matches else "no such run"
        raise ScalerError(f"{wanted}: {wrong}", f"known here: {names}")
    return Run(matches[0])


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
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ScalerError(
                f"{run.id}: in use by {file.read().strip() or 'another process'}",
                "wait for it, or pause it: scaler pause",
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC")
        file.flush()
        yield


# -- files -------------------------------------------------------------------------------------------------------------


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and hash of every file of a checkpoint; empty where there is no manifest."""
    try:
        return dict(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"])
    except FileNotFoundError:
        return {}


def verify(folder: Path, *, hashes: bool = False) -> None:
    """Is the checkpoint whole? By sizes (instant), or by hashes (reads everything)."""
    manifest = read_manifest(folder)
    if not manifest:
        raise ScalerError(
            f"{folder.name}: no such checkpoint, or it is not whole", "see `scaler status` for the others"
        )
    for name, entry in manifest.items():
        file = folder / name
        size = file.stat().st_size if file.is_file() else None
        if size != entry["bytes"] or (hashes and file_hash(file) != entry["blake3"]):
            raise ScalerError(f"{folder.name}/{name}: damaged or missing", "roll back to an earlier phase")


def file_hash(file: Path) -> str:
    """blake3 of a file, read in pieces."""
    digest = blake3()
    with file.open("rb") as stream:
        while piece := stream.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def share(twin: Path, file: Path) -> None:
    """Replace `file` by a hard link to a file with the same bytes."""
    beside = file.with_name(f".{file.name}.link")
    beside.unlink(missing_ok=True)
    os.link(twin, beside)
    beside.rename(file)


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(file: Path, text: str) -> None:
    """Write beside, flush, rename: readers see the old text or the new one."""
    beside = file.with_name(f".{file.name}.new")
    with beside.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    beside.rename(file)


def last_sequence(log: Path) -> int:
    """Sequence number of the last whole line of a flight log; a torn last line is cut off."""
    if not log.exists():
        return 0
    raw = log.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    if len(whole) != len(raw):
        os.truncate(log, len(whole))
    return int(json.loads(whole.splitlines()[-1])["seq"]) if whole else 0
