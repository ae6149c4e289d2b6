"""Commands that serve a store to others: serve hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tierstore.cli.kit.command import Cli
from tierstore.cli.kit.output import as_json, facts
from tierstore.cli.kit.params import option
from tierstore.cli.schemas import serve as schemas

HostOption = Annotated[str, option("--host", metavar="ADDRESS", help="Address to listen on.")]
PortOption = Annotated[
    int,
    option(
        "--port",
        metavar="PORT",
        min=0,
        max=65535,
        help="Port to listen on; 0 takes a free one.",
    ),
]
TokensOption = Annotated[
    Path | None,
    option(
        "--tokens",
        metavar="FILE",
        help="TOML file of the tokens that may read and write models.",
    ),
]
SpoolOption = Annotated[
    Path | None,
    option(
        "--spool",
        metavar="DIR",
        help="Directory where uploads wait for their commit (default: in the cache).",
    ),
]
CertificateOption = Annotated[
    Path | None,
    option("--certificate", metavar="FILE", help="PEM file of the certificate, to serve https."),
]
KeyOption = Annotated[
    Path | None,
    option("--key", metavar="FILE", help="PEM file of the certificate's key."),
]


PerAddressOption = Annotated[
    int,
    option(
        "--connections-per-address",
        metavar="COUNT",
        min=1,
        help="Most connections from one address; more where a proxy stands before the gateway.",
    ),
]


def hub(
    cli: Cli,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    tokens: TokensOption = None,
    spool: SpoolOption = None,
    certificate: CertificateOption = None,
    key: KeyOption = None,
    connections_per_address: PerAddressOption = 256,
) -> None:
    """Serve the store over the HTTP API of the Hugging Face Hub.

    Programs that use huggingface_hub (snapshot_download, from_pretrained, 'hf download') only need
    HF_ENDPOINT to be set to its address. Aliases are branches, version numbers are tags.

    Without --tokens everybody who reaches the address may read everything, and nobody may write.
    'hf upload' needs a token that may write, and a name of two parts, such as search/ranker.
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
            print("press Ctrl-C to end", flush=True)

    with cli.open() as store:
        serve(
            store,
            host,
            port,
            ready=ready,
            tokens=tokens,
            spool=spool,
            certificate=certificate,
            key=key,
            per_address=connections_per_address,
        )
