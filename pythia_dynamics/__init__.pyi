# The public names of the package, each from the module that defines it. `__init__.py` reads this list.

from .checkpoints.registry import resolve as resolve
from .claims.scorecard import judge as judge
from .errors import PythiaDynError as PythiaDynError
from .evaluation.interpolation import interpolation as interpolation
from .evaluation.paired import paired_difference as paired_difference
from .evaluation.portrait import portrait as portrait
from .evaluation.representation import representation as representation
from .evaluation.runner import perplexity as perplexity
from .evaluation.token_counts import token_counts as token_counts
from .history.cache import open_history as open_history
from .history.fetch import download as download
from .history.fetch import fetch as fetch
from .history.history import History as History
from .history.report import FetchReport as FetchReport
from .history.request import FetchRequest as FetchRequest
from .history.tensor import tensor as tensor
from .measures.alignment import alignment as alignment
from .measures.analyse import analyse as analyse
from .measures.angles import angles as angles
from .measures.bifurcation import bifurcation as bifurcation
from .measures.density import density as density
from .measures.displacement import msd as msd
from .measures.learning_rate import cumulative_learning_rate as cumulative_learning_rate
from .measures.measure import Flag as Flag
from .measures.measure import Measure as Measure
from .measures.measure import Table as Table
from .measures.order import order_parameter as order_parameter
from .measures.phases import phases as phases
from .measures.rank import covariance_rank as covariance_rank
from .measures.rows import rows as rows
from .measures.spectrum import spectrum as spectrum
from .measures.stream import stream as stream
from .measures.tails import tails as tails
from .measures.two_time import two_time as two_time
from .mirror import mirrored as mirrored
from .results.overview import overview as overview
from .results.populations import gather as gather
from .shard import Shard as Shard
from .studies.compare import compare as compare
from .studies.sections import write_report as write_report
from .sweep.compute import Compute as Compute
from .sweep.dataset import Variable as Variable
from .sweep.dataset import step_dataset as step_dataset
from .sweep.frame_gram import FrameGram as FrameGram
from .sweep.sweep import SlabSums as SlabSums
from .training.callback import StationarityStop as StationarityStop
from .training.callback import WeightDynamicsCallback as WeightDynamicsCallback
from .training.loop import train_suite as train_suite
from .training.loop import train_suites as train_suites
from .training.monitor import WeightMonitor as WeightMonitor
from .training.stopping import StationarityRule as StationarityRule

__all__: list[str]
__version__: str
