"""The change of every stream by one step, to first order in the rate: tangents that know the matrices they meet.

A step changes what a matrix makes of its input, and that change d travels on through later matrices. It is no fresh
noise to them: the cotangent g of the matrix's output, of which the step is made, has come through their transposes. In
the wide limit every change is d = beta g + r, with beta a (tokens, tokens) matrix, g the cotangent at that place, and r
uncorrelated with g and with all later matrices. Rules for beta and for the second moments of d:

- A matrix y = x W, entries of variance gain^2 / fan_in, that sends g_y back as g_x = g_y W^T, makes of beta g_x + r the
  coherent gain^2 beta g_y and a rest with gain^2 times all second moments of d: W is known only where it has acted, so
  the rest is as large as if it were fresh, and what W and W^T share comes on top. (Of a square W, |g W^T W|^2 is twice
  what it is with another W in second place.)
- The step of W itself adds -rate M g_y: M is fan_in K for SGD, K the second moments of x; see `own_part`.
- What is not linear is drawn, `tangent_maps`: beta behind it is the regression of d on the cotangent there.
- Streams are linear in what sublayers give, and cotangents in what sublayers send back, with the same coefficients c:
  a sublayer meets sum_a c_a beta_a c_a along what it sends back, a running over what it reads, and the changes of what
  a and b give have joint moments beta_a E g_a g_b beta_b^T.

Norms divide by sizes that do not change: a loss that is linear is odd in its direction, as d is, so that the product
of d with the stream has mean 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from propagate.checks import check_memory
from propagate.layers import Layer
from propagate.model import Model
from propagate.placement import split
from propagate.sublayers import Sublayer, registered
from propagate.theory.pairs.moments import Atom, Combination
from propagate.theory.reading.blocks import Call
from propagate.theory.reading.network import Path
from propagate.theory.reading.reader import Block, Made, Stream, Tape
from propagate.theory.tokens.apply import norm_scale
from propagate.theory.tokens.drawn_units import resolved
from propagate.theory.tokens.gram import Array, Gram
from propagate.theory.uses import Use, uses_of


def gram_of(x: Any, tokens: int) -> Array:
    """(tokens, tokens) second moments, on average over replicas.

    Example:
        >>> from propagate.theory.pairs.moments import Moments
        >>> gram_of(Moments(1.0, 0.75), 2).tolist()
        [[1.0, 0.25], [0.25, 1.0]]
    """
    return np.asarray(resolved(x, tokens).matrix.mean(axis=0))


class Sent(NamedTuple):
    """A sublayer's place in a network.

    Attributes:
        layer: of its block.
        call: its record.
        uses: of its matrices.
        read: coefficients of what it reads, (places, tokens).
        back: second moments of the cotangent that it sends back, (tokens, tokens).
    """

    layer: Layer
    call: Call
    uses: dict[str, Use]
    read: Array
    back: Array


class Places(NamedTuple):
    """All that sublayers give, in order; first of all what enters.

    Attributes:
        sublayers: from the second place on.
        streams: at blocks 0 ... depth, of each stream, and of what leaves, the coefficients (places, tokens).
        leaving: those of what the cotangent enters behind.
        arriving: second moments of that cotangent, (tokens, tokens).
        joint: E g_a g_b of the cotangents of all places, (places, places, tokens, tokens).
    """

    sublayers: list[Sent]
    streams: list[list[Array]]
    leaving: Array
    arriving: Array
    joint: Array


@dataclass
class _Algebra:
    """Reads equations with streams that are combinations of what sublayers give, by the records of a walk."""

    layer: Layer
    calls: list[Call]
    made: list[tuple[Layer, Call, Combination, Atom]] = field(default_factory=list)

    def norm(self, x: Combination) -> Made[Combination]:
        scale = registered(norm_scale.registry, self.layer.norm)(self.layer.norm, x.moments())
        return x * scale, _nothing

    def sublayer(self, verb: str, description: Sublayer, x: Combination) -> Made[Combination]:
        call = self.calls[len(self.made)]
        atom = Atom(_mean(call.left.moments()))
        self.made.append((self.layer, call, x, atom))
        return Combination.of(atom), _nothing

    def tanh(self, x: Combination) -> Made[Combination]:
        raise NotImplementedError

    def std(self, x: Combination) -> Any:
        return x.moments().std()


def _nothing(cotangent: Any) -> Any:
    raise NotImplementedError


def _mean(x: Any) -> Any:
    """Of all replicas."""
    return Gram(x.matrix.mean(axis=0), x.deviation.mean(axis=0)) if isinstance(x, Gram) and x.matrix.ndim == 3 else x


def places_of(model: Model, path: Path, start: Any, cotangent: Any) -> Places:
    """From the records of an exact walk; `start` and `cotangent` are the moments at its ends.

    Raises:
        ModelError: where joint moments of all that sublayers give take more memory than there is.
    """
    tokens, depth, placement, tape = model.tokens, model.depth, model.equations, Tape[Combination]()
    first, made = Atom(start), list[tuple[Layer, Call, Combination, Atom]]()

    def read(equations: Callable[..., Any], index: int, state: Any) -> Any:
        layer = model.at(index)
        algebra = _Algebra(layer, [one for one in path.calls[index] if isinstance(one.description, Sublayer)])
        block = Block(index, depth, index == 1, index == depth, layer, algebra)
        given = equations(state, block)
        made.extend(algebra.made)
        return given

    state = read(placement.embed, 0, Stream(Combination.of(first), tape))
    streams = [split(state, Stream)[0]]
    for index in range(1, depth + 1):
        state = read(placement.block, index, state)
        streams.append(split(state, Stream)[0])
    end = streams[-1][0] if len(streams[-1]) == 1 else split(read(placement.readout, depth + 1, state), Stream)[0][0]
    atoms = [first, *(atom for *_, atom in made)]

    def row(x: Combination) -> Array:
        return np.stack([np.broadcast_to(np.asarray(x.terms.get(atom, 0.0), dtype=float), tokens) for atom in atoms])

    check_memory(f"depth={depth}, tokens={tokens}", 4 * 8 * (len(atoms) * tokens) ** 2)
    sublayers = [_sent(layer, call, row(x), tokens) for layer, call, x, _ in made]
    leaving = row(end.value)
    read_by = np.stack([leaving, *(one.read for one in sublayers)])
    backs = np.stack([gram_of(cotangent, tokens), *(one.back for one in sublayers)])
    joint = np.einsum("sat,sbu,stu->abtu", read_by, read_by, backs, optimize=True)
    return Places(sublayers, [[row(x.value) for x in of_block] for of_block in streams], leaving, backs[0], joint)


def _sent(layer: Layer, call: Call, read: Array, tokens: int) -> Sent:
    ((g, seen),) = call.arrived
    found = uses_of(call, g, seen, layer)
    uses = {name: use for name, use in found.items() if isinstance(use, Use)}
    entered = [use for name, use in uses.items() if not name.endswith("_out")]
    sent = [float(use.gain) ** 2 * use.fan_out / use.fan_in * gram_of(use.g, tokens) for use in entered]
    return Sent(layer, call, uses, read, np.sum(sent, axis=0))


class Met(NamedTuple):
    """What a sublayer's change is made of.

    Attributes:
        beta: (tokens, tokens), of the change at its input along what the sublayer sends back.
        moments: of that change, (tokens, tokens).
    """

    beta: Array
    moments: Array


Map = Callable[[Sent, Met, Array], Met]
"""From a sublayer, the change at its input and the cotangent's second moments at its output to the change there."""


def tangents(places: Places, change_of: Map) -> tuple[Array, Array]:
    """Joint second moments of the changes of what all places give, (places, places, tokens, tokens), and beta of each.

    Args:
        places: see `places_of`.
        change_of: what each sublayer makes of a change.
    """
    count, tokens = len(places.joint), places.joint.shape[-1]
    joint, beta = np.zeros_like(places.joint), np.zeros((count, tokens, tokens))
    for place, sent in enumerate(places.sublayers, 1):
        along = np.einsum("at,atu,au->tu", sent.read, beta, sent.read)
        found = change_of(sent, Met(along, through(sent.read, joint)), places.joint[place, place])
        beta[place], joint[place, place] = found
        for other in range(1, place):
            joint[other, place] = beta[other] @ places.joint[other, place] @ beta[place].T
            joint[place, other] = joint[other, place].T
    return joint, beta


def through(read: Array, joint: Array) -> Array:
    """Second moments of a combination.

    Example:
        >>> through(np.array([[2.0], [1.0]]), np.ones((2, 2, 1, 1))).tolist()
        [[9.0]]
    """
    return np.asarray(np.einsum("at,bu,abtu->tu", read, read, joint, optimize=True))
