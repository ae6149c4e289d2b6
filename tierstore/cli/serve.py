"""Commands that serve a store to others: serve hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tierstore.cli.kit.command import Cli
from tierstore.cli.kit.output import as_json, facts
from tierstore.cli.schemas import serve as schemas


def hub(
    cli: Cli,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: a free one.")] = 8000,
    tokens: Annotated[
        Path | None,
        typer.Option("--tokens", metavar="FILE", help="TOML: who may read and write which models."),
    ] = None,
    spool: Annotated[
        Path | None,
        typer.Option("--spool", metavar="DIR", help="Where uploads wait for their commit."),
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option("--certificate", metavar="FILE", help="PEM, for https.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option("--key", metavar="FILE", help="PEM, the certificate's.")
    ] = None,
) -> None:
    """Serve the store as a Hugging Face Hub.

    Programs that use huggingface_hub need only HF_ENDPOINT: snapshot_download, from_pretrained,
    'hf download'. Aliases are branches, version numbers are tags. Without --tokens everybody who
    reaches the address reads everything and nobody writes; 'hf upload' needs a token that may
    write, and HF_HUB_DISABLE_XET=1.
    """
    from tierstore.errors import UsageError
    from tierstore.serving.hub.command import serve

    if (certificate is None) != (key is None):
        raise UsageError("--certificate and --key go together")

    def ready(url: str) -> None:
        data = schemas.Serving(url=url, store=store.url, writable=tokens is not None)
        if cli.out.json:
            print(as_json(data), flush=True)
        elif cli.out.quiet:
            print(url, flush=True)
        else:
            facts([("serving", store.url), ("use", f"export HF_ENDPOINT={url}")])
            print("Ctrl-C ends it", flush=True)

    with cli.open() as store:
        serve(
            store, host, port, ready=ready, tokens=tokens, spool=spool,
            certificate=certificate, key=key,
        )  # fmt: skip
