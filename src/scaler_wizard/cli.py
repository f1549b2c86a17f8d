"""The `scaler` command: one function a verb. Data goes to standard output, talk to standard error."""

from __future__ import annotations

import getpass
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from scaler_wizard.errors import ScalerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from scaler_wizard.advise import Reader
    from scaler_wizard.phases import Plan
    from scaler_wizard.run import Run
    from scaler_wizard.webhook import Messenger

app = typer.Typer(
    name="scaler",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Grow a small open language model safely: more parameters, a longer window, every step measured.",
)

Runs = Annotated[Path, typer.Option("--runs", envvar="SCALER_RUNS", help="Folder of all runs.")]
RunId = Annotated[str, typer.Argument(help="Run id, its beginning, or `latest`.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="Lay a.b=value over the recipe.")]
Sign = Annotated[str | None, typer.Option("--sign", help="Sign the human contract with this name.")]
Approve = Annotated[
    bool, typer.Option("--approve-within-limits", help="Standing approval of gates where every limit is kept.")
]
RUNS = Path("runs")


@app.command()
def demo(model: Annotated[str, typer.Option(help="`embedded` or `smollm2`.")] = "embedded", runs: Runs = RUNS) -> None:
    """The whole main job on a model that needs no choosing."""
    from scaler_wizard.recipe import load_recipe

    recipes = {"embedded": "demo.yaml", "smollm2": "demo-smollm2.yaml"}
    if model not in recipes:
        raise ScalerError(f"--model {model}: no demo for it", f"choose one of {', '.join(recipes)}")
    recipe = load_recipe(Path(__file__).parent / "recipes" / recipes[model])
    name = getpass.getuser()
    _talk(f"Signing the human contract as {name}, with standing approval of every gate that keeps its limits.")
    _carry_out(_plan(recipe, runs), runs, sign=name, standing=True)


@app.command()
def doctor(runs: Runs = RUNS, as_json: Json = False) -> None:
    """What this machine has, what is missing, and the cure."""
    from scaler_wizard.doctor import findings

    rows = findings(runs)
    if as_json:
        _print_json([vars(row) for row in rows])
        return
    for row in rows:
        typer.echo(
            f"{'ok ' if row.good else '!  '} {row.what}: {row.found}" + (f"\n     → {row.cure}" if row.cure else "")
        )


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this one, to keep and change.")] = None,
    as_json: Json = False,
) -> None:
    """The recipes that are shipped; use one by its name: scaler plan balanced --set model=smollm2."""
    from scaler_wizard.recipe import find_recipe, shipped_recipes
    from scaler_wizard.safe_yaml import load_yaml

    known = shipped_recipes()
    if name is not None and name not in known:
        raise ScalerError(f"{name}: no such recipe", f"choose one of {', '.join(known)}")
    if as_json:
        _print_json(known if name is None else load_yaml(find_recipe(Path(name))))
    elif name is not None:
        typer.echo(find_recipe(Path(name)).read_text(encoding="utf-8"), nl=False)
    else:
        for one, purpose in known.items():
            typer.echo(f"{one:<18} {purpose}")


@app.command()
def models(
    name: Annotated[str | None, typer.Argument(help="Tell more about this one.")] = None, as_json: Json = False
) -> None:
    """Open models to begin with: sizes, windows, licences, by sources and dates."""
    from scaler_wizard.shelf import details, shelf

    if name is not None:
        entry, rows = details(name)
        if as_json:
            _print_json(entry)
        else:
            _show_rows(rows)
        return
    found = shelf()
    if as_json:
        _print_json(found)
        return
    for row in found:
        size, window = float(row["parameters"] or 0) / 1e9, row["window"] or "unknown"
        mark = "*" if row["terms"] else " "
        typer.echo(f"{row['model']:<42} {size:7.2f}B {window:>8} {row['rope']:<9}{mark}{row['licence'] or 'unknown'}")
    _talk("* has terms of its own: scaler models NAME. Any other supported folder or hub id works as well.")


@app.command()
def wish(
    text: Annotated[str, typer.Argument(help="What you want, in your own words (en, pt, es, fr, de, zh).")],
    model: Annotated[str | None, typer.Option(help="Fit it to this model and this machine.")] = None,
    choose: Annotated[str | None, typer.Option(help="A recipe, in answer to the question.")] = None,
    reader: Annotated[
        str | None, typer.Option(help="A local model that answers the question where the rules have one.")
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write the recipe to this file.")] = None,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """From a wish to a recipe, with the reasons; one question where the wish leaves it open."""
    from scaler_wizard.advise import advised, as_yaml
    from scaler_wizard.run import write_whole

    found = advised(text, model=model, choose=choose, runs=runs, reader=_reader(reader))
    for reason in found.reasons:
        _talk(f"- {reason}")
    if out is not None:
        write_whole(out, as_yaml(found))
        _talk(f"Written to {out}; next: scaler plan {out}")
    elif as_json:
        _print_json({"recipe": found.name, "settings": found.data, "reasons": found.reasons})
    else:
        typer.echo(as_yaml(found), nl=False)


def _reader(model: str | None) -> Reader | None:
    if model is None:
        return None
    from scaler_wizard.wish_reader import WishReader  # imports torch

    return WishReader(model)


@app.command()
def plan(
    recipe: Annotated[Path, typer.Argument(help="Recipe file, or the name of a shipped one.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Where to write the plan.")] = Path("plan.yaml"),
    settings: Settings = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say why this growth, and what else would do.")] = False,
    trial: Annotated[
        bool, typer.Option("--trial", help="Try a few steps of the training, for its time and memory on this machine.")
    ] = False,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Fill in every number, write an editable plan, change nothing else."""
    from scaler_wizard.plan import explanation, to_yaml
    from scaler_wizard.recipe import load_recipe
    from scaler_wizard.run import write_whole

    made = (_tried_plan if trial else _plan)(load_recipe(recipe, settings or ()), runs)
    write_whole(out, to_yaml(made))
    if as_json:
        _print_json(made)
    else:
        _show_plan(made)
    for line in explanation(made) if explain else ():
        _talk(line)
    _talk(f"Written to {out}; edit it, then: scaler run {out}")


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="Recipe or plan file, or the name of a shipped recipe.")],
    settings: Settings = None,
    sign: Sign = None,
    approve_within_limits: Approve = False,
    trial: Annotated[
        bool | None,
        typer.Option(help="Try a few steps before; left out: of a recipe whose training is to take ten minutes."),
    ] = None,
    runs: Runs = RUNS,
) -> None:
    """Carry a recipe or a plan out; the same command again goes on where it stopped."""
    from scaler_wizard.plan import is_plan, load_plan
    from scaler_wizard.recipe import find_recipe, load_recipe

    planned = is_plan(find_recipe(recipe))
    made = load_plan(recipe) if planned else _begun_plan(load_recipe(recipe, settings or ()), runs, trial)
    _carry_out(made, runs, sign=sign, standing=approve_within_limits)


@app.command()
def resume(run: RunId = "latest", approve_within_limits: Approve = False, runs: Runs = RUNS) -> None:
    """Go on with a paused or interrupted run."""
    _conduct(_open(runs, run), standing=approve_within_limits)


@app.command()
def status(run: RunId = "latest", runs: Runs = RUNS, as_json: Json = False) -> None:
    """Where a run stands, and the open gate with its evidence."""
    from scaler_wizard.payload import cockpit
    from scaler_wizard.view import status_rows

    found = _open(runs, run)
    if as_json:
        typer.echo(cockpit(found).model_dump_json(by_alias=True))
        return
    for name, value in status_rows(found):
        typer.echo(f"{name:<12} {value}")


@app.command("runs")
def list_all(runs: Runs = RUNS, as_json: Json = False) -> None:
    """All runs."""
    from scaler_wizard.run import Run, list_runs

    rows = [{"run": one.id, "status": one.status, "at": one.current} for one in map(Run, list_runs(runs))]
    if as_json:
        _print_json(rows)
    for row in [] if as_json else rows:
        typer.echo(f"{row['run']:<44} {row['status']:<12} {row['at'] or '-'}")


@app.command()
def log(
    run: RunId = "latest",
    after: int = 0,
    verify: Annotated[bool, typer.Option("--verify", help="Check the chain of hashes instead.")] = False,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """What happened in a run, event by event."""
    if verify:
        _verify_log(_open(runs, run))
        return
    from scaler_wizard.view import log_line

    for row in _open(runs, run).journal.events(after):
        if as_json:
            _print_json({"seq": row.seq, "time": row.time, "phase": row.phase, "kind": row.kind, "data": row.data})
        else:
            typer.echo(log_line(row))


@app.command()
def approve(
    run: RunId = "latest",
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Train on although the breaker stopped it; it then only warns.")
    ] = False,
    runs: Runs = RUNS,
) -> None:
    """Answer the open gate: go on. Where the breaker stopped a training: keep the model of its last good step."""
    _answer(runs, run, "continue" if anyway else "approve")


@app.command()
def pause(run: RunId = "latest", runs: Runs = RUNS) -> None:
    """Ask a running run to pause; it keeps what it has."""
    found = _open(runs, run)
    if found.status != "running":
        raise ScalerError(f"{found.id}: is {found.status}, not running", "see `scaler status`")
    found.journal.set("request", "pause")
    _talk(f"{found.id}: asked to pause")


@app.command()
def abort(run: RunId = "latest", runs: Runs = RUNS) -> None:
    """End the running phase, or answer the open gate with no; every checkpoint stays."""
    found = _open(runs, run)
    if found.open_gate() is not None:
        _answer(runs, run, "abort")
    elif found.status == "running":
        found.journal.set("request", "abort")
        _talk(f"{found.id}: asked to abort")
    else:
        raise ScalerError(f"{found.id}: is {found.status}; there is nothing to abort", "see `scaler status`")


@app.command()
def rollback(
    run: RunId = "latest",
    to: Annotated[
        str | None, typer.Option("--to", help="Phase number or checkpoint name; one back if left out.")
    ] = None,
    preview: Annotated[bool, typer.Option("--preview", help="Only say what would return and what be left.")] = False,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """Make an earlier checkpoint the current one; a running worker is ended first; copies and deletes nothing."""
    from scaler_wizard.run import locked, stand_still

    found = _open(runs, run)
    slug = found.earlier(to)
    if preview:
        _show_preview(found, slug, as_json=as_json)
        return
    stand_still(found)
    with locked(found):
        typer.echo(found.rollback(slug, who=getpass.getuser()))
    _talk("`scaler undo` takes it back; `scaler resume` goes on from here.")


@app.command()
def undo(run: RunId = "latest", runs: Runs = RUNS) -> None:
    """Take the last rollback back."""
    from scaler_wizard.run import locked

    found = _open(runs, run)
    with locked(found):
        typer.echo(found.undo(who=getpass.getuser()))


@app.command()
def tidy(
    run: RunId = "latest",
    now: Annotated[bool, typer.Option("--now", help="Delete; without it only show.")] = False,
    pin: Annotated[str | None, typer.Option(help="Keep this superseded attempt for ever.")] = None,
    runs: Runs = RUNS,
) -> None:
    """What a run can do without: superseded attempts but the last two that are whole; never a checkpoint."""
    from scaler_wizard import upkeep
    from scaler_wizard.run import locked

    found = _open(runs, run)
    with locked(found):
        if pin is not None:
            upkeep.pin(found, pin, who=getpass.getuser())
        for left in upkeep.leftovers(found):
            typer.echo(f"{left.bytes:>15,} bytes  {left.path.relative_to(found.folder)}")
        if now:
            _talk(f"freed {upkeep.tidy(found):,} bytes")


@app.command()
def diff(
    run: RunId = "latest",
    first: Annotated[str | None, typer.Option("--from", help="Phase number; the baseline if left out.")] = None,
    second: Annotated[str | None, typer.Option("--to", help="Phase number; the current one if left out.")] = None,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """What changed between two checkpoints, in one sentence and in figures."""
    from scaler_wizard.view import changelog

    found = _open(runs, run)
    sentence, figures = changelog(found, first, second)
    if as_json:
        _print_json({"sentence": sentence, "figures": figures})
        return
    typer.echo(sentence)
    for name, (before, after) in figures.items():
        typer.echo(f"{name:<22} {before} -> {after}")


@app.command()
def cockpit(
    runs: Runs = RUNS,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port.")] = 8321,
    models: Annotated[Path | None, typer.Option(help="Folder of model folders to choose from.")] = None,
    listen: Annotated[str, typer.Option(help="Address; other than loopback only with a certificate.")] = "127.0.0.1",
    certificate: Annotated[Path | None, typer.Option(help="TLS certificate chain (PEM).")] = None,
    key: Annotated[Path | None, typer.Option(help="TLS private key (PEM).")] = None,
    tunnel: Annotated[str | None, typer.Option(help="Host name of an encrypting tunnel in front.")] = None,
) -> None:
    """Serve the cockpit, a web page over all runs, on this machine."""
    from scaler_wizard.server import Address, serve

    address = Address(listen, port, certificate, key, tunnel)
    serve(runs, address, models=models, program_token=os.environ.get("SCALER_TOKEN"), say=_talk)


@app.command()
def webhook(
    test: Annotated[bool, typer.Option("--test", help="Send one message, to see that it arrives.")] = False,
) -> None:
    """Where you are told when nobody looks: ntfy, Slack or a Telegram bot, as your webhook.yaml says."""
    from scaler_wizard.webhook import Message, load_webhook, send, told, webhook_file

    file = webhook_file()
    hook = load_webhook(file)
    if hook is None:
        raise ScalerError(f"{file}: no webhook is set up", "write it: docs/how-to/watch-and-share.md says how")
    _show_rows(told(hook))
    if test:
        send(hook, Message("test", "Scaler Wizard reaches you here."))
        _talk("Sent.")


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="Folder, GGUF file, hub id, `embedded` or `smollm2`.")],
    context: Annotated[str | None, typer.Option(help="Measure out to this window.")] = None,
    data: Annotated[str, typer.Option(help="Text: `kjv`, a file or a folder.")] = "kjv",
    window: Annotated[
        bool, typer.Option("--window", help="Measure only how much of its window it reads well; plans start there.")
    ] = False,
    ruler: Annotated[
        list[str] | None, typer.Option(help="Score RULER's tasks at this length (4K) instead; repeat it.")
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="Run this task of lm-eval instead (extra `evals`); repeat it.")
    ] = None,
    include: Annotated[Path | None, typer.Option(help="Folder with task files of your own, for --task.")] = None,
    examples: Annotated[int, typer.Option(min=1, help="RULER examples of each task.")] = 8,
    as_json: Json = False,
) -> None:
    """Measure a model: loss by position, truncation, needles, knowledge; or RULER's tasks, or lm-eval's."""
    from scaler_wizard.evaluate import effective, evaluate_model, measure_window, ruler_scores

    if window:
        found = measure_window(model, data=data)
        _print_json(found) if as_json else typer.echo(f"claims {found.claimed}, reads {found.measured} tokens")
        return
    if ruler:
        scores = ruler_scores(model, ruler, data=data, examples=examples)
        for one in scores:
            _say_score(one, f"{one.task} at {one.length}", one.score.value, f"{one.answers} answers", as_json=as_json)
        if not as_json and (length := effective(scores)) is not None:
            typer.echo(f"effective length {length}: up to there the mean stays at 85 % of that at the shortest length")
        return
    if task:
        from scaler_wizard.evals.harness import harness
        from scaler_wizard.models import resolve

        for figure in harness(resolve(model).folder, task, include=include):
            name = f"{figure.task} {figure.metric}"
            _say_score(figure, name, figure.value, f"{figure.samples} questions", as_json=as_json)
        return
    measured = evaluate_model(model, context=context, data=data)
    if as_json:
        _print_json(measured)
        return
    from scaler_wizard.view import measurement_rows

    for name, value in measurement_rows(measured):
        typer.echo(f"{name:<28} {value}")


def _say_score(record: Any, name: str, value: float, asked: str, *, as_json: bool) -> None:
    if as_json:
        _print_json(record)
    else:
        typer.echo(f"{name:<36} {value:.3f}  {asked}")


@app.command()
def export(
    out: Path,
    run: RunId = "latest",
    form: Annotated[
        Literal["folder", "gguf", "adapter"],
        typer.Option("--format", help="A stock folder, one GGUF file, or the last training's adapters alone."),
    ] = "folder",
    runs: Runs = RUNS,
) -> None:
    """Put the current model of a run where you want it, for transformers or for llama.cpp."""
    from scaler_wizard.run import export_adapter, export_to

    found = _open(runs, run)
    if form == "adapter":
        typer.echo(export_adapter(found, out))
        return
    if form == "folder":
        typer.echo(export_to(found, out))
        return
    from scaler_wizard.gguf_writer import write_gguf

    typer.echo(write_gguf(found.verified(), out))


Model = Annotated[str, typer.Argument(help="Folder, GGUF file, hub id, `embedded` or `smollm2`.")]


@app.command()
def grow(
    model: Model,
    to: Annotated[str, typer.Option("--to", help="Size: 1.5x, 200M, 3B -> 7B, fit 12 GB of VRAM at 16K context.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the grown model.")],
    allow: Annotated[
        list[str] | None,
        typer.Option(help="Use only these operators; repeat it. All that keep the function if left out."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    shard_size: Annotated[str, typer.Option("--shard-size", help="Largest file of weights.")] = "5G",
    force: Annotated[bool, typer.Option("--force", help="Replace a grown model that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Grow a model in one step, prove on it that nothing was lost, and keep it only then."""
    from scaler_wizard.models import resolve
    from scaler_wizard.oneshot import grow_model
    from scaler_wizard.screen import Bar

    with Bar() as bar:
        grown = grow_model(
            resolve(model).folder,
            out,
            to,
            allow=allow,
            seed=seed,
            shard_bytes=_bytes(shard_size),
            force=force,
            tell=bar,
        )
    if as_json:
        _print_json(grown.growth)
        return
    _show_rows(grown.rows())
    for reason in grown.reasons:
        _talk(f"- {reason}")
    _talk("It has room now and has learnt nothing yet: train it, or let a run do both: scaler plan recipe.yaml")


@app.command()
def merge(
    recipe: Annotated[Path, typer.Argument(help="A `merge:` block, or mergekit's YAML.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder of the merged model.")] = None,
    conflicts: Annotated[
        Path | None,
        typer.Option("--conflicts", help="Draw how the models' changes get on with each other (.png, .svg)."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a merged model that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Merge models that were trained from one base; without --out only check whether they can be merged."""
    from scaler_wizard.adapting import load_adapters, look_at_adapters, merge_adapters
    from scaler_wizard.merge.recipe import load_search
    from scaler_wizard.merging import merge_models, prepare
    from scaler_wizard.mixture import load_mixture, mix_models
    from scaler_wizard.screen import Bar
    from scaler_wizard.searching import search_and_merge

    adapters, mixture = load_adapters(recipe), load_mixture(recipe)
    if conflicts is not None and (adapters is not None or mixture is not None):
        raise ScalerError(
            "--conflicts: is for merges of models", "write MODEL+ADAPTER under `models:` to draw adapters"
        )
    if adapters is not None and out is not None:
        fused = merge_adapters(adapters, out, force=force)
        _print_json(fused.lineage) if as_json else _show_rows(fused.rows())
        return
    if mixture is not None and out is not None:
        mixed = mix_models(mixture, out, force=force)
        _print_json(mixed.lineage) if as_json else typer.echo(mixed.folder)
        return
    if adapters is not None:
        _show_rows(look_at_adapters(adapters))
        _talk("Nothing stands in the way. Name a folder to merge into: --out FOLDER")
        return
    if mixture is not None:
        raise ScalerError("--out: missing", "name the folder that is made: --out FOLDER")
    if conflicts is not None:
        from scaler_wizard.merge.conflicts import draw, find_conflicts

        ready = prepare(recipe)
        found = find_conflicts(ready.method, ready.parents)
        draw(found, conflicts)
        _print_json(found) if as_json else _show_rows(found.rows())
        return
    search = load_search(recipe)
    if out is None:
        _show_rows(prepare(recipe).rows())
        _talk("Nothing stands in the way. Name a folder to merge into: --out FOLDER")
        return
    if search is not None:
        with Bar() as bar:
            _, chosen = search_and_merge(recipe, search, out, force=force, tell=bar)
        _print_json(chosen) if as_json else _show_rows(chosen.judgement.rows())
        return
    with Bar() as bar:
        merged = merge_models(recipe, out, force=force, tell=bar)
    if as_json:
        _print_json(merged.lineage)
        return
    typer.echo(merged.folder)
    _talk("Merged, not measured: a `search:` block in the recipe chooses weights and judges the result.")


@app.command()
def inspect(model: Model, as_json: Json = False) -> None:
    """What a model is, its size by part, its window, and which growth operators keep what."""
    from scaler_wizard.inspection import inspect_model
    from scaler_wizard.models import resolve

    found = inspect_model(resolve(model).folder)
    if as_json:
        _print_json(found)
    else:
        _show_rows(found.rows())


@app.command()
def prepare(
    source: Annotated[Path, typer.Argument(help="A file, or a folder of files of any kind that holds text.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the text goes: JSON lines, a card beside it.")],
    language: Annotated[list[str] | None, typer.Option(help="Keep only this language (en); repeatable.")] = None,
    quality: Annotated[bool, typer.Option(help="Drop what is not running text.")] = True,
    near_duplicates: Annotated[bool, typer.Option(help="Drop texts that nearly repeat an earlier one.")] = True,
    mask_personal: Annotated[bool, typer.Option(help="Mask e-mail addresses, phone and card numbers.")] = False,
    against: Annotated[list[Path] | None, typer.Option(help="Texts kept for measuring; repeatable.")] = None,
) -> None:
    """Make one clean training text of a folder of files, with a card that says what was dropped and why."""
    from scaler_wizard.prepare import Preparation
    from scaler_wizard.prepare import prepare as make

    how = Preparation(
        languages=tuple(language or ()),
        quality=quality,
        near_duplicates=near_duplicates,
        mask_personal=mask_personal,
        against=tuple(against or ()),
    )
    card = make(source, out, how)
    for name, reason in card.unreadable.items():
        _talk(f"{name}: {reason}")
    rows = [("kept", f"{card.kept} of {card.texts} texts in {card.files} files, {card.characters} characters")]
    rows += [("dropped", f"{found.count} {why} (such as {found.examples[0]})") for why, found in card.dropped.items()]
    rows += [("masked", f"{count} {kind}") for kind, count in card.masked.items()]
    _show_rows([*rows, ("use it", f"data: {out}")])


@app.command()
def label(
    source: Annotated[Path, typer.Argument(help="Texts, best as `scaler prepare` writes them.")],
    rules: Annotated[Path, typer.Argument(help="YAML file with the rules; docs/how-to/prepare-data.md.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the chosen texts go: JSON lines, a card beside it.")],
    seed: Annotated[int, typer.Option(help="Seed of the label model.")] = 0,
) -> None:
    """Choose texts by many weak rules: a label model weighs their votes (Snorkel)."""
    from scaler_wizard.label import label as choose
    from scaler_wizard.label import load_rules

    card = choose(source, out, load_rules(rules), seed=seed)
    typer.echo(f"{'rule':<24}{'label':<12}{'coverage':>9}{'overlaps':>9}{'conflicts':>10}{'accuracy':>9}")
    for one in card.rules:
        shares = f"{one.coverage:>9.0%}{one.overlaps:>9.0%}{one.conflicts:>10.0%}"
        typer.echo(f"{one.rule:<24}{one.label:<12}{shares}{'' if one.accuracy is None else f'{one.accuracy:.0%}':>9}")
    found = ", ".join(f"{count} {name}" for name, count in card.labels.items())
    _show_rows(
        [
            ("decided by", f"{card.decided_by}: {found}; of {card.silent} no rule spoke"),
            ("kept", f"{card.kept} of {card.texts} texts"),
            ("use it", f"data: {out}"),
        ]
    )


@app.command()
def unpickle(
    folder: Annotated[Path, typer.Argument(help="Model folder with .bin or .pt weights.")],
    out: Annotated[Path, typer.Argument(help="New folder, with safetensors.")],
    consent: Annotated[bool, typer.Option("--i-trust-its-maker", help="A pickle is a program.")] = False,
) -> None:
    """Turn pickled weights into safetensors, in a child without network."""
    from scaler_wizard.untrusted.pickled import convert_pickled

    convert_pickled(folder, out, consent=consent)
    typer.echo(out)


@app.command()
def learn(
    plan: Annotated[Path | None, typer.Argument(help="What past runs say about this plan file.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write what was learnt as rules (YAML).")] = None,
    foreign: Annotated[Path | None, typer.Option("--foreign", help="Show somebody else's rules.")] = None,
    runs: Runs = RUNS,
) -> None:
    """What past runs teach: bands for time, memory and loss, and rules with their support. Changes no setting."""
    from scaler_wizard.learn import LEAST, as_yaml, gathered, read_rules, remember, rules, told
    from scaler_wizard.plan import load_plan
    from scaler_wizard.run import write_whole

    if foreign is not None:
        typer.echo(as_yaml(read_rules(foreign)), nl=False)
        return
    past = gathered(runs)
    if plan is not None:
        known = remember(past)
        if known is None:
            raise ScalerError(
                f"{len(past)} runs are known: too few to say", f"from {LEAST} on; the plan's estimates stand"
            )
        _show_rows(told(load_plan(plan), known))
        _talk(f"By {len(past)} runs, shipped ones and yours; the plan and its limits are unchanged.")
        return
    found = as_yaml(rules(past))
    typer.echo(found, nl=False) if out is None else write_whole(out, found)


@app.command()
def telemetry(
    run: RunId = "latest",
    to: Annotated[str | None, typer.Option("--to", help="Send to this OTLP/HTTP collector.")] = None,
    runs: Runs = RUNS,
) -> None:
    """A run for your instruments: Prometheus text, or OpenTelemetry traces and metrics to a collector."""
    from scaler_wizard.telemetry import prometheus, send

    found = _open(runs, run)
    if to is None:
        typer.echo(prometheus(found), nl=False)
        return
    spans, points = send(found, to)
    _talk(f"Sent {spans} spans and {points} points to {to}")


@app.command()
def share(
    run: RunId = "latest",
    merged: Annotated[Path | None, typer.Option("--merged", help="A merged model's folder instead of a run.")] = None,
    preview: Annotated[bool, typer.Option("--preview", help="Show what would be in the file.")] = False,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write the file.")] = None,
    runs: Runs = RUNS,
    as_json: Json = False,
) -> None:
    """A finished run as a file that you may give away: closed words and coarse numbers; nothing is sent."""
    from scaler_wizard.run import write_whole
    from scaler_wizard.share import as_yaml, merge_pattern, pattern

    if not preview and out is None:
        raise ScalerError("nothing to do", "look first: --preview; then write the file: -o FILE")
    shared = pattern(_open(runs, run)) if merged is None else merge_pattern(merged)
    if as_json:
        _print_json(shared)
    elif preview:
        typer.echo(as_yaml(shared), nl=False)
    if out is not None:
        write_whole(out, as_yaml(shared))
        _talk(f"Written to {out}; nothing was sent. Pass it on if you like what you read.")


@app.command()
def patterns(folder: Path, as_json: Json = False) -> None:
    """Runs that others shared: what they asked for and what came of it; theirs, and never settings of yours."""
    from scaler_wizard.share import MergePattern, read_patterns

    good, bad = read_patterns(folder)
    if as_json:
        _print_json({"patterns": good, "refused": bad})
        return
    for name, one in good.items():
        if isinstance(one, MergePattern):
            worth = f"vibe {one.merge.vibe:.2f}, loses in {one.merge.losing} of {one.merge.domains} domains"
            typer.echo(f"{name:<28} {one.family:<12} {one.merge.method + ' merge':<28} {worth}")
            continue
        change = "unknown" if one.short_change is None else f"{one.short_change:+.2f}"
        wish = f"{one.recipe.growth:g}x, window {one.recipe.stretch:g}x, {one.recipe.train}"
        merged = "" if one.merge is None else f", {one.merge.method} merge: vibe {one.merge.vibe:.2f}"
        typer.echo(f"{name:<28} {one.family:<12} {wish:<28} short loss {change}{merged}")
    for name, why in bad.items():
        _talk(f"refused {name}: {why}")


@app.command()
def contract() -> None:
    """The human contract, in words."""
    from scaler_wizard.contract import VERSION, Contract

    typer.echo(f"Human contract, version {VERSION}\n{Contract().text()}", nl=False)


# -- how the verbs do it -----------------------------------------------------------------------------------------------


def _plan(recipe: Any, runs: Path) -> Plan:
    from scaler_wizard.architecture import read_architecture
    from scaler_wizard.early import refuse_no_text
    from scaler_wizard.hardware import detect
    from scaler_wizard.models import resolve
    from scaler_wizard.plan import make_plan

    refuse_no_text(recipe.data)
    source = resolve(recipe.model)
    return make_plan(recipe, source, read_architecture(source.folder), detect(runs))


def _begun_plan(recipe: Any, runs: Path, trial: bool | None) -> Plan:
    """The plan of a run that goes on, or of a new one: tried where that was asked for or its training is long."""
    from scaler_wizard.run import unfinished
    from scaler_wizard.trial import is_long

    counted = _plan(recipe, runs)
    wanted = is_long(counted) if trial is None else trial
    return _tried_plan(recipe, runs) if wanted and unfinished(runs, counted.identity()) is None else counted


def _tried_plan(recipe: Any, runs: Path) -> Plan:
    """The plan with its trainings tried."""
    from scaler_wizard.architecture import read_architecture
    from scaler_wizard.early import refuse_no_text
    from scaler_wizard.hardware import detect
    from scaler_wizard.models import resolve
    from scaler_wizard.plan import Setting, make_plan
    from scaler_wizard.trial import try_out

    refuse_no_text(recipe.data)
    source, machine = resolve(recipe.model), detect(runs)
    base = read_architecture(source.folder)
    setting, counted = Setting(recipe, base, machine), make_plan(recipe, source, base, machine)
    tried = try_out(counted, threads=setting.threads, memory_limit=setting.memory_limit, told=_talk)
    return make_plan(recipe, source, base, machine, tried=tried)


def _bytes(text: str) -> int:
    from scaler_wizard.recipe import count

    try:
        return count(text)
    except ValueError:
        raise ScalerError(f"--shard-size {text:.40}: no size", "write 500M or 5G") from None


def _show_rows(rows: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        typer.echo(f"{name:<{width}}  {value}")


def _show_plan(made: Plan) -> None:
    from rich.console import Console

    from scaler_wizard.view import plan_table

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    for part in plan_table(made):
        console.print(part, markup=False)


def _carry_out(made: Plan, runs: Path, *, sign: str | None, standing: bool) -> None:
    from scaler_wizard.plan import to_yaml
    from scaler_wizard.run import create, unfinished

    text = to_yaml(made)
    found = unfinished(runs, made.identity())
    if found is None:
        _show_plan(made)
        signed = _signed(made, sign)
        runs.mkdir(parents=True, exist_ok=True)
        found = create(runs, text, signed, name=made.name, identity=made.identity(), now=datetime.now(UTC))
        _talk(f"Run {found.id}")
    else:
        _talk(f"Going on with {found.id}, which is at {found.current or 'its beginning'}")
    _conduct(found, standing=standing)


def _signed(made: Plan, name: str | None) -> Any:
    from scaler_wizard.contract import Contract, sign

    terms = Contract(memory_share=made.limits.memory_share)
    if name is None and sys.stdin.isatty():
        _talk(f"\nThe human contract:\n{terms.text()}")
        name = typer.prompt("Sign with your name (empty: do not start)", default="", show_default=False, err=True)
    return sign(terms, name or "", now=datetime.now(UTC))


def _conduct(found: Run, *, standing: bool) -> None:
    from scaler_wizard.plan import load_plan
    from scaler_wizard.recovery import mend
    from scaler_wizard.room import told_when_full
    from scaler_wizard.run import locked
    from scaler_wizard.screen import Screen, approver
    from scaler_wizard.supervisor import Supervisor, memory_limit
    from scaler_wizard.view import farewell

    with told_when_full(found.folder), locked(found):
        for words in mend(found):
            _talk(words)
    made = load_plan(found.folder / "plan.yaml")
    screen = Screen(memory_limit=memory_limit(found, made))
    messenger = _messenger(found, screen.say)

    def tell(kind: str, event: Any) -> None:
        screen.tell(kind, event)
        if messenger is not None:
            messenger.tell(kind, event)

    supervisor = Supervisor(found, made, approver=approver(screen, standing=standing), tell=tell)
    try:
        supervisor.conduct()
    finally:
        screen.close()
        if messenger is not None:
            messenger.close()
    typer.echo(farewell(found))


def _messenger(found: Run, say: Callable[[str], None]) -> Messenger | None:
    """Who tells the user elsewhere; a webhook that is set up wrongly is said and stops no run."""
    from scaler_wizard.webhook import Messenger, load_webhook, webhook_file

    try:
        hook = load_webhook(webhook_file())
    except ScalerError as error:
        _talk(f"No webhook: {error}")
        return None
    return None if hook is None else Messenger(hook, found.id, say=say)


def _verify_log(found: Run) -> None:
    from scaler_wizard import flight_log

    rows, head = found.journal.verify()
    wrong = flight_log.first_fault(found.folder / flight_log.NAME)
    if wrong is not None:
        raise ScalerError(
            f"{found.id}: line {wrong} of its flight log is not what was written",
            f"the journal is whole: delete {flight_log.NAME}, and the next command writes it again",
        )
    typer.echo(f"{rows} events, none changed, none missing; the last hash is {head}")
    _talk("Note this hash elsewhere: who can rewrite the whole journal can rewrite its hashes.")


def _show_preview(found: Run, slug: str, *, as_json: bool) -> None:
    from scaler_wizard.preview import preview

    seen = preview(found, slug)
    if as_json:
        _print_json(seen)
        return
    typer.echo(seen.sentence)
    for word, work in [("returns", seen.returns), *(("leaves", work) for work in seen.leaves)]:
        figures = [
            f"{work.steps} steps" if work.steps else "",
            "" if work.minutes is None else f"{work.minutes:.1f} minutes",
            "" if work.perplexity is None else f"perplexity {work.perplexity:.2f}",
            "" if work.accuracy is None else f"accuracy {work.accuracy:.0%}",
        ]
        typer.echo(f"{word:<8} {work.phase:<20} {', '.join(figure for figure in figures if figure)}")


def _open(runs: Path, wanted: str) -> Run:
    from scaler_wizard.recovery import open_sound
    from scaler_wizard.run import find_run

    return open_sound(find_run(runs, wanted))


def _answer(runs: Path, wanted: str, action: str) -> None:
    found = _open(runs, wanted)
    gate = found.open_gate()
    if gate is None:
        raise ScalerError(f"{found.id}: no gate is open", "see `scaler status`")
    given = found.decide(
        gate.data["gate"], gate.data["evidence_hash"], action, who=getpass.getuser(), how="scaler " + action
    )
    if not given:
        raise ScalerError(f"{found.id}: this gate was answered already", "see `scaler log`")
    _talk(f"{action}: {gate.data['sentence']}")
    if found.status != "running":
        _talk(f"The run is {found.status}; `scaler resume {found.id}` carries the answer out.")


def _talk(text: str) -> None:
    typer.echo(text, err=True)


def _print_json(data: Any) -> None:
    from scaler_wizard.record import to_json

    typer.echo(to_json(data))


if "COLUMNS" not in os.environ and not sys.stderr.isatty():
    os.environ["COLUMNS"] = "100"
