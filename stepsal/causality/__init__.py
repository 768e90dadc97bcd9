"""Does a map say what causes what: steps knocked out of a model's sight, and maps held against what that changes."""

from stepsal.causality.folder import load_knockouts as load_knockouts
from stepsal.causality.knockout import Knockout as Knockout
from stepsal.causality.knockout import step_knockout as step_knockout
from stepsal.causality.orders import measure_orders as measure_orders
from stepsal.causality.subsets import answer_without as answer_without
