#!/usr/bin/env python3
"""inventory.py TARGET OUT_DIR: lists the crates that are linked into the plugin for a Rust target.

    OUT_DIR/sbom.cdx.json      the crates as a CycloneDX 1.6 bill of materials
    OUT_DIR/third-party.txt    their copyright notices and licence texts, which their licences ask to be passed on

Only crates that are linked count: no build dependencies, no macros, no tests. cargo says which those are, Cargo.lock their hashes.
The same source gives the same bytes.
"""

import json
import os
import re
import subprocess
import sys
import uuid
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Optional

sys.dont_write_bytecode = True

import changelog  # noqa: E402  (writes no cache directory into the sources)

PROJECT = Path(__file__).resolve().parent.parent
# Name and version.
Crate = tuple[str, str]
# A crate in `cargo metadata`, or a component of the bill of materials.
Json = dict[str, Any]
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "nomad-driver-exec2")
# Part of the Rust toolchain's static target, so not in any crate.
TOOLCHAIN = [
    ("the Rust standard library (MIT OR Apache-2.0)", "Copyright (c) The Rust Project Contributors"),
    ("musl, the C library (MIT)", "Copyright (c) 2005-2020 Rich Felker, et al."),
]
MIT = """Permission is hereby granted, free of charge, to any person obtaining
a copy of this software and associated documentation files (the
"Software"), to deal in the Software without restriction, including
without limitation the rights to use, copy, modify, merge, publish,
distribute, sublicense, and/or sell copies of the Software, and to
permit persons to whom the Software is furnished to do so, subject to
the following conditions:

The above copyright notice and this permission notice shall be
included in all copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND,
EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF
MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT.
IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY
CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT,
TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE
SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE."""
NOTICE_FILES = re.compile(r"(licen[cs]e|copying|copyright|notice|unlicense)([-_.].*)?", re.IGNORECASE)


def cargo(*arguments: str) -> str:
    offline = ["--offline"] if os.environ.get("CARGO_NET_OFFLINE") == "true" else []
    return subprocess.run(["cargo", *arguments, "--locked", *offline], cwd=PROJECT, check=True, stdout=subprocess.PIPE, text=True).stdout


def linked(target: str) -> dict[Crate, list[Crate]]:
    """{(name, version): [the same of each dependency]}; the plugin itself comes first."""
    form = ("--prefix", "depth", "--no-dedupe", "--format", "|{p}")
    tree = cargo("tree", "--package", "nomad-driver-exec2", "--target", target, "-e", "normal,no-proc-macro", *form)
    graph: dict[Crate, set[Crate]] = {}
    path: list[Crate] = []
    for line in tree.splitlines():
        match = re.match(r"(\d+)\|(\S+) v(\S+)", line)
        if not match:
            sys.exit(f"cargo tree: {line!r} is not understood")
        crate, depth = (match[2], match[3]), int(match[1])
        path[depth:] = [crate]
        graph.setdefault(crate, set())
        if depth:
            graph[path[depth - 1]].add(crate)
    return {crate: sorted(needs) for crate, needs in graph.items()}


def checksums() -> dict[Crate, str]:
    """{(name, version): SHA-256 of the crate's archive}."""
    lock = (PROJECT / "Cargo.lock").read_text(encoding="utf-8")
    pattern = r'name = "([^"]+)"\nversion = "([^"]+)"\nsource = "registry[^"]*"\nchecksum = "([0-9a-f]{64})"'
    return {(name, version): checksum for name, version, checksum in re.findall(pattern, lock)}


def packages() -> dict[Crate, Json]:
    """{(name, version): cargo's metadata}."""
    return {(package["name"], package["version"]): package for package in json.loads(cargo("metadata", "--format-version", "1"))["packages"]}


def purl(crate: Crate) -> str:
    return f"pkg:cargo/{crate[0]}@{crate[1]}"


def component(crate: Crate, package: Json, checksum: Optional[str]) -> Json:
    made: Json = {"type": "library", "bom-ref": purl(crate), "name": crate[0], "version": crate[1]}
    # The name of a crate of this repository is not unique elsewhere.
    if package["source"]:
        made["purl"] = purl(crate)
    if package["description"]:
        made["description"] = " ".join(package["description"].split())
    # The old syntax for alternatives.
    made["licenses"] = [{"expression": package["license"].replace(" / ", " OR ").replace("/", " OR ")}]
    if checksum:
        made["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    if package["repository"]:
        made["externalReferences"] = [{"type": "vcs", "url": package["repository"]}]
    return made


def sbom(graph: dict[Crate, list[Crate]], known: dict[Crate, Json], sums: dict[Crate, str]) -> Json:
    root, *crates = graph
    main = {**component(root, known[root], None), "type": "application", "purl": purl(root)}
    components = [component(crate, known[crate], sums.get(crate)) for crate in sorted(crates)]
    dependencies = [{"ref": purl(crate), "dependsOn": [purl(need) for need in graph[crate]]} for crate in sorted(graph)]
    serial = uuid.uuid5(NAMESPACE, json.dumps([main, components, dependencies]))
    stamp = datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH") or changelog.versions()[0][1]), timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {"timestamp": stamp, "component": main},
        "components": components,
        "dependencies": dependencies,
    }


def notices(graph: dict[Crate, list[Crate]], known: dict[Crate, Json]) -> str:
    """A text that several crates share appears once, after all their names."""
    texts = {f"{copyright_line}\n\n{MIT}": [name] for name, copyright_line in TOOLCHAIN}
    for crate in sorted(crate for crate in graph if known[crate]["source"]):
        folder = Path(known[crate]["manifest_path"]).parent
        files = sorted(path for path in folder.iterdir() if path.is_file() and NOTICE_FILES.fullmatch(path.name))
        where = f"{crate[0]} {crate[1]} ({known[crate]['license']})"
        if not files:
            authors = ", ".join(known[crate]["authors"]) or "its authors"
            texts.setdefault(f"The crate has no licence file. Copyright: {authors}.", []).append(where)
        for path in files:
            texts.setdefault(path.read_text(encoding="utf-8").strip(), []).append(f"{where}, {path.name}")
    rule = "-" * 79
    parts = ["What is linked into nomad-driver-exec2, and its notices."]
    parts += [f"{rule}\n" + "\n".join(names) + f"\n{rule}\n\n{text}" for text, names in texts.items()]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    target, out = sys.argv[1], Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    graph, known = linked(target), packages()
    (out / "sbom.cdx.json").write_text(json.dumps(sbom(graph, known, checksums()), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / "third-party.txt").write_text(notices(graph, known), encoding="utf-8")


if __name__ == "__main__":
    main()
