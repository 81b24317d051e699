"""The cost model: what it must obey, a simulation event by event beside it, and the page that states its numbers."""

from __future__ import annotations

import csv
import json
import runpy
import sys
from bisect import bisect_left
from dataclasses import replace
from functools import cache
from itertools import pairwise
from math import ceil, inf
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.scaling import (
    CAUSES,
    Worth,
    cost,
    cost_of_array,
    deployments,
    fetch_seconds,
    worth_having,
)
from pythia_dynamics.history.workload import GPU_BYTES, Limits, Resources, Work, evaluation_operations

ROOT = Path(__file__).parents[2]
SIMULATION = ROOT / "benchmarks" / "scaling_simulation.py"
in_the_tree = pytest.mark.skipif(not SIMULATION.is_file(), reason="the benchmarks are not in a source distribution")


def fetching(revisions: int, size: int, requests: int = 1) -> Work:
    count = revisions * requests
    return Work(revisions, count, count, 1, revisions * size, revisions * size)


works = st.builds(fetching, st.integers(1, 400), st.integers(0, 10**8), st.integers(1, 3))
lines = st.builds(
    Resources,
    workers=st.integers(1, 40),
    addresses=st.sampled_from([1, 2, 16]),
    bandwidth=st.floats(1e6, 1e10),
    connection=st.one_of(st.floats(1e6, 1e9), st.just(inf)),
    hub_latency=st.floats(0.0, 0.5),
    storage_latency=st.floats(0.0, 0.5),
    limits=st.builds(Limits, st.integers(5, 500), st.just(500.0), st.floats(0.0, 60.0)),
)


@cache
def simulation() -> SimpleNamespace:
    """The names of the script, whose own imports are forgotten."""
    before = list(sys.path)
    found = SimpleNamespace(**runpy.run_path(str(SIMULATION)))
    sys.path[:] = before
    sys.modules.pop("scaling_works", None)
    return found


# -- what the model must obey ---------------------------------------------------------------------------------


def test_nothing_takes_no_time() -> None:
    found = cost(Work(), Resources())
    assert (found.seconds, found.limited_by, found.memory_bytes, found.cpu_hours, found.gpu_hours) == (0, None, 0, 0, 0)
    assert set(found.shares.values()) == {0.0}
    assert cost_of_array(Work(), Resources(), 4).seconds == 0
    assert [each.cost.seconds for each in deployments(Work(), Resources(), jobs=4)] == [0, 0, 0]


def test_one_worker_takes_the_sum() -> None:
    """Without others there is no queue: each revision waits, is transferred and is stored."""
    line = Resources(workers=1, bandwidth=1e7, hub_latency=0.3, storage_latency=0.2, request_seconds=0.0, disk=1e8)
    each = 0.5 + 0.1 + 0.01
    assert fetch_seconds(fetching(1, 10**6), line) == pytest.approx(0.3 + 0.5 + each)
    assert fetch_seconds(fetching(50, 10**6), line) == pytest.approx(0.3 + 3 * 0.5 + 50 * each)
    assert fetch_seconds(fetching(50, 10**6, requests=2), line) == pytest.approx(0.3 + 3 * 0.5 + 50 * (each + 0.5))


@pytest.mark.parametrize("workers", [1, 2, 16, 256])
def test_workers_that_share_nothing_take_their_own_time(workers: int) -> None:
    """Each has an address, a core and a disk: k revisions each take k times one."""
    line = Resources(
        workers=workers, addresses=workers, machines=workers, bandwidth=1e7, hub_latency=0.0, storage_latency=0.0
    )
    alone = fetch_seconds(fetching(1, 10**7), line)
    for count in (1, 4, 10):
        assert fetch_seconds(fetching(count * workers, 10**7), line) == pytest.approx(count * alone)


def test_the_line_bounds_a_fetch_by_many() -> None:
    line = Resources(workers=64, bandwidth=1e7, hub_latency=0.0, storage_latency=0.0, disk=inf)
    found = cost(fetching(640, 10**6), line)
    assert found.seconds == pytest.approx(64, rel=0.01)
    assert found.limited_by == "bytes"


def test_the_core_of_its_process_bounds_a_fetch_without_a_line() -> None:
    line = Resources(workers=16, cores=8, bandwidth=inf, hub_latency=0.0, storage_latency=0.0, disk=inf)
    work = fetching(100, 10**8)
    found = cost(work, line)
    assert found.limited_by == "cpu"
    assert found.seconds == pytest.approx(found.cpu_seconds, rel=0.01)  # eight cores are no help to one process
    assert cost(work, replace(line, machines=4)).seconds == pytest.approx(found.cpu_seconds / 4, rel=0.05)


def test_with_everything_infinite_no_time_is_left() -> None:
    free = Resources(
        bandwidth=inf, hub_latency=0, storage_latency=0, disk=inf, fetch_nanoseconds=0, request_seconds=0, read=inf
    )
    assert cost(fetching(100, 10**6), free).seconds == 0


def test_the_limit_of_requests() -> None:
    """Each window but the last is used up; the last one is as fast as without a limit."""
    work, fast = fetching(2500, 1000), Resources(workers=64, hub_latency=0.001, storage_latency=0.0, bandwidth=1e9)
    free = fetch_seconds(work, fast)
    assert free < 60
    limited = replace(fast, limits=Limits(1000, 500, 60.0))
    assert 120 < fetch_seconds(work, limited) < 120 + free
    assert cost(work, limited).limited_by == "requests"
    assert fetch_seconds(work, replace(limited, limits=Limits(2500, 500, 60.0))) == free  # one window is enough
    assert fetch_seconds(work, replace(limited, limits=Limits(1000, 500, 1e-3))) == free  # the window is no limit
    assert fetch_seconds(work, replace(limited, addresses=3)) == free  # each address has a window
    slow = replace(limited, workers=1, hub_latency=1.0)  # slower than the limit
    assert fetch_seconds(work, slow) == fetch_seconds(work, replace(slow, limits=Limits(1e9, 500, 60.0)))


def test_requests_to_the_api_are_limited_too() -> None:
    work = replace(fetching(10, 1000), api_requests=1001)
    assert 600 <= fetch_seconds(work, Resources()) < 605


@settings(max_examples=60, deadline=None)
@given(works, lines)
def test_more_of_anything_is_never_slower(work: Work, line: Resources) -> None:
    now = fetch_seconds(work, line)
    assert 0 < now < inf
    for more in (
        {"workers": line.workers + 1},
        {"workers": 2 * line.workers},
        {"addresses": line.addresses + 1},
        {"machines": 2},
        {"bandwidth": 1.5 * line.bandwidth},
        {"disk": 2 * line.disk},
        {"hub_latency": line.hub_latency / 2},
        {"limits": replace(line.limits, requests=line.limits.requests + 7)},
    ):
        assert fetch_seconds(work, replace(line, **more)) <= now * (1 + 1e-9), more
    twice = work + work  # all revisions count as their mean, so more of them are compared in the same sizes
    assert fetch_seconds(twice, line) >= now * (1 - 1e-9)
    assert fetch_seconds(twice, line) >= 2 * work.bytes / (line.bandwidth * min(line.addresses, line.workers))


@settings(max_examples=60, deadline=None)
@given(works, lines)
def test_no_fetch_beats_its_bounds(work: Work, line: Resources) -> None:
    found = cost(work, line)
    addresses = min(line.addresses, line.workers)
    assert found.seconds >= work.bytes / (line.bandwidth * addresses)
    assert found.seconds >= work.disk_bytes / line.disk
    latencies = work.requests * line.hub_latency + work.storage_requests * line.storage_latency
    assert found.seconds >= latencies / line.workers * (1 - 1e-9)
    windows = ceil(work.requests / (line.limits.requests * addresses))
    assert found.seconds >= (windows - 1) * line.limits.seconds
    assert sum(found.shares.values()) == pytest.approx(1)
    assert set(found.shares) == set(CAUSES)


def test_a_pass_is_divided_among_cores_until_the_disk_is_reached() -> None:
    work = Work(weights=10**9, nanoseconds=1.0)
    assert cost(work, Resources(cores=1, read=inf)).seconds == pytest.approx(1.0)
    assert cost(work, Resources(cores=4, read=inf)).seconds == pytest.approx(0.25)
    by_disk = cost(work, Resources(cores=4, read=2e9))
    assert by_disk.limited_by == "disk"
    assert by_disk.seconds == pytest.approx(1.0)
    assert by_disk.cpu_seconds == pytest.approx(1.0)
    frames = cost(Work(frames=100, frame_seconds=0.01), Resources(cores=8))
    assert frames.limited_by == "cpu"
    assert frames.seconds == pytest.approx(1.0)


def test_an_evaluation_is_bounded_by_its_gpus_or_by_the_download() -> None:
    operations = 10 * evaluation_operations(10**9, [80.0] * 500)
    work = Work(checkpoints=10, checkpoint_bytes=10 * 2 * 10**9, checkpoint_requests=10, operations=operations)
    work = replace(work, largest_model=10**9)
    one = cost(work, Resources(gpus=1, gpu_rate=1e12, bandwidth=1e12))
    assert one.limited_by == "gpu"
    assert one.seconds == pytest.approx(operations / 0.5e12)
    assert one.gpu_seconds == pytest.approx(one.seconds)
    assert one.memory_bytes == 4 * 10**9
    ten = cost(work, Resources(gpus=10, gpu_rate=1e12, bandwidth=1e12))
    assert ten.seconds == pytest.approx(one.seconds / 10)
    assert ten.gpu_hours == pytest.approx(one.gpu_hours)
    slow = cost(work, Resources(gpus=10, gpu_rate=1e14, bandwidth=25e6))
    assert slow.limited_by == "bytes"
    assert slow.seconds == pytest.approx(20e9 / 25e6, rel=0.02)
    with pytest.raises(PythiaDynError, match="there is no GPU"):
        cost(work, Resources())
    with pytest.raises(PythiaDynError, match="do not fit a GPU"):
        cost(replace(work, largest_model=GPU_BYTES), Resources(gpus=1))


def test_works_are_added_and_divided() -> None:
    small, large = fetching(10, 100), replace(fetching(90, 1000), weights=300, nanoseconds=2.0)
    both = small + replace(large, frames=3) + Work(weights=100, nanoseconds=1.0)
    assert (both.revisions, both.bytes, both.weights, both.frames) == (100, 91_000, 400, 3)
    assert both.nanoseconds == pytest.approx(1.75)
    part = both.part(3)
    assert (part.revisions, part.requests, part.bytes, part.api_requests) == (34, 34, 30_940, 2)
    assert both.part(1) == both
    with pytest.raises(PythiaDynError, match="bytes of a work is not -1"):
        Work(bytes=-1)
    for wrong in ({"workers": 0}, {"bandwidth": 0.0}, {"hub_latency": -1.0}, {"gpus": -1}):
        with pytest.raises(PythiaDynError, match=next(iter(wrong))):
            Resources(**wrong)
    with pytest.raises(PythiaDynError, match="no limit"):
        Limits(requests=0)


def test_the_jobs_of_an_array_share_line_and_limit() -> None:
    work, job = fetching(400, 10**6), Resources(workers=4, bandwidth=1e7)
    alone = cost(work, job)
    behind_one = cost_of_array(work, job, 4)
    assert behind_one.seconds == pytest.approx(work.bytes / job.bandwidth, rel=0.1)
    assert behind_one.api_requests == 4
    assert behind_one.requests == alone.requests
    own = cost_of_array(work, replace(job, addresses=4), 4)
    assert own.seconds == pytest.approx(cost(work.part(4), job).seconds)
    assert own.cpu_seconds == pytest.approx(alone.cpu_seconds)
    assert cost_of_array(fetching(2, 10**6), job, 100).api_requests == 2  # no more jobs than revisions
    limited = replace(job, limits=Limits(100, 500, 60.0), hub_latency=0.0, storage_latency=0.0, bandwidth=1e9)
    assert 180 <= cost_of_array(work, limited, 4).seconds < 190  # four windows, however many jobs


def test_deployments_are_one_machine_an_array_and_a_cluster() -> None:
    work = replace(fetching(100, 10**6), weights=10**10)
    machine, array, cluster = deployments(work, Resources(workers=8, cores=2, bandwidth=1e7), jobs=4, addresses=2)
    assert [each.name for each in (machine, array, cluster)] == ["machine", "array", "cluster"]
    assert (array.resources.workers, array.resources.cores, array.resources.machines) == (32, 8, 4)
    assert (cluster.resources.workers, cluster.resources.cores, cluster.resources.addresses) == (8, 8, 2)
    assert machine.cost.pass_seconds == pytest.approx(4 * array.cost.pass_seconds)
    assert machine.cost.fetch_seconds > 1.7 * cluster.cost.fetch_seconds
    assert len({round(each.cost.cpu_seconds, 6) for each in (machine, array, cluster)}) == 1


def test_how_many_are_worth_having() -> None:
    assert worth_having(lambda n: 100 / n) == Worth(256, 256)
    assert worth_having(lambda n: 100.0) == Worth(2, 1)
    assert worth_having(lambda n: max(100 / n, 100 / 12)) == Worth(16, 16)
    assert worth_having(lambda n: 100 / n, most=16) == Worth(16, 16)


# -- the simulation -------------------------------------------------------------------------------------------


def most_in_a_window(sent: tuple[float, ...], seconds: float) -> int:
    """Requests in the fullest window that begins with one of them, as the Hub's do after a pause."""
    most, start = 0, 0
    while start < len(sent):
        stop = max(bisect_left(sent, sent[start] + seconds - 1e-9), start + 1)
        most, start = max(most, stop - start), stop
    return most


@in_the_tree
@settings(max_examples=40, deadline=None)
@given(works, lines, st.integers(0, 3))
def test_the_simulation_loses_nothing(work: Work, line: Resources, seed: int) -> None:
    found = simulation().simulate([work, fetching(3, 1000)], line, seed=seed)
    assert set(found.fetched) == {1}
    assert len(found.fetched) == work.revisions + 3
    assert sum(map(len, found.sent)) == work.requests + 3
    assert found.transferred == pytest.approx(work.bytes + 3000)
    for sent in found.sent:
        assert list(sent) == sorted(sent)
        assert most_in_a_window(sent, line.limits.seconds) <= line.limits.requests or not line.limits.seconds
    workers = min(line.workers, work.revisions + 3)
    assert sum(found.spent.values()) == pytest.approx(workers * found.seconds)  # no time of a worker is lost


@in_the_tree
def test_model_and_simulation_agree() -> None:
    """But for one draw in a thousand: workers that begin together and stay in step are slower than queues say."""
    outside = simulation().disagreements(2000, seed=1)
    assert len(outside) <= 2
    assert all(-0.5 < each < 0.5 for each in outside)


@in_the_tree
@pytest.mark.parametrize("name", ["14m", "1b", "12b"])
@pytest.mark.parametrize("line", ["plain", "good", "many"])
def test_rows_of_the_page_agree_with_the_simulation(name: str, line: str) -> None:
    script = SimpleNamespace(**runpy.run_path(str(ROOT / "scripts" / "scaling_page.py")))
    for work in (script.unembedding(name), script.whole(name)):
        found = simulation().simulate([work], script.LINES[line])
        assert cost(work, script.LINES[line]).seconds == pytest.approx(found.seconds, rel=0.1)


@in_the_tree
def test_the_simulation_of_nothing_and_of_one() -> None:
    assert simulation().simulate([], Resources()).seconds == 0
    work = replace(fetching(1, 10**6), weights=10**9)
    line = Resources(bandwidth=1e6, hub_latency=0.0, storage_latency=0.0, cores=4, machines=1, read=inf)
    found = simulation().simulate([work], line)
    assert found.fetch_seconds == pytest.approx(fetch_seconds(work, line))
    assert found.pass_seconds == pytest.approx(cost(work, line).pass_seconds)


@in_the_tree
def test_the_simulated_table_is_that_of_the_code() -> None:
    with (ROOT / "benchmarks" / "results" / "scaling-simulation.csv").open() as file:
        saved = list(csv.DictReader(file))
    assert len(saved) == 36
    for row in saved:
        assert float(row["model"]) == pytest.approx(float(row["seconds"]), rel=0.05)
        works = simulation().SIMULATED[row["work"]]
        line = simulation().cluster(int(row["workers"]), int(row["addresses"]))
        assert cost(simulation().total(works), line).seconds == pytest.approx(float(row["model"]), abs=0.01)
    by_line: dict[tuple[str, str], list[float]] = {}
    for row in saved:
        by_line.setdefault((row["work"], row["addresses"]), []).append(float(row["seconds"]))
    for seconds in by_line.values():
        assert all(more <= less * 1.001 for less, more in pairwise(seconds))
    again = simulation().simulate(simulation().SIMULATED["W_U of PolyPythias"], simulation().cluster(64, 16))
    assert f"{again.seconds:.2f}" in {f"{float(row['seconds']):.2f}" for row in saved}


# -- measured runs, and the page ------------------------------------------------------------------------------


@in_the_tree
def test_the_page_states_what_the_code_computes() -> None:
    script = SimpleNamespace(**runpy.run_path(str(ROOT / "scripts" / "scaling_page.py")))
    assert script.written() == script.PAGE.read_text(encoding="utf-8")


@in_the_tree
def test_the_runs_that_were_measured_are_predicted_by_the_code() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "scaling.json").read_text(encoding="utf-8"))
    before = list(sys.path)
    script = SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "scaling.py")))
    sys.path[:] = before
    machine, default = Resources(**found["fetch"]), Resources()
    for name in found["fetch"]:
        assert getattr(default, name) == pytest.approx(getattr(machine, name), rel=0.05)
    for run, row in zip(script.FETCHES, found["fetch_rows"], strict=True):
        assert row["predicted"] == pytest.approx(run.predicted(machine))
    rows = found["fetch_rows"] + found["pass_rows"]
    assert len(rows) == 41
    for row in rows:
        assert row["ratio"] == pytest.approx(row["predicted"] / row["measured"])
    outside = [(row["what"], row["with"]) for row in rows if abs(row["ratio"] - 1) > 0.2]
    assert outside == [("24 × 12.9 MB, 80/30 ms", "16 workers")]  # 0.77
