"""Next sentence prediction pairs, counted on documents whose sentences say where they are from."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from segue.errors import InputError
from segue.export.corpus import Document
from segue.export.instances import IS_NEXT, NOT_NEXT, Recipe, Source, draw_pairs


def documents(name: str, *sizes: int) -> tuple[Document, ...]:
    """Sentences such as "a:2:17." : source, document, number."""
    return tuple(
        Document(f"{name}{d}", tuple(f"{name}:{d}:{i}." for i in range(size))) for d, size in enumerate(sizes)
    )


def places(side: str) -> list[tuple[str, int, int]]:
    """(source, document, number) of each sentence of a side."""
    parts = [word.rstrip(".").split(":") for word in side.split()]
    return [(name, int(document), int(number)) for name, document, number in parts]


def draw(recipe: Recipe, count: int = 4000, seed: int = 0, sources=None):
    sources = sources or [Source("a", documents("a", 30, 20, 5, 2)), Source("b", documents("b", 9, 9), 0.5)]
    return list(islice(draw_pairs(sources, recipe, seed=seed), count))


def follows(pair) -> bool:
    (*document, last), (*other, first) = places(pair.a)[-1], places(pair.b)[0]
    return document == other and first == last + 1


def test_label_0_is_next_and_it_follows():
    assert (IS_NEXT, NOT_NEXT) == (0, 1)
    pairs = draw(Recipe(same_document=0.3, other_source=0.3))
    assert {pair.label for pair in pairs} == {0, 1}
    for pair in pairs:
        assert follows(pair) == (pair.label == 0) == (pair.kind == "next")
        for side in (places(pair.a), places(pair.b)):
            assert [n - side[0][2] for *_, n in side] == list(range(len(side))), (
                "a side is consecutive sentences"
            )
            assert len({place[:2] for place in side}) == 1, "of one document"


@pytest.mark.parametrize("share", [0.5, 0.8, 0.0, 1.0])
def test_share_of_positives(share):
    pairs = draw(Recipe(positives=share))
    found = sum(pair.label == IS_NEXT for pair in pairs) / len(pairs)
    assert abs(found - share) <= 4 * (share * (1 - share) / len(pairs)) ** 0.5  # four standard errors


def test_a_swapped_pair_is_two_neighbours_in_the_wrong_order():
    pairs = draw(Recipe(positives=0.0, swapped=0.25))
    kinds = Counter(pair.kind for pair in pairs)
    assert abs(kinds["swapped"] / len(pairs) - 0.25) < 4 * (0.25 * 0.75 / len(pairs)) ** 0.5
    for pair in pairs:
        (*document, first), (*other, last) = places(pair.a)[0], places(pair.b)[-1]
        assert (pair.kind == "swapped") == (document == other and last + 1 == first)
        assert pair.label == NOT_NEXT


def test_a_negative_is_from_a_different_document_of_the_same_source():
    for pair in draw(Recipe(positives=0.0)):
        (source, document, _), (other_source, other, _) = places(pair.a)[0], places(pair.b)[0]
        assert pair.kind == "other document"
        assert source == other_source
        assert document != other


def test_other_kinds_of_negatives():
    pairs = draw(Recipe(positives=0.0, same_document=0.25, other_source=0.4))
    share = {kind: n / len(pairs) for kind, n in Counter(pair.kind for pair in pairs).items()}
    assert set(share) == {"not adjacent", "other source", "other document"}
    assert 0.15 < share["not adjacent"] <= 0.27  # short documents have no place for one
    assert abs(share["other source"] / (1 - share["not adjacent"]) - 0.4) < 0.05
    for pair in pairs:
        a, b = places(pair.a), places(pair.b)
        if pair.kind == "other source":
            assert a[0][0] != b[0][0]
        if pair.kind == "not adjacent":
            assert a[0][:2] == b[0][:2]
            assert b[0][2] - a[-1][2] > 3 or a[0][2] - b[-1][2] > 3, "three sentences between them"


def test_sides_have_the_sizes_asked_for():
    pairs = draw(Recipe(sides=(0.5, 0.0, 0.5)), sources=[Source("a", documents("a", 500, 500))])
    sizes = Counter(len(places(side)) for pair in pairs for side in (pair.a, pair.b))
    assert sizes[1] / (2 * len(pairs)) == pytest.approx(0.5, abs=0.03)
    assert sizes[3] / (2 * len(pairs)) == pytest.approx(0.5, abs=0.03)


def test_sources_by_share_and_places_alike():
    pairs = draw(Recipe(), 9000)
    assert sum(places(pair.a)[0][0] == "b" for pair in pairs) / 9000 == pytest.approx(1 / 3, abs=0.02)
    of_a = Counter(places(pair.a)[0][1] for pair in pairs if pair.a.startswith("a"))
    assert of_a[0] / of_a.total() == pytest.approx(29 / 53, abs=0.03)  # 29 of the 29 + 19 + 4 + 1 places
    assert of_a[3] > 0


def test_sides_alone_give_nothing_away():
    """Side B of a negative begins where side B of a positive may begin, equally often."""
    source = [Source("a", documents("a", 20, 20, 20))]
    starts = {0: Counter(), 1: Counter()}
    for pair in draw(Recipe(), 20_000, sources=source):
        starts[pair.label][places(pair.b)[0][1:]] += 1
    assert set(starts[0]) == set(starts[1])
    for place in starts[0]:
        shares = [starts[label][place] / starts[label].total() for label in (0, 1)]
        assert abs(shares[0] - shares[1]) < 0.008  # each about 1/57


def test_the_seed_is_everything():
    recipe = Recipe(same_document=0.2, other_source=0.2, clause=0.3, unmarked=0.3)
    assert draw(recipe, 300, seed=7) == draw(recipe, 300, seed=7)
    assert draw(recipe, 300, seed=7) != draw(recipe, 300, seed=8)


def test_later_pairs_are_fresh():
    sources = [Source("a", documents("a", 100, 100))]
    pairs = draw(Recipe(), 800, sources=sources)
    assert [(p.a, p.b) for p in pairs[:400]] != [(p.a, p.b) for p in pairs[400:]]


def test_final_marks_and_clauses():
    text = (
        "He took the first of all the roads, and she the second; nobody came.",
        'They said "no more of it."',
    )
    source = [Source("a", tuple(Document(str(i), text) for i in range(2)))]
    bare = draw(Recipe(positives=1.0, unmarked=1.0, sides=(1,)), 20, sources=source)
    assert {(p.a, p.b) for p in bare} == {(text[0][:-1], 'They said "no more of it')}
    half = draw(Recipe(unmarked=0.25, sides=(1,)), 2000, sources=source)
    assert sum(p.a[-1] not in '."' for p in half) / 2000 == pytest.approx(0.25, abs=0.05)
    cut = draw(Recipe(positives=1.0, clause=1.0, sides=(2,)), 20, sources=[Source("a", (
        Document("0", ("Nothing came of it, as he had said it would be.", "In the end, there was rain.")),
        Document("1", ("Nothing came of it, as he had said it would be.", "In the end, there was rain.")),
    ))])  # fmt: skip
    # "In the end" has too few words to stand alone
    assert {(p.a, p.b) for p in cut} == {("as he had said it would be.", "In the end, there was rain.")}


@pytest.mark.parametrize("sizes", [(), (9,), (9, 1), (1, 1, 1)])
def test_no_negative_no_pairs(sizes):
    with pytest.raises(InputError, match="two documents or more"):
        draw_pairs([Source("a", documents("a", *sizes))], Recipe())


def test_no_source():
    with pytest.raises(InputError, match="at least one"):
        draw_pairs([], Recipe())
