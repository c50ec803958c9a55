"""Download documented public data: ``python -m neuralgraph.fetch NAME``.

What is downloaded and what comes out of it are both checked against SHA-256 sums that stand in this
file, so that everyone computes on the same bytes. Files appear whole or not at all, and a download
that was cut off continues where it stopped.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import hydra
from omegaconf import DictConfig

from neuralgraph.cli import guarded
from neuralgraph.config import CONFIG_FOLDER
from neuralgraph.core.data_home import cache_folder
from neuralgraph.core.errors import ConfigError, DataError, MissingDataError, nearest
from neuralgraph.core.files import write_bytes

ATTEMPTS = 3
CHUNK = 1 << 16
TIMEOUT_S = 30.0


@dataclass(frozen=True)
class DataFile:
    """One file as it lies in the data folder.

    Args:
        path: Place in the data folder, ``folder/name``.
        sha256: Checksum of its bytes.
        member: Name inside the downloaded zip archive; ``None`` when the download is the file.
    """

    path: str
    sha256: str
    member: str | None = None


@dataclass(frozen=True)
class Source:
    """One download and what is kept of it.

    Args:
        name: What the user asks for.
        title: One line on the content.
        url: Where it is downloaded from; a folder where its files are downloaded one by one.
        sha256: Checksum of the download, ``None`` for a folder: those of the files stand for it.
        files: What is kept.
        licence: Terms of use as the origin states them.
    """

    name: str
    title: str
    url: str
    sha256: str | None
    files: tuple[DataFile, ...]
    licence: str


PYBOOLNET = (
    ("arellano_rootstem", "arellano_rootstem/arellano_rootstem",
     "e96a9c06c10824e72e8d4134514d1b077efe584dfcfa871411e8f22ffdbe962a"),
    ("calzone_cellfate", "calzone_cellfate/calzone_cellfate",
     "1e72b12170f48b51a54aa6300e95dc7c7f847a9d50f7dc78eeed3fb611f3b5f1"),
    ("dahlhaus_neuroplastoma", "dahlhaus_neuroplastoma/dahlhaus_neuroplastoma",
     "b55112d4779847cbdbac3f9435255d6acdccff3b740509fa9b5e9cf85a832c10"),
    ("davidich_yeast", "davidich_yeast/davidich_yeast",
     "9c8a1f32178f89f89467fe2c9d8e3e22d2dc380c7b357dcdc7a4cd4abe1da0cc"),
    ("dinwoodie_life", "dinwoodie_life/dinwoodie_life",
     "a36946ddd5edb492997ef22d638c52f0184935edb74698f8e274a9f2bf22e9ac"),
    ("dinwoodie_stomatal", "dinwoodie_stomatal/dinwoodie_stomatal",
     "ce0c21f6efe7f2b3f1508ab47e818cd276a4bdd5dd7651b905c561aada07df10"),
    ("faure_cellcycle", "faure_cellcycle/faure_cellcycle",
     "1ce4463e66f53db98ad0bc3c5203da8824f8a473681f56ecb963b9a61f93a2f3"),
    ("grieco_mapk", "grieco_mapk/grieco_mapk",
     "2f4f479516ce8be8bb2d91e9d739ff12995502803f829349926a97ab1154f9ae"),
    ("irons_yeast", "irons_yeast/irons_yeast",
     "4d7aea4d6a711483dca45bed533a6fb6f9ad80113e283c129c5f8d487d68132d"),
    ("jaoude_thdiff", "jaoude_thdiff/jaoude_thdiff",
     "7b7eb7c791bee11a5494930be288dd4c2355dbfdebeeed7fb31ccf300e85f55a"),
    ("klamt_tcr", "klamt_tcr/klamt_tcr",
     "75413e24e2266d99515e6d3174cc2fae9f9de5e56c1d9da2fb7a582c27c1e037"),
    ("krumsiek_myeloid", "krumsiek_myeloid/krumsiek_myeloid",
     "813dab8c714d7800e4f6a902029a66aa9ea307d935a41eadac0e852cf448c58c"),
    ("multivalued", "multivalued/multivalued",
     "ad02c284970517f50791f65a537f13df17ee76df06f35187333e38ed1587311f"),
    ("n12c5", "n12c5/n12c5",
     "b901d8d798b17c0280793ead14ea9dd297098caadbfc50acef443cb3a1b872fb"),
    ("n3s1c1a", "n3s1c1a/n3s1c1a",
     "933432ffcb944d4b76aa126daa0bc9a0554db55967c14ab6e94314d560e6ea16"),
    ("n3s1c1b", "n3s1c1b/n3s1c1b",
     "3af45c22abbdd7f2edf23b15889f16bebe0b53a3ba42017d5a27061e97915fa2"),
    ("n5s3", "n5s3/n5s3",
     "304ccca2f55ff9e735f8708b0f6dac4b9180d586032f7074909917b1e3b09203"),
    ("n6s1c2", "n6s1c2/n6s1c2",
     "67b38e5c9f00da90b2715d5015c4e2b3a7efdc5a66113b26ce422e11e4344a94"),
    ("n7s3", "n7s3/n7s3",
     "fc2ca1c9e736c68fddeb6492d920330a952d00aa040487a98fcd81ba1697e301"),
    ("raf", "raf/raf",
     "48ad64c6cdc5c066052a6dfc8b4260ce16bb195fba7a47f3cf4ea04867088758"),
    ("randomnet_n15k3", "randomnet_n15k3/randomnet_n15k3",
     "ea1b38938bd5106abab787e05590384cf49379897000dc14252d410c2bf10c04"),
    ("randomnet_n7k3", "randomnet_n7k3/randomnet_n7k3",
     "a0d6fbe3d6a8e9ace4f20092e5257c6bc14166e11f4587fc748d7a5a86a66230"),
    ("remy_tumorigenesis", "remy_tumorigenesis/remy_tumorigenesis",
     "a59d39b1d757b25ad375b0fab3d010fad231989f0d15f31b15a061976bc15c13"),
    ("remy_tumorigenesis_myversion", "remy_tumorigenesis/remy_tumorigenesis_myversion",
     "57758beccbaa94a3c92cad230dd42eb89102dd1a1a1a2b1ef5d4c087bff9b505"),
    ("saadatpour_guardcell", "saadatpour_guardcell/saadatpour_guardcell",
     "33ee70bc4b6257c6edf8678a968543fae7d639b3b2db2cfd7e9d1a0ed1950083"),
    ("selvaggio_emt", "selvaggio_emt/selvaggio_emt",
     "7772a1a17eed3dc344941d0788e3e4458607efa6ba1c93832eeb0d40ac7d449a"),
    ("tournier_apoptosis", "tournier_apoptosis/tournier_apoptosis",
     "f31b8e12ab59e3250b25f7960d767fbaea6ac6f722e993877145d1b5ca932db6"),
    ("xiao_wnt5a", "xiao_wnt5a/xiao_wnt5a",
     "1772e86d48efaa036fc8f0ab4ba3b01f39da97fac366cae9263961000f7a9b41"),
    ("zhang_tlgl", "zhang_tlgl/zhang_tlgl",
     "9fc8b82970262c5a3bd4cd30697fa99cd74251e881cabc01d499bf58c85a345d"),
    ("zhang_tlgl_v2", "zhang_tlgl_v2/zhang_tlgl_v2",
     "ffa33188bcb4287dc4cb901ae129ee22b3848957bf1e763bae92a60b3a54a22b"),
)  # fmt: skip
"""Boolean networks: name, place in the wheel, SHA-256."""

BOOLODE = (
    ("EMT.txt",
     "f4a8267294bb70436138816b85e7dd17f03846d42343cca3eeb75dd8c2d0ecb5"),
    ("GSD.txt",
     "cf0c6d0e54ab9db2ab7308040f8a35d61a79af7fd4db1466270abfa9732d344e"),
    ("GSD_ics.txt",
     "2a15bcf736c0f4da4239fabad9a6e0cb1fd523f32795ed7c68d32bca955c65e7"),
    ("HSC.txt",
     "bfb334da4f41020f2d72e4aa5e310ea4db9b573fae5fd875d0c332ea72b3aa8f"),
    ("HSC_ics.txt",
     "62db996189ec5f48b2b1fe0b155a8f85bb276e509cc4a39f255f08ca06c40be4"),
    ("VSC.txt",
     "f5c3e631210480efaa07ddd13e6b3a57e78fe6c1c7ba4d7ca8fc0c3d35d1940a"),
    ("dyn-bifurcating-converging.txt",
     "6a5e1b4cc209f698ef58bd78a30d3cd2551d605e16ab73d3f59658e4eddaadc6"),
    ("dyn-bifurcating-converging_ics.txt",
     "3c92c0b84ed78993944ae74f6fe47720eb1ac8a5945dd2ec4478160684a2adaa"),
    ("dyn-bifurcating-loop.txt",
     "a9367c2086f137866a2b555925b5a18d627d5927a0982c5fb5c9cb1691c0c911"),
    ("dyn-bifurcating-loop_ics.txt",
     "3c92c0b84ed78993944ae74f6fe47720eb1ac8a5945dd2ec4478160684a2adaa"),
    ("dyn-bifurcating.txt",
     "a68595f05d25efbab76eb44419a8dad2f4f509d091b5b7d599885b49cabb4959"),
    ("dyn-bifurcating_ics.txt",
     "3c92c0b84ed78993944ae74f6fe47720eb1ac8a5945dd2ec4478160684a2adaa"),
    ("dyn-consecutive-bifurcating.txt",
     "929413308f69ec38848460556a6b2f78a352778a3755c8a301411440ca7f9945"),
    ("dyn-consecutive-bifurcating_ics.txt",
     "3c92c0b84ed78993944ae74f6fe47720eb1ac8a5945dd2ec4478160684a2adaa"),
    ("dyn-converging.txt",
     "ebeb234cd79de66cf1b9d1e2e461a00cb00bb5a4bfb83622346c80331327ccf0"),
    ("dyn-converging_ics.txt",
     "3c92c0b84ed78993944ae74f6fe47720eb1ac8a5945dd2ec4478160684a2adaa"),
    ("dyn-cycle.txt",
     "0ee09e6c322c449eeffb9a9d7cb8b3bd3609a5a121c6cf25c8fa16b13f47399d"),
    ("dyn-cycle_ics.txt",
     "16d296d78c90c281311e99649856d1e5eebb7483ca4d5e5df2b15f94d596c3b3"),
    ("dyn-linear-long.txt",
     "9075950fe16a9ac3613d28afb9805c6388345098b3c5cc4e6203b4916120a514"),
    ("dyn-linear-long_ics.txt",
     "3c92c0b84ed78993944ae74f6fe47720eb1ac8a5945dd2ec4478160684a2adaa"),
    ("dyn-linear.txt",
     "f6e6f119f1dd64e3418ab57dfca1faf289d659f882b3e0215541898e35a52452"),
    ("dyn-linear_ics.txt",
     "3c92c0b84ed78993944ae74f6fe47720eb1ac8a5945dd2ec4478160684a2adaa"),
    ("dyn-trifurcating.txt",
     "755b2186a8872b76ee729ee18ad22540e3a2f4bdecd8c0f84d75f2948b799b84"),
    ("dyn-trifurcating_ics.txt",
     "3c92c0b84ed78993944ae74f6fe47720eb1ac8a5945dd2ec4478160684a2adaa"),
    ("mCAD.txt",
     "f5ef4e0abc4a06c82615362ad9e7bb1640adb5ca849069571086857fba1cdd88"),
    ("mCAD_ics.txt",
     "57104b19bd30759ef82427ad74f86a8672693ba8da4713d1efabcad6af218c88"),
    ("mutual-inhibition.txt",
     "c12a064e5feb75ef705e3c2ed074724c1f6bdbe35f62a5cba562e08f7c20ece2"),
)  # fmt: skip
"""Rules of gene networks (``…_ics``: genes that are on at the start): name, SHA-256."""

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            name="renge",
            title="hiPSC knock-outs on days 2 to 5: 4,013 cells, 103 genes, 8 knock-outs, no "
            "unedited cells (subset of Ishikawa 2023, GSE213069)",
            url="https://raw.githubusercontent.com/NoahElRimawiFine/StructureFlow/"
            "a8f419dba2970fd8cb17ee9c956cce6eb0e4bc97/data/Renge/hipsc.h5ad",
            sha256="0d713972be624685a145c46fe771ef508493e1642dd7d0aa3ce44bd6deee1584",
            files=(
                DataFile(
                    "renge_hipsc/hipsc.h5ad",
                    "0d713972be624685a145c46fe771ef508493e1642dd7d0aa3ce44bd6deee1584",
                ),
            ),
            licence="no licence file at the origin: for your own use, not for redistribution",
        ),
        Source(
            name="norman19",
            title="perturbation screens: K562 under CRISPR activation of one or two genes (Norman "
            "2019) and three glioblastoma lines (McFaline 2023); 5,961 cells, 500 genes, log1p",
            url="https://raw.githubusercontent.com/altoslabs/perturbench/"
            "4dd6a03c54ef348f6be6e46e21ea7f80eb2daaa2/src/perturbench/data/resources/devel.h5ad",
            sha256="220998f5630c813228c8661c86dd52244b9ac87127511289af90e0d900d8429b",
            files=(
                DataFile(
                    "norman19_mcfaline23/norman19_mcfaline23_devel.h5ad",
                    "220998f5630c813228c8661c86dd52244b9ac87127511289af90e0d900d8429b",
                ),
            ),
            licence="BSD-3-Clause (PerturBench)",
        ),
        Source(
            # The 299 genes of papalexi21_lowmoi.h5ad come from an R package (sceptredata) and have
            # no public address in this format; this is the whole screen, see papalexi21_full.yaml.
            name="papalexi21",
            title="ECCITE-seq of THP-1 with 25 knock-outs (Papalexi 2021), all genes, as "
            "harmonised by scPerturb; for simulator=papalexi21_full",
            url="https://zenodo.org/records/13350497/files/PapalexiSatija2021_eccite_RNA.h5ad",
            sha256="03e9602d124c261281936717d5795445805e6e704a52b0310bcde94225aa0929",
            files=(
                DataFile(
                    "papalexi21/PapalexiSatija2021_eccite_RNA.h5ad",
                    "03e9602d124c261281936717d5795445805e6e704a52b0310bcde94225aa0929",
                ),
            ),
            licence="as stated at zenodo.org/records/13350497",
        ),
        Source(
            name="papalexi21_protein",
            title="the four surface proteins measured in the cells of papalexi21",
            url="https://zenodo.org/records/13350497/files/PapalexiSatija2021_eccite_protein.h5ad",
            sha256="e1e293c75dfebe09301bf32093703cfd5f50c17d6fb53144d8213e52e0e4e150",
            files=(
                DataFile(
                    "papalexi21/PapalexiSatija2021_eccite_protein.h5ad",
                    "e1e293c75dfebe09301bf32093703cfd5f50c17d6fb53144d8213e52e0e4e150",
                ),
            ),
            licence="as stated at zenodo.org/records/13350497",
        ),
        Source(
            name="trrust",
            title="TRRUST v2: 8,427 regulations of human genes by transcription factors, with sign",
            url="https://www.grnpedia.org/trrust/data/trrust_rawdata.human.tsv",
            sha256="9b909319ccc8e36588b5a1bd3640e0dfba03936c6fc154cc4304d742bec11bed",
            files=(
                DataFile(
                    "trrust/trrust_human.tsv",
                    "9b909319ccc8e36588b5a1bd3640e0dfba03936c6fc154cc4304d742bec11bed",
                ),
            ),
            licence="CC BY-SA 4.0",
        ),
        Source(
            name="bigg",
            title="SBML of three genome-scale metabolic models: textbook (E. coli core), iJO1366, "
            "salmonella; structure only",
            # Package files of PyPI under its stable URL pattern; the wheel carries the models.
            url="https://files.pythonhosted.org/packages/py2.py3/c/cobra/"
            "cobra-0.32.1-py2.py3-none-any.whl",
            sha256="6ebfc29503224371ff5390ce0ce347b738415bd37a2dfb8a9683591c6e5535dc",
            files=(
                DataFile(
                    "bigg/textbook.xml.gz",
                    "c674befd7a8199f037fd851c4f8ea8502730d0328ef51b1c46946f19fb44f72a",
                    "cobra/data/textbook.xml.gz",
                ),
                DataFile(
                    "bigg/iJO1366.xml.gz",
                    "e100c6a9fdc30f6b880d390f8af9941422202b8714c7786629f19c98b076d208",
                    "cobra/data/iJO1366.xml.gz",
                ),
                DataFile(
                    "bigg/salmonella.xml.gz",
                    "de43ce568b09b78999a6faed3761a1b62e146fc84d96d45d9372c70955120cbd",
                    "cobra/data/salmonella.xml.gz",
                ),
            ),
            licence="COBRApy wheel, LGPL-2.0-or-later OR GPL-2.0-or-later; models by BiGG (UCSD)",
        ),
        Source(
            name="biomd51",
            title="BioModels BIOMD0000000051 (Chassagnole 2002): kinetic model of E. coli central "
            "carbon metabolism",
            url="https://raw.githubusercontent.com/biomodels/BIOMD0000000051/"
            "92843fdc466e704445d491fb42b4142d4c70c3f6/BIOMD0000000051/BIOMD0000000051.xml",
            sha256="28deec2bf55de027f116b46a8b1a75a820b05bdc9c5cd72dcf260bfacba75302",
            files=(
                DataFile(
                    "biomd51/BIOMD0000000051.xml",
                    "28deec2bf55de027f116b46a8b1a75a820b05bdc9c5cd72dcf260bfacba75302",
                ),
            ),
            licence="CC0-1.0",
        ),
        Source(
            name="pyboolnet",
            title="30 published Boolean networks (.bnet) of PyBoolNet's repository",
            url="https://files.pythonhosted.org/packages/py3/p/pyboolnet/"
            "pyboolnet-3.0.16-py3-none-any.whl",
            sha256="cae53535da1b29cd2cb41ba115753098236e310bf1c8efd3d2f1f4bd68d80906",
            files=tuple(
                DataFile(f"pyboolnet/{name}.bnet", sha256, f"pyboolnet/repository/{member}.bnet")
                for name, member, sha256 in PYBOOLNET
            ),
            licence="PyBoolNet wheel, LGPL; models belong to their authors",
        ),
        Source(
            name="boolode",
            title="Boolean rules of BoolODE: HSC, GSD, mCAD and VSC (curated developmental "
            "networks) and small ones that branch, cycle or join",
            url="https://raw.githubusercontent.com/Murali-group/BoolODE/"
            "ba8884af40f98fc648b3f36f0b81a5a8cf22c9b9/data",
            sha256=None,
            files=tuple(DataFile(f"boolode/{name}", sha256) for name, sha256 in BOOLODE),
            licence="GPL-3.0 (BoolODE)",
        ),
    )
}


def short_name(file: DataFile) -> str:
    """Name by which one file alone is asked for.

    >>> short_name(DataFile("bigg/textbook.xml.gz", ""))
    'textbook'
    """
    return Path(file.path).name.split(".")[0]


def find_source(name: str) -> Source:
    """The source called ``name``, or the part of one that holds the file called ``name``, or the
    one whose files lie in the folder ``name``.

    >>> [file.path for file in find_source("textbook").files]
    ['bigg/textbook.xml.gz']
    >>> find_source("renge_hipsc").name
    'renge'

    Raises:
        ConfigError: no source and no file has that name.
    """
    if name in SOURCES:
        return SOURCES[name]
    for source in SOURCES.values():
        for file in source.files:
            if name in (short_name(file), file.path):
                return replace(source, files=(file,))
    for source in SOURCES.values():
        if name in {Path(file.path).parts[0] for file in source.files}:
            return source
    known = [*SOURCES, *(short_name(f) for s in SOURCES.values() for f in s.files)]
    raise ConfigError(f"there is no data set called '{name}': {nearest(name, known)}")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(source: Source, folder: Path | str, *, say: Callable[[str], None] = print) -> list[Path]:
    """Make sure that every file of a source lies in ``folder`` with the right content.

    Args:
        source: What to download.
        folder: Data folder; files go to their own subfolder of it.
        say: Receives one line for each thing done.

    Returns:
        The files, in the order of the source.

    Raises:
        MissingDataError: the server does not have the file or cannot be reached.
        DataError: the download was cut off, or a checksum is wrong.
    """
    folder = Path(folder)
    targets = [folder / file.path for file in source.files]
    missing = []
    for file, target in zip(source.files, targets, strict=True):
        if target.is_file() and sha256_of(target) == file.sha256:
            say(f"already there: {target}")
        else:
            if target.exists():
                say(f"has another content than expected and is replaced: {target}")
            missing.append((file, target))
    if not missing:
        return targets
    if source.sha256 is None:
        for file, target in missing:
            url = f"{source.url.rstrip('/')}/{Path(file.path).name}"
            _keep(url, file.sha256, [(file, target)], folder, say)
    else:
        _keep(source.url, source.sha256, missing, folder, say)
    for subfolder in sorted({target.parent for target in targets}):
        note = f"origin: {source.url}\nsha256: {source.sha256 or 'of each file, checked'}\n"
        _write(subfolder / "SOURCE.txt", f"{note}licence: {source.licence}\n".encode())
    return targets


def _keep(
    url: str,
    sha256: str,
    wanted: Sequence[tuple[DataFile, Path]],
    folder: Path,
    say: Callable[[str], None],
) -> None:
    """One download, checked, and what is wanted of it, each to its place."""
    part = folder / ".downloads" / f"{sha256}.part"
    say(f"downloading {url}")
    _download(url, part)
    got = sha256_of(part)
    if got != sha256:
        part.unlink()
        raise DataError(
            f"{url} has the wrong content: expected SHA-256 {sha256}, got {got}. "
            "The file at the source has changed or was altered on the way; nothing was kept. "
            "Try again, or name another place with url=…"
        )
    content = part.read_bytes()
    for file, target in wanted:
        kept = content if file.member is None else _member(content, file.member, url)
        got = hashlib.sha256(kept).hexdigest()
        if got != file.sha256:
            raise DataError(
                f"{file.path} out of {url} has the wrong content: expected SHA-256 "
                f"{file.sha256}, got {got}; nothing was written"
            )
        _write(target, kept)
        say(f"written: {target} ({len(kept):,} bytes, checksum verified)")
    part.unlink()
    if not any(part.parent.iterdir()):
        part.parent.rmdir()


def _write(path: Path, content: bytes) -> None:
    try:
        write_bytes(path, content)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error.strerror}): name a folder of your own with folder=…"
        ) from error


def _member(content: bytes, member: str, url: str) -> bytes:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return archive.read(member)
    except (zipfile.BadZipFile, KeyError) as error:
        raise DataError(f"{url} holds no '{member}': it is not the expected archive") from error


def _download(url: str, part: Path) -> None:
    """Bytes of ``url`` into ``part``, continuing what an earlier attempt left there."""
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{part.parent} cannot be made ({error.strerror}): name a folder of your own with "
            "folder=…"
        ) from error
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _continue(url, part)
            return
        except urllib.error.HTTPError as error:
            if error.code == 416:  # the part is as long as the file: its checksum decides
                return
            raise MissingDataError(
                f"{url} answers {error.code} {error.reason}: the file is not there (any more). "
                "Download it by hand, or name another place with url=…"
            ) from error
        except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
            if attempt == ATTEMPTS:
                size = part.stat().st_size if part.exists() else 0
                raise DataError(
                    f"the download of {url} was cut off {ATTEMPTS} times ({error}); {size:,} bytes "
                    "are kept: run the same command again to continue"
                ) from error
        except (urllib.error.URLError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise MissingDataError(
                f"{url} cannot be reached ({reason}): check the connection and the proxy "
                "(HTTPS_PROXY), or name another place with url=…"
            ) from error


def _continue(url: str, part: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "neuralgraph", **({"Range": f"bytes={have}-"} if have else {})}
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        # A server that ignores the range answers 200 with the whole file: begin again.
        append = have > 0 and answer.status == 206
        length = answer.headers.get("Content-Length")
        got = 0
        with part.open("ab" if append else "wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                got += len(chunk)
        if length is not None and got < int(length):
            raise http.client.IncompleteRead(b"", int(length) - got)


def listing() -> str:
    """What can be fetched, one paragraph for each source."""
    lines = ["python -m neuralgraph.fetch NAME, with NAME one of", ""]
    for source in SOURCES.values():
        lines += [f"  {source.name}", f"      {source.title}", f"      licence: {source.licence}"]
        parts = [short_name(file) for file in source.files]
        if len(parts) > 1:
            lines.append(f"      alone: {', '.join(parts)}")
    return "\n".join(lines)


def with_name(arguments: Sequence[str]) -> list[str]:
    """Command line in which a bare NAME has become ``name=NAME``.

    >>> with_name(["textbook", "folder=/data"])
    ['name=textbook', 'folder=/data']
    >>> with_name(["--config-dir", "conf", "name=bigg"])
    ['--config-dir', 'conf', 'name=bigg']
    """
    result: list[str] = []
    for argument in arguments:
        after_option = bool(result) and result[-1] in (
            "--config-dir",
            "-cd",
            "--config-name",
            "-cn",
            "--config-path",
            "-cp",
            "--cfg",
            "-c",
            "--package",
            "-p",
            "--info",
            "-i",
        )
        bare = not argument.startswith(("-", "+", "~")) and "=" not in argument
        result.append(f"name={argument}" if bare and not after_option else argument)
    return result


@hydra.main(version_base="1.3", config_path=CONFIG_FOLDER, config_name="fetch")
def task(cfg: DictConfig) -> None:
    """Fetch what the config names, or list what there is."""
    if cfg.name is None:
        print(listing())
        return
    source = find_source(str(cfg.name))
    if cfg.url is not None:
        source = replace(source, url=str(cfg.url))
    fetch(source, cfg.folder or cache_folder())


if __name__ == "__main__":
    sys.argv[1:] = with_name(sys.argv[1:])
    guarded(task)
