"""Write the JSON Schemas in schemas/ from the types in the code, or check that they are fresh (`--check`)."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from scaler_wizard.contract import SignedContract
from scaler_wizard.events import Cockpit, Evaluated, Payload, Step, Telegram, Usage, worker_event
from scaler_wizard.phases import Plan
from scaler_wizard.recipe import Recipe
from scaler_wizard.server import wire

FOLDER = Path(__file__).parents[1] / "schemas"


def schemas() -> Mapping[str, dict[str, Any]]:
    """Every file that crosses a border, by its name."""
    return {
        "recipe": Recipe.model_json_schema(),
        "plan": Plan.model_json_schema(),
        "event": worker_event.json_schema(),
        "cockpit": Cockpit.model_json_schema(by_alias=True),
        "contract": SignedContract.model_json_schema(),
        "wire": wire_schema(),
    }


def wire_schema() -> dict[str, Any]:
    """What the cockpit and its server say to each other, and the events that it draws; TypeScript is made from it."""
    own = [one for one in vars(wire).values() if isinstance(one, type) and issubclass(one, Payload)]
    records: list[type[BaseModel]] = [Cockpit, Step, Evaluated, Telegram, Usage]
    records += [one for one in own if one.__module__ == wire.__name__]
    asked: list[tuple[type[BaseModel], JsonSchemaMode]] = [(one, "serialization") for one in records]
    _, made = models_json_schema(asked, by_alias=True)
    return {"title": "Wire", **made}


def texts() -> dict[Path, str]:
    """The files as they should be."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return {
        FOLDER / f"{name}.schema.json": json.dumps(head | schema, indent=1, ensure_ascii=False) + "\n"
        for name, schema in schemas().items()
    }


def main() -> int:
    """Write the files; with `--check` only compare, and name the stale ones."""
    wanted = texts()
    if "--check" not in sys.argv[1:]:
        FOLDER.mkdir(exist_ok=True)
        for path, text in wanted.items():
            path.write_text(text, encoding="utf-8")
        return 0
    stale = [path.name for path, text in wanted.items() if not path.exists() or path.read_text("utf-8") != text]
    stale += [path.name for path in FOLDER.glob("*.schema.json") if path not in wanted]
    print(f"stale: {', '.join(stale)}: make generate" if stale else "schemas are fresh")
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
