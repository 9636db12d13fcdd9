"""A state as Python code and as command lines, which make the same networks."""

from __future__ import annotations

from propagate.explorer.state import EXPERTS, MASKS, State

MODEL_DEFAULTS = {"width": 512, "tokens": 32, "activation": "relu", "logit_std": 1.0}


def code(state: State) -> str:
    """Python that predicts, simulates and compares every network of the state.

    Example:
        >>> print(code(State(placements=("spannorm",), width=256, exponent=0.5)))
        import propagate as pg
        <BLANKLINE>
        models = [
            pg.Model("spannorm", depth=24, width=256, scaling=pg.ScaleInit(0.5)),
        ]
        start = pg.Start(covariance=0.3)
        predicted = [pg.predict(model, start) for model in models]
        measured = [pg.simulate(model, start, draws=64) for model in models]
        for theory, seen in zip(predicted, measured, strict=True):
            print(pg.report(pg.compare(theory, seen)))
        figure = pg.plot(*predicted, *measured)
        steps = [pg.predict_step(model, pg.SGD(lr=1e-05), start) for model in models]
        <BLANKLINE>
    """
    models = "".join(f"    {_model(state, name)},\n" for name in state.placements)
    lines = [
        f"import propagate as pg\n\nmodels = [\n{models}]",
        f"start = pg.Start(covariance={state.covariance!r})",
        "predicted = [pg.predict(model, start) for model in models]",
    ]
    lines += [
        f"measured = [pg.simulate(model, start, draws={state.draws}) for model in models]",
        "for theory, seen in zip(predicted, measured, strict=True):\n    print(pg.report(pg.compare(theory, seen)))",
        "figure = pg.plot(*predicted, *measured)",
    ]
    if state.experts == "none" or state.optimizer != "muon":  # whose step with experts is not derived
        rule = f"pg.{type(state.rule).__name__}(lr={state.lr!r})"
        lines.append(f"steps = [pg.predict_step(model, {rule}, start) for model in models]")
    return "\n".join(lines) + "\n"


def _model(state: State, placement: str) -> str:
    said = {name: getattr(state, name) for name in MODEL_DEFAULTS}
    fields = {"depth": repr(state.depth)}
    changed = {name: value for name, value in said.items() if value != MODEL_DEFAULTS[name]}
    fields |= {name: f'"{value}"' if isinstance(value, str) else repr(value) for name, value in changed.items()}
    fields |= {name: repr(value) for name, value in MASKS[state.mask].items()}
    if state.exponent:
        fields["scaling"] = f"pg.ScaleInit({state.exponent!r})"
    mixture = EXPERTS[state.experts]
    if mixture is not None:
        fields["experts"] = f"pg.Experts({mixture.count}, {mixture.top_k})"
    return f'pg.Model("{placement}", {", ".join(f"{name}={value}" for name, value in fields.items())})'


def commands(state: State, verb: str = "compare") -> str:
    """A command line for each placement.

    Example:
        >>> print(commands(State(placements=("spannorm",), mask="window", tokens=8), "predict"))
        propagate predict spannorm --depth 24 --tokens 8 --causal --window 4 --scale-init 0.25 --covariance 0.3
    """
    options: list[tuple[str, object]] = [("depth", state.depth)]
    options += [(name, value) for name in MODEL_DEFAULTS if (value := getattr(state, name)) != MODEL_DEFAULTS[name]]
    options += MASKS[state.mask].items()
    if state.exponent:
        options.append(("scale-init", state.exponent))
    if state.experts != "none":
        options.append(("experts", state.experts))
    options.append(("covariance", state.covariance))
    if verb != "predict":
        options.append(("draws", state.draws))
    said = " ".join(f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}") for name, value in options)
    return "\n".join(f"propagate {verb} {name} {said}" for name in state.placements)
