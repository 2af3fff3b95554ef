"""What a stranger forges: runs, data folders, Optuna studies and weights files, each in many ways.

A forgery changes a sound thing in place. It is given the `World` whose user it is after.
"""

import json
import os
import pickle
import shutil
import sqlite3
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pandas as pd
import torch

from tune_lung.results.layout import TABLES

from tests.faults.world import KEY, World, forge_manifest

ESCAPES = "\x1b]0;owned\x07\x1b[2J\u202egnp.exe\u2066\x9b31m\r\n$\\frac{"


def orders(world: World) -> list[str]:
    """A command line that would do all that a stranger wants."""
    return [
        *("--space", str(world.precious / "program.py"), "--cache", str(world.precious), "--cache-size", "1KB"),
        *("--address", world.address, "--tracker", "tensorboard", "--data", str(world.precious / "data")),
        *("--weights", str(world.theirs / "evil.pt"), "--out", str(world.precious), "--name", "trials", "--follow-links"),
        *("--warm-start", str(world.precious), "--resume", str(world.precious), "--strict-data", "--profile"),
    ]


def forge_orders(run: Path, world: World) -> None:
    forge_manifest(run, command=orders(world))


def forge_orders_of_earlier_attempts(run: Path, world: World) -> None:
    manifest = json.loads((run / "run.json").read_text())
    earlier = {**{name: manifest[name] for name in ("attempt", "versions", "status")}, "command": orders(world)}
    forge_manifest(run, earlier_attempts=[earlier], command=orders(world)[::-1])


def forge_help(run: Path, world: World) -> None:
    forge_manifest(run, command=["--help", "--list-spaces", "@" + str(world.precious / "notes.txt"), "--no-such-option"])


def forge_new_fields(run: Path, world: World) -> None:
    """Options under the names of whatever a manifest may say."""
    places = {"data": str(world.precious), "cache": str(world.precious), "address": world.address, "space": "x.py"}
    forge_manifest(run, options=places, settings=places | {"limit": 80}, keep="leaders", run_id="../../precious")


def forge_name(run: Path, world: World) -> None:
    forge_manifest(run, name="../../precious/figures")


def forge_escapes(run: Path, world: World) -> None:
    manifest = json.loads((run / "run.json").read_text())
    forge_manifest(
        run,
        name=ESCAPES,
        status=ESCAPES,
        started_utc=ESCAPES,
        space=manifest["space"] | {"name": ESCAPES},
        data=manifest["data"] | {"fingerprint": ESCAPES},
        select_by=ESCAPES,
        weights={"resnet18": {"kind": "file", "name": ESCAPES, "sha256": ESCAPES}},
        imported_from=ESCAPES,
    )
    for path in (run / "trials").glob("*.parquet"):
        rows = pd.read_parquet(path)
        if len(rows):
            rows["cell"], rows["failure"], rows["weights_name"] = ESCAPES, ESCAPES, ESCAPES
            rows.to_parquet(path)


def forge_classes(run: Path, world: World) -> None:
    manifest = json.loads((run / "run.json").read_text())
    forge_manifest(run, data=manifest["data"] | {"classes": ["../../precious", ESCAPES, "", "A" * 100_000]})


def forge_trial_ids(run: Path, world: World) -> None:
    """Ids that climb to where something else lies."""
    for table in TABLES:
        for path in (run / table).glob("*.parquet"):
            rows = pd.read_parquet(path)
            if len(rows) and "trial_id" in rows.columns:
                rows["trial_id"] = "../../../precious/checkpoints/3f2a"
                rows.to_parquet(path)


def forge_linked_folders(run: Path, world: World) -> None:
    for name in ("figures", "trials", "checkpoints", "validation_predictions"):
        shutil.rmtree(run / name, ignore_errors=True)
        (run / name).symlink_to(world.precious / name)


def forge_linked_files(run: Path, world: World) -> None:
    for name in (".lock", ".owner.json", "run.json", ".run.json.copy", "warm_start.json"):
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(world.precious / "notes.txt")


def forge_linked_lock(run: Path, world: World) -> None:
    """A driver that locks its run would empty what the link leads to."""
    for name in (".lock", ".owner.json", "warm_start.json"):
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(world.precious / "notes.txt")


def forge_linked_checkpoints(run: Path, world: World) -> None:
    for folder in list((run / "checkpoints").iterdir()):
        shutil.rmtree(folder)
        folder.symlink_to(world.precious / "checkpoints" / "3f2a")


def forge_linked_parts(run: Path, world: World) -> None:
    for table in TABLES:
        for path in (run / table).glob("*.parquet"):
            path.unlink()
            path.symlink_to(world.precious / "notes.txt")


def forge_pickles(run: Path, world: World) -> None:
    for folder in [path for path in (run, *run.rglob("*")) if path.is_dir()]:
        for name in ("tuner.pkl", "error.pkl", "params.pkl", "searcher-state.pkl", "best.pt", "train.npy"):
            (folder / name).write_bytes(world.payload)
    for path in (*run.glob("checkpoints/*/*.safetensors"), *run.glob("frozen/*.safetensors")):
        path.write_bytes(world.payload)


def forge_pipes(run: Path, world: World) -> None:
    for path in (run / "run.json", *(run / table / "schema.parquet" for table in TABLES), run / "warm_start.json"):
        path.unlink(missing_ok=True)
        os.mkfifo(path)


def forge_devices(run: Path, world: World) -> None:
    for path in (run / "run.json", run / ".owner.json", run / "trials" / "schema.parquet", run / "epochs" / "more.parquet"):
        path.unlink(missing_ok=True)
        path.symlink_to("/dev/zero")


def forge_shapes(run: Path, world: World) -> None:
    forge_manifest(run, space=[[]], strategy="tpe", data=None, weights=3, earlier_attempts={}, test_openings="x", seed="0")
    (run / ".owner.json").write_text('{"attempt": "9", "pid": [], "beat": NaN}')


def forge_depth(run: Path, world: World) -> None:
    for name in ("run.json", ".owner.json", "warm_start.json"):
        (run / name).write_text('{"a":' * 50_000)


def forge_sizes(run: Path, world: World) -> None:
    """A space of ten to the nine cells, and numbers that no machine counts."""
    manifest = json.loads((run / "run.json").read_text())
    grid = {"grid": list(range(1, 10**3))}
    arm = {"model": "cnn", "depth": grid, "base_channels": grid, "batch_size": grid}
    forge_manifest(run, space=manifest["space"] | {"arms": [arm]}, seed=10**400, attempt=10**300, schema_version=3.5)


FORGED_RUNS: list[Callable[[Path, World], None]] = [
    forge_orders,
    forge_orders_of_earlier_attempts,
    forge_help,
    forge_new_fields,
    forge_name,
    forge_escapes,
    forge_classes,
    forge_trial_ids,
    forge_linked_folders,
    forge_linked_files,
    forge_linked_lock,
    forge_linked_checkpoints,
    forge_linked_parts,
    forge_pipes,
    forge_devices,
    forge_pickles,
    forge_shapes,
    forge_depth,
    forge_sizes,
]


def link_out(data: Path, world: World) -> None:
    (data / "COVID" / "images" / "linked.png").symlink_to(world.precious / "data" / "COVID" / "0.png")
    (data / "Theirs").symlink_to(world.precious / "data" / "COVID")


def link_masks_out(data: Path, world: World) -> None:
    shutil.rmtree(data / "COVID" / "masks")
    (data / "COVID" / "masks").symlink_to(world.precious / "data" / "COVID")


def link_tables_out(data: Path, world: World) -> None:
    (data / "COVID.metadata.xlsx").unlink(missing_ok=True)
    (data / "COVID.metadata.xlsx").symlink_to(world.precious / "notes.txt")
    (data / "SYNTHETIC.txt").unlink(missing_ok=True)
    (data / "SYNTHETIC.txt").symlink_to(world.precious / "notes.txt")


def pipe_images(data: Path, world: World) -> None:
    os.mkfifo(data / "COVID" / "images" / "pipe.png")
    (data / "COVID" / "images" / "endless.png").symlink_to("/dev/zero")
    (data / "COVID.metadata.xlsx").unlink(missing_ok=True)
    os.mkfifo(data / "COVID.metadata.xlsx")


def name_images(data: Path, world: World) -> None:
    for name in ("\x1b[2J.png", "\u202egnp.png", "a\nerror: b.png", "..png", "$(touch x).png", "-rf.png", "%s%n.png"):
        (data / "COVID" / "images" / name).write_bytes(b"no image")


def name_classes(data: Path, world: World) -> None:
    (data / "Normal").rename(data / "\u202elamroN$\\frac{")
    (data / "Viral Pneumonia").rename(data / ("V" * 200))


def pickle_images(data: Path, world: World) -> None:
    for name in ("a.png", "b.npy", "c.pkl", "d.pt", "e.tiff", "f.ppm"):
        (data / "COVID" / "images" / name).write_bytes(world.payload)


def zip_tables(data: Path, world: World) -> None:
    for name in ("COVID", "Normal"):
        with zipfile.ZipFile(data / f"{name}.metadata.xlsx", "w") as archive:
            for member in ("../../../precious/notes.txt", "/etc/x", "xl/workbook.xml", "[Content_Types].xml"):
                archive.writestr(member, "<!DOCTYPE x [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><x>&a;</x>")


def loop_links(data: Path, world: World) -> None:
    (data / "COVID" / "images" / "loop").symlink_to(data)
    (data / "Self").symlink_to(data / "Self")
    (data / "COVID" / "images" / "up").symlink_to(world.root)


def program_files(data: Path, world: World) -> None:
    for name in ("rich.py", "numpy.py", "PIL.py", "sitecustomize.py", "conftest.py", "matplotlibrc", "alembic.ini"):
        (data / name).write_text(world.code)
        (data / "COVID" / name).write_text(world.code)


def mimic_the_cache(data: Path, world: World) -> None:
    """A data folder that looks like a cache of ours."""
    (data / "stores" / KEY).mkdir(parents=True)
    (data / "stores" / KEY / ".digests.json").write_text("{}")
    (data / "locks").mkdir()


def eps_images(data: Path, world: World) -> None:
    """Formats that are decoded by starting another program, or by reading further files."""
    program = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(touch {world.proof}/eps) run\n"
    for name in ("a.eps", "b.png", "c.jpg"):
        (data / "COVID" / "images" / name).write_text(program)
    (data / "COVID" / "images" / "d.svg").write_text(f"<svg><image href='file://{world.precious}/notes.txt'/></svg>")


FORGED_DATA: list[Callable[[Path, World], None]] = [
    link_out,
    link_masks_out,
    link_tables_out,
    pipe_images,
    name_images,
    name_classes,
    pickle_images,
    zip_tables,
    loop_links,
    program_files,
    mimic_the_cache,
    eps_images,
]


def sql(*statements: str) -> Callable[[Path, World], None]:
    """Forge a study by statements; `{precious}` is what they are after."""

    def forge(study: Path, world: World) -> None:
        with sqlite3.connect(study) as connection:
            for statement in statements:
                connection.execute(statement.replace("{precious}", str(world.precious)))

    return forge


def forge_study_manifest(study: Path, world: World) -> None:
    with sqlite3.connect(study) as connection:
        for key, text in connection.execute("SELECT key, value_json FROM study_user_attributes").fetchall():
            value = json.loads(text)
            if isinstance(value, dict):
                value |= {"name": "../../precious", "command": orders(world)}
            connection.execute("UPDATE study_user_attributes SET value_json = ? WHERE key = ?", (json.dumps(value), key))


def link_study(study: Path, world: World) -> None:
    """The file is a link, and what SQLite would write beside it too."""
    study.unlink()
    study.symlink_to(world.precious / "notes.txt")
    for ending in ("-wal", "-journal", "-shm"):
        study.with_name(study.name + ending).symlink_to(world.precious / "notes.txt")


def pipe_study(study: Path, world: World) -> None:
    study.unlink()
    os.mkfifo(study)


def endless_study(study: Path, world: World) -> None:
    study.unlink()
    study.symlink_to("/dev/zero")


def pickled_study(study: Path, world: World) -> None:
    study.write_bytes(world.payload)


FORGED_STUDIES: dict[str, Callable[[Path, World], None]] = {
    "name that climbs": sql("UPDATE studies SET study_name = '../../../precious/figures'"),
    "name with escapes": sql(f"UPDATE studies SET study_name = '{ESCAPES}'"),
    "manifest with orders": forge_study_manifest,
    "ids that climb": sql(
        "UPDATE trial_user_attributes SET value_json = '\"../../../precious/x\"' WHERE key IN ('trial_id', 'cell')"
    ),
    "attributes of other shapes": sql("UPDATE trial_user_attributes SET value_json = '[[{\"a\": 1e999}]]'"),
    "attributes that are no JSON": sql("UPDATE trial_user_attributes SET value_json = '{'"),
    "deep attributes": sql("UPDATE study_user_attributes SET value_json = replace(hex(zeroblob(50000)), '00', '[')"),
    "a distribution of a class of its own": sql(
        'UPDATE trial_params SET distribution_json = \'{"name": "os.system", "attributes": {"command": "touch x"}}\''
    ),
    "a trigger": sql(
        "CREATE TRIGGER t AFTER INSERT ON studies BEGIN DELETE FROM trials; END",
        "CREATE VIEW v AS SELECT load_extension('{precious}/program.py')",
    ),
    "a view instead of a table": sql(
        "ALTER TABLE trial_params RENAME TO hidden",
        "CREATE VIEW trial_params AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
        " SELECT i AS param_id, i AS trial_id, 'x' AS param_name, 1.0 AS param_value, '{}' AS distribution_json FROM n",
    ),
    "no tables": sql("DROP TABLE studies"),
    "states unknown": sql("UPDATE trials SET state = 'HACKED'"),
    "another version": sql("UPDATE version_info SET schema_version = 999"),
    "links": link_study,
    "a pipe": pipe_study,
    "a device": endless_study,
    "a pickle": pickled_study,
}


def tensors_of(shape: tuple[int, ...]) -> bytes:
    content = BytesIO()
    torch.save({"conv1.weight": torch.zeros(shape), "fc.weight": torch.full((2, 2), float("nan"))}, content)
    return content.getvalue()


def zipped_pickle(world: World) -> bytes:
    content = BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("archive/data.pkl", world.payload)
        archive.writestr("archive/version", "3")
        archive.writestr("../../precious/notes.txt", "theirs")
    return content.getvalue()


def bomb(world: World) -> bytes:
    content = BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": 1}))
        archive.writestr("archive/data/0", bytes(300 * 10**6))
    return content.getvalue()


FORGED_WEIGHTS: dict[str, Callable[[World], bytes]] = {
    "resnet18-pickle.pth": lambda world: world.payload,
    "resnet18-zip.pth": zipped_pickle,
    "resnet18-bomb.pth": bomb,
    "resnet18-shapes.pth": lambda world: tensors_of((1, 1)),
    "resnet18-empty.pth": lambda world: b"",
    "resnet18-json.safetensors": lambda world: (8).to_bytes(8, "little") + b'{"a": 1}',
    "resnet18-header.safetensors": lambda world: (2**62).to_bytes(8, "little") + b"{}",
    "resnet18-offsets.safetensors": lambda world: (lambda header: len(header).to_bytes(8, "little") + header + bytes(8))(
        b'{"conv1.weight":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
    ),
    "resnet18-pickle.safetensors": lambda world: world.payload,
    "resnet18-tar.pth": lambda world: b"\x00" * 257 + b"ustar" + world.payload,
    "resnet18-text.pth": lambda world: world.code.encode(),
}
