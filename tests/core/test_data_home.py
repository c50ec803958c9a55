"""Real data are found where the user says, then in the cache, and missed with a way out."""

from __future__ import annotations

import pytest

from neuralgraph.core.data_home import cache_folder, data_folders, find_data
from neuralgraph.core.errors import MissingDataError


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURALGRAPH_DATA", str(tmp_path / "named"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return data_folders()


def test_the_named_folder_comes_before_the_cache(folders):
    assert folders[1] == cache_folder()
    for folder in folders:
        (folder / "set").mkdir(parents=True)
        (folder / "set" / "file.txt").write_text(str(folder))
    assert find_data("set/file.txt").read_text() == str(folders[0])
    (folders[0] / "set" / "file.txt").unlink()
    assert find_data("set/file.txt").read_text() == str(folders[1])


def test_a_path_of_the_users_own_is_taken_as_it_is(folders, tmp_path):
    (tmp_path / "own.csv").write_text("x")
    assert find_data(tmp_path / "own.csv") == tmp_path / "own.csv"
    assert find_data("own.csv").read_text() == "x"
    with pytest.raises(MissingDataError, match="there is no file"):
        find_data(tmp_path / "absent.csv")


def test_a_missing_file_says_where_it_was_sought_and_how_to_get_it(folders):
    with pytest.raises(MissingDataError) as caught:
        find_data("bigg/textbook.xml.gz")
    message = str(caught.value)
    assert all(str(folder) in message for folder in folders)
    assert "python -m neuralgraph.fetch bigg" in message


def test_without_the_variable_only_the_cache_is_searched(monkeypatch):
    monkeypatch.delenv("NEURALGRAPH_DATA", raising=False)
    assert data_folders() == (cache_folder(),)
