# The public names of the package, each from the module that defines it. `__init__.py` reads this list.

from .checkpoints.registry import resolve as resolve
from .claims.scorecard import judge as judge
from .errors import PythiaDynError as PythiaDynError
from .evaluation.portrait import portrait as portrait
from .evaluation.runner import perplexity as perplexity
from .history.cache import open_history as open_history
from .history.fetch import fetch as fetch
from .history.history import History as History
from .measures.density import density as density
from .measures.displacement import msd as msd
from .measures.order import order_parameter as order_parameter
from .measures.phases import phases as phases
from .measures.rank import covariance_rank as covariance_rank
from .measures.spectrum import spectrum as spectrum
from .measures.two_time import two_time as two_time
from .studies.sections import write_report as write_report
from .training.callback import StationarityStop as StationarityStop
from .training.callback import WeightDynamicsCallback as WeightDynamicsCallback
from .training.loop import train_suite as train_suite
from .training.monitor import WeightMonitor as WeightMonitor
from .training.stopping import StationarityRule as StationarityRule

__all__: list[str]
__version__: str
