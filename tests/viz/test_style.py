from __future__ import annotations

import matplotlib as mpl

from neuralgraph.viz import style
from neuralgraph.viz.figure import Figure


def picture():
    figure = style.canvas(3, 2)
    figure.add_subplot().plot([1, 2, 3], [3, 1, 2])
    return figure


def test_the_same_drawing_gives_the_same_bytes_and_carries_no_metadata(tmp_path):
    files = []
    for name in ("a.png", "sub/b.png"):
        with style.house():
            saved = style.save(picture(), tmp_path / name, "Title", "Caption.")
        assert saved == Figure(tmp_path / name, "Title", "Caption.")
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1]
    assert b"Software" not in files[0] and b"atplotlib" not in files[0]


def test_house_style_stays_inside_its_block():
    before = dict(mpl.rcParams)
    with style.house():
        assert mpl.rcParams["axes.spines.top"] is False
    assert dict(mpl.rcParams) == before


def test_palette_colours_differ_in_lightness_or_hue():
    from matplotlib.colors import to_rgb

    colours = [to_rgb(c) for c in style.CYCLE]
    assert len(set(style.CYCLE)) == len(style.CYCLE)
    for i, a in enumerate(colours):
        for b in colours[:i]:
            assert sum(abs(x - y) for x, y in zip(a, b, strict=True)) > 0.3
