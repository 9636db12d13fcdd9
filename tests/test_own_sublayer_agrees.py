"""A sublayer of a user's own file: theory refuses it by name until its map is registered, and then agrees.

The description is one frozen dataclass, and each witness has one registered function for it.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

import propagate as pg


@dataclass(frozen=True)
class Memory(pg.Sublayer):
    """A causal convolution over two tokens: W x_t + V x_(t-1)."""

    gain: float = 0.8
    before: float = 0.6
    alike = False


class WithMemory(pg.Placement):
    """The convolution in the place of attention."""

    def block(self, x: Any, block: Any) -> Any:
        y = block.norm(x + block.apply(Memory(), x))
        return block.norm(y + block.ffn(y))


@pg.montecarlo.apply.register
def _(memory: Memory, x: Any, block: Any) -> Any:
    zero = block.xp.zeros_like(x[:, :1])
    here, pull_here = block.matrix(x, block.width, memory.gain)
    read, pull_read = block.matrix(x[:, :-1], block.width, memory.before)

    def pull(g: Any) -> Any:
        return pull_here(g) + block.xp.concatenate([pull_read(g[:, 1:]), zero], axis=1)

    return here + block.xp.concatenate([zero, read], axis=1), pull


def moments(memory: Memory, x: pg.theory.Gram, setting: pg.theory.Setting) -> Any:
    """Two fresh matrices, one of which meets the tokens moved by one."""
    moved = np.eye(setting.tokens, k=-1)

    def out(gram: pg.theory.Gram) -> Any:
        return pg.theory.Gram.of(memory.gain**2 * gram.matrix + memory.before**2 * moved @ gram.matrix @ moved.T)

    def back(gram: pg.theory.Gram) -> Any:
        return pg.theory.Gram.of(memory.gain**2 * gram.matrix + memory.before**2 * moved.T @ gram.matrix @ moved)

    return out(x), back


MODEL = pg.Model("withmemory", depth=2, width=512, tokens=6)
START = pg.Start(covariance=0.3, grad_covariance=0.2)


@pytest.fixture
def registered() -> Any:
    """The user's map, taken out again: other tests ask what happens without it."""
    registry = pg.theory.apply.registry
    pg.theory.apply.register(Memory, moments)
    yield
    pg.theory.apply.register(Memory, registry[object])


def test_theory_refuses_it_by_name() -> None:
    with pytest.raises(pg.ModelError, match=r"theory does not cover Memory, got Memory\(gain=0.8, before=0.6\)"):
        pg.predict(MODEL)


@pytest.mark.usefixtures("registered")
def test_theory_and_simulation_agree_once_it_is_registered() -> None:
    said = pg.predict(MODEL, START, include={"calls"})
    seen = pg.simulate(MODEL, draws=100, seed=4, backend="numpy", **START)
    assert pg.compare(said, seen).attrs["verdict"] == "agrees"
    assert "memory1" in said.call.to_numpy()
    wrong = pg.predict(replace(MODEL, ffn_gain=1.5), START)
    assert pg.compare(wrong, seen).attrs["verdict"] == "disagrees"


@pytest.mark.usefixtures("registered")
def test_a_map_that_forgets_the_other_token_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = pg.simulate(MODEL, draws=100, seed=4, backend="numpy", **START)
    forgetful = lambda memory, x, setting: (x.times(memory.gain), lambda g: g.times(memory.gain))  # noqa: E731
    pg.theory.apply.register(Memory, forgetful)
    assert pg.compare(pg.predict(MODEL, START), seen).attrs["verdict"] == "disagrees"


@pytest.mark.usefixtures("registered")
def test_matrices_that_are_not_known_are_refused() -> None:
    with pytest.raises(pg.ModelError, match="param_grad does not cover Memory"):
        pg.predict(MODEL, include={"param_grad"})


def uses(memory: Memory, call: Any, g: pg.theory.Gram, seen: Any, layer: Any) -> dict[str, Any]:
    """Two matrices of the sublayer's name, of which one reads the tokens moved by one."""
    moved = np.eye(layer.tokens, k=-1)
    read = pg.theory.Gram.of(moved @ call.entered.matrix @ moved.T)
    here = pg.theory.Use(layer.width, layer.width, memory.gain, call.entered, g)
    return {"memory": (here, replace(here, gain=memory.before, x=read))}


@pytest.mark.usefixtures("registered")
def test_gradients_of_its_matrices_agree_once_they_are_known() -> None:
    seen = pg.simulate(MODEL, draws=60, seed=4, backend="numpy", include={"param_grad"}, **START)
    registry = pg.theory.matrix_uses.registry
    pg.theory.matrix_uses.register(Memory, uses)
    try:
        said = pg.predict(MODEL, START, include={"param_grad"})
        pg.theory.matrix_uses.register(Memory, lambda *args: {"memory": uses(*args)["memory"][0]})
        wrong = pg.predict(MODEL, START, include={"param_grad"})
    finally:
        pg.theory.matrix_uses.register(Memory, registry[object])
    assert pg.compare(said, seen).worst_z.sel(quantity="param_grad[memory]") < 4
    assert pg.compare(wrong, seen).worst_z.sel(quantity="param_grad[memory]") > 4
