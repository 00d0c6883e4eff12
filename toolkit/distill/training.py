"""A training: the network, its objective, its views, its plan and its teacher."""

from dataclasses import dataclass

from toolkit.data.mixed_views import Views
from toolkit.data.pixels import Pixels
from toolkit.distill.features import TappedNetwork
from toolkit.distill.objective import Objective
from toolkit.distill.plan import Plan
from toolkit.distill.teachers import Teacher


@dataclass(frozen=True)
class Training:
    """A network to be trained in place, what it is to minimise, on which views, as planned, and with which teacher.

    The epoch that is kept is the best one on the `valid` images.
    """

    learner: TappedNetwork
    objective: Objective
    views: Views
    valid: Pixels
    plan: Plan
    teacher: Teacher | None = None
