"""How do columns leave as a table of the field? Arrow, and pandas where it is installed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .._errors import DataError


def arrow_table(columns: Mapping[str, np.ndarray]) -> Any:
    """A `pyarrow.Table` with these columns, in their order."""
    import pyarrow as pa

    return pa.table({name: pa.array(np.asarray(column)) for name, column in columns.items()})


def pandas_frame(columns: Mapping[str, np.ndarray]) -> Any:
    """A `pandas.DataFrame` with these columns, in their order; `DataError` where pandas is not installed."""
    try:
        import pandas
    except ImportError as error:
        raise DataError("to_pandas needs pandas: pip install pandas; to_arrow() needs nothing more") from error
    return pandas.DataFrame({name: np.asarray(column) for name, column in columns.items()})
