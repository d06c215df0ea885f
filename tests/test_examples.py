"""Do the examples run, in their small forms, and reach what they claim?"""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
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


@pytest.mark.slow
def test_an_agent_does_as_well_on_the_learned_belief_as_on_the_exact_one():
    said = run("tiger/tiger.py")
    variations = [float(x) for x in re.findall(r"total variation.*? (\d\.\d+)$", said, re.M)]
    assert len(variations) == 2
    assert max(variations) < 0.02
    optimum = float(re.search(r"optimal return from not knowing: (\S+)", said)[1])
    assert optimum == pytest.approx(19.37, abs=0.01)
    (exact, exact_error), (learned, error) = (
        map(float, x) for x in re.findall(r"return (\S+) ± (\S+?)(?:,|$)", said, re.M)
    )
    assert abs(learned - exact) < 5 * (error**2 + exact_error**2) ** 0.5
    assert learned < optimum + 5 * error


def test_tiger_has_the_numbers_of_the_file(shared):
    file = shared / "data/pomdp/Tiger.pomdp"
    if not file.is_file():
        pytest.skip(f"no {file}")
    sys.path.insert(0, str(EXAMPLES / "tiger"))
    import tiger

    text = file.read_text()
    assert float(re.search(r"discount: (\S+)", text)[1]) == tiger.DISCOUNT
    assert re.search(r"actions: (.*)", text)[1].split() == ["listen", "open-left", "open-right"]
    rows = re.search(r"O:listen\s+(.*)\n(.*)", text)
    assert [list(map(float, row.split())) for row in rows.groups()] == [[0.85, 0.15], [0.15, 0.85]]
    assert tiger.RIGHT == 0.85
    for action in ("open-left", "open-right"):
        assert re.search(rf"T:{action}\s+uniform", text)
        assert re.search(rf"O:{action}\s+uniform", text)
    rewards = np.empty((3, 2))
    names = {"listen": 0, "open-left": 1, "open-right": 2, "tiger-left": 0, "tiger-right": 1}
    for action, place, reward in re.findall(r"R:\s*(\S+) : (\S+) : \* : \* (\S+)", text):
        rewards[names[action], slice(None) if place == "*" else names[place]] = float(reward)
    np.testing.assert_array_equal(rewards, tiger.REWARD)
