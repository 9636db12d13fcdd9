"""Torch models in other people's styles: what is read off them is what they do, or they are refused in one line."""

import math
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.nn.utils import parametrizations  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import propagate as pg  # noqa: E402

WIDTH, HEADS, TOKENS, DEPTH = 32, 4, 6, 2
SIZE = WIDTH // HEADS


def heads(x: Any) -> Any:
    return x.unflatten(-1, (HEADS, SIZE)).transpose(1, 2)


def joined(x: Any) -> Any:
    return x.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Names that tell; what happens to queries, keys and values is a function's."""

    def __init__(self, mix: Callable[[Any, Any, Any], Any]) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.mix = mix

    def forward(self, x: Any) -> Any:
        return self.o_proj(joined(self.mix(*(heads(p(x)) for p in (self.q_proj, self.k_proj, self.v_proj)))))


def softmax(q: Any, k: Any, v: Any, **more: Any) -> Any:
    return functional.scaled_dot_product_attention(q, k, v, **more)


class FFN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(WIDTH, 96, bias=False), nn.Linear(96, WIDTH, bias=False)

    def forward(self, x: Any) -> Any:
        return self.c_proj(functional.gelu(self.c_fc(x)))


class Block(nn.Module):
    def __init__(self, attention: Any = None, mlp: Any = None) -> None:
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn, self.mlp = attention or Attention(softmax), mlp or FFN()

    def forward(self, x: Any) -> Any:
        x = x + self.attn(self.n1(x))
        return x + self.mlp(self.n2(x))


class OneHead(nn.Module):
    """As in a lecture that many copy: every head is a module."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.query, self.value = (nn.Linear(WIDTH, SIZE, bias=False) for _ in range(3))

    def forward(self, x: Any) -> Any:
        q, k, later = self.query(x), self.key(x), torch.ones(x.shape[1], x.shape[1]).tril() == 0
        weights = (q @ k.transpose(-2, -1) * SIZE**-0.5).masked_fill(later, -math.inf)
        return functional.softmax(weights, dim=-1) @ self.value(x)


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads, self.proj = nn.ModuleList(OneHead() for _ in range(HEADS)), nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Any) -> Any:
        return self.proj(torch.cat([head(x) for head in self.heads], dim=-1))


class TwoMatrices(nn.Module):
    """Keys and values side by side, products by einsum with the heads behind the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_kv = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.to_out = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Any) -> Any:
        q, k, v = (part.unflatten(-1, (HEADS, SIZE)) for part in (self.to_q(x), *self.to_kv(x).chunk(2, -1)))
        weights = (torch.einsum("bqhd,bkhd->bhqk", q, k) * SIZE**-0.5).softmax(-1)
        return self.to_out(torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2))


class Macaron(Block):
    def __init__(self) -> None:
        super().__init__()
        self.n0, self.mlp0 = nn.LayerNorm(WIDTH), FFN()

    def forward(self, x: Any) -> Any:
        x = x + 0.5 * self.mlp0(self.n0(x))
        x = x + self.attn(self.n1(x))
        return x + 0.5 * self.mlp(self.n2(x))


class Within(Block):
    def forward(self, x: Any) -> Any:
        x += self.attn(self.n1(x))
        x += self.mlp(self.n2(x))
        return x


class Checkpointed(nn.Module):
    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.blocks, self.reentrant = nn.ModuleList(Block() for _ in range(DEPTH)), reentrant

    def forward(self, x: Any) -> Any:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant)
        return x


class Between(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))

    def forward(self, x: Any) -> Any:
        for block in self.blocks:
            x = 0.5 * block(x)
        return x


def stack(block: Callable[[], nn.Module], depth: int = DEPTH) -> nn.Module:
    return nn.Sequential(*(block() for _ in range(depth)))


def drawn(module: nn.Module, seed: int = 0, std: float = 0.2) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=std, generator=generator)
    return module.eval()


def stream(sequences: int = 2) -> Any:
    return torch.randn(sequences, TOKENS, WIDTH, generator=torch.Generator().manual_seed(3))


def read(module: nn.Module, inputs: Any = None) -> Any:
    return pg.describe(module, tokens=TOKENS, inputs=stream() if inputs is None else inputs)


@pytest.mark.parametrize("attention", [Heads, TwoMatrices])
def test_heads_and_matrices_that_lie_otherwise_are_one_attention(attention: Any) -> None:
    module = drawn(stack(lambda: Block(attention())))
    model, unread = read(module)
    found = model.at(1).attention
    assert (type(model.equations).__name__, found.heads, found.kv_heads, unread) == ("PreNorm", HEADS, HEADS, ())
    assert found.causal is (attention is Heads)
    matrices = [p for p in module[0].attn.parameters() if p.shape[0] != p.shape[1] or p.numel() > SIZE * WIDTH]
    wanted = math.sqrt(WIDTH) * math.sqrt(
        sum(float(p.detach().square().sum()) for p in matrices) / sum(p.numel() for p in matrices)
    )
    gains = [found.query_gain, found.key_gain, found.value_gain, found.out_gain]
    assert math.sqrt(sum(gain**2 for gain in gains) / 4) == pytest.approx(wanted, rel=1e-3)


def test_keys_and_values_are_not_exchanged() -> None:
    module = drawn(stack(lambda: Block(TwoMatrices())))
    for block in module:
        block.attn.to_kv.weight.data[WIDTH:] *= 3
    found = read(module).model.at(1).attention
    assert found.value_gain / found.key_gain == pytest.approx(3, rel=0.1)


def unit(q: Any, k: Any, v: Any) -> Any:
    q, k = functional.normalize(q, dim=-1), functional.normalize(k, dim=-1)
    return (8.0 * q @ k.mT).softmax(-1) @ v


def rms(q: Any, k: Any, v: Any) -> Any:
    return softmax(functional.rms_norm(q, (SIZE,)), functional.rms_norm(k, (SIZE,)), v)


@pytest.mark.parametrize(("mix", "spread"), [(unit, 8 / math.sqrt(SIZE)), (rms, 1.0)])
def test_norms_of_queries_and_keys_that_no_module_is_are_read(mix: Any, spread: float) -> None:
    model, unread = read(drawn(stack(lambda: Block(Attention(mix)))))
    assert (model.normed, unread) == (("key", "query"), ())
    assert model.at(1).attention.logit_std == pytest.approx(spread, rel=0.01)
    assert read(drawn(stack(Block))).model.normed == ()


def test_the_base_of_rotary_positions_is_read_off_queries() -> None:
    def turned(x: Any, theta: float, upper: float = 1.0) -> Any:
        angles = upper * torch.arange(TOKENS)[:, None] * theta ** (-torch.arange(SIZE // 2) / (SIZE // 2))
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)

    def mix(upper: float) -> Any:
        return lambda q, k, v: softmax(turned(q, 500.0, upper), turned(k, 500.0, upper), v)

    assert read(drawn(stack(lambda: Block(Attention(mix(1.0)))))).model.at(1).attention.rope == 500.0
    model, unread = read(drawn(stack(lambda: Block(Attention(mix(0.3))))))  # positions that were stretched
    assert model.at(1).attention.rope is None
    assert unread == ("rotary positions of parts of the heads, or rescaled ones",)


def test_weights_that_are_made_are_read_as_they_act() -> None:
    def normed(module: nn.Module, kind: Any) -> nn.Module:
        for part in list(module.modules()):
            if isinstance(part, nn.Linear):
                kind(part)
        return module

    plain, x = read(drawn(stack(Block))).model, stream()
    for kind in (parametrizations.weight_norm, nn.utils.weight_norm):
        module = normed(drawn(stack(Block)), kind)
        model, unread = read(module)
        assert unread == ()
        assert model.at(1).attention.query_gain == pytest.approx(plain.at(1).attention.query_gain, rel=1e-5)
        assert pg.trace(module, x).call.values.tolist() == ["norm1", "attention1", "norm2", "ffn1"]
    module = normed(drawn(stack(Block)), parametrizations.spectral_norm)
    assert read(module).model.at(1).ffn.in_gain < 0.7 * plain.at(1).ffn.in_gain


def test_a_part_that_blocks_share_is_one_call_of_each_and_is_said() -> None:
    module = drawn(stack(Block))
    module[1].mlp = module[0].mlp
    seen = pg.trace(module, stream())
    assert seen.call.values.tolist() == ["norm1", "attention1", "norm2", "ffn1"]
    assert bool(seen.call_variance.sel(call="ffn1")[1:].notnull().all())
    assert "weights that several blocks share (mlp.c_fc.weight)" in read(module).unread[0]


def test_half_ffns_around_attention_are_read_and_whole_ones_are_rejected() -> None:
    x = stream()
    seen = pg.trace((drawn(stack(Macaron, 1), seed) for seed in range(12)), x)
    model, unread = read(drawn(stack(Macaron, 1)))
    assert unread == ()
    start = pg.start_of(seen)
    assert pg.compare(pg.predict(model, start), seen).attrs["verdict"] != "disagrees"

    class Whole(pg.Placement):
        def block(self, x: Any, block: Any) -> Any:
            x = x + block.ffn(block.norm(x))
            x = x + block.attention(block.norm(x))
            return x + block.ffn(block.norm(x))

    wrong = read_as(drawn(stack(Macaron, 1)), Whole())
    assert pg.compare(pg.predict(wrong, start), seen).attrs["verdict"] == "disagrees"


def read_as(module: nn.Module, placement: pg.Placement) -> pg.Model:
    return pg.describe(module, tokens=TOKENS, inputs=stream(), placement=placement).model


def test_a_checkpoint_inside_the_forward_changes_nothing() -> None:
    plain, within = (drawn(make()) for make in (lambda: stack(Block), lambda: Checkpointed(reentrant=False)))
    x = stream()
    assert read(within).model.equations == read(plain).model.equations
    for name in ("variance", "grad_variance", "call_variance"):
        assert pg.trace(within, x)[name].values[1:] == pytest.approx(pg.trace(plain, x)[name].values[1:], rel=1e-5)
    with pytest.raises(pg.ModelError, match="runs its blocks without autograd"):
        pg.trace(drawn(Checkpointed(reentrant=True)), x)
    with pytest.raises(pg.ModelError, match="describe needs autograd, and block 1 runs without it"):
        read(drawn(Checkpointed(reentrant=True)))


class Across(Block):
    """To other tokens."""

    def forward(self, x: Any) -> Any:
        q, k, v = (
            self.attn.q_proj(self.n1(x)),
            *(p(torch.ones(1, 3, WIDTH)) for p in (self.attn.k_proj, self.attn.v_proj)),
        )
        x = x + self.attn.o_proj(joined(softmax(*map(heads, (q, k.expand(len(x), -1, -1), v.expand(len(x), -1, -1))))))
        return x + self.mlp(self.n2(x))


HALF = torch.ones(HEADS, TOKENS, TOKENS, dtype=torch.bool)
HALF[: HEADS // 2] = HALF[0].tril()
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "linear attention": (
        lambda: stack(lambda: Block(Attention(lambda q, k, v: q @ (k.mT @ v)))),
        "no softmax over tok",
    ),
    "sigmoids": (
        lambda: stack(lambda: Block(Attention(lambda q, k, v: (q @ k.mT).sigmoid() @ v))),
        "no softmax over tok",
    ),
    "heads that see other tokens": (
        lambda: stack(lambda: Block(Attention(lambda q, k, v: softmax(q, k, v, attn_mask=HALF)))),
        "the heads of block 1 attend to different tokens",
    ),
    "across": (lambda: stack(Across), "0 of its sublayers mix tokens: cross-attention"),
    "in place": (lambda: stack(Within), "block 1 changes in place a stream"),
    "a stream changed between blocks": (Between, "what enters block 2 is not what left block 1"),
}


@pytest.mark.parametrize("kind", list(REFUSED))
def test_what_no_model_has_is_refused_in_one_line(kind: str) -> None:
    make, words = REFUSED[kind]
    with pytest.raises(pg.ModelError, match=words) as caught:
        read(drawn(make()))
    assert "\n" not in str(caught.value)


def test_sequences_that_see_other_tokens_and_keys_beside_are_said() -> None:
    class Torch(Block):
        def __init__(self, **more: Any) -> None:
            super().__init__(nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, bias=False, **more))

        def forward(self, x: Any, key_padding_mask: Any = None) -> Any:
            y = self.n1(x)
            x = x + self.attn(y, y, y, key_padding_mask=key_padding_mask, need_weights=False)[0]
            return x + self.mlp(self.n2(x))

    class Stack(nn.Module):
        def __init__(self, **more: Any) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Torch(**more) for _ in range(DEPTH))

        def forward(self, x: Any, key_padding_mask: Any = None) -> Any:
            for block in self.blocks:
                x = block(x, key_padding_mask)
            return x

    padding = torch.zeros(2, TOKENS, dtype=torch.bool)
    padding[1, -1] = True
    said = read(drawn(Stack()), {"x": stream(), "key_padding_mask": padding}).unread
    assert said == ("sequences that attend to different tokens, of which the first are read",)
    assert read(drawn(Stack(add_zero_attn=True))).unread == ("a key and a value beside those of the tokens",)
    assert read(drawn(Stack())).unread == ()


def test_factors_of_a_placement_are_not_taken_for_those_read() -> None:
    """A block without norms is T-Fixup's, whose gains would come on top of those of the weights."""

    class Bare(Block):
        def forward(self, x: Any) -> Any:
            x = x + self.attn(x)
            return x + self.mlp(x)

    model, unread = read(drawn(stack(Bare), std=0.1))
    assert (type(model.equations).__name__, unread) == ("AsRead", ())
    assert model.at(1).attention.out_gain == pytest.approx(0.1 * math.sqrt(WIDTH), rel=0.1)
