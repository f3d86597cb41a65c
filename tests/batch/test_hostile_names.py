"""Names in a stranger's weight database: they are shown, and never become paths."""

import json
from dataclasses import replace

import embedcam
from embedcam.batch.files import explain_files

NAMES = ("../../outside", "/etc/passwd", "<script>alert(1)</script>")


def test_names_of_a_database_never_become_paths(trained, folder, tmp_path):
    db = embedcam.WeightDatabase.load(trained / "weights.h5")
    paths = tuple(NAMES[number % 3] for number in range(len(db.exemplars)))
    db = replace(db, label_names=NAMES, exemplars=replace(db.exemplars, path=paths))
    net = embedcam.EmbeddingNet.load(trained / "net.safetensors")
    out = tmp_path / "deep" / "down" / "out"

    explain_files(embedcam.Explainer(net, db, transfer="nearest"), [folder / "images" / "class0"], out)

    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 20
    assert all(path.is_relative_to(out) for path in written)
    lines = [json.loads(line) for line in (out / "explanations.jsonl").read_text().splitlines()]
    assert {line["looks_like"] for line in lines} <= set(NAMES)
    assert all((out / line[key]).resolve().is_relative_to(out) for line in lines for key in ("overlay", "map"))
