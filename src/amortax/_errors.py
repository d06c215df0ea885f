"""What can go wrong, by whose doing: every error names who, where, expected, got, and the next step."""


class AmortaxError(Exception):
    """Base of every error that amortax raises on purpose; the command line prints it in one line."""


class DataError(AmortaxError, ValueError):
    """The data can't be used as given: names file, argument or column, row, and value."""


class ModelError(AmortaxError, ValueError):
    """The model can't be read or amortized: names the site, the reason, and what to write instead."""


class GuideError(AmortaxError, ValueError):
    """An encoder or family that doesn't fit the model: names the block and the choice that fits."""


class FitError(AmortaxError, RuntimeError):
    """Training could not go on: names the step, the number, and what to change."""


class ArtifactError(AmortaxError, ValueError):
    """A saved posterior that can't be trusted or used: names the file and the difference."""
