"""Tell a person who does not look: the canonical sentence and a link, to ntfy, Slack or a Telegram bot.

Told are a gate that nobody has answered for a while, a tripped breaker, and the end of the run. A message decides
nothing and holds no way to decide: answers are given in the cockpit or at the terminal.
"""

from __future__ import annotations

import json
import os
import queue
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import Field

from scaler_wizard.errors import ScalerError
from scaler_wizard.outbound import Resolver, find_way, look_up, post
from scaler_wizard.record import Record
from scaler_wizard.safe_yaml import load_yaml

PAUSES = (0.0, 2.0, 8.0)
"""Seconds before each attempt."""
FAREWELL_SECONDS = 15.0


class Webhook(Record):
    """Where messages go; a file of the user's own, since its address is a secret."""

    form: Literal["ntfy", "slack", "telegram"]
    """How the message is written."""
    url: Annotated[str, Field(min_length=1, max_length=2000)]
    """Where it is posted: https://ntfy.sh/TOPIC, a Slack webhook, https://api.telegram.org/botTOKEN/sendMessage."""
    chat: str | int | None = None
    """Telegram: the chat that the bot writes to."""
    link: Annotated[str, Field(pattern=r"^https?://[!-~]{1,200}$")] = "http://127.0.0.1:8321"
    """Where you reach the cockpit; messages link to the run there. It opens nothing without a session."""
    allow: tuple[Annotated[str, Field(min_length=1, max_length=253)], ...] = ()
    """Hosts of your own that may be private, unencrypted or at another port."""
    patience: Annotated[float, Field(ge=0, le=600)] = 20.0
    """Seconds that a gate may stand unanswered before you are told."""


def webhook_file() -> Path:
    """$SCALER_WEBHOOK, else webhook.yaml in scaler-wizard in $XDG_CONFIG_HOME or in ~/.config."""
    if chosen := os.environ.get("SCALER_WEBHOOK"):
        return Path(chosen)
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "scaler-wizard" / "webhook.yaml"


def load_webhook(file: Path) -> Webhook | None:
    """The user's webhook; None where none is set up. Raises ScalerError for a file that others can read."""
    if not file.is_file():
        return None
    if file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ScalerError(f"{file}: others on this machine can read it, and it holds a secret", f"chmod 600 {file}")
    hook = Webhook.read(load_yaml(file), file.name)
    if (hook.form == "telegram") != (hook.chat is not None):
        raise ScalerError(f"{file.name}: chat: needed by the form telegram, and by no other", "add it or take it out")
    return hook


@dataclass(frozen=True)
class Message:
    """What a person should know of a run."""

    run: str
    sentence: str
    urgent: bool = False


def written(hook: Webhook, message: Message) -> tuple[bytes, dict[str, str]]:
    """(body, headers) in the form that the receiver reads."""
    link = f"{hook.link.rstrip('/')}/#/run/{quote(message.run, safe='')}"
    if hook.form == "ntfy":
        headers = {"Title": "Scaler Wizard", "Click": link, "Priority": "high" if message.urgent else "default"}
        return message.sentence.encode(), headers
    if hook.form == "slack":
        said = message.sentence.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        data: dict[str, Any] = {"text": f"{said}\n<{link}|{message.run}>"}
    else:
        data = {"chat_id": hook.chat, "text": f"{message.sentence}\n{link}", "disable_notification": not message.urgent}
    return json.dumps(data).encode(), {"Content-Type": "application/json"}


def send(hook: Webhook, message: Message, *, resolver: Resolver = look_up) -> None:
    """Once. Raises ScalerError where it was not taken."""
    body, headers = written(hook, message)
    post(hook.url, body, headers, allowed=hook.allow, resolver=resolver)


def told(hook: Webhook) -> list[tuple[str, str]]:
    """What is set up, without the secret part of the address."""
    way = find_way(hook.url, allowed=hook.allow)
    rows = [("form", hook.form), ("host", way.host_header), ("links to", hook.link)]
    return [*rows, ("allowed", ", ".join(hook.allow) or "no private host"), ("patience", f"{hook.patience:g} s")]


class Messenger:
    """Follows one run beside its supervisor and sends in a thread of its own, so that nothing waits for it."""

    def __init__(self, hook: Webhook, run: str, *, say: Callable[[str], None]) -> None:
        self._hook, self._run, self._say = hook, run, say
        self._queue: queue.Queue[tuple[str, Message | None]] = queue.Queue()
        self._sentence = ""
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def tell(self, kind: str, event: Any) -> None:
        """The supervisor's `tell`."""
        if kind == "gate":
            self._sentence = event.verdict.sentence
            asks = event.verdict.action != "rollback"  # what is not kept asks nobody
            urgent = event.verdict.action != "pass"
            self._queue.put(("gate" if asks else "now", Message(self._run, self._sentence, urgent=urgent)))
        elif kind == "decision":
            self._queue.put(("answered", None))
        elif kind == "telegram" and event.hard:
            self._queue.put(("now", Message(self._run, event.sentence, urgent=True)))
        elif kind == "committed" and event.change.kind == "export":
            self._queue.put(("now", Message(self._run, self._sentence)))

    def close(self) -> None:
        """Let what is under way arrive, for a while."""
        self._queue.put(("end", None))
        self._thread.join(FAREWELL_SECONDS)

    def _work(self) -> None:
        waiting, due = None, float("inf")
        while True:
            try:
                what, message = self._queue.get(timeout=max(0.0, min(due - time.monotonic(), 3600.0)))
            except queue.Empty:
                what, message = "now", waiting
            if what in ("answered", "end") or message is waiting:
                waiting, due = None, float("inf")
            if what == "end":
                return
            if what == "gate":
                waiting, due = message, time.monotonic() + self._hook.patience
            elif message is not None:
                self._send(message)

    def _send(self, message: Message) -> None:
        for left, pause in zip(reversed(range(len(PAUSES))), PAUSES, strict=True):
            time.sleep(pause)
            try:
                send(self._hook, message)
                return
            except ScalerError as error:
                if not left:
                    self._say(f"The webhook was not reached: {error.wrong}")
