"""Ray with two slots, as the tests of the actors start it."""

from tests.actors.conftest import cluster, runner

__all__ = ["cluster", "runner"]
