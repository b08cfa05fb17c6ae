"""Names that moved still work for a version, and say where they are now."""

from types import SimpleNamespace

import pytest

from hf_jepa.training.publishing import write_release


def test_write_release_is_a_method_now():
    trainer = SimpleNamespace(write_release=lambda results=None, **options: (results, options))
    with pytest.warns(FutureWarning, match=r"trainer\.write_release\(\)"):
        assert write_release(trainer, {"a": 1}, recipe=None) == ({"a": 1}, {"recipe": None})
