"""Vectors given by FUNDAX_GOLDEN: what is of their systems runs, whatever file it is in, and the rest skips."""

import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_vectors_of_two_systems(golden_of_ours, tmp_path):
    for system in ("flair", "openclip"):
        (tmp_path / system).symlink_to(golden_of_ours / system)
    files = [HERE / f"test_{name}.py" for name in ("metrics", "position_tables", "openclip_param_groups")]
    command = [sys.executable, "-m", "pytest", "-n", "0", "-rA", "-p", "no:cacheprovider", *files]
    environment = os.environ | {"FUNDAX_GOLDEN": str(tmp_path), "COLUMNS": "200"}
    run = subprocess.run(command, cwd=HERE.parents[1], env=environment, capture_output=True, text=True)
    passed = set(re.findall(r"^PASSED \S+::(\S+)", run.stdout, re.MULTILINE))
    tags = ("clip_quickgelu", "clip_gelu", "customtext", "customtext_siglip")
    assert passed == {
        "test_classification_metrics[flair-metrics.npz-]",
        "test_classification_metrics[flair-metrics.npz-bin_]",
        "test_resized_as_the_original_code_does[up-openclip-antialiased]",
        "test_resized_as_the_original_code_does[down-openclip-antialiased]",
        *(f"test_decay_groups_are_the_originals[{tag}]" for tag in tags),
    }, run.stdout + run.stderr
    assert "8 passed, 5 skipped" in run.stdout
    assert f"FUNDAX_GOLDEN={tmp_path} has no folder keepfit" in run.stdout
