"""A score from outside the package, from the batch to the table, the JSON rows, the printed table and the report."""

import json
from importlib.metadata import EntryPoint

import numpy as np
import pytest

from embedcam import registry
from embedcam.cli import printing
from embedcam.data import load
from embedcam.database import WeightDatabase
from embedcam.errors import EmbedcamError, OutputError
from embedcam.evaluate.localization import Localization
from embedcam.evaluate.method import columns
from embedcam.evaluate.scores import SCORES, ImageScore
from embedcam.evaluate.table import evaluate
from embedcam.nets import EmbeddingNet
from embedcam.show.report import Column, Report, write_report


class Missed(ImageScore):
    """The share of the object that is cold."""

    columns = (Column("missed", "Missed", "share of the object without any heat", higher_is_better=False),)

    def measure(self, heatmap, mask, ignore):
        return np.mean(heatmap[mask] == 0)


@pytest.fixture
def missed(monkeypatch):
    """The score as an installed package would add it: by an entry point alone."""
    point = EntryPoint("missed", f"{__name__}:Missed", "embedcam.scores")
    monkeypatch.setattr(EntryPoint, "load", lambda self: Missed)
    monkeypatch.setattr(registry, "_entry_points", lambda group, path: (point,) if group == point.group else ())
    yield
    SCORES._parts.pop("missed", None)


@pytest.fixture
def everything(trained, folder):
    net, database = EmbeddingNet.load(trained / "net.safetensors"), WeightDatabase.load(trained / "weights.h5")
    return net, database, load(f"folder:{folder}", "test"), load(f"folder:{folder}", "train")


def test_a_score_from_outside_is_in_the_rows_the_printed_table_and_the_report(missed, everything, tmp_path, capsys):
    result = json.loads(json.dumps(evaluate(*everything)))
    for row in result["rows"]:
        low, high = row["interval"]["missed"]
        assert 0 <= low <= row["missed"] <= high <= 1
        assert row["interval"]["pixel_ap"] is None
    printing.print_scores(result)
    lines = capsys.readouterr().out.splitlines()
    position = lines[0].split().index("missed") - len(lines[0].split())
    assert lines[1].split()[position] == f"{result['rows'][0]['missed']:.3f}"
    write_report(Report("t", scores=result["rows"], columns=columns()), tmp_path / "report.html")
    assert "share of the object without any heat; lower is better" in (tmp_path / "report.html").read_text()


def test_work_without_a_score_is_not_resumed_with_it(everything, tmp_path, request):
    evaluate(*everything, work=tmp_path)
    request.getfixturevalue("missed")
    with pytest.raises(OutputError, match="another run .*missed"):
        evaluate(*everything, work=tmp_path, resume=True)


def test_ignored_pixels_reach_a_score_cold_and_off_the_object(missed):
    localization = Localization()
    heatmaps, ignore = np.ones((1, 2, 2), np.float32), np.zeros((1, 2, 2), bool)
    ignore[0, 0] = True
    given = []
    localization.scores["missed"].measure = lambda *image: given.append(image) or 0.0
    localization.add(heatmaps, np.ones((1, 2, 2), bool), ignore)
    ((heat, mask, ignored),) = given
    assert heat.tolist() == [[0, 0], [1, 1]] and mask.tolist() == [[False] * 2, [True] * 2]
    assert (ignored == ignore[0]).all()


def test_a_score_that_takes_the_key_of_another_or_does_not_give_its_own_is_named(missed, monkeypatch):
    monkeypatch.setattr(Missed, "columns", (Column("lost", "Lost", ""), Column("missed", "Missed", "")))
    monkeypatch.setattr(Missed, "summarise", lambda *_: {"missed": 0.0})
    localization = Localization()
    localization.add(np.ones((1, 2, 2), np.float32), np.ones((1, 2, 2), bool))
    with pytest.raises(EmbedcamError, match=r"score 'missed' returns \['missed'\], but its columns are \['lost', 'mis"):
        localization.result()
    for taken in ("pointing", "method", "ms_per_image"):
        monkeypatch.setattr(Missed, "columns", (Column(taken, "Missed", ""),))
        with pytest.raises(EmbedcamError, match=f"score 'missed' has a column '{taken}', which exists already"):
            columns()
