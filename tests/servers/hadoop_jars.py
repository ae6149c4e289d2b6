"""Gets what a real HDFS needs: Hadoop's jars out of PyPI's pyspark, and Jersey's from Debian.

Later releases of pyspark carry Hadoop's client alone; 2.4.8 is the last one with the servers
(Hadoop 2.7.3), without the web server's Jersey, which Debian has.

Run as a script it fills ``JARS`` once.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

JARS = Path(sys.prefix) / "share" / "hadoop"
_PYSPARK = "pyspark==2.4.8"
_WANTED = (
    "hadoop-*2.7*", "commons-*", "guava-1[0-9]*", "log4j-1*", "slf4j-*", "protobuf-java-2*",
    "htrace*", "jetty-*", "netty*", "xerces*", "xml-apis*", "leveldbjni*", "jackson-*-asl*",
    "jackson-mapper*", "jackson-xc*", "avro-1*", "curator*", "zookeeper*", "httpc*", "apacheds*",
    "api-*", "jaxb*", "activation*", "javax.servlet*", "jsr305*", "gson*", "paranamer*", "snappy*",
)  # fmt: skip
_DEBIAN = Path("/usr/share/java")
_JERSEY = ("jersey1-core", "jersey1-server", "jersey1-servlet", "jsr311-api", "asm")
DEBIAN_PACKAGES = (
    "libjersey1-core-java", "libjersey1-server-java", "libjersey1-servlet-java",
    "libjsr311-api-java", "libasm-java",
)  # fmt: skip


def class_path() -> str:
    """The jars of a namenode and a datanode; fails with what to install."""
    assert JARS.is_dir(), f"{JARS} is missing: run 'python -m tests.servers.hadoop_jars'"
    return ":".join([f"{JARS}/*", *map(str, _jersey())])


def _jersey() -> Iterator[Path]:
    for name in _JERSEY:
        path = _DEBIAN / f"{name}.jar"
        assert path.exists(), f"{path} is missing: apt-get install {' '.join(DEBIAN_PACKAGES)}"
        yield path


def install() -> None:
    """Download pyspark and keep the jars; nothing when they are there."""
    if JARS.is_dir():
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check",
                   "--no-deps", "--no-build-isolation", "--dest", folder, _PYSPARK]  # fmt: skip
        subprocess.run(command, check=True)
        [archive] = Path(folder).glob("pyspark-*.tar.gz")
        _unpack(archive)


def _unpack(archive: Path) -> None:
    partial = JARS.with_suffix(".partial")
    partial.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as tar:
        for member in tar:
            name = Path(member.name).name
            if "/jars/" in member.name and any(fnmatch(name, pattern) for pattern in _WANTED):
                content = tar.extractfile(member)
                assert content is not None
                (partial / name).write_bytes(content.read())
    partial.rename(JARS)


if __name__ == "__main__":
    install()
