"""Downloads against a server on this machine: whole or absent, and never the wrong bytes."""

from __future__ import annotations

import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from neuralgraph.core.data_home import find_data
from neuralgraph.core.errors import ConfigError, DataError, MissingDataError
from neuralgraph.fetch import SOURCES, DataFile, Source, fetch, find_source, with_name

CONTENT = bytes(range(256)) * 400
MODEL = b"<sbml/>" * 500


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Shelf(ThreadingHTTPServer):
    """Serves ``files``; the first ``n_cut`` answers stop halfway; understands ranges."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.n_cut = 0
        self.requests: list[str | None] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


class Handler(BaseHTTPRequestHandler):
    server: Shelf

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append(wanted)
        if self.path not in self.server.files:
            self.send_error(404)
            return
        content = self.server.files[self.path]
        if wanted:
            first = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if first >= len(content):
                self.send_error(416)
                return
            content = content[first:]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.server.n_cut:
            self.server.n_cut -= 1
            content = content[: len(content) // 2]
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def shelf(monkeypatch) -> Iterator[Shelf]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Shelf()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def plain(shelf: Shelf, content: bytes = CONTENT) -> Source:
    shelf.files["/plain.xml"] = content
    file = DataFile("plain/plain.xml", sha256(CONTENT))
    return Source("plain", "", shelf.url("/plain.xml"), sha256(CONTENT), (file,), "CC0-1.0")


def silent(_: str) -> None:
    pass


def files_in(folder) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_good_file_arrives_with_its_source(shelf, tmp_path):
    (path,) = fetch(plain(shelf), tmp_path, say=silent)
    assert path.read_bytes() == CONTENT
    assert files_in(tmp_path) == ["plain/SOURCE.txt", "plain/plain.xml"]
    note = (tmp_path / "plain" / "SOURCE.txt").read_text()
    assert shelf.url("/plain.xml") in note and "CC0-1.0" in note


def test_members_of_an_archive_are_checked_and_kept(shelf, tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data/model.xml", MODEL)
        archive.writestr("code.py", "print()")
    shelf.files["/a.whl"] = buffer.getvalue()
    whole = sha256(buffer.getvalue())
    good = DataFile("models/model.xml", sha256(MODEL), "data/model.xml")
    source = Source("a", "", shelf.url("/a.whl"), whole, (good,), "")
    assert fetch(source, tmp_path, say=silent)[0].read_bytes() == MODEL
    wrong = DataFile("models/other.xml", sha256(b"other"), "data/model.xml")
    with pytest.raises(DataError, match="wrong content"):
        fetch(Source("a", "", source.url, whole, (wrong,), ""), tmp_path, say=silent)
    absent = DataFile("models/absent.xml", sha256(b""), "data/absent.xml")
    with pytest.raises(DataError, match=r"holds no 'data/absent\.xml'"):
        fetch(Source("a", "", source.url, whole, (absent,), ""), tmp_path, say=silent)
    assert not (tmp_path / "models" / "other.xml").exists()


def test_a_wrong_checksum_leaves_nothing(shelf, tmp_path):
    source = plain(shelf, content=CONTENT + b"altered")
    with pytest.raises(DataError, match=sha256(CONTENT)):
        fetch(source, tmp_path, say=silent)
    assert files_in(tmp_path) == []


def test_a_file_that_is_gone_says_404(shelf, tmp_path):
    source = plain(shelf)
    shelf.files.clear()
    with pytest.raises(MissingDataError, match="404"):
        fetch(source, tmp_path, say=silent)
    assert files_in(tmp_path) == []


def test_a_cut_download_continues_where_it_stopped(shelf, tmp_path):
    source = plain(shelf)
    shelf.n_cut = 2
    assert fetch(source, tmp_path, say=silent)[0].read_bytes() == CONTENT
    half = len(CONTENT) // 2
    assert shelf.requests == [None, f"bytes={half}-", f"bytes={half + half // 2}-"]


def test_a_download_cut_for_good_keeps_its_part_and_never_half_a_file(shelf, tmp_path):
    source = plain(shelf)
    shelf.n_cut = 3
    with pytest.raises(DataError, match="run the same command again"):
        fetch(source, tmp_path, say=silent)
    assert not (tmp_path / "plain").exists()
    assert fetch(source, tmp_path, say=silent)[0].read_bytes() == CONTENT
    assert shelf.requests[-1] is not None, "the second call did not continue"
    assert files_in(tmp_path) == ["plain/SOURCE.txt", "plain/plain.xml"]


def test_what_is_there_is_not_downloaded_again(shelf, tmp_path):
    source = plain(shelf)
    fetch(source, tmp_path, say=silent)
    said: list[str] = []
    fetch(source, tmp_path, say=said.append)
    assert len(shelf.requests) == 1
    assert said[0].startswith("already there")


def test_a_damaged_file_is_replaced(shelf, tmp_path):
    source = plain(shelf)
    (path,) = fetch(source, tmp_path, say=silent)
    path.write_bytes(CONTENT[:-1])
    fetch(source, tmp_path, say=silent)
    assert path.read_bytes() == CONTENT


def test_no_server_is_an_error_of_ours(tmp_path):
    file = DataFile("x/x", sha256(b""))
    source = Source("x", "", "http://127.0.0.1:9/x", sha256(b""), (file,), "")
    with pytest.raises(MissingDataError, match="cannot be reached"):
        fetch(source, tmp_path, say=silent)


def test_an_unknown_name_lists_the_nearest():
    with pytest.raises(ConfigError, match="textbook"):
        find_source("textbok")


@pytest.mark.parametrize("name", ["norman19", "trrust"])
def test_the_screens_arrive_as_the_files_that_are_read(shelf, tmp_path, name):
    source = SOURCES[name]
    try:
        content = find_data(source.files[0].path).read_bytes()
    except MissingDataError as error:
        pytest.skip(str(error))
    shelf.files["/file"] = content
    (path,) = fetch(replace(source, url=shelf.url("/file")), tmp_path, say=silent)
    assert path == tmp_path / source.files[0].path and path.read_bytes() == content


def folder_of_two(shelf: Shelf) -> Source:
    shelf.files |= {"/data/a.txt": CONTENT, "/data/b.txt": MODEL}
    files = (DataFile("rules/a.txt", sha256(CONTENT)), DataFile("rules/b.txt", sha256(MODEL)))
    return Source("rules", "", shelf.url("/data"), None, files, "GPL-3.0")


def test_the_files_of_a_folder_are_downloaded_one_by_one(shelf, tmp_path):
    source = folder_of_two(shelf)
    shelf.n_cut = 1
    a, b = fetch(source, tmp_path, say=silent)
    assert a.read_bytes() == CONTENT and b.read_bytes() == MODEL
    assert len(shelf.requests) == 3, "the cut one continues"
    note = (tmp_path / "rules" / "SOURCE.txt").read_text()
    assert shelf.url("/data") in note and "GPL-3.0" in note
    b.unlink()
    fetch(source, tmp_path, say=silent)
    assert b.read_bytes() == MODEL and len(shelf.requests) == 4, "one is missing, one is fetched"


def test_a_file_of_a_folder_with_other_content_is_refused_by_name(shelf, tmp_path):
    source = folder_of_two(shelf)
    shelf.files["/data/b.txt"] = MODEL + b"altered"
    with pytest.raises(DataError, match=r"/data/b\.txt has the wrong content"):
        fetch(source, tmp_path, say=silent)
    assert not (tmp_path / "rules" / "b.txt").exists()


def test_the_rule_files_are_those_that_are_read(shelf, tmp_path):
    source = SOURCES["boolode"]
    for file in source.files:
        try:
            shelf.files[f"/data/{file.path.split('/')[1]}"] = find_data(file.path).read_bytes()
        except MissingDataError as error:
            pytest.skip(str(error))
    found = fetch(replace(source, url=shelf.url("/data")), tmp_path, say=silent)
    assert {p.name for p in found} >= {"HSC.txt", "HSC_ics.txt", "GSD.txt", "mCAD.txt", "VSC.txt"}
    assert find_source("HSC").files[0].path == "boolode/HSC.txt"


def test_the_folder_of_a_missing_file_names_its_source():
    for source in SOURCES.values():
        folders = {file.path.split("/")[0] for file in source.files}
        assert {find_source(folder).files[0].path.split("/")[0] for folder in folders} == folders
    assert find_source("norman19_mcfaline23") is SOURCES["norman19"]


def test_every_source_has_distinct_files_and_whole_checksums():
    files = [file for source in SOURCES.values() for file in source.files]
    assert len({file.path for file in files}) == len(files)
    sums = [source.sha256 for source in SOURCES.values() if source.sha256]
    sums += [file.sha256 for file in files]
    assert all(len(s) == 64 and int(s, 16) >= 0 for s in sums)


def test_a_bare_name_stands_for_the_key_and_options_keep_their_values():
    assert with_name(["--cfg", "job", "bigg"]) == ["--cfg", "job", "name=bigg"]
    assert with_name(["url=http://x", "+a=1"]) == ["url=http://x", "+a=1"]
