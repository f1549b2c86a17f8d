import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import huggingface_hub.constants
import pytest

from scaler_wizard.data import load_corpus
from scaler_wizard.errors import ScalerError
from scaler_wizard.hub import hub_data
from scaler_wizard.prepare import Preparation, prepare

FILES = {
    "data/a.jsonl": "\n".join(json.dumps({"text": f"The road goes on, story {n}. " * 20}) for n in range(40)).encode(),
    "README.md": b"A small data set for tests, that says hardly anything about anything at all.",
    "weights.bin": b"\x00" * 100,
}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as a download needs."""

    asked: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.asked.append(self.path)
        name = self.path.split("?")[0]
        if name.startswith("/api/datasets/org/small/"):
            listed = [{"rfilename": file, "size": len(content)} for file, content in FILES.items()]
            tree = [{"type": "file", "path": f, "size": len(c), "oid": "1" * 40} for f, c in FILES.items()]
            self._answer(
                json.dumps(
                    tree if "/tree/" in name else {"id": "org/small", "sha": "0" * 40, "siblings": listed}
                ).encode()
            )
        elif name.startswith("/datasets/org/small/resolve/"):
            self._answer(FILES[name.split("/resolve/")[1].split("/", 1)[1]])
        else:
            self.send_error(404)

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        for key, value in {
            "Content-Length": str(len(body)),
            "ETag": f'"{len(body):040x}"',
            "X-Repo-Commit": "0" * 40,
        }.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", here)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", here + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setenv("SCALER_CACHE", str(tmp_path / "cache"))
    Hub.asked.clear()
    yield Hub.asked
    server.shutdown()


def test_a_data_set_of_the_hub_is_fetched_once_and_read_like_a_folder(hub: list[str], tmp_path: Path) -> None:
    corpus = load_corpus("hub:org/small")
    assert len(corpus.train) + len(corpus.calibration) + len(corpus.heldout) == 40
    assert corpus.train[0].source == "data"
    folder = hub_data("hub:org/small")
    assert [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()] == ["data/a.jsonl"]
    count = len(hub)
    card = prepare(Path("hub:org/small"), tmp_path / "out.jsonl", Preparation(near_duplicates=False, quality=False))
    assert card.kept == 40 and card.sources["data"].texts == 40
    assert len(hub) == count


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("hub:org/missing", "hub:org/missing: the hub does not give this data set"),
        ("hub:../x", "hub:../x: not a data set's name"),
        ("hub:alone", "hub:alone: not a data set's name"),
    ],
)
def test_what_the_hub_has_not_is_refused_in_two_lines(hub: list[str], name: str, wrong: str) -> None:
    with pytest.raises(ScalerError) as refused:
        load_corpus(name)
    assert wrong in refused.value.wrong and "\n" not in refused.value.wrong + refused.value.cure


def test_without_a_connection_it_says_so_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ScalerError) as refused:
        hub_data("hub:org/small", cache=tmp_path)
    assert "check the name and the connection" in refused.value.cure
    assert not (tmp_path / "datasets" / "org" / "small").exists()
