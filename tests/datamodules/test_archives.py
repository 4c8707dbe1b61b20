"""Archives that were fetched: whatever is in them, only the files that are asked for are read, and none is written."""

import gzip
import io
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules import common
from datamodules.common import read_archive

WANTED = {"data/a.txt": b"first\n" * 500, "data/b.txt": bytes(range(256)) * 20}


def archive_of(files: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


WHOLE = archive_of({"data/more.txt": b"more", **WANTED})


def written(folder: Path, content: bytes) -> Path:
    file = folder / "archive.tar.gz"
    file.write_bytes(content)
    return file


def test_files_are_read_out_of_an_archive(tmp_path: Path) -> None:
    assert read_archive(written(tmp_path, WHOLE), WANTED, "") == WANTED


@given(end=st.integers(0, len(WHOLE) - 1))
def test_an_archive_cut_off_anywhere_is_named_or_has_all_that_is_wanted(
    tmp_path_factory: pytest.TempPathFactory, end: int
) -> None:
    file = written(tmp_path_factory.mktemp("cut"), WHOLE[:end])
    try:
        assert read_archive(file, WANTED, "Take another.") == WANTED
    except ValueError as error:
        assert str(error).startswith(f"{file} ")  # noqa: PT017
        assert str(error).endswith(". Take another.")  # noqa: PT017


@given(content=st.binary(max_size=2000))
def test_what_is_no_archive_is_named(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = written(tmp_path_factory.mktemp("junk"), content)
    with pytest.raises(ValueError, match=r"is damaged, or no archive|has no file 'data/a\.txt'"):
        read_archive(file, WANTED, "")


def test_paths_that_lead_out_of_an_archive_lead_nowhere(tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    link = tarfile.TarInfo("data/link")
    link.type, link.linkname = tarfile.SYMTYPE, "../.."
    evil = {"../evil.txt": b"evil", "/tmp/../evil.txt": b"evil", "data/link": link, "data/link/evil.txt": b"evil"}
    assert read_archive(written(folder, archive_of({**evil, **WANTED})), WANTED, "") == WANTED
    assert [file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*.*")] == ["inner/archive.tar.gz"]


def test_a_link_in_place_of_a_file_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    link = tarfile.TarInfo("data/a.txt")
    link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.txt")
    file = written(tmp_path, archive_of({"data/a.txt": link, "data/b.txt": b""}))
    with pytest.raises(ValueError, match=r"archive\.tar\.gz has no file 'data/a\.txt'"):
        read_archive(file, WANTED, "")


def test_a_file_that_would_fill_the_memory_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "LARGEST_MEMBER", 1_000_000)
    file = written(tmp_path, archive_of({"bomb": bytes(20_000_000), **WANTED}))
    assert file.stat().st_size < 100_000
    with pytest.raises(
        ValueError, match=r"archive\.tar\.gz has a file 'bomb' of 20 MB, more than any of the published"
    ):
        read_archive(file, WANTED, "")


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
@pytest.mark.parametrize("before", [{}, {"data/a.txt": b""}])
def test_a_name_that_would_fill_the_memory_is_refused_before_it_is_read(
    kind: bytes, before: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "LARGEST_MEMBER", 1_000_000)
    name = tarfile.TarInfo("name")
    name.type, name.size = kind, 20_000_000
    content = gzip.decompress(archive_of(before)).rstrip(b"\0")
    content += bytes(-len(content) % 512) + name.tobuf(tarfile.GNU_FORMAT) + b"a" * name.size
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"archive\.tar\.gz is damaged, or no archive (?s:.*)attributes of 20 MB"):
            read_archive(written(tmp_path, gzip.compress(content)), WANTED, "")
        assert tracemalloc.get_traced_memory()[1] < len(content) + 10_000_000
    finally:
        tracemalloc.stop()
