"""Turn weights in a pickle (`.bin`, `.pt`) into safetensors, on consent: `python -m scaler_wizard.untrusted.pickled`.

A pickle is a program. Three things stand between it and this machine: its opcodes are read without running them and
may name only the dozen functions that build tensors; it is then loaded by torch's restricted unpickler; and that
happens in a child without network and with hard limits. The old, unzipped format is refused.
"""

from __future__ import annotations

import pickletools
import sys
import zipfile
from pathlib import Path

from scaler_wizard.errors import ScalerError
from scaler_wizard.untrusted.confine import Bounds, run_confined
from scaler_wizard.untrusted.folder import files, place

ENDINGS = (".bin", ".pt", ".pth")
LARGEST_PROGRAM = 64 * 2**20
"""Bytes of a checkpoint's pickle without its tensors; a model of a thousand tensors has a tenth of a megabyte."""
DTYPES = ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Short", "Char", "Byte", "Bool")
ALLOWED = frozenset(
    {
        ("collections", "OrderedDict"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_parameter"),
        ("torch", "Size"),
        *(("torch", f"{name}Storage") for name in DTYPES),
    }
)
STRINGS = ("SHORT_BINUNICODE", "BINUNICODE", "UNICODE", "BINUNICODE8")
CURE = "take a release of the model with safetensors"


def weight_files(folder: Path) -> list[Path]:
    """Pickles that hold weights, in order of name."""
    return sorted(file for file in folder.iterdir() if file.suffix in ENDINGS and file.is_file())


def check_pickle(file: Path) -> None:
    """Refuse a checkpoint that names anything but what builds tensors; nothing of it is run."""
    program = _program(file)
    for module, name in _globals(file, program):
        if (module, name) not in ALLOWED:
            raise ScalerError(f"{file.name}: its pickle calls {module}.{name}"[:200], f"do not use it; {CURE}")


def _program(file: Path) -> bytes:
    if not zipfile.is_zipfile(file):
        raise ScalerError(f"{file.name}: a bare pickle is never read", CURE)
    with zipfile.ZipFile(file) as archive:
        found = [info for info in archive.infolist() if info.filename.endswith(".pkl")]
        if len(found) != 1 or len({info.filename for info in archive.infolist()}) != len(archive.infolist()):
            raise ScalerError(f"{file.name}: {len(found)} pickles, or a name twice, in its archive", CURE)
        if found[0].file_size > LARGEST_PROGRAM or any(info.compress_type for info in archive.infolist()):
            raise ScalerError(f"{file.name}: its archive is compressed, or its pickle is too large", CURE)
        return archive.read(found[0])


def _globals(file: Path, program: bytes) -> list[tuple[str, str]]:
    """Every function that the pickle names; names that are put together while it runs are refused."""
    found, strings = [], ["", ""]
    try:
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name in ("GLOBAL", "INST"):
                module, _, name = str(argument).partition(" ")
                found.append((module, name))
            elif opcode.name == "STACK_GLOBAL":
                found.append((strings[-2], strings[-1]))
            elif opcode.name in ("EXT1", "EXT2", "EXT4"):
                raise ScalerError(f"{file.name}: its pickle uses {opcode.name}", CURE)
            if opcode.name in STRINGS:
                strings = [strings[-1], str(argument)]
            elif opcode.name not in ("MEMOIZE", "BINPUT", "LONG_BINPUT", "STACK_GLOBAL"):
                strings = ["", ""]
    except (ValueError, UnicodeDecodeError, IndexError) as error:
        raise ScalerError(f"{file.name}: not a whole pickle ({error!s:.80})", CURE) from None
    return found


def convert_pickled(folder: Path, out: Path, *, consent: bool) -> None:
    """Write the model in `folder`, whose weights are pickled, to `out` as safetensors; `out` appears when whole."""
    sources = weight_files(folder)
    if not sources:
        raise ScalerError(f"{folder}: holds no {', '.join(ENDINGS)}", "point at a model folder with such weights")
    if not consent:
        raise ScalerError(
            f"{sources[0].name}: a pickle is a program, even where it only holds weights",
            "if you trust its maker: scaler unpickle FOLDER OUT --i-trust-its-maker",
        )
    if out.exists():
        raise ScalerError(f"{out}: exists already", "name a folder that does not exist")
    for file in sources:
        check_pickle(file)
    beside = out.with_name(f".{out.name}.new")
    beside.mkdir(parents=True)
    _load_confined(sources, beside)
    for file in files(folder):
        if not file.name.startswith("model"):
            place(file, beside / file.name, link=False)
    beside.rename(out)


def _load_confined(sources: list[Path], out: Path) -> None:
    size = sum(file.stat().st_size for file in sources)
    bounds = Bounds(cpu_seconds=600, memory_bytes=8 * 2**30 + 4 * size, file_bytes=size + 64 * 2**20)
    command = [sys.executable, "-m", "scaler_wizard.untrusted.pickled", str(out), *map(str, sources)]
    answer = run_confined(command, bounds)
    if answer.returncode != 0:
        reason = answer.stderr.strip().splitlines()[-1:] or [f"exit code {answer.returncode}"]
        raise ScalerError(f"{sources[0].name}: cannot be converted: {reason[0]:.200}", CURE)


def _load(out: Path, sources: list[Path]) -> None:
    """In the child: read with the restricted unpickler, write safetensors; what shares its bytes is written once."""
    import torch
    from safetensors.torch import save_file

    seen: dict[tuple[int, int, tuple[int, ...], tuple[int, ...]], str] = {}
    tensors = {}
    for file in sources:
        for name, value in torch.load(file, map_location="cpu", weights_only=True).items():
            if not isinstance(name, str) or not isinstance(value, torch.Tensor):
                raise ValueError(f"{file.name} holds more than named tensors")
            key = (value.untyped_storage().data_ptr(), value.storage_offset(), tuple(value.shape), value.stride())
            if seen.setdefault(key, name) == name:  # a tied head is the embedding again
                tensors[name] = value.detach().clone().contiguous()
    save_file(tensors, str(out / "model.safetensors"), metadata={"format": "pt"})


if __name__ == "__main__":
    _load(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
