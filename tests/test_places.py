"""Places among the workers: taken, left, and taken again."""

from __future__ import annotations

from mailsvc.places import Places


def test_the_first_free_one_is_taken() -> None:
    places = Places(3)
    taken = [places.take(first, 2) for first in (True, False)]
    assert [(each.row, each.first, each.workers) for each in taken] == [(0, True, 2), (1, False, 2)]
    assert len(places) == 1
    places.free(taken[0])
    assert [places.take(False, 2).row for _ in range(2)] == [0, 2]
    assert len(places) == 0


def test_nothing_is_left_behind() -> None:
    places = Places(2)
    place = places.take(False, 2)
    connections = place.crew.counts["smtp"]
    connections.share(place.row).enter("192.0.2.7")
    assert connections.total() == 1
    places.free(place)
    assert connections.total() == 0
    assert place.crew.silence(place.row) == 0


def test_a_row_of_figures_is_nobodys_place() -> None:
    places = Places(2)
    assert places.figures.rows == 3
    assert {places.take(False, 2).row for _ in range(2)} == {0, 1}
