"""Copying straight from a Lance file's pages, against Lance's own reader."""

import numpy as np
import pyarrow as pa
import pytest
from lance.file import LanceFileReader, LanceFileWriter

from head2toe.errors import StoreDamagedError
from head2toe.store.pages import mapped_pages


@pytest.fixture
def file(tmp_path):
    """Two columns of 1,000 lists: one of noise in several pages, one of a constant that an encoder might shorten."""
    noise = np.random.default_rng(0).standard_normal((1000, 64)).astype(np.float16)
    columns = {"noise": noise, "zeros": np.zeros((1000, 5), np.uint16)}
    schema = pa.schema([(name, pa.list_(pa.from_numpy_dtype(c.dtype), c.shape[1])) for name, c in columns.items()])
    path = tmp_path / "file.lance"
    with LanceFileWriter(str(path), schema, version="2.0", data_cache_bytes=1 << 15) as writer:
        for start in range(0, 1000, 100):
            blocks = [column[start : start + 100] for column in columns.values()]
            lists = [pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), block.shape[1]) for block in blocks]
            writer.write_batch(pa.record_batch(lists, schema=schema))
    return path, columns


def test_pages_hold_every_row_in_order_where_lance_says_they_lie(file):
    path, columns = file
    told = LanceFileReader(str(path)).metadata().columns
    content = path.read_bytes()
    for i, (column, pages) in enumerate(zip(columns.values(), mapped_pages(path, [0, 1]), strict=True)):
        assert b"".join(page.tobytes() for page in pages) == column.tobytes()
        buffers = [buffer for page in told[i].pages for buffer in page.buffers]
        assert [page.tobytes() for page in pages] == [content[b.position : b.position + b.size] for b in buffers]
    assert len(mapped_pages(path, [0])[0]) > 1


def test_a_file_of_something_else_is_refused(file):
    path, _ = file
    with pytest.raises(StoreDamagedError, match="of more than 2 columns"):
        mapped_pages(path, [2])
    path.write_bytes(b"?" * 100)
    with pytest.raises(StoreDamagedError, match="should be a Lance file"):
        mapped_pages(path, [0])
