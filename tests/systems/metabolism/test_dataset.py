"""Cutting a recording: splits, rollout starts, batches, dtypes, and data that do not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from neuralgraph.core.errors import ConfigError, DataError
from neuralgraph.core.recording import Recording
from neuralgraph.systems.metabolism.dataset import MetabolismData


def recording(n_run: int = 6, n_time: int = 10, **changes: Any) -> Recording:
    """State of metabolite m in run r at frame t is 100 r + t + m / 10."""
    r = torch.arange(n_run, dtype=torch.float64)[:, None, None]
    t = torch.arange(n_time, dtype=torch.float64)[None, :, None]
    m = torch.arange(3, dtype=torch.float64)[None, None, :]
    state = 100 * r + t + m / 10
    parts: dict[str, Any] = {
        "time": 0.5 * t[0, :, 0].expand(n_run, n_time).clone(),
        "state": state,
        "names": ("A", "B", "C"),
        "dx_dt": torch.full_like(state, 2.0),
        "dx_dt_source": "exact",
        "provenance": {"reaction_names": ["f", "g"], "external_input_mode": "additive"},
        "inputs": {"external_input": -state},
    }
    return Recording(**{**parts, **changes})


GIVEN = {
    "n_rxn": torch.tensor(2),
    "met_all": torch.tensor([0, 1, 1, 2]),
    "rxn_all": torch.tensor([0, 0, 1, 1]),
    "met_sub": torch.tensor([0, 1]),
    "rxn_sub": torch.tensor([0, 1]),
    "sign_all": torch.tensor([-1.0, 1.0, -1.0, 1.0], dtype=torch.float64),
}


def cut(rec: Recording | None = None, given: Any = None, **changes: Any) -> MetabolismData:
    knobs = {"validation_fraction": 0.0, **changes}
    return MetabolismData(rec or recording(), GIVEN if given is None else given, **knobs)


def test_flagged_runs_are_held_out():
    flags = torch.tensor([False, True, False, False, True, False])
    data = cut(recording(is_test=flags))
    assert data.n_train == 40
    assert sorted({int(r) for r in data.train.run}) == [0, 2, 3, 5]
    assert [float(h.state[0, 0]) for h in data.test] == [100.0, 400.0]
    assert data.test_description == "2 held-out initial conditions"


def test_without_flags_the_last_fifth_of_the_runs_is_held_out():
    data = cut(recording(10))
    assert sorted({int(r) for r in data.train.run}) == list(range(8))
    assert data.test_description == "the last 2 of 10 runs"


def test_one_trajectory_keeps_its_last_fifth():
    data = cut(recording(1, 20))
    assert data.n_train == 16
    assert data.test_description == "last fifth of the single trajectory"
    assert data.test[0].state[:, 0].tolist() == [16.0, 17.0, 18.0, 19.0]
    assert data.test[0].time.tolist() == [8.0, 8.5, 9.0, 9.5]


@pytest.mark.parametrize(("n_run", "n_time"), [(10, 10), (1, 50), (3, 20)])
def test_no_frame_is_in_two_parts(n_run, n_time):
    data = cut(recording(n_run, n_time), validation_fraction=0.2)
    validation = data.validation()
    assert validation is not None and len(validation) == data.n_validation > 0
    seen = [
        tuple(row)
        for part in (data.train.concentration, validation.concentration,
                     torch.cat([h.state for h in data.test]))
        for row in part.tolist()
    ]  # fmt: skip
    assert len(seen) == len(set(seen)) == n_run * n_time


def test_validation_takes_whole_runs_where_there_are_enough():
    data = cut(recording(20), validation_fraction=0.25)
    validation = data.validation()
    assert validation is not None
    runs = {int(r) for r in validation.run}
    assert len(runs) == 4
    assert not runs & {int(r) for r in data.train.run}


def test_no_validation_without_a_fraction():
    assert cut().validation() is None


def test_rollouts_stay_inside_their_run():
    data = cut(validation_fraction=0.2)
    starts = data.starts(4)
    batch = data.batch(starts, horizon=4)
    assert batch.future is not None and batch.future.shape == (len(starts), 4, 3)
    steps = torch.arange(1, 5, dtype=torch.float64)[None, :, None]
    torch.testing.assert_close(batch.future, batch.concentration[:, None] + steps)
    assert batch.future_inputs is not None
    torch.testing.assert_close(batch.future_inputs, -batch.future)
    n_train_run = len({int(r) for r in data.train.run})
    assert len(starts) == n_train_run * 6
    assert batch.dt == 0.5


def test_a_rollout_that_leaves_its_run_is_refused():
    data = cut()
    with pytest.raises(DataError, match=r"data\.starts\(4\)"):
        data.batch(torch.tensor([8]), horizon=4)
    with pytest.raises(DataError, match="shorter"):
        data.starts(10)


def test_uneven_frames_have_no_rollouts():
    rec = recording()
    time = rec.time.clone()
    time[:, 5:] += 0.25
    data = cut(recording(time=time))
    assert len(data.batch(torch.tensor([0, 1]))) == 2
    with pytest.raises(DataError, match="evenly spaced"):
        data.starts(2)


def test_a_batch_holds_the_frames_asked_for():
    batch = cut().batch(torch.tensor([3, 11]))
    assert batch.concentration[:, 0].tolist() == [3.0, 101.0]
    assert batch.run.tolist() == [0, 1]
    assert batch.frame.tolist() == [3, 1]
    assert batch.time.tolist() == [1.5, 0.5]
    assert batch.inputs is not None and torch.equal(batch.inputs, -batch.concentration)
    assert batch.future is None


def test_the_spec_says_what_is_given():
    spec = cut().spec
    assert (spec.n_met, spec.n_rxn) == (3, 2)
    assert spec.has_roles and spec.has_support
    assert spec.reaction_names == ("f", "g")
    assert spec.frame_interval == 0.5
    assert spec.input_mode == "additive"
    assert spec.sto_all is None and spec.log_k is None


def test_without_support_every_pair_is_a_candidate():
    spec = cut(given={"n_rxn": torch.tensor(2)}).spec
    assert spec.met_all.tolist() == [0, 1, 2, 0, 1, 2]
    assert spec.rxn_all.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(spec.met_sub, spec.met_all)
    assert not spec.has_roles and not spec.has_support


def test_the_scale_is_the_root_mean_square_of_the_training_frames():
    data = cut()
    expected = data.train.concentration.square().mean().sqrt()
    assert data.spec.concentration_scale == pytest.approx(float(expected))


def test_dtype_and_device_move_everything():
    data = cut().astype(torch.float32).to("cpu")
    assert data.train.dx_dt.dtype == torch.float32
    assert data.spec.sign_all is not None and data.spec.sign_all.dtype == torch.float32
    assert data.spec.met_all.dtype == torch.int64
    double = data.astype(torch.float64)
    assert double.test[0].state.dtype == torch.float64
    assert data.train.dx_dt.dtype == torch.float32


@pytest.mark.parametrize(
    ("rec", "given", "message"),
    [
        (lambda: recording(state=recording().state - 5), None, "must not be negative"),
        (lambda: recording(dx_dt=None), None, "no time derivatives"),
        (lambda: recording(1, 3), None, "too few to hold out"),
        (lambda: recording(is_test=torch.ones(6, dtype=torch.bool)), None, "none is left"),
        (recording, {"met_all": torch.tensor([0])}, "'n_rxn' is missing"),
        (
            recording,
            {**GIVEN, "met_all": torch.tensor([0, 1, 1, 7])},
            "does not match the data.*metabolite number 7.*3 metabolites",
        ),
        (recording, {**GIVEN, "sto_all": torch.ones(3)}, "'sto_all' must have 4 entries"),
        (recording, {**GIVEN, "log_k": torch.ones(5)}, "'log_k' must have 2 entries"),
        (recording, {**GIVEN, "n_rxn": torch.tensor(5)}, "5 reactions are given but 2 are named"),
    ],
)
def test_data_that_do_not_fit_are_refused(rec, given, message):
    with pytest.raises(DataError, match=message):
        cut(rec(), given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"validation_fraction": 0.9}, "validation_fraction")],
)
def test_knobs_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        cut(**changes)


def test_the_training_frames_are_the_recorded_ones_bit_by_bit():
    rec = recording()
    data = cut(rec).astype(torch.float64)
    assert torch.equal(data.train.dx_dt, rec.dx_dt[:, :].reshape(-1, 3)[: data.n_train])
    third = recording()
    object.__setattr__(third, "state", third.state / 3)
    kept = cut(third).astype(torch.float64).train.concentration
    assert torch.equal(kept, third.state.reshape(-1, 3)[: len(kept)])
    assert not torch.equal(kept, kept.float().double())


def test_public_facts_and_units_of_the_recording_reach_the_learner():
    public = {"reaction_names": ["f", "g"], "mass_balanced": False, "flux_limit": True}
    data = cut(recording(provenance=public, units={"time": "h", "state": "uM"}, inputs={}))
    assert (data.time_unit, data.concentration_unit) == ("h", "uM")
    assert data.spec.mass_balanced is False and data.spec.flux_limit is True
    moved = data.astype(torch.float32)
    assert moved.spec.mass_balanced is False and moved.concentration_unit == "uM"
    moved.note("one sentence")
    moved.note("one sentence")
    assert moved.notes == ["one sentence"] and data.notes == []
    assert cut().spec.mass_balanced is None
