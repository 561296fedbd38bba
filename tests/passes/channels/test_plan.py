import json

import pytest

from graphprune.passes.channels.plan import PruningPlan
from graphprune.passes.errors import PlanError

PLAN = PruningPlan(
    {"conv.weight": {0: (1, 3), 1: (0,)}, "bn.weight": {0: (1, 3)}},
    {"conv.weight": (4, 3, 3, 3), "bn.weight": (4,)},
    ({"shape": [1, 3, 8, 8], "dtype": "float32"},),
    {"seed": 3, "importance": "l2"},
)


def test_round_trip_through_a_file(tmp_path):
    PLAN.save(tmp_path / "plan.json")
    assert PruningPlan.load(tmp_path / "plan.json") == PLAN
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]  # nothing temporary is left
    data = json.loads((tmp_path / "plan.json").read_text())
    assert data["schema"] == 1
    assert data["removed"]["conv.weight"] == {"0": [1, 3], "1": [0]}


def test_indices_are_sorted_and_unique_after_reading():
    data = PLAN.to_dict()
    data["removed"]["bn.weight"]["0"] = [3, 1, 3]
    assert PruningPlan.from_dict(data).removed["bn.weight"][0] == (1, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: [], "no pruning plan"),
        (lambda d: {k: v for k, v in d.items() if k != "removed"}, "no field 'removed'"),
        (lambda d: {**d, "schema": 2}, "schema 2, this version reads 1"),
        (lambda d: {k: v for k, v in d.items() if k != "schema"}, "schema None"),
        (lambda d: {**d, "removed": []}, "malformed"),
        (lambda d: {**d, "removed": {"w": {"zero": [1]}}}, "malformed"),
        (lambda d: {**d, "removed": {"w": {"0": ["a"]}}}, "malformed"),
        (lambda d: {**d, "removed": {"w": {"0": 3}}}, "malformed"),
        (lambda d: {**d, "shapes": {"w": 3}}, "malformed"),
        (lambda d: {**d, "shapes": None}, "malformed"),
    ],
)
def test_data_that_is_no_plan(change, message):
    with pytest.raises(PlanError, match=message):
        PruningPlan.from_dict(change(PLAN.to_dict()))


def test_files_that_are_no_plan(tmp_path):
    with pytest.raises(PlanError, match=r"cannot read plan .*missing.json: No such file"):
        PruningPlan.load(tmp_path / "missing.json")
    (tmp_path / "text.json").write_text("hello")
    with pytest.raises(PlanError, match=r"text.json is not a JSON plan"):
        PruningPlan.load(tmp_path / "text.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError, match="not a JSON plan"):
        PruningPlan.load(tmp_path / "binary.json")


def test_every_error_is_one_line_and_an_exit_code():
    with pytest.raises(PlanError) as caught:
        PruningPlan.from_dict({"removed": {}, "schema": 9})
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1


def test_kept():
    assert PLAN.kept("conv.weight", 0, 4).tolist() == [True, False, True, False]
    assert PLAN.kept("conv.weight", 2, 3).all()
    assert PLAN.kept("other", 0, 2).all()
    with pytest.raises(PlanError, match=r"removes index 3 of bn.weight along dimension 0, which has 3"):
        PLAN.kept("bn.weight", 0, 3)
    negative = PruningPlan({"w": {0: (-1, 1)}})
    with pytest.raises(PlanError, match="removes index -1 of w"):
        negative.kept("w", 0, 3)


SHAPES = {"conv.weight": (4, 3, 3, 3), "bn.weight": (4,), "other": (7,)}


def test_a_plan_that_fits():
    PLAN.check_fits(SHAPES)
    PruningPlan(PLAN.removed).check_fits(SHAPES)  # without sizes


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"bn.weight": (4,)}, "names conv.weight, which the model does not have"),
        (
            {**SHAPES, "conv.weight": (5, 3, 3, 3)},
            r"made for conv.weight of shape \(4, 3, 3, 3\), the model has \(5, 3",
        ),
    ],
)
@pytest.mark.parametrize("sizes_known", [True, False])
def test_a_plan_for_another_model(shapes, message, sizes_known):
    plan = PLAN if sizes_known else PruningPlan(PLAN.removed)
    if not sizes_known and "conv.weight" in shapes:
        return  # nothing says otherwise: every index exists
    with pytest.raises(PlanError, match=message):
        plan.check_fits(shapes)


def test_a_plan_beyond_the_sizes_of_the_model():
    plan = PruningPlan(PLAN.removed)
    with pytest.raises(PlanError, match=r"removes index 3 of conv.weight along dimension 0, which has 3"):
        plan.check_fits({**SHAPES, "conv.weight": (3, 3, 3, 3)})
    with pytest.raises(PlanError, match=r"cuts conv.weight along dimension 1: it has only 1"):
        plan.check_fits({**SHAPES, "conv.weight": (4,)})
