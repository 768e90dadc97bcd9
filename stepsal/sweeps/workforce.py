"""The workers of a sweep (`stepsal.engines`)."""

from stepsal.engines import workforce
from stepsal.engines.local import Engine, Resources
from stepsal.engines.workforce import workers_for
from stepsal.sweeps.plan import Plan


class Workforce(workforce.Workforce):
    """By default there are as many workers as `default_workers` says."""

    def engine(self, plan: Plan) -> Engine:
        """The engine of a plan, which is ready to work."""
        return self.start(plan.job(self.modules_to_import(plan.definitions)), plan.bytes)


def default_workers(resources: Resources, plan: Plan) -> int:
    """How many workers of a plan there are where nothing is said."""
    return workers_for(resources, plan.config.model.threads, plan.bytes)
