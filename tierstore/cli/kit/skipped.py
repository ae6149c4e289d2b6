"""The models that a command skips: it does the others, and says at its end what was wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tierstore.errors import OF_ONE, Damaged, TierstoreError


class Skipped:
    """The models that one run of a command skipped, each with the error."""

    def __init__(self) -> None:
        self.errors: dict[str, TierstoreError] = {}
        """What was wrong, by model."""

    @contextmanager
    def unless_done(self, model: str) -> Iterator[None]:
        """Go on with the others where the block fails for what concerns this model alone."""
        try:
            yield
        except OF_ONE as error:
            self.errors[model] = error

    def tell(self) -> None:
        """Raise what was wrong, if anything was: an error of the gravest kind, damage before all.

        Of one model it is the error itself. Of several the message tells each, by model.
        """
        errors = list(self.errors.values())
        if not errors:
            return
        first = next((one for one in errors if isinstance(one, Damaged)), errors[0])
        if len(errors) == 1:
            raise first
        said = "; ".join(f"{model}: {error}" for model, error in self.errors.items())
        raise type(first)(f"{len(errors)} models were skipped: {said}") from first
