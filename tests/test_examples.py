"""Do the examples run, in their small forms, and reach what they claim?"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(script, *options):
    command = [sys.executable, str(EXAMPLES / script), "--small", *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_a_variational_autoencoder_beats_independent_pixels_with_both_posteriors(tmp_path):
    said = run("vae/vae.py", "--out", tmp_path / "digits.png")
    baseline = float(re.search(r"independent pixels: (\S+)", said)[1])
    rows = {m[1]: (float(m[2]), float(m[3])) for m in re.finditer(r"^(\w+) +(-\d+\.\d+) +(-\d+\.\d+) ±", said, re.M)}
    assert set(rows) == {"diagonal", "coupling"}
    for elbo, log_evidence in rows.values():
        assert baseline + 2 < elbo < log_evidence < 0  # 3.8 were measured; idle latents gain 0
    assert (tmp_path / "digits.png").stat().st_size > 1000


@pytest.mark.slow
def test_unlabelled_images_make_the_classifier_better(tmp_path):
    said = run("semisupervised/m2.py", "--out", tmp_path / "styles.png")
    alone, semi = (float(share) / 100 for share in re.findall(r"accuracy (\S+)%", said))
    assert 0.5 < alone < semi  # equal chances are 0.1
    assert (tmp_path / "styles.png").stat().st_size > 1000
