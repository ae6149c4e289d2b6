"""A real HDFS on loopback: a namenode and a datanode, with WebHDFS."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from tests.servers.hadoop_jars import class_path
from tests.servers.process import free_port, pause_process, program, running

_PACKAGE = "openjdk-17-jre-headless"
_START_S = 120.0
_OPENED = (
    "java.base/java.lang", "java.base/java.nio", "java.base/sun.nio.ch", "java.base/java.util",
    "java.base/java.net", "java.base/java.io", "java.management/sun.management",
    "java.security.jgss/sun.security.krb5",
)  # fmt: skip
_NODE = "org.apache.hadoop.hdfs.server"
_LOG = """\
log4j.rootLogger=WARN,c
log4j.appender.c=org.apache.log4j.ConsoleAppender
log4j.appender.c.layout=org.apache.log4j.PatternLayout
log4j.appender.c.layout.ConversionPattern=%d %p %c: %m%n
"""
_WEB = '<web-app version="2.4" xmlns="http://java.sun.com/xml/ns/j2ee"></web-app>'


@dataclass
class Hdfs:
    """A running HDFS.

    Attributes:
        folder: of its configuration, logs and data.
        port: of the namenode's HTTP server.
        datanode_port: of the datanode's HTTP server.
        datanode: its process, to be stopped and continued.
    """

    folder: Path
    port: int
    datanode_port: int
    datanode: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """As a store takes it; a path is to be added."""
        return f"webhdfs://127.0.0.1:{self.port}"

    def pause(self) -> None:
        """Let the datanode hang: connections are taken, but never answered."""
        assert self.datanode is not None
        pause_process(self.datanode.pid)

    def resume(self) -> None:
        """Let it go on."""
        assert self.datanode is not None
        self.datanode.send_signal(signal.SIGCONT)

    def is_ready(self) -> bool:
        """Whether it takes and gives back a file."""
        base = f"http://127.0.0.1:{self.port}/webhdfs/v1/ready"
        try:
            made = requests.put(
                f"{base}?op=CREATE&overwrite=true&user.name=root", data=b"x", timeout=20
            )
            return made.status_code == 201
        except requests.RequestException:
            return False


@contextmanager
def hdfs_running(folder: Path) -> Iterator[Hdfs]:
    """A namenode and a datanode of their own, empty."""
    hdfs = Hdfs(folder, free_port(), free_port())
    rpc = free_port()
    _configure(hdfs, rpc)
    with ExitStack() as stack:
        subprocess.run(
            [*_java(folder), f"{_NODE}.namenode.NameNode", "-format", "-nonInteractive"],
            check=True, capture_output=True, timeout=_START_S, cwd=folder,
        )  # fmt: skip
        for name, ready in (("name", lambda: True), ("data", hdfs.is_ready)):
            process = stack.enter_context(
                running(
                    [*_java(folder), f"{_NODE}.{name}node.{name.capitalize()}Node"],
                    ready, log=folder / f"{name}node.log", seconds=_START_S, cwd=folder,
                )
            )  # fmt: skip
            stack.callback(process.kill)
        hdfs.datanode = process
        yield hdfs


def _java(folder: Path) -> list[str]:
    opened = (f"--add-opens={package}=ALL-UNNAMED" for package in _OPENED)
    return [
        program("java", _PACKAGE), "-Xmx384m", "-XX:TieredStopAtLevel=1", "-Xshare:auto",
        "-Djava.net.preferIPv4Stack=true", f"-Dhadoop.home.dir={folder}", *opened,
        "-cp", f"{folder / 'conf'}:{class_path()}",
    ]  # fmt: skip


def _configure(hdfs: Hdfs, rpc: int) -> None:
    folder = hdfs.folder
    conf = folder / "conf"
    for node in ("hdfs", "datanode"):  # the jars carry no web pages
        (conf / "webapps" / node / "WEB-INF").mkdir(parents=True)
        (conf / "webapps" / node / "WEB-INF" / "web.xml").write_text(_WEB)
    (conf / "log4j.properties").write_text(_LOG)
    core = {
        "fs.defaultFS": f"hdfs://127.0.0.1:{rpc}",
        "hadoop.tmp.dir": str(folder / "tmp"),
        "hadoop.security.authentication": "simple",
    }
    sites = {
        "dfs.replication": 1,
        "dfs.webhdfs.enabled": "true",
        "dfs.permissions.enabled": "false",
        "dfs.namenode.name.dir": f"file://{folder}/nn",
        "dfs.datanode.data.dir": f"file://{folder}/dn",
        "dfs.namenode.http-address": f"127.0.0.1:{hdfs.port}",
        "dfs.datanode.address": f"127.0.0.1:{free_port()}",
        "dfs.datanode.http.address": f"127.0.0.1:{hdfs.datanode_port}",
        "dfs.datanode.ipc.address": f"127.0.0.1:{free_port()}",
        "dfs.datanode.hostname": "127.0.0.1",
        "dfs.client.use.datanode.hostname": "true",
        "dfs.namenode.datanode.registration.ip-hostname-check": "false",
        "dfs.datanode.max.transfer.threads": 256,
    }
    for name, values in (("core", core), ("hdfs", sites)):
        fields = "".join(
            f"<property><name>{key}</name><value>{value}</value></property>"
            for key, value in values.items()
        )
        (conf / f"{name}-site.xml").write_text(f"<configuration>{fields}</configuration>")
