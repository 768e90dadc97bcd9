"""Does a map say what causes what: steps knocked out of a model's sight, and maps held against what that changes."""

from stepsal.causality.knockout import Knockout as Knockout
from stepsal.causality.knockout import step_knockout as step_knockout
