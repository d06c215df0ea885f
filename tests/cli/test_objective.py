"""Does the job's `objective` become the one that it names, and a wrong one an error that says what is expected?"""

import pytest
from schools_job import JOB

import amortax as am
from amortax._errors import AmortaxError
from amortax.cli.job import read_job
from amortax.cli.objective import objective


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"elbo"', am.ELBO()),
        ('{ name = "iwelbo", num_particles = 4 }', am.IWELBO(4)),
        ('{ name = "renyi", alpha = 0.5 }', am.Renyi(0.5)),
        ('{ name = "wake_sleep", num_particles = 4, wake_share = 0.5 }', am.WakeSleep(4, wake_share=0.5)),
        ('["elbo", { name = "forward_kl", weight = 0.5 }]', am.Sum(am.ELBO(), am.ForwardKL(), weights=(1.0, 0.5))),
    ],
)
def test_an_objective_is_built_from_its_name_and_options(tmp_path, text, expected):
    (tmp_path / "job.toml").write_text(JOB.replace("num_steps = 20", f"num_steps = 20\nobjective = {text}"))
    assert objective("job", read_job(tmp_path / "job.toml").objective) == expected


def test_without_one_fit_chooses(tmp_path):
    (tmp_path / "job.toml").write_text(JOB)
    assert objective("job", read_job(tmp_path / "job.toml").objective) is None


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("iwae", "expected one of the objectives elbo, iwelbo, renyi, forward_kl, wake_sleep, got 'iwae'"),
        ({"name": "iwelbo", "particles": 4}, "objective 'iwelbo' has no option 'particles'; it has num_particles"),
        ({"name": "iwelbo", "num_particles": "4"}, "option 'num_particles': expected a number, got '4'"),
        ({"name": "iwelbo", "num_particles": 0}, "am.IWELBO: num_particles must be a whole number from 1, got 0"),
        ({"name": "renyi"}, "objective 'renyi' needs the option 'alpha'"),
        ({"name": "elbo", "weight": 0.5}, "'weight' is for one of several objectives; a single one has none"),
        (["elbo", {"name": "forward_kl", "weight": -1.0}], "weights\\[1\\] must be a finite number from 0"),
    ],
)
def test_a_wrong_one_says_what_is_expected(value, words):
    with pytest.raises(AmortaxError, match="job.toml: .*" + words) as caught:
        objective("job.toml: key 'fit.objective'", value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["3", "[]", "{ alpha = 1 }", '[["elbo"]]'])
def test_what_has_not_the_form_of_one_is_refused_when_the_job_is_read(tmp_path, text):
    (tmp_path / "job.toml").write_text(JOB.replace("num_steps = 20", f"num_steps = 20\nobjective = {text}"))
    with pytest.raises(AmortaxError, match="key 'fit.objective': expected an objective"):
        read_job(tmp_path / "job.toml")
