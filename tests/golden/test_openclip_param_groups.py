import json

import jax
import pytest

from fundax.interop.open_clip import objective_of, rows
from fundax.optim import decay_open_clip
from fundax.params import path_string

pytestmark = pytest.mark.vectors("openclip")


@pytest.mark.parametrize("tag", ["clip_quickgelu", "clip_gelu", "customtext", "customtext_siglip"])
def test_decay_groups_are_the_originals(golden, tag):
    folder = golden / "openclip"
    groups = json.loads((folder / f"{tag}_param_groups.json").read_text())
    objective = objective_of(json.loads((folder / f"{tag}_config.json").read_text()))
    theirs = {row.path: row.keys for row in rows(objective, custom_text=tag.startswith("customtext"))}
    batch = objective.batch_spec(1)
    params, _ = jax.eval_shape(objective.init, jax.random.key(0), batch)
    found: dict[str, list[str]] = {"decay": [], "no_decay": []}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path_string(path)
        found["decay" if decay_open_clip(name, leaf) else "no_decay"] += theirs[name]
    assert {key: sorted(names) for key, names in found.items()} == {k: sorted(v) for k, v in groups.items()}
