"""One block's moment map as SymPy equations, read off the same placement text as the numbers."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from propagate.activations import Activation, as_activation
from propagate.checks import integer, number
from propagate.experts import Experts
from propagate.layers import layer_of
from propagate.model import DEEPEST, Model, ModelError, as_placement
from propagate.outline import outline
from propagate.placement import Layout, Placement, join, split
from propagate.recurrent import LinearAttention
from propagate.scaling import Gains, Scaling
from propagate.theory.gaussian import activations, softmax
from propagate.theory.gaussian.functions import Scalar
from propagate.theory.legend import KEY, WIDTH, about, legend
from propagate.theory.pairs import gates
from propagate.theory.pairs.moments import Combination, Joint, Moments, correlated, joint_moments, of_pairs
from propagate.theory.printed import latex, notes, printed
from propagate.theory.reading.blocks import Applied, MomentAlgebra
from propagate.theory.reading.reader import Block, Stream, Tape
from propagate.theory.tidy import tidy, unnamed
from propagate.theory.tokens.apply import Setting, applied

if TYPE_CHECKING:
    import sympy

FORWARD, BACKWARD = ("q", "p"), ("gamma", "kappa")
NAMED = 6  # operations above which the variance that a norm divides by is given a name


@dataclass(frozen=True)
class Recursion:
    """The map of one interior block, as definitions in order and the results in terms of them.

    Attributes:
        definitions: equations for the moments around each sublayer k = 1, 2, ...: `q_k`, `p_k` variance and covariance
            of what it reads, `a_k`, `b_k` of what it adds; `g_k`, `h_k` gradient variance and covariance that arrive
            at its output, `u_k`, `v_k` that it sends back. `n_1`, ...: variances that norms divide by, where long.
        arguments: symbols for what enters at both ends: `q`, `p`, variance and covariance of the stream that enters,
            `gamma`, `kappa` of the cotangent at the stream that leaves.
        results: for each argument the same moment at the other end, as an equation for its name with a prime.
        about: what attention is assumed to be, and with which arguments `predict` uses the same map.
        activation: that `mish_value(q, p)` and its like are averages of.
        experts: whose gates `gate_routed(v, c)` and its like are averages over (`theory.gates.symbols`).

    Where several streams enter, `q12` is the joint moment of streams 1 and 2, and so on. Numbers that pass from block
    to block (Admin's skip) are `w1`, `w2`, ..., between the forward and the backward moments.

    Further symbols: `T` tokens; `g_a` the attention's gain (value times output) and `g_f` the FFN's; `l` the block's
    index, `L` the depth; `tau` the logit variance. Averages over a softmax, and activations without closed form, are
    named functions that `lambdify` evaluates.
    """

    definitions: tuple[sympy.Eq, ...]
    arguments: tuple[sympy.Symbol, ...]
    results: tuple[sympy.Eq, ...]
    experts: Experts | None = None
    about: str = ""
    activation: Activation | str = "relu"

    def result(self, name: str) -> sympy.Expr:
        """The right side for one argument, by the argument's name.

        Example:
            >>> recursion("residual").result("gamma12")
            gamma12/(sqrt(a_1 + q11)*sqrt(a_2 + 1))
        """
        sides = {str(a): equation.rhs for a, equation in zip(self.arguments, self.results, strict=True)}
        if name not in sides:
            raise ModelError(f"result must be one of {', '.join(sides)}, got {name!r}")
        return sides[name]

    @property
    def variance(self) -> sympy.Expr:
        """Of the stream that leaves, when q and p are those of the stream that enters."""
        return self.result("q")

    @property
    def covariance(self) -> sympy.Expr:
        """Of the stream that leaves."""
        return self.result("p")

    @property
    def grad_variance(self) -> sympy.Expr:
        """Of the cotangent at the stream that enters, when gamma and kappa are those at the stream that leaves."""
        return self.result("gamma")

    @property
    def grad_covariance(self) -> sympy.Expr:
        """Of the cotangent at the stream that enters."""
        return self.result("kappa")

    def equations(self) -> list[sympy.Eq]:
        """The definitions, then the results with primes."""
        return [*self.definitions, *self.results]

    def closed(self) -> tuple[sympy.Expr, ...]:
        """The results with every definition put in: functions of the arguments and the parameters."""
        sides = [equation.rhs for equation in self.results]
        for definition in reversed(self.definitions):
            sides = [side.subs(definition.lhs, definition.rhs) for side in sides]
        return tuple(sides)

    def lambdify(self, **values: float) -> Callable[..., tuple[float, ...]]:
        """The map as a numeric function of the arguments, in order, with every other symbol given a value.

        Raises:
            ModelError: names the symbols that were given no value, or a value that is no number: no text is evaluated.

        Example:
            >>> one_block = recursion("postnorm", activation="linear").lambdify(T=4, g_a=1.0, g_f=1.0)
            >>> [round(float(value), 6) for value in one_block(1.0, 0.0, 1.0, 0.0)]
            [1.0, 0.2, 1.0, 0.2]
        """
        import sympy

        parameters = {_symbol(name): number(name, value, positive=False) for name, value in values.items()}
        sides = [sympy.sympify(equation.rhs).subs(parameters) for equation in self.results]
        used, steps = set().union(*(side.free_symbols for side in sides)), []
        for definition in reversed(self.definitions):  # put in, they would be long: they are evaluated one by one
            if definition.lhs in used:
                steps.append((definition.lhs, definition.rhs.subs(parameters)))
                used = used - {definition.lhs} | steps[-1][1].free_symbols
        missing = used - set(self.arguments)
        if missing:
            raise ModelError(f"lambdify needs values for {', '.join(sorted(map(str, missing)))}")
        named = _named(as_activation(self.activation), self.experts)
        function: Callable[..., tuple[float, ...]] = sympy.lambdify(
            self.arguments, sides, [named, "math"], cse=lambda reduced: (steps[::-1], reduced)
        )
        return function

    def _repr_latex_(self) -> str:
        lines = r" \\[3pt] ".join(map(latex, printed(self.equations())))
        return rf"$\displaystyle \begin{{aligned}} {lines} \end{{aligned}}$"

    def _repr_markdown_(self) -> str:
        return f"{self._repr_latex_()}\n\n{' '.join((f'{self.about}.', KEY, *notes(self.equations())))}"

    def __str__(self) -> str:
        shown = printed(self.equations())
        lines = (f"{one.lhs} = {one.rhs}".replace("\\", "") for one in shown)
        said = (*textwrap.wrap(f"{self.about}.", WIDTH), *legend(shown), *notes(self.equations()))
        return "\n".join([*(f"# {line}" for line in said), *lines])


def recursion(
    placement: str | Placement | Model,
    *,
    activation: str | Activation = "relu",
    norm: str = "rms",
    logit_std: float | str = 0.0,
    scaling: Scaling | None = None,
    index: int | None = None,
    depth: int | None = None,
    experts: Experts | None = None,
) -> Recursion:
    """One block of a placement, as SymPy equations: an interior one unless `index` says otherwise.

    Args:
        placement: a name or an instance; or a `Model`, whose activation, norm, `logit_std`, scaling, experts and own
            gains are taken (its depth only with `index`), and which the other arguments but `index` may not contradict.
        activation, norm: as in `Model`.
        logit_std: 0 for uniform attention, a number, or "symbol" for the symbol tau (= logit_std^2).
        scaling: multiplies the symbols g_a and g_f.
        index, depth: numbers in place of the symbols l and L. Mix-LN needs both: which of its two kinds a block is
            depends on them.
        experts: a mixture of experts in place of the FFN. Averages over its gates stay named functions, but for the few
            that have a closed form. They are means over tokens, also behind norms, and what a norm takes from the
            router's gradient is followed within the block, not from block to block; `predict` does more.

    Heads are wide: it is the map of `predict` with `head_size=math.inf`.

    Raises:
        ModelError: for an unknown name or value, or a placement that needs numbers and was given none.

    Example:
        >>> print(recursion("prenorm").variance)
        a_1 + a_2 + q
    """
    if index is not None:
        integer("index", index, at_most=DEEPEST)
    if isinstance(placement, Model):
        given = activation != "relu" or norm != "rms" or logit_std != 0.0 or (scaling, depth, experts) != (None,) * 3
        if given:
            raise ModelError("recursion of a Model takes activation, norm, logit_std, scaling, depth, experts from it")
        if index is not None and not 1 <= index <= placement.depth:
            raise ModelError(f"index must be between 1 and depth, got index={index!r} with depth={placement.depth!r}")
        attention = placement.parts[(index or 1) - 1].attention
        plain = not (attention.normed or placement.dropout)
        if isinstance(attention, LinearAttention) or not (plain and attention.exchangeable(placement.tokens)):
            raise ModelError(f"recursion needs exchangeable tokens, without inner norms or dropout, got {placement!r}")
        return _recursion(placement, attention.logit_std, index, None if index is None else placement.depth)
    equations = as_placement(placement)
    if depth is not None:
        integer("depth", depth, at_most=DEEPEST)
    if (depth is None and index is not None) or not (index is None or 1 <= index <= (depth or 0)):
        raise ModelError(f"index must be between 1 and depth, got index={index!r} with depth={depth!r}")
    model = Model(
        equations, depth=depth or 3, logit_std=0.0, activation=activation, norm=norm, experts=experts, scaling=scaling
    )
    return _recursion(model, logit_std, index, depth)


def _recursion(model: Model, logit_std: float | str, index: int | None, depth: int | None) -> Recursion:
    equations, experts = model.equations, model.parts[(index or 1) - 1].experts
    definitions: list[sympy.Eq] = []
    block = _block(model, _logit_variance(logit_std), definitions, index, depth)
    try:
        layout, streams = _entering(equations, block)
        definitions.clear()
        joint = _symbols(FORWARD, streams)
        entered = correlated(joint)
        tape: Tape[Combination] = Tape()
        sources = [Stream(Combination.of(atom), tape) for atom in entered]
        outputs, after = split(equations.block(join(sources, layout), block), Stream)
    except TypeError as error:  # SymPy's, when an equation asks whether a symbol is less than another
        if "truth value of Relational" not in str(error):
            raise
        name = type(equations).__name__
        raise ModelError(
            f"index and depth must be numbers for {name}, whose equations depend on which is less"
        ) from None
    left = joint_moments([output.value for output in outputs])
    cotangents = _symbols(BACKWARD, streams)
    arriving = [Combination.of(atom) for atom in correlated(cotangents)]
    back = joint_moments([g or Combination({}) for g in tape.pull(outputs, arriving, sources)])
    pairs = [*_pairs(joint, left), *_numbers(layout, after), *_pairs(cotangents, back)]
    arguments, results = tuple(a for a, _ in pairs), tuple(_primed(*pair) for pair in pairs)
    return Recursion(tuple(definitions), arguments, results, experts, about(logit_std, experts), model.activation)


def _entering(placement: Placement, block: Block[Combination]) -> tuple[Layout, int]:
    """What enters a block, as `embed` makes it: where streams stand, with symbols for numbers, and how many streams."""
    ((plain,),) = _symbols(FORWARD, 1)
    (token,) = correlated(((plain,),))
    streams, layout = split(placement.embed(Stream(Combination.of(token), Tape()), block), Stream)
    if layout is None:
        return None, 1
    number = itertools.count(1)
    return tuple(None if leaf is None else _symbol(f"w{next(number)}") for leaf in layout), len(streams)


def _symbols(names: tuple[str, str], streams: int) -> Joint:
    """Symbols for the joint moments of streams that enter together."""

    def entry(i: int, j: int) -> Moments:
        label = "" if streams == 1 else f"{min(i, j) + 1}{max(i, j) + 1}"
        variance, covariance = _symbol(names[0] + label, real=i != j), _symbol(names[1] + label)
        return Moments(variance, variance - covariance)

    return tuple(tuple(entry(i, j) for j in range(streams)) for i in range(streams))


def _pairs(before: Joint, after: Joint) -> list[tuple[Any, Any]]:
    """Every moment that enters, with the same moment of what leaves."""
    return [
        (getattr(before[i][j], name), getattr(after[i][j], name))
        for i in range(len(before))
        for j in range(i, len(before))
        for name in ("variance", "covariance")
    ]


def _numbers(before: Layout, after: Layout) -> list[tuple[Any, Any]]:
    """The same for the plain numbers of a state."""
    pairs = zip(before or (), after or (), strict=True)
    return [(number, changed) for number, changed in pairs if number is not None]


def _primed(argument: Any, value: Any) -> sympy.Eq:
    import sympy

    return sympy.Eq(sympy.Symbol(f"{argument}'"), tidy(value), evaluate=False)


def _block(
    model: Model,
    logit_variance: Scalar,
    definitions: list[Any],
    given_index: int | None,
    given_depth: int | None,
) -> Block[Combination]:
    import sympy

    index = _symbol("l") if given_index is None else sympy.Integer(given_index)
    depth = _symbol("L") if given_depth is None else sympy.Integer(given_depth)
    tokens, gain_a, gain_f = (_symbol(name) for name in ("T", "g_a", "g_f"))
    gains = Gains(attention_out=gain_a, ffn_out=gain_f) * model.equations.gains(index, depth)
    if model.scaling is not None:
        gains = gains * model.scaling.gains(index, depth)
    parts = model.parts[(given_index or 1) - 1]
    attention = parts.attention.with_(logit_std=sympy.sqrt(logit_variance))
    beside = any(call.verb == "experts" for call in outline(model.equations, model.depth, given_index or 2))
    layer = layer_of(replace(parts, attention=attention), gains, model.width, tokens, model.normed, beside=beside)
    setting = Setting(model.width, tokens, layer.norm, head_size=math.inf)
    algebra = MomentAlgebra(
        partial(_named_map, itertools.count(1), definitions, setting),
        norm_scale=partial(_norm_scale, itertools.count(1), definitions),
        uneven=model.uneven,
    )
    last = given_index is not None and given_index == given_depth
    return Block(index, depth, given_index == 1, last, layer, algebra)


def _named_map(
    number: Iterator[int], definitions: list[Any], setting: Setting, description: Any, x: Moments
) -> Applied:
    """What a sublayer makes of moments, with symbols for those before and after it in place of growing expressions."""
    k = next(number)
    found = applied(description, _define("qp", k, x, definitions), setting)

    def pull(g: Moments, *seen: Any) -> Moments:
        return _define("uv", k, found.pull(_define("gh", k, g, definitions), *seen), definitions)

    return found._replace(output=_define("ab", k, of_pairs(found.output), definitions), pull=pull)


def _norm_scale(number: Iterator[int], definitions: list[Any], x: Moments) -> Scalar:
    """One over the root of the variance: of a symbol for it where it is long, for it stands in all that follows."""
    import sympy

    variance = tidy(x.variance)
    if sympy.count_ops(variance) > NAMED:
        definitions.append(sympy.Eq(_symbol(f"n_{next(number)}"), variance, evaluate=False))
        variance = definitions[-1].lhs
    return sympy.sqrt(1 / variance)


def _define(names: str, k: int, moments: Moments, definitions: list[Any]) -> Moments:
    """Symbols for two moments, whose definitions are noted."""
    import sympy

    stand_ins = []
    norms = [each for each in definitions if str(each.lhs).startswith("n_")]
    values = (unnamed(tidy(moments.variance), norms), tidy(moments.covariance))
    for name, value in zip(names, values, strict=True):
        if value.is_Atom:  # a number or a symbol stands for itself
            stand_ins.append(value)
            continue
        stand_ins.append(_symbol(f"{name}_{k}"))
        definitions.append(sympy.Eq(stand_ins[-1], value, evaluate=False))
    return Moments(stand_ins[0], stand_ins[0] - stand_ins[1])


def _symbol(name: str, *, real: bool = False) -> Any:
    """Covariances, and joint moments of two streams, may have either sign; everything else is positive."""
    import sympy

    return sympy.Symbol(name, real=True) if real or name[0] in "pbhvk" else sympy.Symbol(name, positive=True)


def _logit_variance(logit_std: float | str) -> Any:
    import sympy

    if isinstance(logit_std, str) and logit_std == "symbol":
        return _symbol("tau")
    if isinstance(logit_std, str):
        raise ModelError(f'logit_std must be a number of at least 0 or "symbol", got {logit_std!r}')
    return sympy.nsimplify(number("logit_std", logit_std, positive=False), rational=True) ** 2


def _named(activation: Activation, experts: Experts | None) -> dict[str, Callable[..., float]]:
    """Numeric values of the functions that stand where there is no closed form."""

    def average(field: str) -> Callable[..., float]:
        return lambda tokens, spread, c: float(getattr(softmax.softmax_averages(int(tokens), spread, c), field))

    def kernel(pair: Callable[..., Any]) -> Callable[..., float]:
        def at(variance: float, covariance: float) -> float:
            value, drop = pair(float(variance), float(variance - covariance))
            return float(np.subtract(value, drop))

        return at

    named = {f"softmax_{field}": average(field) for field in softmax.SoftmaxAverages._fields}
    core = activation.core
    kind = activations.maps_of(core)
    named |= {f"{core.name}_value": kernel(kind.value), f"{core.name}_slope": kernel(kind.slope)}
    tanh = activations.maps_of("tanh")  # of a stream
    named |= {"tanh_value": kernel(tanh.value), "tanh_slope": kernel(tanh.slope)}
    named["tanh_mean_slope"] = partial(activations.mean_slope, "tanh")
    return named if experts is None else named | gates.named(experts)
