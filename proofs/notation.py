"""Symbols shared by the propositions, each with its meaning and range."""

import sympy as sp

from proofs.vocabulary import Quantity


def _positive(name: str) -> sp.Symbol:
    return sp.Symbol(name, positive=True)


q, c, gamma, rho = map(_positive, ("q", "c", "gamma", "rho"))
T, d, n, L = map(_positive, ("T", "d", "n", "L"))
ell = sp.Symbol("l", nonnegative=True)
sigma, s_a, s_f, s_b, chi, alpha = map(_positive, ("sigma", "s_a", "s_f", "s_b", "chi", "alpha"))
m, tau, a_a, a_f, k = map(_positive, ("m", "tau", "a_a", "a_f", "k"))

VARIANCE = Quantity(q, "variance of a stream: mean square per coordinate, the same for all tokens")
CORRELATION = Quantity(c, "correlation of two different tokens; their covariance is $p = cq$", 0, 1)
GRAD_VARIANCE = Quantity(gamma, "gradient variance: mean square per coordinate of the gradient of a token")
GRAD_CORRELATION = Quantity(
    rho, r"gradient correlation of two different tokens; their gradient covariance is $\kappa = \rho\gamma$", 0, 1
)
TOKENS = Quantity(T, "number of tokens", 2, sp.oo, integer=True)
WIDTH = Quantity(d, "width of the stream", 3, sp.oo, integer=True)
DEPTH = Quantity(L, "number of blocks (one attention and one FFN each)", 1, sp.oo, integer=True)
BLOCK = Quantity(ell, "number of the block", 0, sp.oo, integer=True)
SIGMA = Quantity(sigma, r"$\sigma^2$ is the gain of attention's value and output maps together")
ATTENTION_GAIN = Quantity(s_a, "variance of the attention branch's output at unit-variance input")
FFN_GAIN = Quantity(s_f, "variance of the FFN branch's output at unit-variance input")
CHI = Quantity(chi, r"FFN: gradient gain over forward gain, $\chi = \dot K(1,1)/K(1,1)$ ($1$ for ReLU)", 1)
