"""Use a model folder from somebody else: only files on a list, no link out of it, no reference to code in it.

Covers: `auto_map` and its kin at any depth of any JSON file, code files, pickles, adapters that redirect to another
model, kernels fetched by name, links out of the folder, oversized companions.
Does not: judge what the weights do, or render chat templates. Nothing in the product renders one: they stay text.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from scaler_wizard.errors import ScalerError

COMPANIONS = (
    "tokenizer*",
    "vocab*",
    "merges*",
    "special_tokens*",
    "added_tokens*",
    "generation_config.json",
    "chat_template*",
    "LICENSE*",
    "NOTICE*",
)
MODEL = ("config.json", "model*.safetensors", "model.safetensors.index.json", "README.md")
TEXT_ENDINGS = ("", ".json", ".jsonl", ".txt", ".md", ".model", ".jinja", ".safetensors", ".tiktoken")
LARGEST_COMPANION = 64 * 2**20
LARGEST_JSON = 16 * 2**20
DEEPEST = 100
CODE_KEYS = frozenset(
    (
        "auto_map",
        "trust_remote_code",
        "code_revision",
        "custom_pipelines",
        "custom_generate",
        "attn_implementation",  # "org/name" here makes transformers fetch a kernel from the hub and run it
        "_attn_implementation",
        "_attn_implementation_internal",
        "experts_implementation",
        "_experts_implementation",
        "use_kernels",
        "kernel_config",
        "tokenizer_file",  # these two read any path that they name
        "vocab_file",
    )
)


def companions(folder: Path) -> list[Path]:
    """What belongs to a model beside its weights and config.json: tokenizer, templates, licence."""
    return _listed(folder, COMPANIONS)


def files(folder: Path) -> list[Path]:
    """Every file of a model folder that is ever used, in order of name; refuses links that leave the folder."""
    return _listed(folder, (*MODEL, *COMPANIONS))


def _listed(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    found = []
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in TEXT_ENDINGS and any(fnmatchcase(file.name, pattern) for pattern in patterns):
            _refuse_escape(file, folder)
            if file.is_file():
                _refuse_giant(file)
                found.append(file)
    return found


def _refuse_escape(file: Path, folder: Path) -> None:
    if not file.is_symlink():
        return
    roots = [folder.resolve()]
    if folder.resolve().parent.name == "snapshots":  # the hub's cache links every file to its store of blobs
        roots.append(folder.resolve().parent.parent / "blobs")
    if not any(file.resolve().is_relative_to(root) for root in roots):
        raise ScalerError(f"{file.name!r:.80}: a link that leaves the model folder", "put the file itself there")


def _refuse_giant(file: Path) -> None:
    size = file.stat().st_size
    limit = LARGEST_JSON if _is_settings(file.name) else LARGEST_COMPANION
    if size > limit and file.suffix != ".safetensors":
        raise ScalerError(f"{file.name!r:.80}: {size} bytes; at most {limit} are read", "fetch the model again")


def _is_settings(name: str) -> bool:
    """JSON that transformers reads settings from: config.json, tokenizer_config.json, generation_config.json."""
    return name.endswith("config.json")


def cleaned(data: Any, depth: int = 0) -> Any:
    """The same settings without any reference to code, at any depth."""
    if depth > DEEPEST:
        raise ScalerError(f"settings nested deeper than {DEEPEST}", "this is no configuration; fetch the model again")
    if isinstance(data, Mapping):
        return {key: cleaned(value, depth + 1) for key, value in data.items() if key not in CODE_KEYS}
    if isinstance(data, list):
        return [cleaned(value, depth + 1) for value in data]
    return data


def place(file: Path, target: Path, *, link: bool) -> None:
    """Put one file of a model folder at `target`: settings are cleaned, anything else is linked or copied as it is."""
    target.unlink(missing_ok=True)  # a hard link to an earlier checkpoint must not be written through
    text = _cleaned_text(file)
    if text is not None:
        target.write_text(text, encoding="utf-8")
        return
    try:
        if not link:
            raise OSError("a copy is wanted")
        os.link(file.resolve(), target)
    except OSError:  # another disk
        copied(file, target)


def copied(file: Path, target: Path) -> None:
    """Copy inside the kernel; file systems that can (XFS, Btrfs) share the bytes until one of the two is changed."""
    with file.open("rb") as source, target.open("wb") as out:
        try:
            while os.copy_file_range(source.fileno(), out.fileno(), 2**30):
                pass
        except (AttributeError, OSError) as error:  # not this system, or not between these two disks
            if isinstance(error, OSError) and error.errno not in (
                errno.EXDEV,
                errno.ENOSYS,
                errno.EOPNOTSUPP,
                errno.EINVAL,
            ):
                raise
            shutil.copyfile(file, target)


def _cleaned_text(file: Path) -> str | None:
    """The new text of a settings file; None where nothing has to go."""
    if not _is_settings(file.name):
        return None
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError):
        raise ScalerError(f"{file.name!r:.80}: not valid JSON", "fetch the model again") from None
    clean = cleaned(data)
    return None if clean == data else json.dumps(clean, indent=2, ensure_ascii=False) + "\n"


def stage(source: Path, target: Path, *, link: bool) -> None:
    """Put a model into `target`: hard links, or copies where the disk is another one.

    `link` only where nobody but the product writes to `source`: who edits a linked file in place edits the checkpoint.
    """
    for file in files(source):
        place(file, target / file.name, link=link)


@contextmanager
def inert(folder: Path) -> Iterator[Path]:
    """A view of the folder that libraries may load: itself where it is clean, else links to what is on the list."""
    if not _tempting(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="scaler-view-") as scratch:
        for file in files(folder):
            text = _cleaned_text(file)
            if text is None:
                (Path(scratch) / file.name).symlink_to(file.resolve())
            else:
                (Path(scratch) / file.name).write_text(text, encoding="utf-8")
        yield Path(scratch)


def _tempting(folder: Path) -> bool:
    """Whether the folder holds anything that a library might follow: code, adapters, folders, dirty settings."""
    wanted = files(folder)
    settings = any(_cleaned_text(file) is not None for file in wanted)
    strangers = {file.name for file in folder.iterdir()} - {file.name for file in wanted} - {"manifest.json"}
    return settings or bool(strangers)
