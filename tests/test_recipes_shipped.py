"""Every shipped recipe, planned for every family, and carried out on the embedded model."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from commands import called, scaler
from scaler_wizard.architecture import Architecture, read_architecture
from scaler_wizard.contract import Contract, sign
from scaler_wizard.errors import ScalerError
from scaler_wizard.hardware import Hardware
from scaler_wizard.models import EMBEDDED, Source
from scaler_wizard.phases import Plan
from scaler_wizard.plan import make_plan, to_yaml
from scaler_wizard.recipe import Recipe, load_recipe, shipped_recipes
from scaler_wizard.run import create
from scaler_wizard.supervisor import Supervisor
from tiny_models import FAMILIES, make

NAMES = tuple(shipped_recipes())
MIXTURES = ("mixtral", "qwen2_moe")
LAPTOP = Hardware(
    cpus=4,
    ram_bytes=16 * 2**30,
    ram_basis="given",
    free_bytes=12 * 2**30,
    gpu=None,
    vram_bytes=None,
    disk_free_bytes=100 * 2**30,
)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Architecture]:
    folder = tmp_path_factory.mktemp("bases")
    return {family: read_architecture(make(folder / family, family)) for family in FAMILIES}


def planned(recipe: Recipe, base: Architecture) -> Plan:
    return make_plan(recipe, Source(base.folder, base.folder.name, None, "test"), base, LAPTOP)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_recipe_is_planned_for_every_family(name: str, family: str, bases: dict[str, Architecture]) -> None:
    base = bases[family]
    recipe = load_recipe(Path(name), [f"model={base.folder}"])
    if name == "moe-upcycle" and not can_be_a_mixture(family, base):
        with pytest.raises(ScalerError, match="cannot make"):
            planned(recipe, base)
        return
    plan = planned(recipe, base)
    assert (plan.parameters > base.parameters) == (recipe.parameters is not None)
    assert (plan.context > base.native_context) == (recipe.context is not None)
    assert any(phase.stage == "P3" for phase in plan.phases) == (recipe.heal is not False)


def can_be_a_mixture(family: str, base: Architecture) -> bool:
    from scaler_wizard.grow import Upcycle, grown

    try:
        grown(base, [Upcycle(experts=3)])
    except ScalerError:
        return False
    return family not in MIXTURES


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_what_it_is_for_in_a_line_that_fits_a_screen(name: str) -> None:
    assert 20 <= len(shipped_recipes()[name]) <= 110


def test_a_recipe_without_a_model_asks_for_one() -> None:
    with pytest.raises(ScalerError, match="which one") as slip:
        load_recipe(Path("balanced"))
    assert "--set model=" in slip.value.cure


def test_a_file_of_the_users_goes_before_a_shipped_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("balanced").write_text("model: embedded\ncontext: 3x\n")
    assert load_recipe(Path("balanced")).context == "3x"


def test_the_command_lists_prints_and_plans_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    listed = json.loads(scaler("recipes", "--json").stdout)
    assert listed == shipped_recipes()
    printed = called("recipes", "careful").stdout
    (tmp_path / "mine.yaml").write_text("model: embedded\n" + printed)
    by_file = called("plan", "mine.yaml", "--json", "-o", "a.yaml")
    by_name = called("plan", "careful", "--set", "model=embedded", "--json", "-o", "b.yaml")
    plans = [json.loads(answer.stdout) for answer in (by_file, by_name)]
    assert plans[0]["recipe"] == plans[1]["recipe"] and plans[0]["parameters"] > 820_000
    wrong = called("recipes", "balanded")
    assert wrong.returncode == 2 and "balanced" in wrong.stderr


def test_only_the_operators_that_a_recipe_allows_are_used(bases: dict[str, Architecture]) -> None:
    plan = planned(load_recipe(Path("fast-answers"), [f"model={EMBEDDED}"]), read_architecture(EMBEDDED))
    operators = [
        operator.op for phase in plan.phases if phase.change.kind == "grow" for operator in phase.change.operators
    ]
    assert operators == ["widen_ffn"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.thorough if name == "moe-upcycle" else ()) for name in NAMES]
)
def test_every_recipe_is_carried_out_on_the_embedded_model(name: str, tmp_path: Path) -> None:
    """To its end, on few tokens: whatever a gate asks is approved, since that it runs is tested, not that it pays."""
    own = tmp_path / "texts.txt"
    own.write_text("The tide came in at four, and the boats turned on their chains. " * 4000)
    settings = [f"model={EMBEDDED}", "limits.threads=1", "measure.windows=2", "measure.needles=4"]
    settings += [f"data={own}"] if name == "creative" else []
    settings += ["heal.tokens=8K"] if load_recipe(Path(name), ["model=embedded"]).heal is not False else []
    plan = planned(load_recipe(Path(name), settings), read_architecture(EMBEDDED))
    signed = sign(Contract(), "Ada", now=datetime.now(UTC))
    folder = tmp_path / "runs"
    folder.mkdir()
    run = create(folder, to_yaml(plan), signed, name=name, identity=plan.identity(), now=datetime.now(UTC))
    answer = ("approve", "Ada", "test")
    Supervisor(run, plan, approver=lambda gate: answer, tell=lambda kind, event: None).conduct()  # type: ignore[arg-type,return-value]
    assert run.status == "completed"
    assert (run.report / "report.md").stat().st_size > 1000
    exported = read_architecture(run.checkpoints / str(run.current))
    assert (exported.parameters, exported.native_context) == (plan.parameters, plan.context)
