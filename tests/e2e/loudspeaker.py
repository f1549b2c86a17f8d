"""A loudspeaker without a machine's sound card, and an ear at it: PulseAudio's null sink, speech-dispatcher, eSpeak NG.

All of it is private to a test: its own sockets, its own settings, its own voices. Of eSpeak's voices only those of the
languages are kept: with every variant of every voice (13,000) a browser's list of voices takes minutes.
"""

from __future__ import annotations

import array
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = ("pulseaudio", "parec", "speech-dispatcher", "espeak-ng")
VOICES = next(Path("/usr/lib").glob("*/espeak-ng-data"), None)
MODULE = Path("/usr/lib/speech-dispatcher-modules/sd_espeak-ng")
RATE, CHUNK_SECONDS = 16_000, 0.02
LOUD = 200
"""Of 32,767: a whisper is louder, and a null sink's silence is exactly 0."""

SETTINGS = """
AudioOutputMethod "pulse"
DefaultModule espeak-ng
DefaultLanguage "en"
AddModule "espeak-ng" "sd_espeak-ng" "espeak-ng.conf"
"""


def missing() -> str:
    """What is not installed here; empty where everything is."""
    names = [name for name in PROGRAMS if shutil.which(name) is None]
    if not names and (VOICES is None or not MODULE.exists()):
        names = ["speech-dispatcher-espeak-ng"]
    return ", ".join(names)


@dataclass
class Loudspeaker:
    """What a browser needs to speak here, and when it was heard."""

    environment: dict[str, str]
    heard: list[float] = field(default_factory=list)
    """Moments (`time.time()`) of each fiftieth of a second that was not silent."""

    def after(self, moment: float, *, patience: float = 10.0) -> float:
        """Seconds from a moment to the first sound after it; raises AssertionError where there is none."""
        end = time.time() + patience
        while time.time() < end:
            if later := [at for at in self.heard if at > moment]:
                return later[0] - moment
            time.sleep(0.01)
        raise AssertionError(f"nothing was heard for {patience:g} s")

    def hush(self, *, seconds: float = 0.7, patience: float = 30.0) -> None:
        """Wait until it has been silent for a while."""
        end = time.time() + patience
        while self.heard and time.time() - self.heard[-1] < seconds:
            assert time.time() < end, "it does not stop speaking"
            time.sleep(0.05)


@contextmanager
def loudspeaker(folder: Path) -> Iterator[Loudspeaker]:
    """Started for a block; everything ends with it."""
    assert VOICES is not None
    shutil.copytree(VOICES, folder / "espeak-ng-data", ignore=shutil.ignore_patterns("!v", "mb"))
    modules = folder / "settings" / "modules"
    modules.mkdir(parents=True)
    (modules.parent / "speechd.conf").write_text(SETTINGS, encoding="utf-8")
    (modules / "espeak-ng.conf").write_text("", encoding="utf-8")
    own = {
        "XDG_RUNTIME_DIR": str(folder),
        "PULSE_SERVER": f"unix:{folder / 'sound'}",
        "SPEECHD_ADDRESS": f"unix_socket:{folder / 'speech'}",
        "ESPEAK_DATA_PATH": str(folder),
    }
    found = Loudspeaker(os.environ | own)
    sink = ["module-null-sink sink_name=ear", f"module-native-protocol-unix auth-anonymous=1 socket={folder / 'sound'}"]
    sound = ["pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", *(f"--load={one}" for one in sink)]
    speech = ["speech-dispatcher", "--run-single", "--timeout=0", f"--config-dir={modules.parent}"]
    speech += [f"--socket-path={folder / 'speech'}", f"--pid-file={folder / 'pid'}", f"--log-dir={folder}"]
    ear = ["parec", "--device=ear.monitor", "--format=s16le", f"--rate={RATE}", "--channels=1", "--latency-msec=20"]
    with ExitStack() as started:
        started.enter_context(_running(sound, found.environment, lambda: (folder / "sound").exists()))
        listening = started.enter_context(_running(ear, found.environment, lambda: True))
        started.enter_context(_running(speech, found.environment, lambda: (folder / "speech").exists()))
        threading.Thread(target=_listen, args=(listening, found.heard), daemon=True).start()
        yield found


@contextmanager
def _running(
    command: list[str], environment: dict[str, str], ready: Callable[[], bool]
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 20
        while not ready():
            assert process.poll() is None and time.monotonic() < end, f"{command[0]} does not start"
            time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        process.wait(10)


def _listen(ear: subprocess.Popen[bytes], heard: list[float]) -> None:
    assert ear.stdout is not None
    while chunk := ear.stdout.read(2 * int(RATE * CHUNK_SECONDS)):
        if max(map(abs, array.array("h", chunk))) > LOUD:
            heard.append(time.time())
