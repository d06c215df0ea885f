"""Are the bugs that `mutations.py` plants still bugs of this source? Their places are there once, their tests exist."""

import ast

import pytest
from mutation_table import MUTATIONS
from mutations import ROOT


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[m.name for m in MUTATIONS])
def test_its_place_is_there_once_and_its_tests_exist(mutation):
    source = (ROOT / "src" / "amortax" / mutation.file).read_text()
    assert source.count(mutation.old) == 1
    changed = source.replace(mutation.old, mutation.new)
    assert changed != source
    ast.parse(changed)
    assert mutation.words in (ROOT / "tests" / mutation.tests).read_text()


def test_no_name_is_there_twice():
    names = [m.name for m in MUTATIONS]
    assert len(set(names)) == len(names)
