"""The seeds side by side are the shipped models; the module that is exported adds what AdderBoard's verifier asks."""

import sys
from pathlib import Path

import pytest
import torch

from abc_toolkit.models.base import predict

sys.path.insert(0, str(Path(__file__).parent))
import adder
import run


@pytest.mark.parametrize("name", ["4 units", "2 units, tied", "4 units, unequal", "6 units, unequal, end token"])
def test_seeds_side_by_side_are_models_by_themselves(name: str) -> None:
    configuration = run.CONFIGURATIONS[name]
    seeds = run.Seeds(configuration, (3, 5), batch=32)
    single = [configuration.model(seed).eval() for seed in seeds.seeds]
    least = seeds.examine()
    for number, own in enumerate(single):
        same = seeds.model(number)
        assert all(torch.equal(value, same.state_dict()[key]) for key, value in own.state_dict().items())
        assert sum(values.numel() for values in own.parameters()) == seeds.num_parameters
        margins = []
        for kind, (tokens, required) in zip(seeds.kinds, seeds.data, strict=True):
            problem = kind.enumeration.problem(kind.assignments[0])
            logits = predict(own, problem, configuration.task.layout(problem.shape))[0, kind.enumeration.field.query]
            of_kind = seeds.logits(seeds.kinds.index(kind), tokens, shared=True)[number]
            torch.testing.assert_close(of_kind[0], logits)
            wanted = of_kind.gather(1, required[:, None])[:, 0]
            margins.append((wanted - of_kind.scatter(1, required[:, None], -torch.inf).amax(dim=1)).min())
        torch.testing.assert_close(torch.stack(margins).min(), least[number])


@pytest.mark.parametrize(
    ("name", "number"),
    [("4 units", 28), ("3 units", 23), ("3 units, no thresholds", 20), ("2 units, tied", 16), ("4 units, unequal", 30)],
)
def test_parameters_are_counted_once(name: str, number: int) -> None:
    assert run.Seeds(run.CONFIGURATIONS[name], (0,), batch=32).num_parameters == number


@pytest.mark.skipif(not adder.FOLDER.exists(), reason="no adder has been exported")
def test_the_exported_adder_adds() -> None:
    model, about = adder.build_model()
    assert about["params"] == sum(values.numel() for values in model.parameters())
    pairs = [*adder.EDGES, *((7**number, 3**number) for number in range(1, 20)), (10**1000 - 1, 1)]
    assert adder.add_all(model, pairs) == [a + b for a, b in pairs]
    assert adder.add(model, 123, 989) == 1112
