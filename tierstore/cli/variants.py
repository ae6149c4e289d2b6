"""Commands on lossy variants: derive, variants, lineage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from tierstore.cli.kit.command import Cli
from tierstore.cli.kit.output import Column, counted, printable, size, table
from tierstore.cli.kit.params import option
from tierstore.cli.models import Message, Ref
from tierstore.cli.schemas import variants as schemas

if TYPE_CHECKING:
    from tierstore.lossy.record import ErrorRecord, VariantRecord
    from tierstore.modelstore.store import Store
    from tierstore.modelstore.version import Version
    from tierstore.variants.lineage import Node


CastOption = Annotated[
    str | None, option(metavar="DTYPE", help="Round floats to bf16, f16 or f32.")
]
Int8Option = Annotated[
    str | None,
    option(
        metavar="row|channel",
        help="Quantize to 8-bit integers: FBGEMM rows, or compressed-tensors channels.",
    ),
]
Fp8Option = Annotated[
    str | None,
    option(metavar="e4m3", help="Quantize to 8-bit floats, as compressed-tensors."),
]
PruneOption = Annotated[
    str | None,
    option(metavar="RULE", help="Set weights to zero: magnitude:0.5 (the smaller half), or 2:4."),
]
LowRankOption = Annotated[
    str | None,
    option(metavar="RULE", help="Replace matrices by products of rank R: energy:0.99, or rank:64."),
]
KeepOption = Annotated[
    str | None,
    option(metavar="REGEX", help="Leave tensors whose name matches as they are."),
]
NameOption = Annotated[
    str | None,
    option(metavar="NAME", help="Name of the variant (default: that of the method)."),
]
MaxErrorOption = Annotated[
    float | None,
    option(
        metavar="X",
        help="Publish nothing if the relative L2 error is above X (default: no bound).",
    ),
]


def derive(
    cli: Cli,
    ref: Ref,
    cast: CastOption = None,
    int8: Int8Option = None,
    fp8: Fp8Option = None,
    prune: PruneOption = None,
    low_rank: LowRankOption = None,
    keep: KeepOption = None,
    name: NameOption = None,
    max_error: MaxErrorOption = None,
    message: Message = "",
) -> None:
    """Make a lossy variant of a version.

    One that was derived in the same way before is left as it is, and nothing is stored.
    A variant is loaded as MODEL@VERSION+NAME, or where a node's profile prefers it; all others get
    the original.
    """
    given = {
        "cast": cast,
        "int8": int8,
        "fp8": fp8,
        "prune": prune,
        "low-rank": low_rank,
    }
    parameters = {kind: value for kind, value in given.items() if value is not None}
    with cli.open() as store, cli.progress("deriving") as progress:
        made = store.derive(
            ref,
            parameters,
            keep=keep,
            name=name,
            max_error=max_error,
            message=message,
            progress=progress,
        )
        data = _derived_json(store, made, store.resolve(ref))

    def text() -> None:
        share = 100 * data.logical_bytes / max(data.original_bytes, 1)
        stored = f"{size(data.stored_bytes)} stored"
        if data.existed:
            stored = "nothing stored: it was derived in the same way before"
        taken = f"{share:.1f} % of the original, {stored}"
        print(f"{data.ref}: {size(data.logical_bytes)}, {taken}")
        print(f"error over {counted(len(data.tensors), 'tensor')}: {_words(data.error)}")

    cli.out.show(data, [data.ref], text)


def variants(cli: Cli, ref: Ref) -> None:
    """List the lossy variants of a version and their errors."""
    with cli.open() as store:
        version = store.resolve(ref)
        found = [_variant_json(store, one) for one in store.variants(ref)]
    data = schemas.Variants(ref=str(version), variants=found)

    def text() -> None:
        if not found:
            print(f"{version} has no variants; 'tierstore derive {version}' makes one")
            return
        columns = [
            Column("VARIANT"),
            Column("MAX ABS", right=True),
            Column("REL L2", right=True),
            Column("SNR", right=True),
            Column("TENSORS", right=True),
            Column("METHOD"),
        ]
        rows = [
            (
                one.variant,
                _number(one.error.max_abs),
                _number(one.error.relative_l2),
                _decibels(one.error.snr_db),
                str(len(one.tensors)),
                _method(one.parameters),
            )
            for one in found
        ]
        table(columns, rows)

    cli.out.show(data, [one.ref for one in found], text)


def lineage(cli: Cli, ref: Ref) -> None:
    """Draw what a version was made from, and what was made from it."""
    with cli.open() as store:
        version = store.resolve(ref)
        roots = store.admin.lineage(ref)
    data = schemas.LineageTree(ref=str(version), roots=[_node_json(root) for root in roots])

    def text() -> None:
        for root in roots:
            _draw(root, "", "")

    cli.out.show(data, [name for root in roots for name in _every_name(root)], text)


def _variant_json(store: Store, version: Version) -> schemas.VariantJson:
    from tierstore.modelstore.loading.dequantized import read_record

    record = read_record(store.load(version))
    return schemas.VariantJson(
        model=version.model,
        version=version.number,
        digest=str(version.digest),
        created=version.created,
        who=version.who,
        message=version.message,
        ref=str(version),
        variant=version.variant or "",
        parameters=record.parameters,
        kept=record.kept,
        tool=record.tool,
        error=_error_json(record.error),
        tensors=_tensors_json(record),
    )


def _derived_json(store: Store, made: Version, version: Version) -> schemas.Derived:
    shown = _variant_json(store, made)
    original, files = store.load(version), store.load(made).files
    return schemas.Derived(
        **{field: getattr(shown, field) for field in shown.__struct_fields__},
        existed=made.stats is None,
        logical_bytes=sum(file.size for file in files),
        original_bytes=sum(file.size for file in original.files),
        stored_bytes=made.stats.stored_bytes if made.stats else 0,
    )


def _tensors_json(record: VariantRecord) -> list[schemas.ApproximatedTensor]:
    return [
        schemas.ApproximatedTensor(
            name=name, dtype=one.dtype, shape=one.shape, error=_error_json(one.error)
        )
        for name, one in record.tensors.items()
    ]


def _error_json(error: ErrorRecord) -> schemas.VariantErrorJson:
    return schemas.VariantErrorJson(
        max_abs=error.max_abs, relative_l2=error.relative_l2, snr_db=error.snr_db
    )


def _node_json(node: Node) -> schemas.LineageNode:
    return schemas.LineageNode(
        digest=str(node.digest),
        names=node.names,
        relation=node.relation,
        asked=node.asked,
        children=[_node_json(child) for child in node.children],
    )


def _every_name(node: Node) -> list[str]:
    return [*node.names, *(name for child in node.children for name in _every_name(child))]


def _draw(node: Node, first: str, rest: str) -> None:
    names = " = ".join(node.names) or "gone"
    how = f" ({node.relation})" if node.relation else ""
    here = ", the one asked for" if node.asked else ""
    print(printable(f"{first}{names}  {node.digest.short}{how}{here}"))
    for number, child in enumerate(node.children, 1):
        last = number == len(node.children)
        _draw(child, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  "))


def _words(error: schemas.VariantErrorJson) -> str:
    return (
        f"relative {_number(error.relative_l2)}, largest {_number(error.max_abs)}, "
        f"signal to noise {_decibels(error.snr_db)}"
    )


def _number(value: float | None) -> str:
    return "inf" if value is None else f"{value:.3g}"


def _decibels(value: float | None) -> str:
    return "exact" if value is None else f"{value:.1f} dB"


def _method(parameters: dict[str, str]) -> str:
    return ", ".join(f"{kind} {value}" for kind, value in parameters.items())
