"""Files from somebody who means harm, made by our own generators: refused in time, and nothing of them ever runs."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from campaigns import Result

import malice
from scaler_wizard.architecture.header import read_header
from scaler_wizard.errors import ScalerError
from scaler_wizard.recipe import load_recipe
from scaler_wizard.untrusted.gguf import check_gguf
from scaler_wizard.untrusted.pickled import check_pickle

REFUSED_WITHIN = 0.05
"""Seconds of this process."""


def refuse(
    name: str,
    place: Path,
    files: Iterator[tuple[str, bytes]],
    check: Callable[[Path], object],
    *,
    within: float = REFUSED_WITHIN,
) -> Result:
    """Every file is refused in two lines, in time, and touches no canary."""
    result, file = Result(name), place / "file"
    for what, raw in files:
        file.write_bytes(raw)
        with result.trial(what):
            seconds, said = min((_refusal(check, file) for _ in range(3)), key=lambda found: found[0])
            result.seconds.append(seconds)
            assert len(said.splitlines()) == 2, said or "it was not refused"
            assert seconds < within, f"refused after {seconds:.3f} s"
            assert not (place / "canary").exists(), "it ran"
    return result


def _refusal(check: Callable[[Path], object], file: Path) -> tuple[float, str]:
    begun, said = time.process_time(), ""
    try:
        check(file)
    except ScalerError as error:
        said = str(error)
    return time.process_time() - begun, said


def safetensors(place: Path) -> Result:
    """Headers that lie."""
    made = ((name, make()) for name, make in malice.SAFETENSORS.items())
    return refuse("malicious safetensors headers", place, made, read_header)


def gguf(place: Path) -> Result:
    """The same for GGUF."""
    made = ((name, make()) for name, make in malice.GGUF.items())
    return refuse("malicious GGUF headers", place, made, check_gguf)


def pickles(place: Path) -> Result:
    """Weights that are programs."""
    return refuse("pickles that are programs", place, malice.pickles(place / "canary"), check_pickle)


def recipes(place: Path) -> Result:
    """Alias bombs, tags, unknown fields, limits beyond the contract."""
    made = ((name, text.encode("utf-8", "surrogateescape")) for name, text in malice.recipes().items())
    return refuse("malicious recipes", place, made, load_recipe, within=1.0)


def code(place: Path) -> Result:
    """A model folder that offers code in every way is staged and loaded; its canary is not touched."""
    import tiny_models
    from scaler_wizard.models import load_model, load_tokenizer, resolve
    from scaler_wizard.untrusted.folder import stage

    result, canary = Result("model folders that bring code"), place / "canary"
    for number, family in enumerate(("llama", "qwen3", "gemma3_text")):
        evil, out = place / f"evil-{number}", place / f"out-{number}"
        tiny_models.make(evil, family)
        out.mkdir()
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(resolve("embedded").folder / name, evil / name)
        malice.code_folder(evil, canary)
        with result.trial(family):
            stage(evil, out, link=False)
            for folder in (evil, out):
                load_model(folder, dtype="float32")
                load_tokenizer(folder)
            assert not canary.exists(), "it ran"
            assert not list(out.rglob("*.py")), "code was taken along"
    return result


def templates(place: Path) -> Result:
    """Chat templates that would run for ever or reach for Python: nothing renders them, they stay text."""
    import tiny_models
    from scaler_wizard.models import load_tokenizer, resolve
    from scaler_wizard.untrusted.folder import stage

    result = Result("hostile chat templates")
    for number, bomb in enumerate(TEMPLATES):
        folder, out = tiny_models.make(place / f"model-{number}"), place / f"out-{number}"
        out.mkdir()
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(resolve("embedded").folder / name, folder)
        (folder / "chat_template.jinja").write_text(bomb, encoding="utf-8")
        with result.trial(bomb[:40]):
            begun = time.process_time()
            stage(folder, out, link=False)
            assert load_tokenizer(out).chat_template == bomb
            assert time.process_time() - begun < 2
    return result


TEMPLATES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{% for a in range(10**12) %}{% endfor %}",
    "{{ 'a' * 10**11 }}",
    "{{ cycler.__init__.__globals__.os.popen('touch canary').read() }}",
    "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "{{ lipsum.__globals__['os'].system('touch canary') }}",
)
