"""Everything that is used without proof. The list is short on purpose, and every report counts what it uses."""

from proofs.vocabulary import Axiom

WICK = Axiom(
    "Isserlis-Wick theorem",
    "The expectation of a product of centred jointly Gaussian variables is the sum, over all ways to split them into "
    "pairs, of the product of the pairs' covariances; it is zero for an odd number of variables.",
    "L. Isserlis, Biometrika 12 (1918) 134-139; S. Janson, Gaussian Hilbert Spaces (Cambridge, 1997), Thm 1.28",
)
PARTS = Axiom(
    "Gaussian integration by parts (Stein, Price)",
    r"For centred jointly Gaussian $u, v$ and an absolutely continuous $f$ whose derivatives have finite expectations, "
    r"$\mathbb E[u f(u,v)] = \mathrm{Var}(u)\,\mathbb E[\partial_u f] + \mathrm{Cov}(u,v)\,\mathbb E[\partial_v f]$; "
    r"hence $\partial\,\mathbb E[f(u)g(v)]/\partial\,\mathrm{Cov}(u,v) = \mathbb E[f'(u)g'(v)]$.",
    "C. Stein, Ann. Statist. 9 (1981) 1135-1151, Lemma 1; R. Price, IRE Trans. Inf. Theory 4 (1958) 69-72",
)
CHI_SQUARED = Axiom(
    "Chi-squared laws",
    r"For $x \sim N(0, vI_d)$, $\|x\|^2/v$ has the $\chi^2_d$ law and $\sum_i (x_i - \bar x)^2/v$ the "
    r"$\chi^2_{d-1}$ law.",
    "W. G. Cochran, Math. Proc. Camb. Phil. Soc. 30 (1934) 178-191",
)
WIDE = Axiom(
    "Wide limit",
    "As the width grows, each stream's token Gram matrix divided by the width converges to a deterministic limit, and "
    "pre-activations are jointly Gaussian given it; so the second moments of a layer's output are the expectations "
    "under a Gaussian input with the limiting second moments.",
    "G. Yang, Tensor Programs I, arXiv:1910.12478, and II, arXiv:2006.14548; for attention J. Hron et al., "
    "Infinite attention, arXiv:2006.10540",
)
INDEPENDENCE = Axiom(
    "Gradient independence",
    "In the wide limit, second moments of a gradient are the same as if the weights met on the way back were "
    "independent of the forward pass that used them (the weights' entries being centred and fresh for each layer).",
    "G. Yang, Tensor Programs II, arXiv:2006.14548, section on the gradient independence assumption",
)
TAYLOR = Axiom(
    "Taylor expansion under the expectation",
    "A function with bounded derivatives of every order may be expanded in centred Gaussian variables of variance "
    "proportional to $\\tau$ under the expectation; stopping after second order leaves $O(\\tau^2)$.",
    "P. Billingsley, Probability and Measure, 3rd ed. (Wiley, 1995), section 16 (dominated convergence)",
)
ONE_STEP = Axiom(
    "Convergence of one-step methods",
    r"If $y_{l+1} = y_l + \varepsilon f(y_l) + O(\varepsilon^2)$ uniformly on a compact set that contains the solution "
    r"of $\dot y = f(y)$, with $f$ Lipschitz, then $y_l$ is within $O(\varepsilon)$ of $y(l\varepsilon)$ for "
    r"$l\varepsilon \le 1$.",
    "E. Hairer, S. P. Norsett, G. Wanner, Solving Ordinary Differential Equations I, 2nd ed. (Springer, 1993), II.3",
)

ALL = (WICK, PARTS, CHI_SQUARED, WIDE, INDEPENDENCE, TAYLOR, ONE_STEP)
