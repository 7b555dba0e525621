import hashlib

import pytest

from edgewise.data.download import BLOCK_BYTES, cache_folder, fetch
from edgewise.errors import DataError

OTHERWISE = "name a local copy"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache" / "edgewise"
    monkeypatch.setenv("EDGEWISE_CACHE", str(folder))
    return folder


@pytest.fixture
def published(tmp_path):
    """A file of three blocks and a bit, with its MD5."""
    file = tmp_path / "published.bin"
    file.write_bytes(bytes(range(256)) * (3 * BLOCK_BYTES // 256) + b"bit")
    return file, hashlib.md5(file.read_bytes()).hexdigest()


def test_the_cache_is_in_the_home_folder_unless_the_environment_says_otherwise(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("EDGEWISE_CACHE", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "edgewise"
    monkeypatch.setenv("EDGEWISE_CACHE", "~/elsewhere")
    assert cache_folder() == tmp_path / "elsewhere"


def test_a_file_is_fetched_once_and_kept(cache, published):
    file, md5 = published
    told = []
    fetched = fetch(file.as_uri(), md5, otherwise=OTHERWISE, progress=lambda *step: told.append(step))
    assert fetched == cache / "published.bin"
    assert fetched.read_bytes() == file.read_bytes()
    size = file.stat().st_size
    assert told == [("download published.bin", min(n * BLOCK_BYTES, size), size) for n in (1, 2, 3, 4)]
    file.unlink()
    assert fetch(file.as_uri(), md5, otherwise=OTHERWISE) == fetched
    assert [path.name for path in cache.iterdir()] == ["published.bin"]


def test_another_md5_is_refused_and_leaves_nothing(cache, published):
    file, md5 = published
    with pytest.raises(DataError, match=f"has the MD5 {md5} instead of 0123.*name a local copy"):
        fetch(file.as_uri(), "0123", otherwise=OTHERWISE)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: content[:-1] + b"x"])
def test_a_file_that_changed_in_the_cache_is_named_and_left(cache, published, damage):
    file, md5 = published
    fetched = fetch(file.as_uri(), md5, otherwise=OTHERWISE)
    fetched.write_bytes(damage(fetched.read_bytes()))
    message = f"{fetched} has the MD5 [0-9a-f]{{32}} instead of {md5}; remove it, so that .* or name a local copy"
    with pytest.raises(DataError, match=message):
        fetch(file.as_uri(), md5, otherwise=OTHERWISE)
    fetched.unlink()
    assert fetch(file.as_uri(), md5, otherwise=OTHERWISE).read_bytes() == file.read_bytes()


def test_a_folder_in_a_files_place_is_named(cache, published):
    (cache / "published.bin").mkdir(parents=True)
    with pytest.raises(DataError, match=r"published.bin cannot be read \(Is a directory\); remove it"):
        fetch(published[0].as_uri(), published[1], otherwise=OTHERWISE)


def test_an_interrupted_download_leaves_nothing(cache, published):
    def interrupt(what, done, total):
        assert len(list(cache.iterdir())) == 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(published[0].as_uri(), published[1], otherwise=OTHERWISE, progress=interrupt)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/archive.tar.gz", "file:///no/such/archive.tar.gz"])
def test_a_server_that_cannot_be_reached_is_named_with_a_way_out(cache, url):
    with pytest.raises(DataError, match=f"{url} cannot be downloaded .*name a local copy"):
        fetch(url, "0", otherwise=OTHERWISE)
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch, published):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("EDGEWISE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match=r"published.bin cannot be written \(Not a directory\)"):
        fetch(published[0].as_uri(), published[1], otherwise=OTHERWISE)


def test_a_full_disk_is_named_and_leaves_nothing(cache, published, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgewise.data.download.os.replace", full)
    with pytest.raises(DataError, match=r"cannot be written \(No space left on device\)"):
        fetch(published[0].as_uri(), published[1], otherwise=OTHERWISE)
    assert list(cache.iterdir()) == []
