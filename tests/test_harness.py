"""lm-eval is an extra: its absence is two lines, its figures become records."""

import importlib.util

import pytest

from scaler_wizard.errors import ScalerError
from scaler_wizard.evals.harness import _scores, harness
from scaler_wizard.models import EMBEDDED

INSTALLED = importlib.util.find_spec("lm_eval") is not None
LOCAL = """task: local_choices
dataset_path: json
dataset_kwargs: {data_files: {test: "%s"}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@pytest.mark.skipif(INSTALLED, reason="lm-eval is installed here")
def test_a_missing_lm_eval_names_its_cure() -> None:
    with pytest.raises(ScalerError, match=r'lm-eval is not installed\n.*pip install "scaler-wizard\[evals\]"'):
        harness(EMBEDDED, ["mmlu"])


@pytest.mark.skipif(not INSTALLED, reason="needs scaler-wizard[evals]")
def test_a_local_task_runs_offline_and_an_unknown_one_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    (tmp_path / "data.jsonl").write_text('{"question": "In the", "choices": ["beginning", "zq"], "answer": 0}\n')
    (tmp_path / "task.yaml").write_text(LOCAL % (tmp_path / "data.jsonl"))
    (score,) = harness(EMBEDDED, ["local_choices"], include=tmp_path)
    assert (score.task, score.metric, score.value, score.samples) == ("local_choices", "acc", 1.0, 1)
    with pytest.raises(ScalerError, match="no-such-task: no such task in lm-eval"):
        harness(EMBEDDED, ["no-such-task"])


def test_figures_become_records_with_their_errors() -> None:
    answer = {
        "results": {
            "mmlu": {
                "alias": "mmlu",
                "acc,none": 0.5,
                "acc_stderr,none": 0.1,
                "f1,strict": 0.2,
                "f1_stderr,strict": "N/A",
            }
        },
        "n-samples": {"mmlu": {"original": 100, "effective": 20}},
    }
    first, second = _scores(answer, "0.4.13")
    assert (first.metric, first.value, first.standard_error, first.samples) == ("acc", 0.5, 0.1, 20)
    assert (second.metric, second.standard_error) == ("f1 (strict)", None)
