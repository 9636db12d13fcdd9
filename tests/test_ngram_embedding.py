"""Embedded texts with hashed n-grams: theory, samples and torch say the same; wrong formulas are rejected."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

import propagate as pg
from propagate.montecarlo.ngrams import count_collisions, embed_text
from propagate.montecarlo.ngrams import hashed as by_horner
from propagate.theory.ngrams import collision_rate, embedded_gram, embedded_text, hashed, table_gradients

WIDTH, DRAWS = 96, 80
NGRAMS = pg.NGrams(longest=3, tables=2, rows=(256, 257, 256, 515), std=0.5, gain=1.5)
EMBEDDING = pg.TokenEmbedding(256, 0.7, NGRAMS)


@pytest.fixture(scope="module")
def text() -> Any:
    return pg.corpus().stream("training")[:60000]


@pytest.fixture(scope="module")
def ids(text: Any) -> Any:
    """A window of Python's documentation that says something twice."""
    found = text[: len(text) // 12 * 12].reshape(-1, 12)
    distinct = np.array([len(set(row)) for row in found.tolist()])
    return found[np.flatnonzero(distinct == 8)[0]]


def swapped(embedding: pg.TokenEmbedding) -> pg.TokenEmbedding:
    assert embedding.ngrams is not None
    other = {"count": "root", "root": "count"}[embedding.ngrams.average]
    return dataclasses.replace(embedding, ngrams=dataclasses.replace(embedding.ngrams, average=other))


def without_collisions(embedding: pg.TokenEmbedding) -> pg.TokenEmbedding:
    """Tables so large, and so far from multiples of the vocabulary, that two n-grams hardly ever share a row."""
    assert embedding.ngrams is not None
    rows = tuple(10**9 + 7 + 2 * i for i in range(embedding.ngrams.count))
    return dataclasses.replace(embedding, ngrams=dataclasses.replace(embedding.ngrams, rows=rows))


def off(samples: Any, said: Any) -> float:
    """Largest |z| of means over draws, the first axis; what is said is exact where nothing varies."""
    error = samples.std(axis=0, ddof=1) / math.sqrt(len(samples))
    return float(np.abs((samples.mean(axis=0) - said) / np.maximum(error, 1e-9)).max())


def test_three_ways_to_one_hash() -> None:
    random = np.random.default_rng(0)
    tokens, vocabulary = random.integers(0, 2**20, 9), 2**20
    many = pg.NGrams(longest=4, tables=2, rows=(2**38, 7, 2**33 + 1, 2**20, 2**20 + 1, 97))
    by_hand = [
        [sum(int(tokens[i - j]) * vocabulary**j for j in range(min(n, i + 1))) % rows for i in range(len(tokens))]
        for n, rows in many.sizes
    ]
    assert [one.tolist() for one in hashed(many, vocabulary, tokens)] == by_hand
    assert [one.tolist() for one in by_horner(many, vocabulary, tokens)] == by_hand
    torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")
    from propagate.tracing.embedding import hashed as in_torch

    found = in_torch(pg.TokenEmbedding(vocabulary, ngrams=many), torch.from_numpy(np.stack([tokens, tokens])))
    assert [one[1].tolist() for one in found] == by_hand


@pytest.mark.parametrize("more", [{}, {"scale": "root_of_width"}, {"norm": "rms"}], ids=["plain", "scaled", "normed"])
def test_the_gram_matrix_of_a_text(more: dict[str, Any], ids: Any) -> None:
    embedding = dataclasses.replace(EMBEDDING, **more)
    x = embed_text(embedding, ids, width=WIDTH, draws=400, seed=1).x
    grams = np.einsum("kid,kjd->kij", x, x) / WIDTH
    upper = np.triu_indices(len(ids), k=1 if "norm" in more else 0)
    grams = grams[:, *upper]

    def z(one: pg.TokenEmbedding) -> float:
        return off(grams, embedded_gram(one, ids, width=WIDTH)[upper])

    assert z(embedding) < 4
    assert z(without_collisions(embedding)) > 8
    if "norm" not in more:  # which undoes any divisor
        assert z(swapped(embedding)) > 8


def test_where_the_covariance_comes_from(ids: Any) -> None:
    gram, parts = embedded_gram(EMBEDDING, ids, width=WIDTH), embedded_text(EMBEDDING, ids, width=WIDTH)
    apart = gram[~np.eye(len(ids), dtype=bool)].mean()
    assert parts.covariance == pytest.approx(apart, rel=1e-12)
    assert parts.variance == pytest.approx(gram[0, 0], rel=1e-12)
    assert min(parts.tokens, parts.ngrams, parts.collisions) > 0
    alone = dataclasses.replace(EMBEDDING, ngrams=None, scale=1 / NGRAMS.divisor)
    assert parts.tokens == pytest.approx(embedded_text(alone, ids, width=WIDTH).covariance, rel=1e-12)
    assert embedded_text(without_collisions(EMBEDDING), ids, width=WIDTH).collisions == 0


def test_a_network_that_reads_it(ids: Any) -> None:
    """Block by block: theory from the text's Gram matrix, simulation from embeddings of its own in every draw."""
    model = pg.Model("spannorm", depth=2, width=WIDTH, tokens=len(ids), heads=2, causal=True, logit_std=0.0)
    x = embed_text(EMBEDDING, ids, width=WIDTH, draws=DRAWS, seed=2).x
    measured = pg.simulate(model, inputs=x, draws=DRAWS, backend="numpy", progress=False)

    def verdict(embedding: pg.TokenEmbedding) -> str:
        said = pg.predict(model, gram=embedded_gram(embedding, ids, width=WIDTH))
        return str(pg.compare(said, measured).attrs["verdict"])

    assert verdict(EMBEDDING) != "disagrees"
    assert verdict(swapped(EMBEDDING)) == "disagrees"
    assert verdict(dataclasses.replace(EMBEDDING, ngrams=None, std=0.5)) == "disagrees"


def test_inputs_of_every_draw(ids: Any) -> None:
    model = pg.Model("prenorm", depth=1, width=WIDTH, tokens=12, heads=2)
    x = embed_text(EMBEDDING, ids, width=WIDTH, draws=4, seed=3).x
    options: dict[str, Any] = {"draws": 4, "backend": "numpy", "progress": False}
    together = pg.simulate(model, inputs=x, **options)
    assert float(together.variance[0]) == pytest.approx((x * x).mean(), rel=1e-12)
    small = pg.simulate(model, inputs=x, memory=1, **options)  # one draw at a time
    assert together.equals(small)
    with pytest.raises(pg.ModelError, match=r"inputs must have shape \(3, 12, 96\)"):
        pg.simulate(model, inputs=x, draws=3, progress=False)


def test_gradients_reach_rows_by_their_frequency(ids: Any) -> None:
    made = embed_text(dataclasses.replace(EMBEDDING, norm="rms"), ids, width=WIDTH, draws=400, seed=4)
    random = np.random.default_rng(5)
    g = 0.8 * random.standard_normal(made.x.shape) + 0.6 * random.standard_normal((400, 1, WIDTH))
    of_rows, of_projections = made.pull(g)

    def z(embedding: pg.TokenEmbedding, wrong: float = 0.0) -> float:
        said = table_gradients(embedding, ids, width=WIDTH, grad_covariance=0.36 + wrong)
        scores = [off(seen, one.squared * (1 - 1 / WIDTH)) for seen, one in zip(of_rows, said, strict=True)]
        scores += [off(seen, one.projection) for seen, one in zip(of_projections, said[1:], strict=True)]
        return max(scores)

    normed = dataclasses.replace(EMBEDDING, norm="rms")
    assert z(normed) < 4.5  # of some sixty numbers
    assert z(normed, wrong=-0.36) > 8  # as if what reads a row were independent
    assert z(EMBEDDING) > 8  # as if there were no norm
    counts = table_gradients(EMBEDDING, ids, width=WIDTH)[0]
    assert np.allclose(counts.squared / counts.counts, counts.squared[0] / counts.counts[0])


def test_torch_s_gradients_and_hand_written_ones(ids: Any) -> None:
    torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")
    from propagate.tracing.embedding import TextEmbedding

    found: list[list[Any]] = []
    g = torch.randn(60, len(ids), WIDTH, generator=torch.Generator().manual_seed(0))
    for seed in range(60):
        torch.manual_seed(seed)
        made = TextEmbedding(EMBEDDING, WIDTH)
        for part in made.modules():
            if hasattr(part, "draw"):
                part.draw(torch.Generator().manual_seed(seed))
        (made(torch.from_numpy(ids.astype(np.int64))) * g[seed]).sum().backward()
        tables = [made.tokens, *made.tables]
        found.append([table.weight.grad.square().sum(-1).numpy() for table in tables])
    said = table_gradients(EMBEDDING, ids, width=WIDTH)
    for number, one in enumerate(said):
        samples = np.array([draw[number] for draw in found])
        assert np.flatnonzero(samples.any(axis=0)).tolist() == one.rows.tolist()
        assert off(samples[:, one.rows], one.squared) < 4.5
        if one.counts.max() > 1:
            assert off(samples[:, one.rows], one.squared * one.counts) > 8


@pytest.mark.parametrize(("rows", "n"), [(1024, 2), (1025, 2), pytest.param(19969, 3, marks=pytest.mark.slow)])
def test_collisions_near_multiples_of_the_vocabulary(rows: int, n: int, text: Any) -> None:
    """Of independent tokens as predicted; of real text within a factor of 2, where a perfect hash is off by more."""
    table = pg.NGrams(longest=n, tables=1, rows=(rows,) * (n - 1))
    frequencies = np.bincount(text, minlength=256)
    said = collision_rate(frequencies, n, rows)
    share = frequencies / frequencies.sum()
    random = np.random.default_rng(rows)
    texts = [random.choice(256, size=4000, p=share) for _ in range(12)]
    counted = np.array([count_collisions(table, 256, one)[-1] for one in texts])
    assert off(counted, said) < 4
    assert off(counted, 1 / rows) > 8
    seen = count_collisions(table, 256, text)[-1]
    assert 0.5 < seen / said < 2
    if rows == 1024:
        assert rows * seen > 10


def test_language_models_on_a_text(ids: Any) -> None:
    torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")
    torch.set_num_threads(1)
    model = pg.Model("prenorm", depth=1, width=WIDTH, tokens=len(ids), heads=2, causal=True, logit_std=0.0)
    given = torch.from_numpy(ids.astype(np.int64))[None]
    measured = pg.trace((pg.build_language_model(model, EMBEDDING, seed=seed) for seed in range(16)), given)
    grad = np.asarray(measured.grad_gram)

    def verdict(embedding: pg.TokenEmbedding) -> str:
        said = pg.predict(model, gram=embedded_gram(embedding, ids, width=WIDTH), grad_gram=grad)
        return str(pg.compare(said, measured).attrs["verdict"])

    assert verdict(EMBEDDING) != "disagrees"
    assert verdict(swapped(EMBEDDING)) == "disagrees"


def test_a_tied_head_is_the_table() -> None:
    torch = pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")
    from propagate.tracing.training.pieces import pieces_of

    model = pg.Model("prenorm", depth=1, width=WIDTH, tokens=6, heads=2, causal=True)
    tied = dataclasses.replace(EMBEDDING, std=0.02, tied=True)
    learner = pg.build_language_model(model, tied, seed=1)
    weight = learner.embedding.tokens.weight.detach()
    assert float(weight.std()) == pytest.approx(0.02, rel=0.05)
    x = torch.randn(6, WIDTH)
    assert torch.equal(learner.head(x), x @ weight.T)
    names = [piece.name for piece in pieces_of(learner)]
    assert names.count("embedding") == 1
    assert "unembedding" not in names
    assert sum(name.startswith("embedding.tables") for name in names) == NGRAMS.count
    said = pg.describe(learner)
    assert said.model == model
    assert [words.split(":")[0] for words in said.unread] == [
        "4 tables of hashed n-grams in the embedding",
        "a head tied to the table of tokens",
    ]


def test_training_with_an_embedding(text: Any) -> None:
    pytest.importorskip("torch", reason="torch is absent: install the extra [torch]")
    model = pg.Model("prenorm", depth=1, width=24, tokens=8, heads=2, causal=True)
    embedding = pg.TokenEmbedding(256, 0.02, pg.NGrams(longest=2, tables=2, rows=64, std=0.02), tied=True)
    seen = pg.train(model, pg.corpus(), pg.Adam(lr=1e-2), embedding=embedding, steps=4, batch=2)
    first, last = (seen.isel(lr=0, seed=0, probe=probe) for probe in (0, -1))
    assert float(last.held_out_loss) < float(first.held_out_loss)
    assert float(first.embedding_share[0]) == pytest.approx(1.0)
    assert float(first.embedding_share[1]) < 0.1 < float(first.attention_ratio[1])  # small beside what is added
    assert seen.attrs["embedding"] == repr(embedding)
    for wrong, words in (
        ({"embedding": pg.TokenEmbedding(255)}, "256 tokens, got 255"),
        ({"embedding": 256}, "embedding must be None or a propagate.TokenEmbedding"),
        ({"embedding": embedding, "transfer": "mup"}, "transfer must be None"),
        ({"embedding": embedding, "together": 2}, "together must be 1"),
    ):
        with pytest.raises(pg.ModelError, match=words):
            pg.train(model, pg.corpus(), pg.Adam(lr=1e-2), steps=2, **wrong)


def test_flash_lite_starts_where_its_embedding_does() -> None:
    lite = pg.configuration("longcat-flash-lite")
    said = embedded_text(lite.embedding(), [1, 2, 3], width=3072)
    assert lite.start().variance == pytest.approx(said.variance, rel=1e-12)
    with pytest.raises(pg.ModelError, match="vocabulary must be known of 'gpt-2'"):
        pg.configuration("gpt-2").embedding()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: pg.NGrams(longest=1), "longest must be at least 2"),
        (lambda: pg.NGrams(rows=(3, 4)), "one for each of 12 tables, got 2"),
        (lambda: pg.NGrams(average="sum"), "average must be one of count, root"),
        (lambda: pg.NGrams(rows=2**40), "rows must be at most"),
        (lambda: NGRAMS.size(98), "width must be a multiple of the 4 tables"),
        (lambda: pg.TokenEmbedding(0), "vocabulary must be at least 1"),
        (lambda: pg.TokenEmbedding(9, scale="sqrt"), "scale must be one of root_of_width"),
        (lambda: pg.TokenEmbedding(9, norm="batch"), "norm must be one of rms, layer"),
        (lambda: pg.TokenEmbedding(9, ngrams=4), "ngrams must be None or a propagate.NGrams"),
        (lambda: embedded_gram(EMBEDDING, [1, 256], width=8), "ids must lie from 0 to 255"),
        (lambda: embedded_gram(EMBEDDING, [0.5], width=8), "ids must be whole numbers"),
        (lambda: embedded_gram(EMBEDDING, [1, 2], width=9), "width must be a multiple"),
        (lambda: table_gradients(EMBEDDING, [[1]], width=8), "one sequence"),
        (lambda: collision_rate([1.0], 2, 2**32), "rows must be at most"),
    ],
)
def test_refused_in_words(make: Any, words: str) -> None:
    with pytest.raises(pg.ModelError, match=words):
        make()
