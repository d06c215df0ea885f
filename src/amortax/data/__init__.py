"""What comes in: arrays and tables as `Units`."""

from .arrays import units
from .schema import TableSchema
from .source import to_arrow, write_table
from .table import from_table, read_like
from .units import Units

__all__ = ["TableSchema", "Units", "from_table", "read_like", "to_arrow", "units", "write_table"]
