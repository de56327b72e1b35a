"""Every cell of the fault matrix, and the committed copy of its table."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RelayWith
from tests.matrix.__main__ import PAGE
from tests.matrix.cells import cells_of
from tests.matrix.run import Matrix, check, faults_of, matrix_run
from tests.matrix.silence import PLACES, check_reached, check_written
from tests.matrix.table import page


class _Nowhere:
    """Stands in for what exists only at run time, so that the names of the cells are known before."""

    file = ""

    def __getitem__(self, name: str) -> Any:
        return self


NAMES = [cell.name for cell in cells_of(faults_of(_Nowhere(), _Nowhere(), ""))]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
async def matrix(shared_relay_with: RelayWith, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Matrix]:
    """Every cell, run."""
    directory: Path = tmp_path_factory.mktemp("matrix")
    async with matrix_run(directory, shared_relay_with) as matrix:
        yield matrix


@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
async def test_cell(number: int, matrix: Matrix) -> None:
    check(matrix.cells[number], matrix.seen[number])


async def test_the_committed_table_is_what_a_run_prints(matrix: Matrix) -> None:
    assert page(matrix.cells, matrix.seen) == PAGE.read_text(), "run `make matrix ARGS=--write`"


@pytest.mark.parametrize("place", PLACES)
async def test_nothing_that_was_written_tells_a_secret(place: str, matrix: Matrix) -> None:
    assert set(matrix.written) == set(PLACES)
    check_written(place, matrix.written[place])
    assert place not in ("log", "metrics", "spans") or all(cell.slug.encode() in matrix.written[place] for cell in matrix.cells)


async def test_upstreams_got_the_prompt_and_no_credential_but_their_own(matrix: Matrix) -> None:
    check_reached(*matrix.reached())
