"""What scalar products of cotangents with streams know beyond second moments: against matrices written out."""

import numpy as np
import pytest

from propagate.theory.pairs.moments import Atom, Combination, correlated
from propagate.theory.pairs.products import Products, Term, entering, products
from propagate.theory.tokens.gram import Entries, Gram

TOKENS, SIZE = 2, 8
DRAW = np.random.default_rng(3)


def streams(count: int) -> tuple[list[Atom], list[np.ndarray]]:
    """Uncorrelated streams, and vectors (tokens, SIZE) with exactly their second moments, in units of 1."""
    atoms, vectors = [], []
    for i in range(count):
        vector = np.zeros((TOKENS, SIZE))
        vector[:, TOKENS * i : TOKENS * (i + 1)] = DRAW.standard_normal((TOKENS, TOKENS))
        vectors.append(vector)
        atoms.append(Atom(Gram.of(vector @ vector.T)))
    return atoms, vectors


def written(stream: Combination, atoms: list[Atom], vectors: list[np.ndarray]) -> np.ndarray:
    """The vectors of a stream."""
    known = dict(zip(atoms, vectors, strict=True))
    return sum(np.reshape(np.broadcast_to(c, TOKENS), (-1, 1)) * known[atom] for atom, c in stream.terms.items())


def behind_norm(z: np.ndarray) -> list[np.ndarray]:
    """What the norm of z does to a cotangent, but for the factor: a matrix for each token."""
    return [np.eye(SIZE) - np.outer(row, row) / (row @ row) for row in z]


def value(found: Products, u: np.ndarray, v: np.ndarray, where, t: int, s: int) -> float:
    """The terms for u_t and v_s."""

    def sum_of(kind: tuple[Term, ...], left: int, right: int) -> float:
        return sum((u[t] @ where(a)[left]) * (where(b)[right] @ v[s]) * weight.matrix[t, s] for a, b, weight in kind)

    return sum_of(found.own, t, t) + sum_of(found.others, s, s) + sum_of(found.both, t, s) + sum_of(found.crossed, s, t)


@pytest.mark.parametrize("forgotten", [None, "own", "others", "both", "crossed"])
def test_two_norms_and_two_ways(forgotten: str | None) -> None:
    """g = P_y (P_z p + p / 2) - 0.7 q and h = P_y q, with p and q correlated and p along streams of its own."""
    atoms, vectors = streams(3)
    a, b, c = (Combination.of(atom) for atom in atoms)
    y, z = a + b * 0.5, a * -0.3 + b + c * np.array([0.4, 1.5])
    moments = DRAW.standard_normal((2, TOKENS, 2, TOKENS))
    cov = np.einsum("itks,jukr->itju", moments[:, :, :, :1], moments[:, :, :, :1])
    p, q = correlated(tuple(tuple(Gram.of(cov[i, :, j, :]) for j in (0, 1)) for i in (0, 1)))
    weights = {name: DRAW.standard_normal((TOKENS, TOKENS)) for name in ("own", "both", "crossed")}
    weights = {name: w + w.T if name != "own" else w for name, w in weights.items()}
    own = Entries(weights["own"])
    both, crossed = Entries(weights["both"]), Entries(weights["crossed"])
    p.products = {
        p: Products(
            own=(Term(z, y, own),),
            others=(Term(y, z, Entries(own.matrix.T)),),
            both=(Term(z, z, both),),
            crossed=(Term(y, y, crossed),),
        )
    }
    g = (Combination.of(p).orthogonal_to(z) + Combination.of(p) * 0.5).orthogonal_to(y) + Combination.of(q) * -0.7
    h = Combination.of(q).orthogonal_to(y)

    def where(stream: Combination) -> np.ndarray:
        return written(stream, atoms, vectors)

    y_rows, z_rows = where(y), where(z)
    p_y, p_z = behind_norm(y_rows), behind_norm(z_rows)
    for one, other in ((g, g), (g, h), (h, g)):
        found = products(one, other)
        if forgotten:
            found = found._replace(**{forgotten: ()})
        agree = []
        for t in range(TOKENS):
            for s in range(TOKENS):
                extra = own.matrix[t, s] * np.outer(z_rows[t], y_rows[t])
                extra = extra + own.matrix[s, t] * np.outer(y_rows[s], z_rows[s])
                extra = extra + both.matrix[t, s] * np.outer(z_rows[t], z_rows[s])
                extra = extra + crossed.matrix[t, s] * np.outer(y_rows[s], y_rows[t])
                covariances = np.einsum("ij,kl->ijkl", cov[:, t, :, s], np.eye(SIZE))
                covariances[0, 0] += extra
                maps = {
                    id(g): lambda r: [p_y[r] @ (p_z[r] + np.eye(SIZE) / 2), -0.7 * np.eye(SIZE)],
                    id(h): lambda r: [np.zeros((SIZE, SIZE)), p_y[r]],
                }
                left, right = maps[id(one)](t), maps[id(other)](s)
                exact = sum(left[i] @ covariances[i, j] @ right[j].T for i in (0, 1) for j in (0, 1))
                gamma = one.joint(other).matrix[t, s] if one is not other else one.moments().matrix[t, s]
                for u, v in ((vectors[0], vectors[1]), (vectors[1], vectors[1]), (y_rows, vectors[0])):
                    said = gamma * (u[t] @ v[s]) + value(found, u, v, where, t, s)
                    agree.append(said == pytest.approx(u[t] @ exact @ v[s], rel=1e-10, abs=1e-10))
        if forgotten is None:
            assert all(agree)
        elif one is other is g:
            assert not all(agree), forgotten


def test_what_enters_an_earlier_block_says_the_same() -> None:
    """Streams of the earlier block meet later ones only through the two streams that pass."""
    atoms, vectors = streams(4)
    first, second, later, latest = atoms
    x, w = Combination.of(first), Combination.of(second)
    z, y = x * 0.8 + w + Combination.of(later), w * 1.5 + Combination.of(latest)
    g = Combination.of(Atom(Gram.of([[2.0, 0.5], [0.5, 1.0]]))).orthogonal_to(z).orthogonal_to(y + x * 0.3)
    found = products(g, g)
    carried = entering(found, [first, second])
    for t in range(TOKENS):
        for s in range(TOKENS):
            u, v = vectors[0] + 0.3 * vectors[1], vectors[1] - vectors[0]
            whole = value(found, u, v, lambda stream: written(stream, atoms, vectors), t, s)
            assert value(carried, u, v, lambda i: vectors[i], t, s) == pytest.approx(whole, rel=1e-10)
            swapped = value(carried, u, v, lambda i: vectors[1 - i], t, s)
            assert swapped != pytest.approx(whole, rel=1e-2)
