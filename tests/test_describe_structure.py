"""Blocks whose matrices have names that nobody knows are read by what they do; what is not the usual is refused."""

from typing import Any

import pytest

import propagate as pg

torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")
nn, functional = torch.nn, torch.nn.functional
torch.set_num_threads(1)
WIDTH, HEADS, TOKENS = 64, 4, 8
STD = {"q": 0.2, "k": 0.3, "v": 0.1, "o": 0.15, "gate": 0.25, "up": 0.05, "down": 0.08}


def linear(name: str, fan_in: int = WIDTH, fan_out: int = WIDTH) -> Any:
    made = nn.Linear(fan_in, fan_out, bias=False)
    nn.init.normal_(made.weight, std=STD[name])
    return made


class Mixer(nn.Module):
    """Attention, its matrices under names of their own, in an order of their own."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.ears = nn.ModuleDict({name: linear(name) for name in ("v", "k", "q")})
        fused = torch.cat([self.ears[name].weight.reshape(HEADS, -1, WIDTH) for name in ("q", "k", "v")], dim=1)
        if how == "by head":
            self.ears = nn.ModuleDict({"all": nn.Linear(WIDTH, 3 * WIDTH, bias=False)})
            self.ears["all"].weight = nn.Parameter(fused.reshape(3 * WIDTH, WIDTH).detach())
        self.mouth = linear("o")

    def forward(self, x: Any) -> Any:
        shape = (*x.shape[:2], HEADS, WIDTH // HEADS)
        if self.how == "by head":
            parts = self.ears["all"](x).reshape(*x.shape[:2], HEADS, 3, -1).unbind(3)
        else:
            parts = [self.ears[name](x).reshape(shape) for name in ("q", "k", "v")]
        q, k, v = (part.transpose(1, 2) for part in parts)
        if self.how == "written out":
            logits = torch.einsum("bhid,bhjd->bhij", q, k) * q.shape[-1] ** -0.5
            mixed = torch.einsum("bhij,bhjd->bhid", logits.softmax(-1), v)
        else:
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.mouth(mixed.transpose(1, 2).flatten(2))


class Gated(nn.Module):
    """A gated FFN; `fused` has the gate behind what it opens, in one matrix."""

    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        up, gate = linear("up", WIDTH, 96), linear("gate", WIDTH, 96)
        self.a = nn.ModuleList([up, gate])
        if fused:
            self.a = nn.ModuleList([nn.Linear(WIDTH, 192, bias=False)])
            self.a[0].weight = nn.Parameter(torch.cat([up.weight, gate.weight]).detach())
        self.b = linear("down", 96, WIDTH)

    def forward(self, x: Any) -> Any:
        up, gate = self.a[0](x).chunk(2, -1) if len(self.a) == 1 else (one(x) for one in self.a)
        return self.b(functional.silu(gate) * up)


class Odd(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.one, self.two = nn.RMSNorm(WIDTH, eps=1e-6), nn.RMSNorm(WIDTH, eps=1e-6)
        self.first, self.second = Mixer(how), Gated(fused=how == "by head")

    def forward(self, x: Any) -> Any:
        x = x + self.first(self.one(x))
        return x + self.second(self.two(x))


def odd(how: str, seed: int = 0, depth: int = 2) -> Any:
    torch.manual_seed(seed)
    return nn.Sequential(*(Odd(how) for _ in range(depth)))


@pytest.mark.parametrize("how", ["apart", "by head", "written out"])
def test_every_matrix_is_found_by_what_it_does(how: str) -> None:
    model, said = pg.describe(odd(how), tokens=TOKENS)
    attention, ffn = model.at(1).attention, model.at(1).ffn
    assert (type(model.equations).__name__, model.norm, said) == ("PreNorm", pg.Norm("rms", 1e-6), ())
    assert (attention.heads, attention.causal, ffn.activation.name, ffn.hidden) == (
        HEADS,
        how != "written out",
        "swiglu",
        96,
    )
    found = (attention.query_gain, attention.key_gain, attention.value_gain, attention.out_gain)
    found = (*found, ffn.in_gain * ffn.gate_gain, ffn.in_gain)
    wanted = [8 * STD[name] for name in ("q", "k", "v", "o", "gate", "up")]
    assert found == pytest.approx(wanted, rel=0.05)


def test_what_was_read_predicts_what_is_traced_and_a_swapped_value_and_key_do_not() -> None:
    x = torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))
    seen = pg.trace((odd("apart", seed) for seed in range(24)), x)
    model, _ = pg.describe(odd("apart"), tokens=TOKENS)
    assert pg.compare(pg.predict(model, pg.start_of(seen)), seen).attrs["verdict"] != "disagrees"
    right = model.at(1).attention
    wrong = right.with_(key_gain=right.value_gain, value_gain=right.key_gain)
    swapped = pg.Model("prenorm", 2, WIDTH, TOKENS, attention=wrong, ffn=model.at(1).ffn, norm=model.norm)
    assert pg.compare(pg.predict(swapped, pg.start_of(seen)), seen).attrs["verdict"] == "disagrees"


def test_a_third_matrix_in_a_row_is_refused() -> None:
    module = odd("apart")
    for block in module:
        block.second.b = nn.Sequential(linear("down", 96, 96), nn.Tanh(), linear("down", 96, WIDTH))
    with pytest.raises(pg.ModelError, match=r"what the matrix .* of Odd does is not known"):
        pg.describe(module, tokens=TOKENS)


class CausalSelfAttention(nn.Module):
    """As nanoGPT has it."""

    def __init__(self) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.attn_dropout, self.resid_dropout = nn.Dropout(0.1), nn.Dropout(0.1)
        self.n_head, self.n_embd, self.flash = HEADS, WIDTH, True

    def forward(self, x: Any) -> Any:
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        q, k, v = (part.view(*x.shape[:2], self.n_head, -1).transpose(1, 2) for part in (q, k, v))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).contiguous().view(x.shape)))


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_fc, self.gelu, self.c_proj = nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Any) -> Any:
        return self.dropout(self.c_proj(self.gelu(self.c_fc(x))))


class LayerNorm(nn.Module):
    """With a bias that may be absent, and an eps that nothing says."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(WIDTH)), None

    def forward(self, x: Any) -> Any:
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.attn, self.ln_2, self.mlp = LayerNorm(), CausalSelfAttention(), LayerNorm(), MLP()

    def forward(self, x: Any) -> Any:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.config = {"n_layer": depth, "n_head": HEADS}  # of no library
        parts = {"wte": nn.Embedding(99, WIDTH), "wpe": nn.Embedding(32, WIDTH), "drop": nn.Dropout(0.1)}
        self.transformer = nn.ModuleDict(parts | {"h": nn.ModuleList(Block() for _ in range(depth))})
        self.transformer["ln_f"], self.lm_head = LayerNorm(), nn.Linear(WIDTH, 99, bias=False)
        self.transformer["wte"].weight = self.lm_head.weight
        for path, weight in self.named_parameters():
            if path.endswith("bias"):
                nn.init.zeros_(weight)
            elif weight.dim() > 1:
                nn.init.normal_(weight, std=0.02 / (2 * depth) ** 0.5 if path.endswith("c_proj.weight") else 0.02)

    def forward(self, ids: Any) -> Any:
        places = torch.arange(ids.shape[1])
        x = self.transformer["drop"](self.transformer["wte"](ids) + self.transformer["wpe"](places))
        for block in self.transformer["h"]:
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))


def test_code_like_nanogpt_is_read_as_it_is_and_called_on_ids() -> None:
    torch.manual_seed(0)
    model, said = pg.describe(GPT(), tokens=TOKENS)
    layer = model.at(2)
    assert (type(model.equations).__name__, model.depth, model.norm, said) == ("PreNorm", 3, pg.Norm("layer", 1e-5), ())
    assert (layer.attention.heads, layer.attention.causal, layer.ffn.activation.name) == (HEADS, True, "gelu")
    assert layer.attention.out_gain == pytest.approx(0.02 * 8 / 6**0.5, rel=0.05)
    attention, ffn = pg.Attention(heads=2, causal=True, out_gain=0.5), pg.FFN("relu", hidden=32)
    own = pg.describe(GPT(), tokens=TOKENS, placement="postnorm", attention=attention, ffn=ffn).model
    assert (own.at(1).attention.out_gain, own.at(1).ffn.hidden, type(own.equations).__name__) == (0.5, 32, "PostNorm")


class PreNormBlock(Odd):
    """No norm itself; it asks torch for norms without a module."""

    def forward(self, x: Any) -> Any:
        x = x + self.first(functional.rms_norm(x, (WIDTH,), eps=1e-4))
        return x + self.second(functional.rms_norm(x, (WIDTH,), eps=1e-4))


def test_norms_that_no_module_is_are_read() -> None:
    torch.manual_seed(0)
    model, said = pg.describe(nn.Sequential(PreNormBlock("apart"), PreNormBlock("apart")), tokens=TOKENS)
    assert (type(model.equations).__name__, model.norm, said) == ("PreNorm", pg.Norm("rms", 1e-4), ())


def test_blocks_of_bfloat16_are_read_within_its_rounding() -> None:
    model = pg.describe(odd("apart").bfloat16(), tokens=TOKENS).model
    assert (type(model.equations).__name__, model.at(1).ffn.activation.name) == ("PreNorm", "swiglu")


def test_what_no_model_has_is_refused_by_name() -> None:
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 2, 32, batch_first=True), 2)
    x = torch.randn(1, 4, 16)
    with pytest.raises(
        pg.ModelError, match="TransformerDecoderLayer attends to another stream, which describe does not read"
    ):
        pg.describe(decoder, tokens=4, inputs=(x, torch.randn(1, 5, 16)))
    module = odd("apart")
    nn.init.constant_(module[1].second.b.weight, float("nan"))
    with pytest.raises(pg.ModelError, match="what leaves block 2 is not finite"):
        pg.describe(module, tokens=TOKENS)
    with torch.inference_mode(), pytest.raises(pg.ModelError, match="describe needs autograd"):
        pg.describe(odd("apart"), tokens=TOKENS)
