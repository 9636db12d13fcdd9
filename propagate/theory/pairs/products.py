"""What scalar products of cotangents with streams know beyond second moments per coordinate.

Of independent coordinates a cotangent g_t and a stream u_t have E (g_t . u_t)(g_s . u_s) = E g_t g_s E u_t u_s, in
units of the width. No map of second moments per coordinate notices where that fails, but what returns through a few
numbers, such as the gates of experts, does. It fails along few directions:

Norms. Behind the norm of z a cotangent has no part along z_t. Token by token it is g_t = sum_c a_c c_t - sum_k l_kt
(r_kt . c_kt), with c the atoms of the cotangent and l, r streams (`Lack`), which a further norm of z' makes orthogonal
in turn: l_k becomes l_k less its part along z', and r_k stays. So g_t . u_t = sum_c c_t . w_c(u)_t with w_c(u) = a_c u
- sum_k (l_k . u) r_k, and E (g_t . u_t)(h_s . v_s) is a sum over pairs of atoms of their moments times those of
w_c(u)_t and w_d(v)_s. Multiplied out, these are the terms of `Products`. Nothing is approximated, for one cotangent
that comes along several ways or for several.

Elementwise functions. Behind tanh z a cotangent is multiplied by tanh'(z_t), and E tanh'(z_t) tanh'(z_s) u_t v_s is, by
Stein's lemma, of the same form with streams z. Such atoms bring `Products` of their own, as do those that stand for
what arrives from later blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from propagate.theory.gaussian.functions import Scalar
from propagate.theory.pairs.moments import NOTHING, Atom, Combination, Lack


class Term(NamedTuple):
    """Two directions and the second moments that weigh them."""

    left: Any
    right: Any
    weight: Any


class Products(NamedTuple):
    """E (g_t . u_t)(h_s . v_s) for any streams u and v, less E g_t h_s E u_t v_s, as a sum of terms.

    Attributes:
        own: (u_t . left_t)(right_t . v_s) weight_ts.
        others: (u_t . left_s)(right_s . v_s) weight_ts.
        both: (u_t . left_t)(right_s . v_s) weight_ts.
        crossed: (u_t . left_s)(right_t . v_s) weight_ts.
    """

    own: tuple[Term, ...] = ()
    others: tuple[Term, ...] = ()
    both: tuple[Term, ...] = ()
    crossed: tuple[Term, ...] = ()

    def along(self, direction: Callable[[Any], Any]) -> Products:
        """With every direction put into other words."""
        return Products(*(tuple(Term(direction(a), direction(b), weight) for a, b, weight in kind) for kind in self))

    def scaled(self, left: Scalar, right: Scalar) -> Products:
        """Of the first cotangent times a number and the other times another."""
        return Products(
            *(tuple(term._replace(weight=term.weight.scaled(left, right)) for term in kind) for kind in self)
        )


Met = dict[tuple[int, int], Any]
"""Joint moments of streams, by their identities, so that none is worked out twice."""


def products(g: Combination, h: Combination, met: Met | None = None) -> Products:
    """Of two cotangents; `met` may be shared by calls for cotangents of one pull.

    Example: one cotangent behind a norm is orthogonal to what was normed, z, of whatever variance.
        >>> from propagate.theory.pairs.moments import Moments
        >>> z, g = Combination.of(Atom(Moments(4.0, 4.0))), Combination.of(Atom(Moments(1.0, 0.0)))
        >>> behind = g.orthogonal_to(z)
        >>> parts = products(behind, behind)
        >>> [sum(t.left.joint(z).variance * t.right.joint(z).variance * t.weight.variance for t in kind)
        ...     for kind in parts]  # (g . z)^2 is 1 * 4 less all that
        [-4.0, -4.0, 4.0, 0]
    """
    met = {} if met is None else met
    own, others, both, crossed = list[Term](), list[Term](), list[Term](), list[Term]()
    for c, a in g.terms.items():
        for d, b in h.terms.items():
            moments = c.moments if c is d else c.joint.get(d, NOTHING)
            lacks_c, lacks_d = _of(c, g), _of(d, h)
            if moments is not NOTHING and g.lacks + h.lacks:
                moments = moments.entries()
                own += [Term(k.along, k.origin, _less(moments.scaled(1.0, b))) for k in lacks_c]
                others += [Term(k.origin, k.along, _less(moments.scaled(a, 1.0))) for k in lacks_d]
                both += [
                    Term(k.along, m.along, _times(moments, _joint(k.origin, m.origin, met)))
                    for k in lacks_c
                    for m in lacks_d
                ]
            known = c.products.get(d)
            if known is not None:
                part = _projected(known, (a, lacks_c), (b, lacks_d), met)
                own, others, both, crossed = ([*x, *y] for x, y in zip((own, others, both, crossed), part, strict=True))
    return Products(*(tuple(t for t in kind if t.weight is not NOTHING) for kind in (own, others, both, crossed)))


def _of(atom: Atom, cotangent: Combination) -> list[Lack]:
    return [lack for lack in cotangent.lacks if lack.atom is atom]


Left = tuple[Scalar, Sequence[Lack]]
"""An atom's coefficient a in a cotangent, and what that lacks of it: w(u) = a u - sum_k (along_k . u) origin_k."""


def _projected(known: Products, left: Left, right: Left, met: Met) -> Products:
    """The atoms' own terms, at w_c(u)_t and w_d(v)_s in place of u_t and v_s."""
    (a, lacks_c), (b, lacks_d) = left, right
    own, others, both, crossed = list[Term](), list[Term](), list[Term](), list[Term]()
    for m, n, weight in known.own:
        met_by = _adjoint(m, left, met)
        own.append(Term(met_by, n, weight.scaled(1.0, b)))
        both += [Term(met_by, k.along, _less(_times(weight, _joint(n, k.origin, met)))) for k in lacks_d]
    for m, n, weight in known.others:
        met_by = _adjoint(n, right, met)
        others.append(Term(m, met_by, weight.scaled(a, 1.0)))
        both += [Term(k.along, met_by, _less(_times(weight, _joint(k.origin, m, met)))) for k in lacks_c]
    both += [Term(_adjoint(m, left, met), _adjoint(n, right, met), weight) for m, n, weight in known.both]
    for m, n, weight in known.crossed:
        crossed.append(Term(m, n, weight.scaled(a, b)))
        seen = [(k.along, _times(weight, _joint(k.origin, m, met))) for k in lacks_c]
        own += [Term(along, n, w.scaled(-1.0, b)) for along, w in seen if w is not NOTHING]
        for k in lacks_d:
            beside = _joint(n, k.origin, met)
            others.append(Term(m, k.along, _less(_times(weight.scaled(a, 1.0), beside))))
            both += [Term(along, k.along, _times(w, beside)) for along, w in seen]
    return Products(tuple(own), tuple(others), tuple(both), tuple(crossed))


def _joint(one: Combination, other: Combination, met: Met) -> Any:
    key = id(one), id(other)
    if key not in met:
        found = one.joint(other)
        met[key] = found if found is NOTHING else found.entries()
    return met[key]


def _adjoint(stream: Combination, seen: Left, met: Met) -> Combination:
    """The stream m~ with w(u)_t . m_t = u_t . m~_t."""
    a, lacks = seen
    found: Combination = stream * a
    for lack in lacks:
        part = _joint(lack.origin, stream, met)
        if part is not NOTHING:
            found = found + lack.along * -part.variance
    return found


def entering(found: Products, entered: Sequence[Atom]) -> Products:
    """In terms of the streams that entered a block, by their numbers: all that an earlier block's streams meet."""
    kinds = []
    for kind, scaled in zip(found, (_both_on_left, _both_on_right, _one_each, _one_each_crossed), strict=True):
        sums: dict[tuple[int, int], Any] = {}
        for left, right, weight in kind:
            for i, one in enumerate(entered):
                for j, other in enumerate(entered):
                    if one in left.terms and other in right.terms:
                        part = scaled(weight, left.terms[one], right.terms[other])
                        sums[i, j] = sums[i, j].plus(part) if (i, j) in sums else part
        kinds.append(tuple(Term(i, j, weight) for (i, j), weight in sums.items()))
    return Products(*kinds)


def _both_on_left(weight: Any, left: Scalar, right: Scalar) -> Any:
    return weight.scaled(left * right, 1.0)


def _both_on_right(weight: Any, left: Scalar, right: Scalar) -> Any:
    return weight.scaled(1.0, left * right)


def _one_each(weight: Any, left: Scalar, right: Scalar) -> Any:
    return weight.scaled(left, right)


def _one_each_crossed(weight: Any, left: Scalar, right: Scalar) -> Any:
    return weight.scaled(right, left)


def behind_elementwise(z: Combination, arriving: Any, third: Any, second: Any) -> Products:
    """Of phi'(z_t) g_t, for a Gaussian stream z and a cotangent g of independent coordinates.

    E phi'(z_t) phi'(z_s) u_t v_s is E phi' phi' E u_t v_s and, by Stein's lemma, a second derivative of phi'(z_t)
    phi'(z_s) for every way in which u and v meet z_t and z_s.

    Args:
        z: the stream.
        arriving: second moments of g.
        third: E phi\'\'\'(z_t) phi'(z_s).
        second: E phi\'\'(z_t) phi\'\'(z_s).
    """
    own, both = (Term(z, z, arriving.product(part)) for part in (third, second))
    return Products(own=(own,), others=(own._replace(weight=own.weight.swapped()),), both=(both,), crossed=(both,))


class Part(NamedTuple):
    """What a direction has of a sublayer that mixes outputs and its input.

    Attributes:
        coefficient: of the output.
        with_input: joint moments with the input, the direction's token first; `NOTHING` if there are none.
    """

    coefficient: Scalar
    with_input: Any


class Seen(NamedTuple):
    """`Products` with the output and the input of a sublayer that mixes outputs and its input: directions are `Part`s.

    Attributes:
        odds: that dropout behind the sublayer drops an entry rather than keeps it.
    """

    own: tuple[Term, ...] = ()
    others: tuple[Term, ...] = ()
    both: tuple[Term, ...] = ()
    crossed: tuple[Term, ...] = ()
    odds: Scalar = 0.0


def parts(found: Products, output: Atom, x: Combination, odds: Scalar) -> Seen:
    """In terms of a sublayer's output and input, with terms that meet neither left out."""
    met: Met = {}

    def part(direction: Combination) -> Part:
        return Part(direction.terms.get(output, 0.0), _joint(direction, x, met))

    own, others, both, crossed = (_meeting(kind) for kind in found.along(part))
    return Seen(own, others, both, crossed, odds)


def _meeting(terms: Iterable[Term]) -> tuple[Term, ...]:
    return tuple(term for term in terms if _meets(term.left) and _meets(term.right))


def _meets(part: Part) -> bool:
    return part.with_input is not NOTHING or not (isinstance(part.coefficient, float) and part.coefficient == 0.0)


def _times(one: Any, other: Any) -> Any:
    return NOTHING if one is NOTHING or other is NOTHING else one.product(other)


def _less(weight: Any) -> Any:
    return weight if weight is NOTHING else weight.scaled(-1.0, 1.0)
