"""Reads a placement's equations with streams of moments, records each step, and runs the steps backward.

The tape of one block is all that is needed at a time: between blocks the streams collapse to as many atoms with their
joint moments, and cost grows linearly with depth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from operator import methodcaller
from typing import Any, NamedTuple

from propagate.checks import ModelError
from propagate.placement import Layout, join, split
from propagate.sublayers import Sublayer
from propagate.theory.gaussian.functions import Scalar, sqrt
from propagate.theory.pairs.elementwise import Split, tanh
from propagate.theory.pairs.moments import (
    NOTHING,
    Atom,
    Combination,
    Joint,
    Moments,
    SecondMoments,
    correlated,
    joint_moments,
)
from propagate.theory.pairs.products import Met, Products, behind_elementwise, entering, parts, products
from propagate.theory.pairs.sublayers import AttentionPull
from propagate.theory.reading.reader import Made, Stream, Tape

ZERO = Combination({})


class NotExchangeable(Exception):
    """A sublayer that tells tokens apart was asked for its map of exchangeable ones: a walk must resolve them."""


class Applied(NamedTuple):
    """What a sublayer makes of its input's moments.

    Attributes:
        output: moments of its output, less `kept` times the input.
        pull: from those of the cotangent at that output to those of what comes back.
        kept: by what it hands its own input on, which identity experts do.
        through_gates: whether the pull also takes what the cotangent's products with this output and with the input
            know beyond second moments (`Seen`), which only gates of experts notice.
    """

    output: SecondMoments
    pull: Callable[..., Any]
    kept: Any = 0.0
    through_gates: bool = False


@dataclass(eq=False, slots=True)
class Call:
    """The record of one call of a sublayer or a norm: all that is asked of a walk is a function of these.

    Attributes:
        verb: "attention", "ffn", "experts", "norm", "tanh", or what a description names its calls after.
        description: as in force there; of norms the model's.
        entered: moments of its input.
        left: what it gives, dropout included.
        pull: of an exact walk, its own, which knows how it was made.
        arrived: in an exact walk, moments of every cotangent that came to its output, dropout passed, and what was
            found out on its way: what its products know beyond them (`Seen`) where gates ask for that, what attention
            sends back by path. Elsewhere nobody asks, and what is kept of every block costs time and memory.
    """

    verb: str
    description: Any
    entered: SecondMoments
    left: Combination
    pull: Any = None
    arrived: Sequence[tuple[SecondMoments, Any]] = ()


@dataclass(eq=False, slots=True)
class MomentAlgebra:
    """What norms and sublayers do to linear combinations of atoms, whose second moments they map.

    RMSNorm and LayerNorm of a stream act alike in this limit: both divide by the root of the variance, because every
    branch's output has mean zero over coordinates. Only inside an FFN, where activations have a mean, do they differ.

    Attributes:
        apply_map: what a description in force makes of moments, of the resolution that is being carried.
        norm_scale: what a norm multiplies a stream by, from its moments.
        tanh_map: the hyperbolic tangent of a stream.
        dropout: of the branches' outputs.
        uneven: whether anywhere in the network experts notice what second moments do not hold.
        exact: whether records must hold the very cotangents that arrive, for which two modes do not stand, and what
            attention sends back by each of its paths: to tell what reaches each matrix.
        calls: the records of the calls made, in order.
    """

    apply_map: Callable[[Sublayer, Any], Applied]
    norm_scale: Callable[[Any], Scalar] = methodcaller("norm_scale")
    tanh_map: Callable[[Any], Split] = tanh
    dropout: float = 0.0
    uneven: bool = False
    exact: bool = False
    calls: list[Call] = field(default_factory=list)

    def norm(self, x: Combination) -> Made[Combination]:
        moments = x.moments()
        scale = self.norm_scale(moments)
        value = x * scale
        self.calls.append(Call("norm", None, moments, value))
        if not self.uneven:
            return value, lambda cotangent: cotangent * scale
        # one direction of very many, which only the gates of experts notice
        return value, lambda cotangent: _orthogonal(cotangent * scale, x)

    def sublayer(self, verb: str, description: Sublayer, x: Combination) -> Made[Combination]:
        moments = x.moments()
        applied = self.apply_map(description, moments)
        atom = Atom(applied.output)
        hands_on = not (isinstance(applied.kept, int | float) and applied.kept == 0)
        value = Combination.of(atom) + x * applied.kept if hands_on else Combination.of(atom)
        call = Call(verb, description, moments, self._dropped(value) if self.dropout else value)
        if self.exact:
            call.pull = applied.pull
        self.calls.append(call)

        def back(cotangent: Combination) -> Combination:
            if self.dropout:
                cotangent = self._dropped(cotangent)
            arriving = cotangent.moments()
            if arriving is NOTHING:
                return ZERO
            found: Any = None
            if applied.through_gates:
                found = parts(products(cotangent, cotangent), atom, x, self._odds)
                returned = applied.pull(arriving, found)
            elif self.exact and isinstance(applied.pull, AttentionPull):
                found = applied.pull.paths(arriving)
                returned = reduce(lambda one, other: one.plus(other), found.values())
            else:
                returned = applied.pull(arriving)
            if self.exact:
                call.arrived = (*call.arrived, (arriving, found))
            sent = Combination.of(Atom(returned))
            return sent + cotangent * applied.kept if hands_on else sent

        return call.left, back

    def tanh(self, x: Combination) -> Made[Combination]:
        if not x.gaussian:
            raise ModelError(
                "tanh must be of a stream of Gaussian coordinates, but a tanh has gone into this one other than through"
                " a sublayer's matrices (identity experts hand their input on)"
            )
        moments = x.moments()
        slope, rest, pull, curvature = self.tanh_map(moments)

        def back(cotangent: Combination) -> Combination:
            arriving = cotangent.moments()
            if arriving is NOTHING:
                return ZERO
            atom = Atom(pull(arriving))
            if self.uneven and curvature is not None:
                atom.products = {atom: behind_elementwise(x, arriving.entries(), *curvature())}
            linear: Combination = cotangent * slope
            return linear + Combination.of(atom)

        value = x * slope + Combination.of(Atom(rest, gaussian=False))
        self.calls.append(Call("tanh", None, moments, value))
        return value, back

    def std(self, x: Combination) -> Scalar:
        return x.moments().std()

    @property
    def _odds(self) -> Scalar:
        return self.dropout / (1 - self.dropout)

    def _dropped(self, x: Combination) -> Combination:
        """Dropout multiplies by masks of mean 1: it adds a stream uncorrelated with all else, also between tokens."""
        moments = x.moments()
        return x if moments is NOTHING else x + Combination.of(Atom(moments.unshared().times(sqrt(self._odds))))


def _orthogonal(cotangent: Combination, stream: Combination) -> Combination:
    return cotangent if cotangent.moments() is NOTHING else cotangent.orthogonal_to(stream)


class State(NamedTuple):
    """What passes from block to block.

    Attributes:
        joint: the streams' joint moments.
        layout: where streams and plain numbers stand.
        gaussian: whether the coordinates of each stream are; by default all are.
    """

    joint: Joint
    layout: Layout = None
    gaussian: tuple[bool, ...] = ()


def alone(moments: SecondMoments) -> State:
    """The state of one stream alone."""
    return State(((moments,),))


Carried = Mapping[tuple[int, int], Products]
"""What scalar products of two cotangents that reach a block, by their numbers, with the streams that pass there know
beyond second moments per coordinate; directions by the streams' numbers."""


class BlockMap(NamedTuple):
    """What a block does to second moments: forward at one input, backward as a linear map.

    Attributes:
        output: what leaves.
        pull: from the joint moments of the cotangents at the streams that leave to those at the streams that enter.
        pull_lacking: the same together with what cotangents lack along streams, which only experts notice.
        skips: entry (i, j) is the factor with which stream j reaches stream i along skips alone, branches left out.
        calls: the records of its calls, in order.
        forget: when no more is to be pulled. A tape and its streams refer to one another and would stay in memory.
    """

    output: State
    pull: Callable[[Joint], Joint]
    pull_lacking: Callable[[Joint, Carried], tuple[Joint, Carried]]
    skips: tuple[tuple[Scalar, ...], ...]
    calls: list[Call]
    forget: Callable[[], None]


def read(equations: Callable[[Any], Any], algebra: MomentAlgebra, start: State) -> BlockMap:
    """Run equations on streams that start with the given moments, then their tape backward.

    Example:
        >>> twice = read(lambda x: x + x, MomentAlgebra(NotImplemented), alone(Moments(1.0, 0.5)))
        >>> twice.output.joint[0][0], twice.pull(((Moments(1.0, 0.25),),))[0][0]
        (Moments(variance=4.0, deviation=2.0), Moments(variance=4.0, deviation=1.0))
    """
    entered = correlated(start.joint)
    for atom, gaussian in zip(entered, start.gaussian, strict=False):
        atom.gaussian = gaussian
    tape: Tape[Combination] = Tape()
    sources = [Stream(Combination.of(atom), tape) for atom in entered]
    streams, layout = split(equations(join(sources, start.layout)), Stream)
    values = [stream.value for stream in streams]

    def pull(cotangents: Joint) -> Joint:
        arriving = [Combination.of(atom) for atom in correlated(cotangents)]
        return joint_moments(_arrived(tape.pull(streams, arriving, sources)))

    def pull_lacking(cotangents: Joint, carried: Carried) -> tuple[Joint, Carried]:
        atoms = correlated(cotangents)
        for i, atom in enumerate(atoms):
            atom.products = {atoms[j]: known.along(values.__getitem__) for (k, j), known in carried.items() if k == i}
        sent = _arrived(tape.pull(streams, [Combination.of(atom) for atom in atoms], sources))
        numbered = list(enumerate(sent))
        met: Met = {}
        return joint_moments(sent), {
            (i, j): entering(products(g, h, met), entered) for i, g in numbered for j, h in numbered
        }

    skips = tuple([tuple([value.terms.get(atom, 0.0) for atom in entered]) for value in values])  # lists are faster
    output = State(joint_moments(values), layout, tuple([value.gaussian for value in values]))
    if (
        len(sources) == len(streams) == 1
        and isinstance(start.joint[0][0], Moments)
        and not (algebra.exact or algebra.uneven)
    ):
        on_two_modes = _on_two_modes(pull, tape)
        lacking = partial(_lacking_nothing, on_two_modes)
        return BlockMap(output, on_two_modes, lacking, skips, algebra.calls, tape.steps.clear)
    return BlockMap(output, pull, pull_lacking, skips, algebra.calls, tape.steps.clear)


def _arrived(cotangents: list[Combination | None]) -> list[Combination]:
    return [ZERO if cotangent is None else cotangent for cotangent in cotangents]


def _lacking_nothing(pull: Callable[[Joint], Joint], cotangents: Joint, _: Carried) -> tuple[Joint, Carried]:
    return pull(cotangents), {}


def _on_two_modes(pull: Callable[[Joint], Joint], tape: Tape[Combination]) -> Callable[[Joint], Joint]:
    """The pull of one exchangeable stream: linear in two numbers, so one pull of a complex one says it all, with a
    cotangent that tokens share in the real part and one that they do not in the imaginary part; the tape is emptied.

    Nothing of a block then outlives it, however deep the network.
    """
    ((both,),) = pull(((Moments(1.0 + 1.0j, 1.0j),),))
    variance, deviation = both.variance, both.deviation
    if hasattr(variance, "imag"):
        shared, independent = Moments(variance.real, deviation.real), Moments(variance.imag, deviation.imag)
    else:  # symbols have no parts
        ((one,),), ((other,),) = (pull(((Moments(1.0, apart),),)) for apart in (0.0, 1.0))
        shared, independent = (Moments(found.variance, found.deviation) for found in (one, other))
    tape.steps.clear()

    def combined(cotangents: Joint) -> Joint:
        ((arriving,),) = cotangents
        covariance, deviation = arriving.variance - arriving.deviation, arriving.deviation
        variance = covariance * shared.variance + deviation * independent.variance
        return ((Moments(variance, covariance * shared.deviation + deviation * independent.deviation),),)

    return combined
