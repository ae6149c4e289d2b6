"""The guards that ``tests/mutations.py`` removes, each with the tests that must then fail.

A guard is what a MUST of ``format/SPEC.md`` or a promise of README and docs rests on. Whoever adds
one adds its mutation here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """One guard, and how to remove it.

    Attributes:
        name: Names it in tables and for choosing it.
        promise: What rests on it: a section of the specification or of a document, in its words.
        file: The module, below ``tierstore/``.
        old: The source text to replace; it is in the file exactly once.
        new: What to put there.
        tests: Ids of tests below ``tests/`` that must all fail then; of a test with parameters one
            case that fails is enough.
    """

    name: str
    promise: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


_FORMAT = (
    Mutation(
        "frame-head-checksum",
        "SPEC 3: A reader MUST check the head's xxh3.",
        "format/frame.py",
        "if _SUM.unpack_from(view, head_bytes - _SUM.size)[0] != xxh3(view[: -_SUM.size]):",
        "if False:",
        ("unit/test_format_frame.py::test_damage_is_refused[head checksum]",),
    ),
    Mutation(
        "frame-of-another-chunk",
        "SPEC 3: A reader MUST check that the head's digest is the one it wants.",
        "format/frame.py",
        "if digest is not None and found != digest:",
        "if False:",
        ("unit/test_format_frame.py::test_the_digest_in_the_head_is_the_one_that_is_wanted",),
    ),
    Mutation(
        "frame-payload-checksum",
        "SPEC 3: A reader of the whole chunk MUST then check the payload's xxh3.",
        "format/frame.py",
        "if xxh3(payload) != head.payload_xxh3:",
        "if False:",
        ("unit/test_format_frame.py::test_the_payload_is_checked",),
    ),
    Mutation(
        "frame-flags",
        "SPEC 3: a set bit that the reader does not know is refused.",
        "format/frame.py",
        "if flags or key_id:",
        "if False:",
        ("unit/test_format_frame.py::test_what_is_newer_is_refused",),
    ),
    Mutation(
        "frame-limits-before-allocation",
        "SPEC 1: A limit MUST be checked before memory is allocated for what it limits.",
        "format/frame.py",
        "if plain_bytes > MAX_PLAIN_BYTES or payload_bytes > plain_bytes:",
        "if payload_bytes > plain_bytes:",
        ("unit/test_format_frame.py::test_damage_is_refused[plain_bytes above the limit]",),
    ),
    Mutation(
        "frame-base-pieces-add-up",
        "SPEC 3: The lengths of the base pieces MUST add up to plain_bytes.",
        "format/frame.py",
        "if pieces and sum(piece.plain_bytes for piece in pieces) != plain_bytes:",
        "if False:",
        ("unit/test_format_frame.py::test_damage_is_refused[bases do not add up]",),
    ),
    Mutation(
        "frame-ends-rise",
        "SPEC 3: Ends MUST NOT decrease and the last MUST equal payload_bytes.",
        "format/frame.py",
        "if not rising or (ends[-1] if ends else 0) != payload_bytes:",
        "if False:",
        ("unit/test_format_frame.py::test_damage_is_refused[ends decrease]",),
    ),
    Mutation(
        "chunk-digest",
        "SPEC 3: A reader of the whole chunk MUST check the digest of the plain bytes.",
        "modelstore/chunks/decode.py",
        "if digest_of(out).raw != head.digest:",
        "if False:",
        (
            "integration/test_forged_frames.py::"
            "test_a_frame_with_right_checksums_of_other_bytes_is_damaged",
        ),
    ),
    Mutation(
        "block-checksum",
        "SPEC 3: A reader of some blocks MUST, after decoding, check each block's plain xxh3.",
        "modelstore/chunks/decode.py",
        "if xxh3(out) != head.sums[index]:",
        "if False:",
        (
            "integration/test_forged_frames.py::"
            "test_a_row_of_a_block_that_does_not_match_its_checksum_is_damaged",
        ),
    ),
    Mutation(
        "base-is-standalone",
        "SPEC 3: A base MUST NOT be stored as a delta itself (depth 1).",
        "modelstore/chunks/decode.py",
        "if place is None or place.bases:",
        "if place is None:",
        ("integration/test_forged_frames.py::test_a_layout_whose_bases_are_deltas_is_damaged",),
    ),
    Mutation(
        "pack-id",
        "SPEC 4: The pack id is BLAKE3-256 over the 64 header bytes followed by the index bytes.",
        "format/pack.py",
        "if blake3.blake3(bytes(header)).update(index).digest() != trailer.pack_id:",
        "if False:",
        ("unit/test_format_pack.py::test_the_id_binds_header_and_index",),
    ),
    Mutation(
        "pack-without-gaps",
        "SPEC 4: Its index MUST list the frames in the order in which they lie, without a gap.",
        "format/pack.py",
        "if len(places) != trailer.frames or list(starts) != [*offsets, trailer.index_offset]:",
        "if len(places) != trailer.frames:",
        ("unit/test_format_pack.py::test_an_index_that_does_not_fit_its_pack",),
    ),
    Mutation(
        "sealed-body-checksum",
        "SPEC 5: xxh3 of the body; what breaks a checksum is damaged.",
        "format/sealed.py",
        "if xxh3(body) != body_sum:",
        "if False:",
        ("unit/test_format_sealed.py::test_damage_is_refused[body checksum]",),
    ),
    Mutation(
        "sealed-zstd-size",
        "SPEC 5: A zstd body MUST be one frame that declares exactly plain_bytes bytes.",
        "format/sealed.py",
        "if zstandard.frame_content_size(body) != plain_bytes:",
        "if False:",
        ("unit/test_format_sealed.py::test_damage_is_refused[zstd of undeclared length]",),
    ),
    Mutation(
        "sealed-kind",
        "SPEC 5: the envelope says which kind of object it holds.",
        "format/sealed.py",
        "if found != kind:",
        "if False:",
        ("unit/test_format_sealed.py::test_damage_is_refused",),
    ),
    Mutation(
        "required-features",
        "SPEC 5: a reader that does not know one of the features MUST refuse the object.",
        "format/checks.py",
        "unknown = sorted(set(requires) - KNOWN_FEATURES)",
        "unknown: list[str] = []",
        (
            "unit/test_format_sealed.py::test_unknown_fields_are_ignored_and_unknown_features_refused",
            "golden/test_golden.py::test_a_manifest_that_requires_more_is_refused",
        ),
    ),
    Mutation(
        "table-range",
        "SPEC 6: Offsets and lengths MUST lie between the pack's header and its end.",
        "format/table.py",
        "or (not own and (offsets + lengths > np.array(self.pack_sizes)[packs]).any())",
        "",
        ("unit/test_format_table.py::test_damaged_tables",),
    ),
    Mutation(
        "manifest-digest",
        "SPEC 7: Readers MUST check the manifest's digest against the bytes as stored.",
        "format/manifest.py",
        "if digest_of(plain) != digest:",
        "if False:",
        ("unit/test_format_manifest.py::test_the_digest_is_checked_over_the_stored_bytes",),
    ),
    Mutation(
        "manifest-file-and-folder",
        "SPEC 7: paths are unique, and none is a folder of another.",
        "format/manifest.py",
        "if not folders.isdisjoint(paths):",
        "if False:",
        ("unit/test_format_manifest.py::test_damage_is_refused",),
    ),
    Mutation(
        "manifest-fits-header",
        "SPEC 7: Tensors stand in the order of begin and MUST say what the header says.",
        "format/manifest.py",
        "if said != (tensor.name, tensor.dtype, tensor.shape, tensor.begin):",
        "if False:",
        ("unit/test_format_manifest.py::test_damage_is_refused",),
    ),
    Mutation(
        "path-parts",
        "SPEC 7: path is relative, no empty, . or .. part.",
        "format/manifest.py",
        'if any(part in {"", ".", ".."} for part in path.split("/")):',
        "if False:",
        ("unit/test_format_manifest.py::test_paths_that_leave_their_directory_or_cannot_be_files",),
    ),
    Mutation(
        "path-nfc",
        "SPEC 7: path is NFC.",
        "format/manifest.py",
        'elif unicodedata.normalize("NFC", path) != path:',
        "elif False:",
        ("unit/test_format_manifest.py::test_paths_that_leave_their_directory_or_cannot_be_files",),
    ),
    Mutation(
        "patch-indices-rise",
        "SPEC 7.1: As stored, indices MUST rise strictly and lie below the count of rows.",
        "format/patch.py",
        "if not last < first <= end < limit:",
        "if False:",
        ("unit/test_format_patch.py::test_damage_is_refused",),
    ),
    Mutation(
        "ref-entry-number",
        "SPEC 9: sequence numbers run without gaps; an entry is of the number in its key.",
        "format/reflog.py",
        "if entry.seq != seq:",
        "if False:",
        ("unit/test_format_refs.py::test_damaged_entries",),
    ),
    Mutation(
        "config-checksum",
        "SPEC 10: check is the xxh3 of the other fields.",
        "format/storeconfig.py",
        'if fields.pop("check", None) != _check(fields):',
        'if fields.pop("check", None) is None:',
        ("unit/test_format_refs.py::test_damaged_configs",),
    ),
    Mutation(
        "config-unknown-field",
        "SPEC 10: An unknown field of the config is refused.",
        "format/storeconfig.py",
        "if unknown := sorted(set(fields) - set(StoreConfig.__struct_fields__)):",
        "for extra in set(fields) - set(StoreConfig.__struct_fields__):\n"
        "            del fields[extra]\n"
        "        if unknown := []:",
        ("unit/test_format_refs.py::test_newer_configs",),
    ),
    Mutation(
        "config-features",
        "SPEC 10: a client that does not know a name in write MUST NOT write.",
        "format/storeconfig.py",
        "unknown = sorted(set(getattr(config.features, needed)) - STORE_FEATURES)",
        "unknown: list[str] = []",
        (
            "unit/test_format_refs.py::test_features_bind_only_what_they_are_for",
            "unit/test_modelstore_refs.py::"
            "test_a_store_with_an_unknown_write_feature_is_read_but_not_written",
        ),
    ),
    Mutation(
        "config-hash",
        "SPEC 2: A reader that does not know the name of the hash MUST refuse the store.",
        "format/storeconfig.py",
        "if config.hash != HASH:",
        "if False:",
        ("unit/test_format_refs.py::test_newer_configs",),
    ),
    Mutation(
        "tier-url-without-secret",
        "SPEC 13: url MUST NOT hold a secret.",
        "format/tiers.py",
        "if has_secret(spec.url) or any(map(_SECRET.match, spec.options)):",
        "if False:",
        ("unit/test_format_tiers.py::test_a_tier_out_of_range_is_refused",),
    ),
    Mutation(
        "safetensors-holes",
        "docs/SECURITY: Safetensors headers are checked by the rules of that format.",
        "format/safetensors.py",
        "if tensor.begin != at:",
        "if tensor.begin < at:",
        ("unit/test_safetensors.py::test_hostile_header_is_refused_in_one_line",),
    ),
    Mutation(
        "safetensors-repeated-key",
        "docs/SECURITY: Safetensors headers are checked by the rules of that format.",
        "format/safetensors.py",
        'if outside.count(b":") != keys:',
        "if False:",
        ("unit/test_safetensors.py::test_hostile_header_is_refused_in_one_line",),
    ),
    Mutation(
        "safetensors-header-limit",
        "SPEC 7: Limits: header 100 MB each, checked before memory is allocated.",
        "format/safetensors.py",
        "if n > MAX_HEADER_BYTES:",
        "if False:",
        ("unit/test_safetensors.py::test_length_limit_is_checked_on_the_first_8_bytes",),
    ),
)

_DURABILITY = (
    Mutation(
        "blob-file-synced",
        "docs/explanation 6: a blob is written, synced, and only then renamed to its place.",
        "blobs/local/store.py",
        "files.write_all(fd, views)\n                    os.fsync(fd)",
        "files.write_all(fd, views)",
        (
            "unit/test_blobs_local.py::"
            "test_a_blob_is_synced_before_it_appears_and_its_directories_after",
        ),
    ),
    Mutation(
        "blob-directory-synced",
        "docs/explanation 6: after that every directory that changed is synced.",
        "blobs/local/store.py",
        "os.rename(temp, name, src_dir_fd=temp_fd, dst_dir_fd=folder)\n"
        "                files.sync_dir(folder)",
        "os.rename(temp, name, src_dir_fd=temp_fd, dst_dir_fd=folder)",
        (
            "unit/test_blobs_local.py::"
            "test_a_blob_is_synced_before_it_appears_and_its_directories_after",
        ),
    ),
    Mutation(
        "blob-parents-synced",
        "docs/explanation 6: after that every directory that changed is synced.",
        "blobs/local/store.py",
        "if create and path not in self._durable_dirs:",
        "if False:",
        ("unit/test_blobs_local.py::test_a_directory_that_another_process_made_is_synced_too",),
    ),
    Mutation(
        "blob-renamed-into-place",
        "SPEC 10: Every object is written by one put; a crash leaves a whole blob or none.",
        "blobs/local/store.py",
        'with self._errors("writing", key), self._temp_file(data) as (temp_fd, temp):\n'
        "            folder, name = self._open_parent(key, create=True)\n"
        "            try:\n"
        "                os.rename(temp, name, src_dir_fd=temp_fd, dst_dir_fd=folder)",
        'with self._errors("writing", key):\n'
        "            folder, name = self._open_parent(key, create=True)\n"
        "            try:\n"
        "                flags = files.CREATE_FLAGS & ~os.O_EXCL | os.O_TRUNC\n"
        "                fd = os.open(name, flags, 0o666, dir_fd=folder)\n"
        "                files.write_all(fd, flat_views(data))\n"
        "                os.fsync(fd)\n"
        "                os.close(fd)",
        ("unit/test_blobs_local.py::test_a_killed_writer_leaves_the_old_blob_or_the_new_one",),
    ),
    Mutation(
        "blob-create-only",
        "SPEC 9: entries are created with put-if-absent, never changed.",
        "blobs/local/store.py",
        "os.link(temp, name, src_dir_fd=temp_fd, dst_dir_fd=folder, follow_symlinks=False)\n"
        "            except FileExistsError:",
        "os.rename(temp, name, src_dir_fd=temp_fd, dst_dir_fd=folder)\n"
        "            except FileExistsError:",
        ("unit/test_blobs_local.py::test_eight_processes_race_to_create",),
    ),
    Mutation(
        "blob-links-not-followed",
        "docs/explanation 9: a symbolic link below the root never leads out of it.",
        "blobs/local/files.py",
        "flags = DIR_FLAGS | os.O_NOFOLLOW",
        "flags = DIR_FLAGS",
        ("unit/test_blobs_local.py::test_symbolic_links_lead_nowhere",),
    ),
    Mutation(
        "manifest-before-layout",
        "SPEC 11: 3. manifest 5. layout 6. ref entry.",
        "modelstore/saving/writer.py",
        "self._create(version_key(digest), sealed)\n            self._write_layout(digest)",
        "self._write_layout(digest)\n            self._create(version_key(digest), sealed)",
        (
            "integration/test_crash.py::"
            "test_the_writes_of_a_save_come_in_the_order_of_the_specification",
        ),
    ),
    Mutation(
        "packs-durable-before-manifest",
        "SPEC 11: 2. packs 3. manifest.",
        "modelstore/saving/writer.py",
        "            self._packer.finish()\n"
        "            digest, sealed = seal_manifest(\n"
        "                Manifest(chunk_size=self._chunk_size, files=entries, lineage=tuple(lineage))\n"
        "                if patch is None\n"
        "                else patch_manifest(entries[0], patch, self._chunk_size)\n"
        "            )\n"
        "            self._create(version_key(digest), sealed)\n",
        "            digest, sealed = seal_manifest(\n"
        "                Manifest(chunk_size=self._chunk_size, files=entries, lineage=tuple(lineage))\n"
        "                if patch is None\n"
        "                else patch_manifest(entries[0], patch, self._chunk_size)\n"
        "            )\n"
        "            self._create(version_key(digest), sealed)\n"
        "            self._packer.finish()\n",
        (
            "integration/test_crash.py::"
            "test_the_writes_of_a_save_come_in_the_order_of_the_specification",
        ),
    ),
    Mutation(
        "ref-entry-put-if-absent",
        "SPEC 9: created with put-if-absent; of two writers each gets its own number.",
        "modelstore/home/refs.py",
        "if self._home.put_if_absent(key, seal_body(Kind.REF, entry)):\n                return True",
        "self._home.put(key, seal_body(Kind.REF, entry))\n            return True",
        ("unit/test_modelstore_refs.py::test_racing_writers_each_get_their_own_place",),
    ),
    Mutation(
        "ref-entry-write-id",
        "SPEC 9: it is its own if and only if write_id is.",
        "modelstore/home/refs.py",
        "if there is not None and there.write_id == entry.write_id:",
        "if there is not None:",
        ("unit/test_modelstore_refs.py::test_a_place_that_another_writer_took_is_not_ours",),
    ),
    Mutation(
        "ref-entry-lost-answer",
        "SPEC 9: A writer that lost the answer reads the entry back.",
        "modelstore/home/refs.py",
        "            lost = error\n        there = self._find(entry.seq)",
        "            raise\n        there = self._find(entry.seq)",
        ("unit/test_modelstore_refs.py::test_a_lost_answer_is_recognised_as_our_own",),
    ),
    Mutation(
        "reused-packs-confirmed",
        "SPEC 11: every reused pack is confirmed to exist before the layout.",
        "modelstore/saving/writer.py",
        "            gone = self._gone_packs()\n",
        "            gone: set[bytes] = set()\n",
        ("integration/test_save_load_dedup.py::test_a_pack_that_vanished_is_stored_again",),
    ),
    Mutation(
        "condemned-packs",
        "SPEC 10: A writer MUST NOT reuse a chunk in a condemned pack.",
        "modelstore/home/confirm.py",
        "if not has or pack in condemned}",
        "if not has}",
        (
            "integration/test_save_load_dedup.py::test_a_condemned_pack_is_not_reused",
            "integration/test_save_load_dedup.py::"
            "test_a_pack_condemned_while_the_save_runs_is_not_reused",
        ),
    ),
    Mutation(
        "pack-of-another-size",
        "SPEC 8: whatever is taken from the index is confirmed before a version uses it.",
        "modelstore/home/confirm.py",
        "return packs.info(pack_key(pack)).size == sizes[pack]",
        "return packs.info(pack_key(pack)).size >= 0",
        ("integration/test_save_load_dedup.py::test_a_pack_that_vanished_is_stored_again",),
    ),
    Mutation(
        "lease-renewed-before-the-look",
        "SPEC 11: 4. the lease is renewed; had it ended, a save's own packs may be gone, too.",
        "modelstore/saving/writer.py",
        "if not self._lease.renew():",
        "if not (self._lease.renew() or True):",
        (
            "integration/test_save_load_dedup.py::"
            "test_after_the_lease_ended_own_packs_are_confirmed_too",
        ),
    ),
    Mutation(
        "gone-chunks-checked-again",
        "SPEC 1: any stored byte is verified: a source that changed is not stored under its digest.",
        "modelstore/saving/writer.py",
        "if digest_of(plain).raw != digest:",
        "if False:",
        (
            "integration/test_save_load_dedup.py::"
            "test_a_source_that_changed_before_it_is_read_again_is_an_error",
        ),
    ),
    Mutation(
        "source-changed",
        "docs: a file that changes while it is being saved is an error, nothing is published.",
        "modelstore/saving/source.py",
        "same = _identity(os.fstat(self._fd)) == self._identity",
        "same = True",
        ("unit/test_modelstore_source.py::test_a_file_that_changes_is_an_error",),
    ),
    Mutation(
        "array-changed",
        "docs: an array that is written to while it is being saved is an error.",
        "modelstore/saving/source.py",
        "if xxh3(out) != value:",
        "if False:",
        (
            "unit/test_modelstore_source.py::"
            "test_an_array_that_changes_is_an_error_and_no_wrong_byte_is_kept",
        ),
    ),
    Mutation(
        "base-of-a-delta-verified",
        "SPEC 3: the base that a delta refers to is the plain bytes of its digest.",
        "modelstore/saving/delta.py",
        "if digest_of(out).raw != digest:",
        "if False:",
        (
            "integration/test_hot_deltas.py::"
            "test_a_base_that_this_nodes_disk_has_changed_makes_no_delta",
        ),
    ),
    Mutation(
        "pickles-refused",
        "SECURITY: Pickles are refused, and nothing is ever unpickled.",
        "modelstore/saving/source.py",
        'if first[:2] == b"PK" or (first[:1] == b"\\x80" and first[1:2] <= b"\\x05"):',
        "if False:",
        ("unit/test_modelstore_source.py::test_pickles_are_refused_with_the_way_out",),
    ),
    Mutation(
        "export-stays-inside",
        "SECURITY: Paths in a manifest cannot leave the directory that they are exported to.",
        "modelstore/loading/export.py",
        "if not target.parent.resolve().is_relative_to(root.resolve()):",
        "if False:",
        ("integration/test_hostile_export.py::test_a_link_inside_the_target_does_not_lead_out",),
    ),
    Mutation(
        "export-sha256",
        "SECURITY: An exported file is compared with the SHA-256 that was recorded.",
        "modelstore/loading/export.py",
        "if sha.digest() != file.sha256:",
        "if False:",
        ("integration/test_hostile_damage.py::test_a_wrong_sha256_puts_no_file_in_place",),
    ),
    Mutation(
        "names-by-case",
        "SPEC 9: Model and alias are unique under Unicode case folding.",
        "modelstore/names/names.py",
        "if other != name and other.casefold() == name.casefold():",
        "if False:",
        ("unit/test_modelstore_refs.py::test_names_that_differ_only_in_case_are_refused",),
    ),
    Mutation(
        "names-nfc",
        "SPEC 9: Model and alias are NFC.",
        "ids.py",
        'normal = unicodedata.normalize("NFC", name)',
        "normal = name",
        ("unit/test_ids.py::test_names_are_composed",),
    ),
)

MUTATIONS = (*_FORMAT, *_DURABILITY)
