"""One value of the unknown, and what the theory predicts there; each prediction is made once, when it is asked for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from propagate.inverse.unknown import Setting
from propagate.model import Model, ModelError
from propagate.start import Start
from propagate.table import JOINED, STREAM
from propagate.transfer import factors_by_kind

if TYPE_CHECKING:
    import xarray as xr


@dataclass(eq=False)
class Point:
    """A network, what enters it and, of a first step, what is done to it.

    Attributes:
        setting: the network with its unknown in place.
        start: what enters.
        base: (width, depth) at which a rule of transfer changes nothing.
        steps: first steps that have been predicted, at rate 1, of which the rate is a factor.
        samples: of attention's logits, as for `predict`.
    """

    setting: Setting
    start: Start
    base: tuple[int, int]
    steps: dict[Any, Any] = field(default_factory=dict)
    samples: int | None = None

    @property
    def model(self) -> Model:
        """The network."""
        return self.setting.model

    @cached_property
    def network(self) -> Model:
        """The network that the rule of transfer makes of the model, gains and multipliers in place."""
        from propagate.theory.transferred import transferred

        if self.setting.transfer is None:
            return self.model
        return transferred(self.model, factors_by_kind(self.model, self.setting.transfer, self.base))

    @cached_property
    def table(self) -> xr.Dataset:
        """The table of `predict`."""
        import propagate as pg

        return pg.predict(self.network, self.start, samples=self.samples)

    @cached_property
    def moments(self) -> xr.Dataset:
        """The same; of several streams, what joins them."""
        return self.table.sel({STREAM: JOINED}) if STREAM in self.table.dims else self.table

    def last(self, *names: str) -> list[float]:
        """Columns of `moments` behind the last block."""
        found = self.moments
        return [float(found[name][-1]) for name in names]

    @cached_property
    def attention_share(self) -> float:
        """See `propagate.theory.attention_share`."""
        from propagate.theory.attention_share import attention_share

        return attention_share(self.network, self.start)

    @property
    def step(self) -> xr.Dataset:
        """The table of `predict_step` for the optimiser at rate 1: a first step is proportional to its rate."""
        import propagate as pg

        optimizer, transfer = self.setting.optimizer, self.setting.transfer
        if optimizer is None:
            raise ModelError("optimizer must be given where a condition is on the first step")
        unit = dataclasses.replace(optimizer, lr=1.0)
        key = id(self.model), unit, id(transfer)
        if key not in self.steps:
            found = pg.predict_step(self.model, unit, self.start, transfer=transfer, base=self.base)
            self.steps[key] = found, self.model, transfer  # kept, so that no other takes their ids
        return self.steps[key][0]  # type: ignore[no-any-return]

    def sized(self, over: str, size: int) -> Point:
        """The same at another depth or width.

        Example:
            >>> Point(Setting(Model("prenorm", depth=4)), Start(), (512, 4)).sized("depth", 8).model.depth
            8
        """
        field_of_size: dict[str, Any] = {over: size}
        model = dataclasses.replace(self.model, **field_of_size)
        return dataclasses.replace(self, setting=dataclasses.replace(self.setting, model=model))
