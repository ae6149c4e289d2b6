"""A failing assertion of a contract suite shows its values, as those of a test module do."""

import pytest

pytest.register_assert_rewrite(
    "tierstore.testing.blob_contract",
    "tierstore.testing.blob_batches",
    "tierstore.testing.blob_races",
)
