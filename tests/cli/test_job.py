"""Is a job file read as written, and does a wrong one say in one line which key is wrong and what was expected?"""

from pathlib import Path

import pytest
from schools_job import JOB

from amortax._errors import AmortaxError
from amortax.cli.job import read_job, recipes


def written(folder: Path, text: str) -> Path:
    (folder / "job.toml").write_text(text)
    return folder / "job.toml"


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(AmortaxError) as caught:
        recipes(read_job(written(folder, text)))
    message = str(caught.value)
    assert "\n" not in message
    assert "job.toml" in message
    return message


def test_paths_are_relative_to_the_job_file(tmp_path):
    job = read_job(written(tmp_path, JOB))
    assert job.table == tmp_path / "pupils.csv"
    assert job.posterior == tmp_path / "job.amx"
    assert (job.seed, job.num_steps, job.batch_size) == (1, 20, None)
    assert (job.columns, job.unit_columns, job.categories) == (("x", "y"), ("size",), {})


def test_without_a_plate_units_are_whole_data_sets(tmp_path):
    assert read_job(written(tmp_path, JOB.replace('plate = "school"', ""))).plate is None


def test_every_key_is_read(tmp_path):
    text = JOB.replace('unit_columns = ["size"]', 'missing = ["y"]\ncategories = { x = ["a", "b"], y = "found" }')
    text = text.replace(
        "[fit]", 'family = "full"\nshared_family = { recipe = "low_rank", rank = 2 }\n[fit]\nbatch_size = 3'
    )
    job = read_job(written(tmp_path, text + '[output]\nposterior = "made/here.amx"\n'))
    assert job.categories == {"x": ("a", "b"), "y": None}
    assert job.missing == ("y",)
    assert job.batch_size == 3
    assert job.posterior == tmp_path / "made" / "here.amx"


def test_recipes_are_built_from_names_and_options(tmp_path):
    import amortax

    text = JOB.replace("[fit]", 'family = "diagonal"\nhead = "concatenate"\n[fit]')
    built = recipes(read_job(written(tmp_path, text)))
    assert built == {
        "encoder": amortax.deep_set(width=8, depth=1),
        "family": amortax.diagonal(),
        "head": amortax.concatenate(),
    }


WRONG = {
    "unknown key": ("num_steps = 20", "num_step = 20", "unknown key 'fit.num_step'; did you mean 'num_steps'?"),
    "key of another table": ('plate = "school"', 'plate = "school"\nseed = 3', "it belongs to the table [fit]"),
    "unknown table": ("[fit]", "[training]", "unknown key 'training'; expected some of model, plate, data"),
    "text for a number": (
        "num_steps = 20",
        'num_steps = "many"',
        "'fit.num_steps': expected a whole number from 1, got 'many'",
    ),
    "truth for a number": ("num_steps = 20", "num_steps = true", "expected a whole number from 1, got True"),
    "zero steps": ("num_steps = 20", "num_steps = 0", "expected a whole number from 1, got 0"),
    "negative seed": ("seed = 1", "seed = -1", "'fit.seed': expected a whole number from 0, got -1"),
    "one column": ('columns = ["x", "y"]', 'columns = "x"', "'data.columns': expected a list of column names, got 'x'"),
    "a value for a table": ("[data]", "data = 3\n[output]", "'data': expected a table, got 3"),
    "no data": (JOB[JOB.index("[data]") :], "", "the table [data] is missing"),
    "no path": ('path = "pupils.csv"', "", "the key 'data.path' (a text) is missing"),
    "categories": ("[guide]", "categories = { x = 3 }\n[guide]", "'data.categories': expected a table of column"),
    "no TOML": ("[data]", "[data", "is not TOML"),
    "recipe of another role": ('recipe = "deep_set"', 'recipe = "full"', "expected one of the recipes dense, deep_set"),
    "no recipe": ('recipe = "deep_set", ', "", "'guide.encoder': expected a recipe"),
    "unknown option": ("width = 8", "size = 8", "recipe 'deep_set' has no option 'size'; it has width, depth"),
    "option of another type": (
        "width = 8",
        'width = "big"',
        "option 'width': expected a whole number from 1, got 'big'",
    ),
}


@pytest.mark.parametrize(("old", "new", "said"), WRONG.values(), ids=WRONG)
def test_a_wrong_job_is_refused_by_key(tmp_path, old, new, said):
    assert old in JOB
    assert said in refusal(tmp_path, JOB.replace(old, new))


def test_an_option_that_no_job_can_give_is_refused_by_its_type(tmp_path):
    guide = "[guide]\n"
    assert guide in JOB
    said = refusal(tmp_path, JOB.replace(guide, guide + 'shared_family = { recipe = "blocks", layout = [] }\n'))
    assert "option 'layout': expected" in said


def test_a_job_that_is_not_there(tmp_path):
    with pytest.raises(AmortaxError, match="no such file"):
        read_job(tmp_path / "absent.toml")
    with pytest.raises(AmortaxError, match=r"expected a \.toml file"):
        read_job(tmp_path / "radon.csv")
