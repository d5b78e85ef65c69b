"""Each argument of three configs, changed when a run is resumed: it continues identically or with a log line, or is refused.

`python scripts/resume_matrix.py` also trains each of them.
"""

import pytest

from fundax import config as configs
from fundax.train.stored import changes, describe
from scripts import resume_matrix as matrix


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    return matrix.files(tmp_path_factory.mktemp("matrix") / "data")


OF_EACH = {"accumulate", "attention", "batch", "data", "dtype", "init", "keep", "lr", "seed", "size", "steps"}


@pytest.fixture(scope="module")
def seen():
    """Arguments that a config before this one has, such as those of every run: the script changes them in each."""
    return set()


@pytest.mark.parametrize("config", ["finetune", *(one for one in matrix.CONFIGS if one != "finetune")])
def test_each_argument_changed_alone_is_one_of_three_answers(config, there, seen, tmp_path):
    run, argv = tmp_path / "run", matrix.command(config, there)
    recipe = configs.load(matrix.REPO / "configs" / f"{config}.py", argv)[0]
    describe(recipe, run)
    (run / "checkpoints" / "2").mkdir(parents=True)  # the files that a run is compared by are in the same folder
    assert changes(recipe, run) == [] and matrix.answer(config, argv, run) == ("identical", "")
    answers = {}
    for name, changed in matrix.cases(config, there | {"run": str(run)}):
        if name in seen - OF_EACH:
            continue
        answers[name] = matrix.answer(config, changed, run)
        assert matrix.right(name, *answers[name]), (name, answers[name])
    lines = {name for name, (kind, _) in answers.items() if kind == "line"}
    contrastive = {"accumulate"} if config != "finetune" else set()
    assert lines & OF_EACH == {"attention", "keep", "steps"} | contrastive and answers.keys() >= OF_EACH
    seen.update(answers)


def test_the_same_table_in_another_place_continues_with_a_line(there, tmp_path):
    argv = matrix.command("finetune", there)
    recipe = configs.load(matrix.REPO / "configs" / "finetune.py", argv)[0]
    describe(recipe, tmp_path)
    (tmp_path / "checkpoints" / "2").mkdir(parents=True)
    kind, message = matrix.answer("finetune", [*argv, "--data", f"{there['moved']},name=labels"], tmp_path)
    assert (kind, message) == ("line", f"--data {there['labels']} -> {there['moved']},name=labels")
