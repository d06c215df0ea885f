"""What the tests of the command line share: one posterior, fitted by the command line."""

import pytest
from schools_job import Workplace, amortax, write_job, write_pupils


@pytest.fixture(scope="session")
def workplace(tmp_path_factory) -> Workplace:
    folder = tmp_path_factory.mktemp("cli")
    job = write_job(folder)
    write_pupils(folder / "new.csv", 1, ["N0", "N1", "N2"])
    fitted = amortax("fit", job)
    assert fitted.exit_code == 0, fitted.output
    return Workplace(folder, fitted)
